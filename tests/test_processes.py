"""Runs of several processes through the real launcher: what they leave, how they end, and that none of them stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ranks
from PIL import Image
from test_exactness import SMALL, fingerprint, lines_of, pictures, train_lines
from test_plugins import SMALL as SMALL_PLUGIN
from test_plugins import my_conf

import runner
from runner.protocols import Mistake
from runner.run_folder import open_run, read_json, read_status

__all__ = ["pictures"]
LONG = [
    *SMALL, "train.max_steps=150", "train.log_every=5", "train.log_ids=false", "checkpoint.every=10",
    "lora=default", "lora.r=2", "lora.dropout=0.2", "encoder.image.dropout=0.1",
]  # fmt: skip
TWO = ["cluster=ddp", "cluster.threads=1"]


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of an uninterrupted run of so many processes."""
    done: dict[int, Path] = {}

    def run(processes: int) -> Path:
        if processes not in done:
            done[processes] = tmp_path_factory.mktemp("whole")
            overrides = [*LONG, f"data.path={pictures}"]
            assert ranks.train(done[processes], overrides, processes) == [0] * processes
        return done[processes]

    return run


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def wait_for_line(folder: Path, count: int, alive: Callable[[], bool]) -> None:
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
        assert alive(), "it ended before"
        time.sleep(0.02)


def gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that are left after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.faults
def test_several_processes_are_one_run_also_in_a_sweep_and_with_parts_from_outside(tmp_path: Path) -> None:
    my_conf(tmp_path / "my_conf")
    words = ["train", "-m", "--config-dir", "my_conf", "encoder/image=thumbnail", *SMALL_PLUGIN, *TWO, "seed=0,1"]
    process = ranks.launch([*words, "hydra.sweep.dir=sweep", "precision=bf16"], tmp_path / "printed")
    process.join(100)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 0, printed
    assert printed.count("4 rows a micro-batch x 1 accumulated x 2 processes = 8 rows a step") == 2
    assert printed.count("Held-out questions") == 2
    for job in ("0", "1"):
        folder = tmp_path / "sweep" / job
        assert read_status(folder) == {"state": "finished", "step": 3, "exit_code": 0, "error": None}
        summary = read_json(folder / "summary.json")
        assert summary["precision"]["autocast"] == "bfloat16" and summary["step"] == 3
        assert {"rank0.log", "rank1.log"} <= {file.name for file in (folder / "logs").iterdir()}
        assert "Data, train: 1,437 rows" in (folder / "logs" / "rank1.log").read_text()
        assert [line["step"] for line in lines_of(folder) if line["split"] == "val"] == [3]


SENDERS: dict[str, Callable[[psutil.Process], None]] = {
    "the launcher": lambda launcher: launcher.terminate(),
    "its group": lambda launcher: os.killpg(launcher.pid, signal.SIGTERM),
    "one rank": lambda launcher: launcher.children()[1].terminate(),
    "Ctrl-C": lambda launcher: os.killpg(launcher.pid, signal.SIGINT),
    "kill -9 of the launcher": lambda launcher: launcher.kill(),
}


@pytest.mark.faults
@pytest.mark.parametrize("sender", SENDERS)
def test_a_signal_saves_once_leaves_no_process_and_the_run_goes_on_exactly(
    whole: Callable[[int], Path], pictures: Path, tmp_path: Path, sender: str
) -> None:
    overrides = [*LONG, f"data.path={pictures}", "data.workers=1", "hydra.run.dir=run"]
    process = ranks.launch(["train", *overrides, *TWO], tmp_path / "printed")
    folder, launcher = tmp_path / "run", psutil.Process(process.pid)
    wait_for_line(folder, 1, process.is_alive)
    everyone = family(launcher)
    assert len(everyone) >= 5  # two ranks with a loader worker each
    SENDERS[sender](launcher)
    process.join(10)
    assert gone(everyone, within_s=10) == []
    number = signal.SIGINT if sender == "Ctrl-C" else signal.SIGTERM
    killed = sender.startswith("kill -9")
    assert process.exitcode == (-signal.SIGKILL if killed else 128 + number), (tmp_path / "printed").read_text()
    status = read_status(folder)
    assert (status["state"], status["exit_code"]) == ("stopped", 128 + number)
    assert 5 <= status["step"] < 150
    assert (folder / "checkpoints" / f"step-{status['step']:08d}" / "MANIFEST.json").is_file()
    if not killed:
        (said,) = [line for line in (tmp_path / "printed").read_text().splitlines() if "Stopped by signal" in line]
        assert said.endswith("goes on from there.")
    assert ranks.train(folder, [*overrides, "resume=auto"], 2) == [0, 0]
    assert lines_of(folder) == lines_of(whole(2))
    assert fingerprint(folder) == fingerprint(whole(2))


