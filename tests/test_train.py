"""Runs through the public surface, in this process: what they leave behind, and that nothing changes their numbers."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comet_archive import archives
from PIL import Image

import runner
from runner import training
from runner.checkpoint import Local
from runner.cli import main
from runner.models import instruct
from runner.protocols import Fault, Mistake, Step, Stopped, Term
from runner.run_folder import read_status

CHAT = [
    "tracker=none", "train.max_steps=6", "train.batch_size=8", "train.log_every=2", "train.eval_every=3",
    "evaluation.predict_rows=8", "evaluation.batch_size=64", "llm.hidden_size=16", "llm.intermediate_size=32",
    "llm.layers=1", "llm.heads=2", "schedule.warmup_steps=2",
]  # fmt: skip
SMALL = [*CHAT, "encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2"]


def run(folder: Path, *overrides: str, base: Sequence[str] = SMALL) -> dict[str, Any]:
    return runner.train([*base, f"hydra.run.dir={folder}", *overrides])


def lines_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    newest, passed_over = Local().newest(folder)
    assert newest is not None and not passed_over
    return dict(Local().load(newest).trainable)


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = weights_of(one), weights_of(two)
    assert first.keys() == second.keys() and first
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_all_that_the_surface_promises(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = run(folder)
    names = {file.name for file in folder.iterdir()}
    assert {"config.yaml", "status.json", "metrics.jsonl", "summary.json", "environment.json", "train.log"} <= names
    assert not (folder / ".hydra").exists()
    assert read_status(folder) == {"state": "finished", "step": 6, "exit_code": 0, "error": None}
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"step", "last", "best", "parameters", "precision", "throughput", "peak_memory", "wall_s"} <= summary.keys()
    assert summary["step"] == 6 and set(summary["last"]) == {"val/loss", "val/exact_match", "step"}
    parameters = summary["parameters"]
    assert set(parameters["by_component"]) == {"encoder.image", "projector.image", "llm"}
    assert (
        parameters["total"]
        == parameters["trainable"]
        == sum(one["trainable"] for one in parameters["by_component"].values())
    )
    assert summary["precision"] == {
        "requested": "fp32",
        "device": "cpu",
        "autocast": None,
        "tf32": False,
        "scaler": False,
    }
    train = lines_of(folder)
    assert [line["step"] for line in train] == [2, 4, 6]
    assert {"loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s"} <= train[0].keys()
    assert [line["step"] for line in lines_of(folder, "val")] == [3, 6]
    assert Local().steps(folder) == [3, 6]
    log = (folder / "train.log").read_text()
    assert "Batch: 8 rows a micro-batch x 1 accumulated x 1 process = 8 rows a step" in log
    assert "Held-out questions" in log and "projector.image" in log


def test_a_run_is_whole_in_its_comet_archive_and_no_network_is_tried(tmp_path: Path, no_network: list[Any]) -> None:
    folder = tmp_path / "run"
    run(folder, "tracker=comet")
    assert no_network == []
    (archive,) = archives(folder)
    expected = [
        (f"{line['split']}/{name}", line["step"], float(value))
        for line in lines_of(folder) + lines_of(folder, "val")
        for name, value in line.items()
        if name not in ("step", "split")
    ]
    assert archive.metrics == sorted(expected) and len(expected) > 20
    assert archive.parameters["optimizer.lr"] == 2e-3
    assert archive.parameters["encoder.image._target_"] == "runner.encoders.image.Patch"
    assert archive.assets["config.yaml"].decode() == (folder / "config.yaml").read_text()
    samples = archive.assets["samples-step-6.csv"].decode().splitlines()
    assert samples[0] == "id,prompt,answer,truth" and len(samples) == 1 + 8
    assert {name.split(" ")[0] for name in archive.pictures} == {line.split(",")[0] for line in samples[1:]}
    assert archive.others["status"] == "finished"


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_curve_does_not_depend_on_the_micro_batch(tmp_path: Path, micro: int) -> None:
    """The last, ragged step of an epoch included: 40 rows in steps of 12."""
    data = few_rows(tmp_path / "rows.jsonl", 40)
    common = [*data, "train.batch_size=12", "train.max_steps=8", "train.log_ids=true", "train.eval_every=null"]
    whole, split = tmp_path / "whole", tmp_path / "split"
    run(whole, *common, base=CHAT)
    run(split, *common, f"train.micro_batch_size={micro}", base=CHAT)
    one, two = lines_of(whole), lines_of(split)
    assert [line["ids"] for line in one] == [line["ids"] for line in two]
    assert [len(line["ids"]) for line in one] == [12, 12, 12, 4, 12, 12, 12, 4]
    assert sorted(sum((line["ids"] for line in one[:4]), [])) == sorted(f"row-{k}" for k in range(40))
    for a, b in zip(one, two, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 2e-6
        assert abs(a["grad_norm"] - b["grad_norm"]) <= 1e-4 * a["grad_norm"]


def few_rows(file: Path, count: int) -> list[str]:
    """Rows of unequal length, and the overrides that read them."""
    with file.open("w") as stream:
        for k in range(count):
            question = {"role": "user", "content": f"Say {k}. " + "Please. " * (k % 5)}
            answer = {"role": "assistant", "content": "x" * (1 + k % 7)}
            stream.write(json.dumps({"id": f"row-{k}", "messages": [question, answer]}) + "\n")
    return ["model=chat", "data=jsonl", f"data.path={file}", "checkpoint.monitor=val/loss", "checkpoint.mode=min"]


WITH_CHANCE = [
    "encoder.image.dropout=0.1",
    "lora=default",
    "lora.r=2",
    "lora.dropout=0.2",
    "train.log_ids=true",
    "checkpoint.every=2",
]


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """With dropout, a schedule and LoRA; killed after step 5, so it goes on from the checkpoint of step 4."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, *WITH_CHANCE)
    with pytest.raises(KilledError):
        kill_after(5, lambda: run(killed, *WITH_CHANCE))
    assert read_status(killed)["state"] == "running" or read_status(killed)["state"] == "failed"
    run(killed, *WITH_CHANCE, "resume=auto")
    assert_same_weights(whole, killed)
    assert [(line["step"], line["ids"], line["loss"]) for line in lines_of(whole)] == [
        (line["step"], line["ids"], line["loss"]) for line in lines_of(killed)
    ]
    assert lines_of(whole, "val") == lines_of(killed, "val")


