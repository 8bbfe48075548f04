"""Folders on disk for what is worth making only once, found again by what they were made of.

An entry is visible once it is whole: it is written beside, under a lock, and renamed. Several processes that want the
same one make it once; what a killed one left is cleared by the next that makes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner import fingerprint
from runner.protocols import Mistake

ENTRY = "entry.json"
"""The file of an entry that says what it was made of and how large its files are."""


def keep(root: str | Path, kind: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder of what was made of `made_of` (JSON); `make` fills a new one where there is none.

    Raises `Mistake` where `root` cannot be written, and whatever `make` raises.
    """
    entry = place_of(root, kind, made_of)
    place = entry.parent
    if is_whole(entry):
        return entry
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / f"{entry.name}.lock").open("w")
    except OSError as error:
        raise unwritable(root, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        if is_whole(entry):  # another process made it while this one waited
            return entry
        for left in place.glob(f"{entry.name}.part*"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(entry, ignore_errors=True)
        part = place / f"{entry.name}.part{os.getpid()}"
        try:
            part.mkdir()
            make(part)
            seal(part, made_of)
            part.rename(entry)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(place)):
                raise  # of what it is made of, not of the cache
            raise unwritable(root, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return entry


def place_of(root: str | Path, kind: str, made_of: Mapping[str, Any]) -> Path:
    """Where the folder is, or will be; `is_whole` says which."""
    return Path(root).expanduser() / kind / fingerprint.of_json(made_of)[:32]


def seal(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Bring the files to the disk, then the entry's own that names them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    with (folder / ENTRY).open("w") as stream:
        json.dump({"made_of": made_of, "bytes": sizes}, stream, default=str)
        stream.flush()
        os.fsync(stream.fileno())


def is_whole(entry: Path) -> bool:
    """Whether all files of an entry are there with the sizes that they had."""
    try:
        sizes = json.loads((entry / ENTRY).read_text())["bytes"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def unwritable(root: str | Path, error: OSError) -> Mistake:
    return Mistake(
        f"data.cache={root}: {error.strerror or error}. Name a folder that can be written and has room, or keep "
        "nothing (data.cache=null)."
    )
