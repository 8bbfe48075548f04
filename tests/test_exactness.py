"""The same run, whatever the split, the processes or the kill: ids, losses and weights, to the last bit where promised.

Processes are real and so is kill -9; `ranks` makes them quick to start.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from PIL import Image
from sklearn.datasets import load_digits

from runner import training
from runner.run_folder import read_status

SMALL = [
    "tracker=none", "train.batch_size=8", "train.log_ids=true", "evaluation.predict_rows=4", "evaluation.batch_size=3",
    "model.max_new_tokens=4", "checkpoint.monitor=val/loss", "checkpoint.mode=min", "schedule.warmup_steps=2",
    "llm.hidden_size=16", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2", "data=jsonl",
    "encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2",
]  # fmt: skip
"""Rows come from `pictures`: 22 in steps of 8, so an epoch has 3 steps and the last one 6 rows."""
WITH_CHANCE = [
    *SMALL, "train.max_steps=9", "train.eval_every=5", "checkpoint.every=2", "train.log_every=3",
    "encoder.image.dropout=0.1", "lora=default", "lora.r=2", "lora.dropout=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 rows to train on, of unequal length, every fifth without a picture; 7 to evaluate on."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    lines = []
    for k in range(29):
        Image.fromarray((digits.images[k] * 15.9).astype("uint8")).save(folder / f"{k}.png")
        question = {"role": "user", "content": "Read it. " + "Please. " * (k % 4)}
        answer = {"role": "assistant", "content": str(digits.target[k]) * (1 + k % 3)}
        row = {"id": f"row-{k}", "messages": [question, answer], "image": f"{k}.png" if k % 5 else None}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[:22]))
    (folder / "val.jsonl").write_text("".join(lines[22:]))
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run: rates."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in lines]


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if line["split"] == "train"]


def fingerprint(folder: Path) -> str:
    """sha256 over the last checkpoint's weights and optimizer."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [(last / name).read_bytes() for name in ("trainable.safetensors", "optimizer.safetensors")]
    return hashlib.sha256(b"".join(files)).hexdigest()


SPLITS = {"4x2": (4, 1), "2x4": (2, 1), "2 processes x 2 x 2": (2, 2), "2 processes x 4 x 1": (4, 2)}
"""Micro-batch size and number of processes; the last leaves a process without a row in the last step of an epoch."""


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert ranks.train(folder, [*SMALL, f"data.path={pictures}", "train.max_steps=20"]) == [0]
    return folder


@pytest.mark.parametrize("split", SPLITS)
def test_the_curve_is_the_same_however_a_step_is_split(whole: Path, pictures: Path, tmp_path: Path, split: str) -> None:
    micro, processes = SPLITS[split]
    overrides = [*SMALL, f"data.path={pictures}", "train.max_steps=20", f"train.micro_batch_size={micro}"]
    assert ranks.train(tmp_path / "split", overrides, processes) == [0] * processes
    one, two = train_lines(whole), train_lines(tmp_path / "split")
    assert [line["ids"] for line in one] == [line["ids"] for line in two]
    assert [len(line["ids"]) for line in one[:6]] == [8, 8, 6, 8, 8, 6]
    assert sorted(sum((line["ids"] for line in one[:3]), [])) == sorted(f"row-{k}" for k in range(22))
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    assert len(one) == 20
    (held_out,) = [line for line in lines_of(whole) if line["split"] == "val"]
    (again,) = [line for line in lines_of(tmp_path / "split") if line["split"] == "val"]
    assert abs(held_out["loss"] - again["loss"]) <= 2e-6 and held_out["exact_match"] == again["exact_match"]


def test_one_process_may_lack_what_the_other_has(pictures: Path, tmp_path: Path) -> None:
    """Of two processes one has pictures in its rows and the other none, by turns: no wait without end, the same curve.

    In the file's order a step of 8 rows is 4 and 4; rows 4 to 7 and 8 to 11 have no picture, a whole share each.
    """
    rows = [json.loads(line) for line in (pictures / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"image": None if 4 <= k < 12 else f"{k}.png"}) + "\n" for k, row in enumerate(rows[:16])]
    (pictures / "apart.jsonl").write_text("".join(lines))
    data = [f"data.path={pictures}/apart.jsonl", f"data.val_path={pictures}/val.jsonl", "data.order=file"]
    words = [*SMALL, *data, "train.max_steps=6"]
    assert ranks.train(tmp_path / "one", words) == [0]
    assert ranks.train(tmp_path / "two", words, 2) == [0, 0]
    one, two = train_lines(tmp_path / "one"), train_lines(tmp_path / "two")
    assert [line["ids"] for line in one] == [line["ids"] for line in two] and len(one) == 6
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    assert lines_of(tmp_path / "one")[-1]["exact_match"] == lines_of(tmp_path / "two")[-1]["exact_match"]


