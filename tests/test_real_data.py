"""Real weights and real rows: a 260K-parameter Llama on school maths, and photographs from a JSONL file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.checkpoint import Local


def maths(shared: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """LoRA r16 on all linear layers of stories260k over GSM8K, rows over the model's 512 tokens dropped."""
    return runner.train(
        [
            "model=chat", "llm=pretrained", f"llm.path={shared}/models/stories260k", "lora=default", "data=jsonl",
            f"data.path={shared}/data/gsm8k", "data.fields={user: question, assistant: answer}",
            "data.over_length=drop",
            "train.batch_size=16", "optimizer.lr=1e-2", "schedule.warmup_steps=20", "evaluation.predict_rows=4",
            "evaluation.batch_size=32", "model.max_new_tokens=32", "checkpoint.monitor=val/loss", "checkpoint.mode=min",
            "tracker=none", f"hydra.run.dir={folder}", *overrides,
        ]
    )  # fmt: skip


def checkpoint_bytes(folder: Path) -> int:
    newest, _ = Local().newest(folder)
    assert newest is not None
    return sum(file.stat().st_size for file in newest.iterdir())


@pytest.mark.zoo
def test_lora_on_a_real_llama_learns_and_its_checkpoint_is_small(shared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = maths(
        shared, run, "train.max_steps=6", "schedule.warmup_steps=1", "train.log_every=1", "train.eval_every=null"
    )
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]
    assert 6.5 < losses[0] < 8.0  # zero-shot: about 7.3 per labelled token
    assert summary["last"]["val/loss"] < 5.5
    train = summary["data"]["train"]
    assert train["total"] == 2000 and train["dropped"] == train["over"] > 0
    assert f"{train['over']:,} over length: {train['dropped']:,} dropped" in (run / "train.log").read_text()
    trainable = summary["parameters"]["trainable"]
    assert trainable == summary["parameters"]["by_component"]["lora"]["trainable"] == 92_480
    newest, _ = Local().newest(run)
    assert newest is not None
    saved = Local().load(newest)
    assert all("lora_" in name for name in saved.trainable)
    assert set(saved.state["files"]["llm"]) == {"model.safetensors"}
    assert checkpoint_bytes(run) <= 12 * trainable + 64 * 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_maths_run_reaches_its_loss(shared: Path, tmp_path: Path) -> None:
    summary = maths(shared, tmp_path / "run", "train.max_steps=180", "train.eval_every=60")
    assert summary["last"]["val/loss"] <= 2.6


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quick_run_reads_held_out_digits(tmp_path: Path, seed: int) -> None:
    summary = runner.train(["tracker=none", f"seed={seed}", f"hydra.run.dir={tmp_path}/run"])
    assert summary["last"]["val/exact_match"] >= 0.95


def clothes(shared: Path, folder: Path) -> Path:
    """Rows of two photographs each, in portrait sizes that all differ, asked about in the middle of a text."""
    rows = [json.loads(line) for line in (shared / "data" / "clothing" / "train.jsonl").open()][:12]
    for row in rows:
        target = folder / row["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / "data" / "clothing" / row["image"], target)
    with (folder / "train.jsonl").open("w") as file:
        for one, two in zip(rows, rows[1:] + rows[:1], strict=True):
            question = "First <image> then <image>. What is the second?"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": two["label"]}]
            row = {"id": one["id"], "image": {"items": [one["image"], two["image"]]}, "messages": messages}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.mark.zoo
@pytest.mark.parametrize("fusion", ["prefix", "interleave"])
def test_several_photographs_a_row_overfit(shared: Path, tmp_path: Path, fusion: str) -> None:
    data = clothes(shared, tmp_path / "clothes")
    summary = runner.train(
        [
            "data=jsonl", f"data.path={data}", f"data.val_path={data}/train.jsonl", f"fusion={fusion}",
            "encoder.image.size=32", "encoder.image.channels=3", "encoder.image.patch_size=8", "train.max_steps=60",
            "train.batch_size=12", "optimizer.lr=2e-3", "schedule.warmup_steps=10", "model.max_new_tokens=16",
            "tracker=none", f"hydra.run.dir={tmp_path}/run",
        ]
    )  # fmt: skip
    assert summary["last"]["val/exact_match"] == 1.0
