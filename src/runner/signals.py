"""SIGTERM, Ctrl-C, a closed terminal: a step is finished and saved, then the run stops; before the first one, at once.

A second signal stops at once in any case, unless it comes within a second of the first: a launcher hands on what its
whole group was sent, and the kernel may tell of a parent's death once for each of its threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from runner.protocols import Stopped

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_S = 1.0
"""Seconds within which a second signal is the first one again."""
PR_SET_PDEATHSIG = 1
"""prctl(2)"""


@dataclass
class StopRequest:
    number: int | None = None
    """The signal that asked for it."""
    waits: bool = False
    """Whether the run stops by itself where it can be saved; until it trains there is nothing to save."""


class _AtOnceError(BaseException):
    """Not an `Exception`, so that nothing that is interrupted takes it for its own."""


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Raises `Stopped` where a signal comes while the request does not wait."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield request
        return
    before = {number: signal.getsignal(number) for number in CAUGHT}
    heard = [number for number in CAUGHT if before[number] is not signal.SIG_IGN]  # nohup's stays ignored
    came = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if request.number is not None:
            if time.monotonic() - came > SAME_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        request.number, came = number, time.monotonic()
        if not request.waits:
            raise _AtOnceError

    for number in heard:
        signal.signal(number, handle)
    try:
        yield request
    except _AtOnceError:
        sentence = f"Stopped by signal {request.number} before a step was trained."
        raise Stopped(request.number or 0, sentence, saved=False) from None
    finally:
        for number in heard:
            signal.signal(number, before[number])


def end_with_parent(number: int, parent: int) -> None:
    """Have the kernel send this process `number` when its parent dies, however that dies (Linux alone can). `parent` is
    the parent's process id, which cannot be asked for any more when that has died already."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