def in_float64(rank: int) -> None:
    """Build every part in float64. (GPT-2: other families compute their norms in float32 whatever they are given.)"""
    build = training.build

    def doubled(*arguments: Any, **named: Any) -> Any:
        parts = build(*arguments, **named)
        parts.objective.double()
        for encoder in parts.objective.encoder.values():
            encoder.register_forward_pre_hook(in_doubles, with_kwargs=True)
        return parts

    training.build = doubled


def in_doubles(encoder: Any, given: tuple[Any, ...], named: dict[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    return given, {name: one.double() if one.is_floating_point() else one for name, one in named.items()}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    from runner.models.byte_tokenizer import byte_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), byte_tokenizer()
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**shape, **ids, attn_pdrop=0.0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def in_fp64(pictures: Path, gpt2: Path) -> list[str]:
    own = [one for one in SMALL if not one.startswith("llm.")]
    return [
        *own,
        f"data.path={pictures}",
        "llm=pretrained",
        f"llm.path={gpt2}",
        "llm.trainable=true",
        "train.max_steps=20",
    ]


@pytest.fixture(scope="module")
def whole_in_fp64(in_fp64: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole64")
    assert ranks.train(folder, in_fp64, sabotage=in_float64) == [0]
    return folder


@pytest.mark.zoo
@pytest.mark.parametrize(
    "split", [one if one == "2 processes x 2 x 2" else pytest.param(one, marks=pytest.mark.zoo) for one in SPLITS]
)
def test_in_float64_it_is_the_same_to_1e_12(
    whole_in_fp64: Path, in_fp64: list[str], tmp_path: Path, split: str
) -> None:
    micro, processes = SPLITS[split]
    codes = ranks.train(tmp_path / "split", [*in_fp64, f"train.micro_batch_size={micro}"], processes, in_float64)
    assert codes == [0] * processes
    one, two = train_lines(whole_in_fp64), train_lines(tmp_path / "split")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 1e-12


Uninterrupted = Callable[[int, bool], Path]


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The folder of a run that nobody killed, for a number of processes, with a logged line a step or one for three."""

    @cache
    def run(processes: int, log_ids: bool) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        overrides = [*WITH_CHANCE, f"data.path={pictures}", f"train.log_ids={log_ids}"]
        assert ranks.train(folder, overrides, processes) == [0] * processes
        return folder

    return run


def test_evaluations_change_no_weight(uninterrupted: Uninterrupted, pictures: Path, tmp_path: Path) -> None:
    overrides = [*WITH_CHANCE, f"data.path={pictures}", "train.eval_every=null"]
    assert ranks.train(tmp_path / "run", overrides) == [0]
    assert fingerprint(tmp_path / "run") == fingerprint(uninterrupted(1, True))


@pytest.mark.zoo
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("micro", [8, 1])
def test_rows_that_no_trainable_part_sees_are_trained_past(
    pictures: Path, gpt2: Path, tmp_path: Path, micro: int, processes: int
) -> None:
    """A projector alone trains, and some micro-batches have no picture; however they are dealt, the curve is one."""
    own = [one for one in SMALL if not one.startswith("llm.")]
    words = [*own, "llm=pretrained", f"llm.path={gpt2}", f"data.path={pictures}", "train.max_steps=6"]
    words += ["llm.trainable=false"]
    assert ranks.train(tmp_path / "whole", words) == [0]
    split = [*words, f"train.micro_batch_size={micro // processes or 1}"]
    assert ranks.train(tmp_path / "split", split, processes) == [0] * processes
    one, two = train_lines(tmp_path / "whole"), train_lines(tmp_path / "split")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6


PLACES = ("forward", "update", "record", "save")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.faults)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.faults)])
@pytest.mark.parametrize(
    "step", [1, 2, 4, 8], ids=["in the first epoch", "at its end", "in a later epoch", "in the last step"]
)
def test_a_kill_changes_no_bit(
    uninterrupted: Uninterrupted, pictures: Path, tmp_path: Path, step: int, workers: int, processes: int
) -> None:
    chance = random.Random(f"{processes} {step} {workers}")
    where, log_ids = chance.choice(PLACES), chance.choice((True, False))
    only = chance.choice((None, 0 if where == "save" else processes - 1))
    overrides = [*WITH_CHANCE, f"data.path={pictures}", f"data.workers={workers}", f"train.log_ids={log_ids}"]
    folder, whole = tmp_path / "killed", uninterrupted(processes, log_ids)
    codes = ranks.train(folder, overrides, processes, ranks.killing(step, where, only))
    assert -signal.SIGKILL in codes and 0 not in codes, (codes, where, only)
    assert ranks.train(folder, [*overrides, "resume=auto"], processes) == [0] * processes
    assert read_status(folder)["state"] == "finished"
    assert lines_of(folder) == lines_of(whole)
    assert fingerprint(folder) == fingerprint(whole)
