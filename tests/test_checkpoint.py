"""A checkpoint that can be seen is whole; a broken one is named and never loaded."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import nn

from runner.checkpoint import Local, optimizer_tensors, own_tensors, restore, restore_optimizer, snapshot
from runner.protocols import CheckpointContent, Fault, Mistake

FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json")


def content(step: int) -> CheckpointContent:
    values = {"weight": torch.full((3, 2), float(step))}
    return CheckpointContent(step, values, {"0.exp_avg": torch.zeros(3, 2)}, {"progress": {"step": step}})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = Local().save(tmp_path, content(20))
    assert path == tmp_path / "checkpoints" / "step-00000020"
    again = Local().load(path)
    assert (again.step, dict(again.state)) == (20, {"progress": {"step": 20}})
    assert torch.equal(again.trainable["weight"], torch.full((3, 2), 20.0))
    assert sorted(file.name for file in path.iterdir()) == [
        "MANIFEST.json",
        "optimizer.safetensors",
        "state.json",
        FILES[0],
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing"])
def test_a_broken_file_is_named_and_passed_over(tmp_path: Path, name: str, fault: str) -> None:
    Local().save(tmp_path, content(1))
    file = Local().save(tmp_path, content(2)) / name
    data = bytearray(file.read_bytes())
    if fault == "flipped":
        data[-1] ^= 1
        file.write_bytes(data)
    elif fault == "truncated":
        file.write_bytes(data[:-1])
    else:
        file.unlink()
    newest, passed_over = Local().newest(tmp_path)
    assert newest is not None and newest.name == "step-00000001"
    assert len(passed_over) == 1 and name in passed_over[0]
    with pytest.raises(Mistake, match=name):
        Local().load(file.parent)


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"format": 99, "files": {}}', '{"format": 1, "step": 2, "files": {}}']
)
def test_a_broken_manifest_is_told(tmp_path: Path, manifest: str) -> None:
    path = Local().save(tmp_path, content(2))
    (path / "MANIFEST.json").write_text(manifest)
    assert Local().newest(tmp_path)[0] is None
    with pytest.raises(Mistake, match="not a whole checkpoint"):
        Local().load(path)


def test_a_failing_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Local().save(tmp_path, content(1))
    monkeypatch.setattr(
        "runner.checkpoint.sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(Fault, match="No space left.*step-00000001"):
        Local().save(tmp_path, content(2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def save_forever(folder: Path, pipe: Any) -> None:
    pipe.send("saves")
    newest, _ = Local().newest(folder)
    step = int(newest.name.removeprefix("step-")) if newest else 0
    while True:
        step += 1
        weights = {f"weight-{k}": torch.full((128, 1024), float(step)) for k in range(4)}
        Local().save(folder, CheckpointContent(step, weights, {"0.exp_avg": weights["weight-0"]}, {"step": step}))
        Local().prune(folder, {step - 1, step})


@pytest.mark.faults
def test_the_newest_checkpoint_is_whole_after_any_kill(tmp_path: Path) -> None:
    """kill -9 at 40 seeded moments while nothing is done but saving; each life goes on from what the last one left."""
    chance, before, interrupted = random.Random(0), 0, 0
    for life in range(40):
        ours, theirs = ranks.SERVER.Pipe()
        process = ranks.SERVER.Process(target=save_forever, args=(tmp_path, theirs))
        process.start()
        assert ours.recv() == "saves"
        time.sleep(chance.uniform(0.02, 0.12))
        process.kill()
        process.join()
        newest, passed_over = Local().newest(tmp_path)
        assert not passed_over, passed_over
        if life == 0 and newest is None:
            continue
        assert newest is not None
        loaded = Local().load(newest)
        assert loaded.step >= before and loaded.state["step"] == loaded.step
        assert all(bool((weight == loaded.step).all()) for weight in loaded.trainable.values())
        before = loaded.step
        leftovers = [*tmp_path.glob("checkpoints/.*")]
        interrupted += bool(leftovers)
        Local().cut_back(tmp_path, before)
        assert not [*tmp_path.glob("checkpoints/.*")]
    assert before > 40 and interrupted >= 10, (before, interrupted)


def test_pruning_keeps_what_it_is_told(tmp_path: Path) -> None:
    for step in range(1, 6):
        Local().save(tmp_path, content(step))
    Local().prune(tmp_path, {2, 5})
    assert Local().steps(tmp_path) == [2, 5]


class Part(nn.Module):
    def __init__(self, files: dict[str, str]) -> None:
        super().__init__()
        self.files = files
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


def test_frozen_weights_with_a_file_stay_out_and_all_else_goes_in() -> None:
    model = nn.ModuleDict({"filed": Part({"model.safetensors": "hash"}), "random": Part({})}).requires_grad_(False)
    model["filed"].norm.requires_grad_(True)
    names = set(own_tensors(model))
    assert {name for name in names if name.startswith("filed")} == {
        "filed.norm.weight", "filed.norm.bias", "filed.norm.running_mean", "filed.norm.running_var",
        "filed.norm.num_batches_tracked",
    }  # fmt: skip
    assert {name for name in names if name.startswith("random")} == {f"random.{name}" for name in Part({}).state_dict()}


def test_tied_weights_stand_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    assert list(own_tensors(model)) == ["a.weight"]


def test_weights_of_another_model_are_refused_by_name() -> None:
    model = nn.Linear(2, 3)
    tensors, where = own_tensors(model), Path("step-00000001")
    with pytest.raises(Mistake, match="1 tensors are missing .*bias"):
        restore(tensors, {"weight": torch.zeros(3, 2)}, where)
    with pytest.raises(Mistake, match=r"weight is \[2, 3\]"):
        restore(tensors, {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, where)
    with pytest.raises(Mistake, match="float64"):
        restore(tensors, {"weight": torch.zeros(3, 2, dtype=torch.float64), "bias": torch.zeros(3)}, where)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self.gate = nn.Parameter(torch.tensor(0.5))  # a scalar, so its moments are scalars too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.gate


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop", "adafactor"])
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(kind: str) -> None:
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    }[kind]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = Gated()
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    weights, state = snapshot(own_tensors(model)), optimizer_tensors(optimizer)
    saved = {name: tensor.clone() for name, tensor in state.items()}
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    step(model, optimizer)

    other = Gated()
    again = make(other.parameters())
    restore(own_tensors(other), weights, Path("x"))
    restore_optimizer(again, saved, Path("x"))
    step(other, again)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