class KilledError(BaseException):
    pass


def kill_after(step: int, go: Any) -> None:
    """End the run between two steps as a kill would: nothing of it is handled."""
    pause = training.pause

    def killed(session: Any) -> bool:
        if session.progress.step == step:
            raise KilledError
        return pause(session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "pause", killed)
        go()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path: Path, number: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, *WITH_CHANCE)
    log = training.log

    def send(session: Any, line: dict[str, Any]) -> None:
        log(session, line)
        if line["step"] == 2 and line["split"] == "train":
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stop:
        patch.setattr(training, "log", send)
        run(stopped, *WITH_CHANCE)
    assert stop.value.signal == number
    status = read_status(stopped)
    assert (status["state"], status["exit_code"]) == ("stopped", 128 + number)
    assert 2 <= status["step"] < 6
    run(stopped, *WITH_CHANCE, "resume=auto")
    assert_same_weights(whole, stopped)
    assert [line["loss"] for line in lines_of(whole)] == [line["loss"] for line in lines_of(stopped)]


def test_a_fork_starts_in_a_new_folder_and_names_its_parent(tmp_path: Path) -> None:
    run(tmp_path / "first", "train.max_steps=3")
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000003"
    run(tmp_path / "second", f"resume={checkpoint}", "optimizer.lr=1e-3")
    assert [line["step"] for line in lines_of(tmp_path / "second")][0] == 4
    assert json.loads((tmp_path / "second" / "environment.json").read_text())["parent"] == str(checkpoint)
    assert Local().steps(tmp_path / "first") == [3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("train.batch_size=16", "train.batch_size: 8 -> 16"),
        ("encoder.image.layers=2", "encoder.image.layers: 1 -> 2"),
        ("data.order=file", "data.order: shuffled -> file"),
    ],
)
def test_a_change_that_makes_it_another_run_is_refused(tmp_path: Path, change: str, told: str) -> None:
    run(tmp_path / "run", "train.max_steps=3")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(Mistake, match=told):
        run(tmp_path / "run", change, "resume=auto")
    changed = {file.name for file, data in before.items() if file.read_bytes() != data}
    assert changed <= {".lock", "train.log"}


