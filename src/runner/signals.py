"""SIGTERM and Ctrl-C: a step is finished and saved, then the run stops; before the first one it stops at once.

A second signal stops at once in any case.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from runner.protocols import Stopped

CAUGHT = (signal.SIGTERM, signal.SIGINT)
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

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request.number = number
        if not request.waits:
            raise _AtOnceError

    for number in CAUGHT:
        signal.signal(number, handle)
    try:
        yield request
    except _AtOnceError:
        came = request.number or 0
        raise Stopped(came, f"Stopped by signal {came} before a step was trained.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(number: int) -> None:
    """Have the kernel send this process `number` when its parent dies, however that dies (Linux alone can)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died just before
        os.kill(os.getpid(), number)
