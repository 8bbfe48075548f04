"""Which row each loader worker is at, so that one that dies or hangs can be told with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import re

ROOM = 512
"""Bytes for a worker's row."""
_slot: memoryview | None = None
"""In a worker: where it writes."""


class Watch:
    """Memory that the workers share with the process that they load for."""

    def __init__(self, workers: int) -> None:
        self.memory = multiprocessing.RawArray(ctypes.c_char, workers * ROOM)

    def begin(self, worker: int) -> None:
        """In the worker."""
        global _slot
        _slot = memoryview(self.memory).cast("B")[worker * ROOM : (worker + 1) * ROOM]

    def rows(self) -> str:
        """`train.jsonl:17 (id x), image item 1`, of each worker that is at one."""
        raw = bytes(self.memory)
        parts = [raw[first : first + ROOM].split(b"\0")[0] for first in range(0, len(raw), ROOM)]
        return "; ".join(part.decode(errors="replace") for part in parts if part)

    def explain(self, error: RuntimeError) -> str | None:
        """What became of a worker; None for another error."""
        said = str(error)
        at = self.rows()
        where = f" It was at {at}." if at else " It was between two rows."
        if "timed out" in said:
            return f"A loader worker gave nothing for data.worker_timeout.{where} Look at that item, or raise it."
        if re.search(r"worker \(pid.*\) (exited|is killed)", said):
            cause = said.splitlines()[0].rstrip(".")
            return f"{cause}.{where} Look at that item and at the machine's memory, or set data.workers=0."
        return None


def note(text: str) -> None:
    """The row that this process turns to, or nothing after the last; outside of a worker nobody asks."""
    if _slot is not None:
        said = text.encode()[: ROOM - 1]
        _slot[: len(said) + 1] = said + b"\0"