def test_a_change_that_does_not_is_told(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.max_steps=3")
    run(tmp_path / "run", "optimizer.lr=1e-4", "resume=auto", "train.log_every=1")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "optimizer.lr: 0.002 -> 0.0001" in log
    assert "train.log_every" not in log


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.max_steps=1")
    with pytest.raises(Mistake, match="holds a run already. Set resume=auto"):
        run(tmp_path / "run", "train.max_steps=1")


def test_only_broken_checkpoints_are_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.max_steps=3")
    for file in (tmp_path / "run").rglob("trainable.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(Mistake, match="no whole checkpoint.*\n.*trainable.safetensors"):
        run(tmp_path / "run", "resume=auto")


def test_early_stopping_stops(tmp_path: Path) -> None:
    summary = run(
        tmp_path / "run", "train.max_steps=40", "train.eval_every=2", "early_stopping.patience=2",
        "early_stopping.min_delta=100", "checkpoint.monitor=val/loss", "checkpoint.mode=min",
    )  # fmt: skip
    assert summary["step"] == 6
    assert summary["best"]["step"] == 6  # better, but not by min_delta
    assert "Early stopping" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_killed_after_its_early_stop_trains_no_further(tmp_path: Path) -> None:
    stop = [
        "train.max_steps=40", "train.eval_every=2", "early_stopping.patience=2", "early_stopping.min_delta=100",
        "checkpoint.monitor=val/loss", "checkpoint.mode=min",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(training, "close", lambda session: (_ for _ in ()).throw(KilledError()))
        run(tmp_path / "run", *stop)
    assert run(tmp_path / "run", *stop, "resume=auto")["step"] == 6


def test_a_signal_in_the_last_evaluation_before_an_early_stop_loses_no_line(tmp_path: Path) -> None:
    """A line is open then: steps 5 and 6 of lines of four."""
    words = ["train.eval_every=3", "train.log_every=4", "early_stopping.patience=1", "train.max_steps=12"]
    never = ["checkpoint.monitor=val/loss", "checkpoint.mode=min", "early_stopping.min_delta=1000"]
    run(tmp_path / "whole", *words, *never)
    predict, evaluations = instruct.Instruct.predict, []

    def send(self: Any, batch: Any) -> Any:
        evaluations.append(batch)
        if len(evaluations) == 3:  # the first batch of two of the second evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(instruct.Instruct, "predict", send)
        run(tmp_path / "stopped", *words, *never, "evaluation.batch_size=4", "evaluation.predict_rows=8")
    run(tmp_path / "stopped", *words, *never, "resume=auto")
    whole, stopped = lines_of(tmp_path / "whole"), lines_of(tmp_path / "stopped")
    assert [line["step"] for line in whole] == [4, 6]
    for name in ("step", "loss", "grad_norm", "lr"):
        assert [line[name] for line in stopped] == [line[name] for line in whole]


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    weights = weights_of(tmp_path / "run")
    again = run(tmp_path / "run", "resume=auto")
    assert (again["last"], again["best"]) == (first["last"], first["best"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["checkpoint.monitor=val/exact_mach"], "checkpoint.monitor=val/exact_mach: .* val/exact_match, val/loss"),
        (
            ["checkpoint.monitor=val/exact_match", "evaluation.predict_rows=0"],
            "gives val/loss; .*needs evaluation.predict",
        ),
    ],
)
def test_a_monitor_that_no_evaluation_gives_is_told_before_training(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    with pytest.raises(Mistake, match=told):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_going_on_deletes_later_and_broken_checkpoints_and_never_the_last_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, "train.max_steps=8", "checkpoint.every=2", "train.eval_every=null", "checkpoint.keep_last=10")
    for step in (6, 8):
        (folder / "checkpoints" / f"step-{step:08d}" / "state.json").write_text("broken")
    (folder / "checkpoints" / "step-00000004-mine").mkdir()
    (folder / "checkpoints" / ".tmp-step-00000008-1").mkdir()
    run(folder, "train.max_steps=5", "train.eval_every=null", "checkpoint.keep_last=2", "resume=auto")
    assert Local().steps(folder) == [4, 5]
    assert Local().newest(folder) == (folder / "checkpoints" / "step-00000005", [])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir())[1:2] == ["step-00000004-mine"]


def test_a_fork_killed_before_its_first_checkpoint_starts_from_its_parent_again(tmp_path: Path) -> None:
    run(tmp_path / "first", "train.max_steps=3")
    fork = [f"resume={tmp_path}/first/checkpoints/step-00000003", "train.eval_every=null"]
    with pytest.raises(KilledError):
        kill_after(4, lambda: run(tmp_path / "second", *fork))
    run(tmp_path / "second", "resume=auto", "train.eval_every=null")
    assert [line["step"] for line in lines_of(tmp_path / "second")] == [4, 6]


def test_an_evaluation_that_a_signal_cut_off_is_made_up_for(tmp_path: Path) -> None:
    every = ["train.eval_every=2", "train.log_every=2", "checkpoint.monitor=val/loss", "checkpoint.mode=min"]
    run(tmp_path / "whole", *every)
    pause = training.pause

    def stopped(session: Any) -> bool:
        if session.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return pause(session)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training, "pause", stopped)
        run(tmp_path / "stopped", *every)
    assert [line["step"] for line in lines_of(tmp_path / "stopped", "val")] == [2]
    run(tmp_path / "stopped", *every, "resume=auto")
    assert lines_of(tmp_path / "stopped", "val") == lines_of(tmp_path / "whole", "val")


