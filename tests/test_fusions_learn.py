"""Every fusion with a language model learns 16 rows of pictures and sounds by heart, from the pictures and the sounds.

Each answer is a word for the row's picture and one for its sound, four of each, so that neither alone is enough.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.config import CONF, compose
from runner.evaluate_run import evaluate_run
from runner.predictor import Predictor

pytestmark = pytest.mark.zoo
ANIMALS = Path(os.environ.get("RUNNER_TEST_DATA", "../shared")) / "data" / "trimodal_animals"
FUSIONS = sorted(file.stem for file in (CONF / "fusion").glob("*.yaml") if not file.stem.startswith("pooled_"))
WORDS = ("cat", "dog", "bird", "frog")
QUESTIONS = ("<image>\n<audio>\nWhat is seen, and what is heard?", "Listen: <audio>\nNow look: <image>\nName both.")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ANIMALS.is_dir():
        pytest.skip(f"there is no {ANIMALS}")
    folder = tmp_path_factory.mktemp("animals")
    for word in WORDS:
        for kind, suffix in (("images", "jpg"), ("audio", "wav")):
            shutil.copy(sorted((ANIMALS / kind / word).glob(f"*.{suffix}"))[0], folder / f"{word}.{suffix}")
    pairs = [(seen, heard) for seen in WORDS for heard in WORDS]
    others = pairs.copy()
    random.Random(3).shuffle(others)
    for name, shown in (("train", pairs), ("shuffled", others)):
        lines = []
        for k, ((seen, heard), (picture, sound)) in enumerate(zip(pairs, shown, strict=True)):
            turns = [
                {"role": "user", "content": QUESTIONS[k % 2]},
                {"role": "assistant", "content": f"{seen}, {heard}"},
            ]
            row = {"id": str(k), "messages": turns, "image": f"{picture}.jpg", "audio": f"{sound}.wav"}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def questions(file: Path) -> list[dict[str, Any]]:
    asked = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        items = {name: file.with_name(row[name]) for name in ("image", "audio")}
        asked.append({"prompt": row["messages"][0]["content"], **items})
    return asked


def truths(file: Path) -> list[str]:
    return [json.loads(line)["messages"][1]["content"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_learns_by_heart_what_is_seen_and_heard(fusion: str, rows: Path, tmp_path: Path) -> None:
    words = [
        f"fusion={fusion}", "data=jsonl", f"data.path={rows}/train.jsonl", f"data.val_path={rows}/train.jsonl",
        "encoder/audio=spectrogram", "encoder.image.size=32", "encoder.image.channels=3", "encoder.image.patch_size=8",
        "train.max_steps=200", "train.batch_size=16", "optimizer.lr=2e-3", "schedule.warmup_steps=20",
        "train.parts.fusion.lr=1e-2", "model.max_new_tokens=12", "tracker=none", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    if fusion in ("prefix", "interleave"):
        words.remove("train.parts.fusion.lr=1e-2")  # nothing of them trains
    summary = runner.train(words)
    assert summary["last"]["val/exact_match"] == 1.0
    shuffled = evaluate_run(compose("evaluate", [f"run={tmp_path}/run", f"data.path={rows}/shuffled.jsonl", "at=last"]))
    assert shuffled["metrics"]["shuffled/exact_match"] <= 0.2

    asked = questions(rows / "train.jsonl")
    asked[3].pop("image")  # rows that lack an item stand beside rows that have it
    asked[6].pop("audio")
    for row, name in ((asked[3], "<image>"), (asked[6], "<audio>")):
        row["prompt"] = row["prompt"].replace(name, "nothing")
    every = {
        (batch_size, cache): Predictor.from_run(
            tmp_path / "run", "last", [f"batch_size={batch_size}", f"use_cache={cache}"]
        )(asked)
        for batch_size in (16, 5, 1)
        for cache in ("true", "false")
    }
    first = every[1, "true"]
    assert all(answers == first for answers in every.values()), every
    assert sum(map(str.__eq__, first, truths(rows / "train.jsonl"))) >= 14
