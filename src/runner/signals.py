"""SIGTERM and Ctrl-C while training: the step is finished and saved, then the run stops. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    number: int | None = None
    """The signal that asked for it."""


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
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

    for number in CAUGHT:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
