"""Learning rates and freezing by part of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import load_file
from test_exactness import fingerprint, lines_of, pictures, train_lines

from runner.cli import main
from runner.model_parts import frozen_at, parts_of
from runner.protocols import Mistake

__all__ = ["pictures"]
SMALL = [
    "model=classify", "data=digits", "encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1",
    "encoder.image.heads=2", "encoder.image.dropout=0.1", "tracker=none", "train.batch_size=16", "schedule=constant",
    "train.log_every=1", "evaluation.predict_rows=0", "checkpoint.monitor=val/loss", "checkpoint.keep_last=9",
    "optimizer.lr=1e-3",
]  # fmt: skip


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "trainable.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> bool:
    """Whether all of a part changed; it fails where only some of it did."""
    changed = {not torch.equal(before[name], after[name]) for name in before if name.startswith(f"{part}.")}
    assert len(changed) == 1, f"some of {part} changed"
    return changed.pop()


def test_a_part_is_frozen_bit_for_bit_until_its_step_and_from_its_last(tmp_path: Path) -> None:
    words = [*SMALL, "train.max_steps=6", "checkpoint.every=1", f"hydra.run.dir={tmp_path}/run"]
    words += ["+train.parts.encoder.image.from_step=2", "+train.parts.head.until_step=4"]
    assert main(["train", *words]) == 0
    weights = {step: weights_at(tmp_path / "run", step) for step in (1, 2, 3, 4, 5, 6)}
    for step in (2, 3, 4, 5, 6):
        assert moved(weights[step - 1], weights[step], "encoder") == (step > 2)
        assert moved(weights[step - 1], weights[step], "head") == (step <= 4)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "encoder.image: frozen before step 2." in log and "head: frozen from step 4 on." in log


def test_a_part_has_its_own_learning_rate(tmp_path: Path) -> None:
    """With plain gradient descent the first step is the rate times the gradient."""
    plain = [*SMALL, "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "train.max_steps=1"]
    plain += ["train.clip_norm=null", "optimizer.weight_decay=0", "encoder.image.dropout=0"]
    runs: dict[str, Any] = {"whole": [], "parts": ["+train.parts.encoder.image.lr=3e-3", "+train.parts.head.lr=1e-6"]}
    start = [*plain, "optimizer.lr=1e-12", f"hydra.run.dir={tmp_path}/start"]
    assert main(["train", *start]) == 0
    first = weights_at(tmp_path / "start", 1)
    change = {}
    for name, words in runs.items():
        assert main(["train", *plain, *words, f"hydra.run.dir={tmp_path}/{name}"]) == 0
        after = weights_at(tmp_path / name, 1)
        change[name] = {key: (after[key] - first[key]).double() for key in first}
    for key, whole in change["whole"].items():
        factor = {"encoder": 3.0, "head": 1e-3}.get(key.partition(".")[0], 1.0)
        torch.testing.assert_close(change["parts"][key], whole * factor, rtol=2e-2, atol=2e-7)
    assert max(float(one.abs().max()) for one in change["whole"].values()) > 1e-5


@pytest.mark.zoo
def test_processes_freeze_together_and_a_resumed_run_freezes_on(pictures: Path, tmp_path: Path) -> None:
    """One process as two, and a run stopped while a part is frozen as one that was not: rows without a picture too."""
    for split in ("train", "val"):
        rows = [json.loads(line) for line in (pictures / f"{split}.jsonl").read_text().splitlines()]
        kept = [row | {"label": row.pop("messages")[1]["content"][0]} for row in rows if row["image"]]
        (pictures / f"labels-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    data = ["data=jsonl", f"data.path={pictures}/labels-train.jsonl", f"data.val_path={pictures}/labels-train.jsonl"]
    words = [*SMALL, *data, "train.batch_size=8", "train.log_ids=true", "+train.parts.encoder.image.from_step=3"]
    words += ["encoder.image.dropout=0", "+train.parts.encoder.image.lr=5e-3"]
    assert ranks.train(tmp_path / "one", [*words, "train.max_steps=6"]) == [0]
    assert ranks.train(tmp_path / "two", [*words, "train.max_steps=6", "train.micro_batch_size=2"], 2) == [0, 0]
    one, two = train_lines(tmp_path / "one"), train_lines(tmp_path / "two")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    assert ranks.train(tmp_path / "part", [*words, "train.max_steps=2"]) == [0]
    assert ranks.train(tmp_path / "part", [*words, "train.max_steps=6", "resume=auto"]) == [0]
    assert fingerprint(tmp_path / "part") == fingerprint(tmp_path / "one")
    assert lines_of(tmp_path / "part")[-1]["loss"] == lines_of(tmp_path / "one")[-1]["loss"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+train.parts.encoder.imgae.lr=1e-4"], "train.parts.encoder.imgae: the model has no such part; did you mean"),
        (["+train.parts.encoder.image.rate=1"], "train.parts.encoder.image.rate: a part has lr, from_step, until_step"),
        (["+train.parts.encoder.image.lr=-1"], "train.parts.encoder.image.lr: -1 is wrong; it must be a number"),
        (["+train.parts.head=3"], "train.parts.head: 3 is no part"),
        (
            ["+train.parts.head.from_step=3", "+train.parts.head.until_step=3"],
            "train.parts.head: from_step=3 is not before until_step=3",
        ),
        (
            ["+train.parts.encoder.from_step=3", "+train.parts.fusion.from_step=3", "+train.parts.head.until_step=2"],
            "every part that trains is frozen at step 2",
        ),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["train", *SMALL, "train.max_steps=2", *words, f"hydra.run.dir={tmp_path}/run"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err


def test_a_part_that_does_not_train_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fusion=prefix", "+train.parts.fusion.lr=1e-5", "train.max_steps=1", "tracker=none"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path}/run"]) == 2
    assert "train.parts.fusion: nothing of it trains" in capsys.readouterr().err


def test_a_part_named_apart_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not frozen with the part that it stands in, and its rate is not the one that is logged."""
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"image": inner, "audio": torch.nn.Linear(2, 2)})})
    parts = parts_of(model.train(), {"encoder": {"from_step": 5, "image": {"lr": 1e-3}}})
    with frozen_at(0, parts):
        assert inner[1].training and inner[0].weight.requires_grad
        assert not model["encoder"]["audio"].training and not model["encoder"]["audio"].weight.requires_grad
    assert model["encoder"]["audio"].training and model["encoder"]["audio"].weight.requires_grad
    with pytest.raises(
        Mistake, match="train.parts.encoder: all of it that trains belongs to train.parts.encoder.image"
    ):
        parts_of(model, {"encoder": {"lr": 1.0, "image": {"lr": 1e-3}, "audio": {"lr": 1e-3}}})
    words = [*SMALL, "train.max_steps=2", "train.parts.encoder.image.lr=1e-4", "train.parts.head.from_step=9"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path}/run"]) == 0
    assert {line["lr"] for line in train_lines(tmp_path / "run")} == {1e-3}
    assert "head: frozen before step 9; it never trains in this run's 2 steps." in capsys.readouterr().out
