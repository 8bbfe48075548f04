"""Which row comes next: pure functions of (seed, epoch, position), whatever the number of processes or loader workers.

A step takes `batch_size` rows of the epoch's order, the last of an epoch what is left. Shapes: R rows of an epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from runner.protocols import IGNORED, Example

GROUPED_TOGETHER = 64
"""Steps whose rows are sorted by length together: more pad less, and mix less."""


@dataclass(frozen=True, eq=False)  # compared by identity, as the cache of its epochs does
class Order:
    """The rows of every step. `shares` of a mixture: how many rows each source has, and its weight; its rows follow
    each other. `lengths` [rows], text tokens, for `grouped`."""

    rows: int
    batch_size: int
    seed: int
    order: Literal["shuffled", "grouped", "file"]
    lengths: np.ndarray | None = None
    shares: tuple[tuple[int, float], ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch_size)

    def of_step(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of optimizer step `step`, counted from 0, and its rows over all processes, in order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch, self.of_epoch(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    @lru_cache(maxsize=2)  # noqa: B019 - an order lives as long as its run
    def of_epoch(self, epoch: int) -> np.ndarray:
        """int32 [R]"""
        rows = self._mixed(epoch) if self.shares else self._pass("order", epoch, self.rows)
        return self._grouped(rows, epoch) if self.order == "grouped" else rows

    def _pass(self, name: str, number: int, rows: int) -> np.ndarray:
        """The numbers below `rows`, once each."""
        order = np.arange(rows, dtype=np.int32)
        if self.order != "file":
            drawn(f"{name}/{self.seed}/{number}").shuffle(order)
        return order

    def _mixed(self, epoch: int) -> np.ndarray:
        """An epoch draws as many rows as there are. Each source gives its share of them, evenly spread, and goes on in
        the next epoch where it stopped: none of its rows comes twice before all have come."""
        sizes = [size for size, _ in self.shares]
        counts = shared_out(self.rows, [weight for _, weight in self.shares])
        parts, due = [], []
        for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            parts.append(self._turns(number, size, epoch * count, count) + sum(sizes[:number]))
            due.append((np.arange(count) + 0.5) / max(count, 1))
        return np.concatenate(parts)[np.argsort(np.concatenate(due), kind="stable")].astype(np.int32)

    def _turns(self, source: int, size: int, first: int, count: int) -> np.ndarray:
        """`count` rows of a source's endless passes over itself, from its `first` on."""
        if not count:
            return np.zeros(0, dtype=np.int32)
        passes = range(first // size, (first + count - 1) // size + 1)
        rows = np.concatenate([self._pass(f"mixture/{source}", number, size) for number in passes])
        return rows[first - passes[0] * size :][:count]

    def _grouped(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Steps of rows that are about equally long, in a drawn order; the first has the longest row, so that too
        little memory shows itself at once. The last step of the epoch holds what is left."""
        assert self.lengths is not None
        together = GROUPED_TOGETHER * self.batch_size
        whole = len(rows) // self.batch_size * self.batch_size
        for start in range(0, whole, together):
            some = rows[start : min(start + together, whole)]
            some[:] = some[np.argsort(self.lengths[some], kind="stable")]
        if whole:
            steps = rows[:whole].reshape(-1, self.batch_size)
            drawn(f"steps/{self.seed}/{epoch}").shuffle(steps)
            longest = int(self.lengths[rows[:whole]].argmax()) // self.batch_size
            steps[[0, longest]] = steps[[longest, 0]]
        return rows


def drawn(name: str) -> np.random.RandomState:
    """numpy's legacy generator: the one whose stream is promised never to change (NEP 19)."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


def shared_out(count: int, weights: list[float]) -> list[int]:
    """`count` in whole parts, each less than one from its weight's share: the largest remainders are rounded up."""
    exact = np.array(weights) / sum(weights) * count
    parts = np.floor(exact).astype(int)
    for k in np.argsort(parts - exact, kind="stable")[: count - int(parts.sum())]:
        parts[k] += 1
    return [int(part) for part in parts]


def without_weight(example: Example) -> Example:
    """To be run along by a process that has no row: it counts for nothing and teaches nothing."""
    return replace(example, labels=np.full_like(example.labels, IGNORED), weight=0.0)