def test_a_signal_ends_an_evaluation_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    """The last evaluation: all steps are done, and what is left is made up for."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, *WITH_CHANCE)
    predict = instruct.Instruct.predict

    def send(self: Any, batch: Any) -> Any:
        if len(lines_of(stopped)) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(instruct.Instruct, "predict", send)
        run(stopped, *WITH_CHANCE, "evaluation.batch_size=4")
    assert read_status(stopped)["state"] == "stopped" and read_status(stopped)["step"] == 6
    run(stopped, *WITH_CHANCE, "resume=auto")
    assert_same_weights(whole, stopped)
    assert [line["step"] for line in lines_of(stopped, "val")] == [3, 6]


@pytest.mark.faults
def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    words = [*SMALL, "train.max_steps=30", "train.log_every=1", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert read_status(tmp_path / "run")["state"] == "finished"
    assert "Held-out questions" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_is_not_resumed_behind_where_it_stands(tmp_path: Path) -> None:
    run(tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(Mistake, match="stands at step 6, past the 3"):
        run(tmp_path / "run", "train.max_steps=3", "resume=auto")
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_a_sweeps_folder_is_not_trained_into_twice(tmp_path: Path) -> None:
    words = [*SMALL, "-m", "seed=0", f"hydra.sweep.dir={tmp_path}/sweep", "train.max_steps=1"]
    assert main(["train", *words]) == 0
    weights = weights_of(tmp_path / "sweep" / "0")
    assert main(["train", *words, "optimizer.lr=0.5"]) == 2
    assert read_status(tmp_path / "sweep" / "0")["state"] == "finished"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(tmp_path / "sweep" / "0").items())


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_although_there_are_workers(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *SMALL, "train.max_steps=100000", "data.workers=2", "hydra.run.dir=run"],
        cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("stopped", 128 + number)
    newest, _ = Local().newest(tmp_path / "run")
    assert newest is not None and newest.name == f"step-{status['step']:08d}"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing of it is left


def test_early_stopping_needs_rows_to_stop_by(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="no val rows to stop by"):
        run(tmp_path / "run", *few_rows(tmp_path / "rows.jsonl", 8), "early_stopping.patience=1", base=CHAT)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_one_sentence_from_a_loader_worker_too(tmp_path: Path, workers: int) -> None:
    """It was whole when the rows were read: those are not read again."""
    row = {
        "id": "a",
        "image": "picture.png",
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    run(tmp_path / "whole", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", "train.max_steps=1")
    (tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(Mistake) as told:
        run(tmp_path / "run", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", f"data.workers={workers}")
    assert str(told.value).startswith("rows.jsonl:1 (id a): `image` item 1") and "\n" not in str(told.value)
    assert read_status(tmp_path / "run")["exit_code"] == 2
    assert multiprocessing.active_children() == []


def test_the_best_and_the_last_checkpoints_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = run(
        folder, "train.max_steps=8", "train.eval_every=1", "checkpoint.keep_last=2", "checkpoint.keep_best=1",
        "checkpoint.monitor=val/loss", "checkpoint.mode=min", "optimizer.lr=0.3", "evaluation.predict_rows=0",
    )  # fmt: skip
    losses = {line["step"]: line["loss"] for line in lines_of(folder, "val")}
    best = min(losses, key=lambda step: losses[step])
    assert summary["best"]["step"] == best
    assert Local().steps(folder) == sorted({best, 7, 8})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_survive_gradients_that_are_not_finite(tmp_path: Path, optimizer: str) -> None:
    """The second checkpoint is the first one: no bad step changed a weight, and after enough of them the run stops."""
    other = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps"] if optimizer == "sgd" else []
    forward = instruct.Instruct.forward

    def poisoned(self: Any, batch: Any) -> Any:
        step = forward(self, batch)
        poisoned.calls += 1
        if poisoned.calls > 3:
            step.terms["loss"] = type(step.terms["loss"])(step.terms["loss"].sum * math.inf)
        return step

    poisoned.calls = 0  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Fault, match="not finite for 4 steps in a row"):
        patch.setattr(instruct.Instruct, "forward", poisoned)
        run(
            tmp_path / "run", *other, "train.max_skipped_steps=4", "checkpoint.every=1", "train.eval_every=null",
            "train.log_every=1", "train.max_steps=20", "checkpoint.keep_last=10",
        )  # fmt: skip
    saved = [Local().load(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in (2, 3, 4, 5)]
    changed = [
        any(not torch.equal(a.trainable[name], b.trainable[name]) for name in a.trainable)
        for a, b in zip(saved, saved[1:], strict=False)
    ]
    assert changed == [True, False, False]
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_a_run_that_never_had_a_usable_step_is_a_fault_and_its_files_are_json(tmp_path: Path) -> None:
    forward = instruct.Instruct.forward

    def poisoned(self: Any, batch: Any) -> Any:
        term = forward(self, batch).terms["loss"]
        return Step({"loss": Term(term.sum * math.nan)})

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Fault, match="None of the 3 steps had a finite gradient"):
        patch.setattr(instruct.Instruct, "forward", poisoned)
        run(tmp_path / "run", "train.max_steps=3", "train.log_every=1", "train.eval_every=null")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["loss"] for line in lines] == [None] * 4
    assert read_status(tmp_path / "run")["exit_code"] == 1


def test_an_evaluation_that_fails_loses_no_step(tmp_path: Path) -> None:
    """A held-out picture that cannot be read: what was learnt is saved, and the run goes on once it can."""
    data = few_rows(tmp_path / "train.jsonl", 8)
    few_rows(tmp_path / "val.jsonl", 2)
    broken = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}], "image": "x.png"}
    with (tmp_path / "val.jsonl").open("a") as file:
        file.write(json.dumps({"id": "broken", **broken}) + "\n")
    words = [*data, "model=instruct", f"data.val_path={tmp_path}/val.jsonl", "train.eval_every=4"]
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    run(tmp_path / "whole", *words, "train.max_steps=1")
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(Mistake, match="id broken"):
        run(tmp_path / "run", *words)
    assert Local().steps(tmp_path / "run") == [4]
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    run(tmp_path / "run", *words, "resume=auto")
    assert [line["step"] for line in lines_of(tmp_path / "run", "val")] == [4, 6]


def test_parts_do_not_change_each_others_first_weights(tmp_path: Path) -> None:
    run(tmp_path / "one", "train.max_steps=1", "optimizer.lr=1e-30")
    run(tmp_path / "two", "train.max_steps=1", "optimizer.lr=1e-30", "encoder.image.layers=2", "projector=linear")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    language = [name for name in one if name.startswith("llm.")]
    assert language and all(torch.equal(one[name], two[name]) for name in language)
    run(tmp_path / "three", "train.max_steps=1", "optimizer.lr=1e-30", "seed=1")
    assert not torch.equal(one[language[0]], weights_of(tmp_path / "three")[language[0]])


def test_rows_are_checked_before_a_weight_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    monkeypatch.setattr("runner.models.llm.Tiny.load", lambda self: pytest.fail("a model was loaded"))
    with pytest.raises(Mistake, match="rows.jsonl:1"):
        run(tmp_path / "run", "data=jsonl", f"data.path={file}", "model=chat", base=CHAT)


def shuffled(rows: Sequence[Any], by: int) -> list[Any]:
    from dataclasses import replace

    return [
        replace(row, row=replace(row.row, items=rows[(k + by) % len(rows)].row.items)) for k, row in enumerate(rows)
    ]


@pytest.mark.zoo
def test_the_picture_is_used(tmp_path: Path) -> None:
    """A trained model that is shown other rows' pictures answers no better than chance."""
    from accelerate import Accelerator

    from runner.build import build
    from runner.checkpoint import own_tensors, restore
    from runner.config import compose
    from runner.evaluate import evaluate
    from runner.peers import Peers
    from runner.signals import StopRequest

    overrides = ["tracker=none", "train.max_steps=150", "train.eval_every=null", "evaluation.predict_rows=120"]
    summary = runner.train([*overrides, f"hydra.run.dir={tmp_path}/run"])
    assert summary["last"]["val/exact_match"] >= 0.8
    parts = build(compose("train", overrides), memory=None, tracks=False)
    restore(own_tensors(parts.objective), weights_of(tmp_path / "run"), tmp_path)
    alone = (accelerator := Accelerator(cpu=True), Peers(accelerator, StopRequest()))
    right, _ = evaluate(parts.objective, parts.splits["val"].examples, parts.prompts, parts.collate, 120, *alone)
    assert right["exact_match"] == summary["last"]["val/exact_match"]
    wrong, _ = evaluate(parts.objective, [], shuffled(parts.prompts, 7), parts.collate, 120, *alone)
    assert wrong["exact_match"] <= 0.25