@pytest.mark.faults
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_the_command_line_killed_ends_as_if_it_had_not_been(
    whole: Callable[[int], Path], pictures: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    words = [sys.executable, "-m", "runner", "train", *LONG, f"data.path={pictures}", f"data.workers={workers}"]
    words += ["hydra.run.dir=run", *(TWO if processes == 2 else [])]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    folder = tmp_path / "run"
    wait_for_line(folder, random.Random(f"{processes} {workers}").randrange(3, 12), lambda: process.poll() is None)
    everyone = family(psutil.Process(process.pid))
    for one in everyone:
        one.suspend()  # so that none acts on another's end
    for one in everyone:
        one.kill()
    process.wait()
    assert gone(everyone, within_s=10) == []
    subprocess.run([*words, "resume=auto"], check=True, stdout=subprocess.DEVNULL)
    assert lines_of(folder) == lines_of(whole(processes))
    assert fingerprint(folder) == fingerprint(whole(processes))


@pytest.mark.faults
def test_what_one_process_meets_ends_them_all_in_its_words(tmp_path: Path) -> None:
    """The second row, which the second process takes, has a picture that broke after the rows were read."""
    rows = []
    for k in range(4):
        messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}]
        rows.append({"id": f"row-{k}", "messages": messages, "image": "broken.png" if k == 1 else None})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("L", (8, 8)).save(tmp_path / "broken.png")
    overrides = [*SMALL, "data.path=rows.jsonl", "train.batch_size=2", "train.max_steps=4", "data.order=file"]
    runner.train([*overrides, "hydra.run.dir=whole"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    process = ranks.launch(["train", *overrides, *TWO, "hydra.run.dir=run"], tmp_path / "printed")
    process.join(60)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 2, printed
    assert "rows.jsonl:2 (id row-1): `image` item 1" in printed and "Traceback" not in printed
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", 2)


@pytest.mark.faults
def test_a_process_that_is_killed_is_named(pictures: Path, tmp_path: Path) -> None:
    overrides = [*LONG, f"data.path={pictures}", "hydra.run.dir=run"]
    process = ranks.launch(["train", *overrides, *TWO], tmp_path / "printed")
    wait_for_line(tmp_path / "run", 1, process.is_alive)
    everyone = family(psutil.Process(process.pid))
    psutil.Process(process.pid).children()[1].kill()
    process.join(20)
    assert process.exitcode == 1 and gone(everyone, within_s=10) == []
    assert "was ended by signal 9, perhaps because memory ran out" in (tmp_path / "printed").read_text()
    assert read_status(tmp_path / "run")["exit_code"] == 1


@pytest.mark.zoo
def test_the_processes_that_run_are_those_that_were_asked_for(pictures: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.path={pictures}", "train.max_steps=2", "train.batch_size=6"]
    started = ranks.start(tmp_path / "run", overrides, processes=2, asked=3)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, 1]
    failure = read_json(tmp_path / "run" / "logs" / "failure.json")
    assert failure["error"] == "3 processes were asked for and 2 are running."


@pytest.mark.faults
def test_two_launchers_of_one_run_do_not_meet(tmp_path: Path) -> None:
    """The second one is refused while the first one's processes still start."""
    overrides = [*SMALL_PLUGIN, *TWO, "hydra.run.dir=run", "resume=auto"]
    first = ranks.launch(["train", *overrides], tmp_path / "first")
    while not (tmp_path / "run" / ".launch.json").is_file():
        time.sleep(0.02)
    second = ranks.launch(["train", *overrides, "optimizer.lr=0.5"], tmp_path / "second")
    for process in (first, second):
        process.join(100)
    assert (first.exitcode, second.exitcode) == (0, 2), (tmp_path / "first").read_text()
    assert "run is in use by process" in (tmp_path / "second").read_text()
    assert "lr: 0.5" not in (tmp_path / "run" / "config.yaml").read_text()
    environment = read_json(tmp_path / "run" / "environment.json")
    assert "cluster=ddp" in " ".join(environment["command"])


@pytest.mark.faults
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 1.0, 3.0])
def test_a_launcher_killed_while_its_processes_start_leaves_none(
    pictures: Path, tmp_path: Path, after_s: float
) -> None:
    process = ranks.launch(["train", *LONG, f"data.path={pictures}", *TWO, "hydra.run.dir=run"], tmp_path / "printed")
    launcher = psutil.Process(process.pid)
    while len(launcher.children()) < 2:
        time.sleep(0.005)
    time.sleep(after_s)
    everyone = family(launcher)
    launcher.kill()
    assert gone(everyone, within_s=10) == []


@pytest.mark.faults
def test_a_signal_before_the_first_step_stops_at_once(pictures: Path, tmp_path: Path) -> None:
    """To one process, which may be waiting for the other."""
    process = ranks.launch(["train", *LONG, f"data.path={pictures}", *TWO, "hydra.run.dir=run"], tmp_path / "printed")
    launcher = psutil.Process(process.pid)
    while len(launcher.children()) < 2:
        time.sleep(0.005)
    time.sleep(1)
    everyone = family(launcher)
    launcher.children()[1].terminate()
    process.join(20)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 143 and gone(everyone, within_s=10) == [], printed
    assert "Stopped by signal 15 before a step was trained." in printed


def test_a_shell_that_has_a_launchers_variables_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Mistake, match="This shell has WORLD_SIZE=4"):
        runner.train(["tracker=none", f"hydra.run.dir={tmp_path}/run"])


def test_a_folder_in_use_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", holds=True), pytest.raises(Mistake, match="is in use by process"):
        runner.train([*TWO, f"hydra.run.dir={tmp_path}/run", "resume=auto", "tracker=none"])


def test_another_number_of_processes_may_go_on(pictures: Path, tmp_path: Path) -> None:
    """With a word, and with the same curve where nothing is random."""
    overrides = [*SMALL, f"data.path={pictures}", "train.eval_every=null", "train.log_ids=false", "train.log_every=4"]
    assert ranks.train(tmp_path / "whole", [*overrides, "train.max_steps=12"]) == [0]
    killed = ranks.killing(7, "update")
    more = [*overrides, "train.max_steps=12", "checkpoint.every=3"]
    assert -signal.SIGKILL in ranks.train(tmp_path / "changed", more, 2, killed)
    assert ranks.train(tmp_path / "changed", [*more, "resume=auto"], 1) == [0]
    one, two = train_lines(tmp_path / "whole"), train_lines(tmp_path / "changed")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    assert "cluster.num_processes: 2 -> 1" in (tmp_path / "changed" / "train.log").read_text()
