"""What training sees of its rows, as one hash: whether a run goes on with the rows that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from runner.protocols import Example


class RowsDigest:
    """A hash of what training sees of its rows, in order: ids, tokens, labels, places, and numbers that stand in them;
    of files it has the names alone, so that moved data is the same data."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, one: Example) -> None:
        digest = self._digest
        digest.update(f"{one.id}\0{one.places}\0{one.row.label!r}\0{len(one.input_ids)}\0".encode())
        digest.update(one.input_ids.tobytes() + one.labels.tobytes())
        digest.update(one.row.horizon.values.tobytes() if one.row.horizon else b"")
        for name, items in one.row.items.items():
            for item in items:
                digest.update(f"{name}\0".encode())
                digest.update(item.tobytes() if isinstance(item, np.ndarray) else named(item))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def named(item: Any) -> bytes:
    """A file by its name; numbers and texts as they are written."""
    if isinstance(item, Path):
        return item.name.encode()
    return repr(item).encode() if isinstance(item, str | int | float | list) else type(item).__name__.encode()
