"""Which folder a run or a sweep has: one that the user names, one to go on in, or a new one; fit to be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from runner.protocols import Fault, Mistake
from runner.run_folder import is_locked, read_status, run_of


def choose_folder(tree: Mapping[str, Any], run_dir: str | None) -> Path:
    """The folder that a single run will have, made. `run_dir` is hydra.run.dir where the user gave one.

    Raises `Mistake` when the folder holds a run and resume does not say to go on, or cannot be written.
    """
    with writing(Path(run_dir or Path("outputs", str(tree["name"])))):
        return make_folder(_chosen(tree, run_dir))


def make_folder(folder: Path) -> Path:
    """Make a folder where there is none, and write in it. Raises `Mistake`, or `Fault` when the disk is full."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder, prefix=".") as file:
            file.write(b"\n")
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of an error of the system that it is the run's folder that cannot be."""
    try:
        yield
    except OSError as error:
        why = f"{error.strerror}: {error.filename or folder}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Fault(f"{folder}: the disk is full ({why}). Make room, or give another by hydra.run.dir.") from error
        raise Mistake(f"{folder} cannot be a run's folder ({why}). Give another by hydra.run.dir.") from error


def _chosen(tree: Mapping[str, Any], run_dir: str | None) -> Path:
    name, resume = str(tree["name"]), tree["resume"]
    if resume not in (None, "auto"):
        given = Path(resume)
        if not given.exists():
            raise Mistake(f"resume={resume}: there is none. Give a run's folder, one of its checkpoints, or auto.")
        if (given / "config.yaml").is_file():
            if run_dir is not None and Path(run_dir).resolve() != given.resolve():
                raise Mistake(
                    f"resume={resume} goes on in that folder, but hydra.run.dir={run_dir} names another. Leave "
                    "hydra.run.dir away, or give a checkpoint of the run to start a new one there."
                )
            return given
        if run_of(given) is None:
            raise Mistake(
                f"resume={resume} is neither a run's folder nor in one: there is no config.yaml, so nobody can tell "
                "how it was trained. Give a run's folder, or a checkpoint that lies in one."
            )
    if run_dir is not None:
        folder = Path(run_dir)
        if resume != "auto":
            refuse_a_second_run(folder)
        else:
            refuse_remains(folder)
        return folder
    if resume == "auto":
        for folder in sorted(Path("outputs", name).glob("*/"), reverse=True):
            began = (folder / "config.yaml").is_file()
            if began and read_status(folder).get("state") != "finished" and not is_locked(folder):
                return folder
    return free_folder(Path("outputs", name))


def free_folder(parent: Path) -> Path:
    """Make `parent/<date>_<time>`, with `_2` and so on when it is taken, also by a process of the same moment."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for k in count(1):
        folder = parent / (stamp if k == 1 else f"{stamp}_{k}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("there is always a next number")


def refuse_a_second_run(folder: Path) -> None:
    """Raises `Mistake` when a run has begun in the folder, or what one wrote is still there."""
    if (folder / "config.yaml").is_file():
        raise Mistake(f"{folder} holds a run already. Set resume=auto to go on with it, or give another folder.")
    refuse_remains(folder)


def refuse_remains(folder: Path) -> None:
    """Raises `Mistake` when the folder holds what a run wrote, but no config to go on by: it would be written over."""
    found = [name for name in ("checkpoints", "metrics.jsonl") if (folder / name).exists()]
    if found and not (folder / "config.yaml").is_file():
        raise Mistake(
            f"{folder} holds {' and '.join(found)} but no config.yaml, so it is no run to go on with, and a new one "
            "would write over it. Give another folder."
        )
