"""Trackers that cannot hurt a run: each works through a bounded queue in a daemon thread of its own.

Calls return at once. What a tracker raises is told once; one that hangs or is slow loses its newest lines, and at the
end it is left behind after a deadline. metrics.jsonl has everything in any case.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import thread as executor_threads
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from runner.protocols import Prediction, RunDescription, Tracker

LOGGER = logging.getLogger(__name__)
SECRET_NAMES = re.compile("key|token|secret|password", re.IGNORECASE)


class Isolated:
    """Several trackers, by name, as one `Tracker`; its `resume_key` is theirs as a JSON object.

    deadline_s: seconds that `finish` waits for all of them together. capacity: calls that may wait for a tracker; more
    are dropped and counted. max_failures: failed calls in a row that switch a tracker off.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], deadline_s: float = 30.0, capacity: int = 10_000, max_failures: int = 3
    ) -> None:
        self._deadline_s = deadline_s
        self._lanes = {name: Lane(name, tracker, capacity, max_failures) for name, tracker in trackers.items()}

    @property
    def resume_key(self) -> str | None:
        keys = {name: lane.resume_key for name, lane in self._lanes.items() if lane.resume_key is not None}
        return json.dumps(keys) if keys else None

    def start(self, run: RunDescription) -> None:
        keys = json.loads(run.resume_key) if run.resume_key else {}
        parameters = {
            key: without_secrets(value) if isinstance(value, str) else value for key, value in run.parameters.items()
        }
        for name, lane in self._lanes.items():
            lane.start(replace(run, parameters=parameters, resume_key=keys.get(name)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for lane in self._lanes.values():
            lane.put("log_metrics", dict(metrics), step)

    def log_samples(self, predictions: Sequence[Prediction], step: int) -> None:
        for lane in self._lanes.values():
            lane.put("log_samples", list(predictions), step)

    def finish(self, status: Literal["finished", "failed", "stopped"]) -> None:
        until = time.monotonic() + self._deadline_s
        for lane in self._lanes.values():
            lane.close(status)
        for lane in self._lanes.values():
            lane.wait(until, self._deadline_s)
        let_go_of_executors()


class Lane:
    """One tracker, its queue and its thread. The tracker is touched in that thread only."""

    def __init__(self, name: str, tracker: Tracker, capacity: int, max_failures: int) -> None:
        self.resume_key: str | None = None
        """A copy, so that reading it waits for nobody."""
        self._name = name
        self._tracker = tracker
        self._capacity = capacity
        self._max_failures = max_failures
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._status: Literal["finished", "failed", "stopped"] | None = None
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._failures = 0
        """In a row."""
        self._told = False

    def start(self, run: RunDescription) -> None:
        self.resume_key = run.resume_key
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"tracker {self._name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *arguments: Any) -> None:
        if self._thread is None or self._status is not None:
            return
        if self._calls.qsize() >= self._capacity:
            self._dropped += 1
        else:
            self._calls.put((method, arguments))

    def close(self, status: Literal["finished", "failed", "stopped"]) -> None:
        """Nothing more is taken; what waits is still worked off, then the tracker is finished."""
        if self._thread is not None and self._status is None:
            self._status = status
            self._calls.put(None)

    def wait(self, until: float, deadline_s: float) -> None:
        """Until the tracker is finished, or until that time of the monotonic clock."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            waiting = self._calls.qsize() - 1  # the last one only says that it is the end
            self._tell(f"did not finish within {deadline_s:g} s and is left behind, {max(waiting, 0)} calls waiting")
        elif self._dropped:
            self._tell(f"was too slow: {self._dropped} calls were dropped")
        self._thread = None

    def _work(self, run: RunDescription) -> None:
        on = started = self._try("start", run)
        while (call := self._calls.get()) is not None:
            method, arguments = call
            if on and not self._try(method, *arguments) and self._failures == self._max_failures:
                on = False
                self._tell(f"failed {self._failures} times in a row and is switched off")
        if started:
            self._try("finish", self._status)

    def _try(self, method: str, *arguments: Any) -> bool:
        try:
            getattr(self._tracker, method)(*arguments)
            self.resume_key = self._tracker.resume_key
        except BaseException as error:  # SystemExit too: it must not end this thread before its queue is empty
            self._failures += 1
            if not self._told:
                self._told = True
                self._tell(f"failed in {method} with {type(error).__name__}: {error}")
                LOGGER.debug("%s", without_secrets(traceback.format_exc()))
            return False
        self._failures = 0
        return True

    def _tell(self, what: str) -> None:
        sentence = f"Tracker {self._name} {what}".rstrip(".: ")
        LOGGER.warning("%s. metrics.jsonl has everything.", without_secrets(sentence))


def without_secrets(text: str) -> str:
    """Values of secret environment variables become their names: no tracker shows them, and no log what it raised."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET_NAMES.search(name):
            text = text.replace(value, f"${name}")
    return text


def let_go_of_executors() -> None:
    """Keep Python's exit from waiting for what a tracker's thread pools still upload.

    Threads that a daemon thread starts are daemons, but `concurrent.futures` joins its own at exit all the same, so
    uploads to a server that went away would hold the process for a minute. Pools without daemons stay as they are.
    """
    queues = getattr(executor_threads, "_threads_queues", {})
    for thread in [thread for thread in list(queues) if thread.daemon]:
        queues.pop(thread, None)
