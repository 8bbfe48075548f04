"""A run's folder: its lock, and the files in it that people and programs read while it runs and after."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal

from runner.protocols import Fault, Mistake

State = Literal["running", "finished", "failed", "stopped"]
PACKAGES = (
    "multimodal-runner",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "comet-ml",
    "safetensors",
)


LOCK, LAUNCH_LOCK = ".lock", ".launch.lock"
"""Held by the process that writes the folder, and by the launcher that starts several."""


def is_locked(folder: Path) -> bool:
    return any(is_held(folder / name) for name in (LOCK, LAUNCH_LOCK))


def is_held(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_status(folder: Path) -> dict[str, Any]:
    return read_json(folder / "status.json")


def run_of(place: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in: the nearest above it that has a config."""
    return next((one for one in (*place.parents, *place.absolute().parents) if (one / "config.yaml").is_file()), None)


def read_json(file: Path) -> dict[str, Any]:
    """Empty when there is no such file, or none that can be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> Any:
    """What JSON can hold: null for a number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(file: Path, value: Any) -> None:
    write_whole(file, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Whole or not at all, also when the process is killed."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.rename(file)


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Line by line into FILE.part, which takes the file's place when all are written."""
    beside = file.with_name(f"{file.name}.part")
    with beside.open("w", encoding="utf-8", buffering=1) as stream:
        for line in lines:
            stream.write(line + "\n")
    beside.replace(file)


def record_failure(folder: Path, exit_code: int, error: str) -> None:
    """status.json of a run that ended badly, also one that never began; what an earlier life achieved stays.

    Where it cannot be written, on a full disk, there is none: stderr has the error at any rate.
    """
    status = read_status(folder)
    if is_locked(folder) or status.get("state") in ("finished", "stopped"):
        return
    failed = {"state": "failed", "step": status.get("step", 0), "exit_code": exit_code, "error": error}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "status.json", failed)


def failure_of(error: Exception, log: Path | None) -> tuple[int, str]:
    """An exit code and a sentence. What is not told in a sentence already leaves its traceback in the log, or without
    one on stderr."""
    if isinstance(error, Mistake):
        return Mistake.exit_code, str(error)
    if isinstance(error, Fault) and error.__cause__ is None:
        return Fault.exit_code, str(error)
    text = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
    if log is None:
        traceback.print_exc()
        return Fault.exit_code, text
    with log.open("a", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return Fault.exit_code, f"{text}\nThe traceback is in {log}."


class RunFolder:
    """The folder of a run. The process that holds its lock writes; to the run's other processes it is a place to read.
    Use `open_run`."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self.lock = lock
        """The lock's file descriptor, which a forked process must not keep; None where another process has it."""
        self._metrics: IO[str] | None = None

    def begin(self, saved_config: str, parent: Path | None, goes_on: bool, step: int, owes_evaluation: bool) -> None:
        """Write what the run is, and take back what an earlier life wrote after `step`, or has still to do there.

        `goes_on`: from a checkpoint, of this run or of its `parent`.
        """
        if self.lock is None:
            return
        owed = {(step, "val")} if owes_evaluation else set()
        self._cut_metrics(lambda line: line["step"] <= step and (line["step"], line["split"]) not in owed)
        file = self.path / "environment.json"
        before = read_json(file).get("parent") if goes_on else None  # a fork that goes on in place is a fork still
        # First of all files: a fork that is killed before its own first checkpoint starts from its parent again.
        write_json(file, environment() | {"parent": str(parent) if parent else before})
        write_whole(self.path / "config.yaml", saved_config)
        self.write_status("running", step)

    def write_status(self, state: State, step: int, exit_code: int | None = None, error: str | None = None) -> None:
        if self.lock is not None:
            status = {"state": state, "step": step, "exit_code": exit_code, "error": error}
            write_json(self.path / "status.json", status)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def log_metrics(self, line: Mapping[str, Any]) -> None:
        if self.lock is None:
            return
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._metrics.write(json.dumps(finite(line), ensure_ascii=False) + "\n")

    def _cut_metrics(self, stays: Callable[[dict[str, Any]], bool]) -> None:
        """Take back the lines that do not stay, half a line that a kill left, and what is no line of metrics."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        kept = []
        for text in file.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            right = isinstance(line, dict) and isinstance(line.get("step"), int) and "split" in line
            if right and stays(line):
                kept.append(text + b"\n")
        beside = file.with_name(".metrics.jsonl")
        beside.write_bytes(b"".join(kept))
        beside.rename(file)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


@contextmanager
def open_run(path: Path, holds: bool) -> Iterator[RunFolder]:
    """Make the folder; the one process of a run that `holds` locks it. Raises `Mistake` when another run has it."""
    path.mkdir(parents=True, exist_ok=True)
    if not holds:
        yield RunFolder(path, None)
        return
    with locked(path, LOCK) as lock:
        run = RunFolder(path, lock)
        try:
            yield run
        finally:
            run.close()


@contextmanager
def locked(path: Path, name: str) -> Iterator[int]:
    """Hold a lock of a run's folder: its file descriptor. Raises `Mistake` when another process has it."""
    with (path / name).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Mistake(
                f"{path} is in use by {lock.read().strip() or 'another process'}. Give another folder."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield lock.fileno()
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would leave it to a forked process that is still there


def environment() -> dict[str, Any]:
    """Versions, commit and hardware."""
    import torch

    devices = (
        [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the working folder, with `+changes` when it is not clean."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
