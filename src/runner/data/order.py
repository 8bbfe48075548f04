"""Which row comes next: pure functions of (seed, epoch, position), whatever the number of processes or loader workers.

A step takes `batch_size` rows of the epoch's order, the last of an epoch what is left. They are dealt as micro-batches
of `micro_batch_size` rows a process; a process that gets none runs one row with weight 0, so that all do the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from runner.protocols import IGNORED, Example

Order = Literal["shuffled", "file"]


class Key(NamedTuple):
    """What a loader asks its data set for; the epoch is for random transforms."""

    epoch: int
    row: int
    weight: Literal[0, 1]


@dataclass(frozen=True)
class MicroBatch:
    rows: tuple[int, ...]
    weight: Literal[0, 1]


def steps_per_epoch(n: int, batch_size: int) -> int:
    return -(-n // batch_size)


def rows_of_step(step: int, n: int, batch_size: int, seed: int, order: Order) -> tuple[int, list[int]]:
    """The epoch of optimizer step `step`, counted from 0, and its rows over all processes, in order."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    start, stop = position * batch_size, min(n, (position + 1) * batch_size)
    return epoch, list(range(start, stop)) if order == "file" else permutation(n, seed, epoch)[start:stop].tolist()


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [n], from numpy's legacy generator: the one whose stream is promised never to change (NEP 19)."""
    digest = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4")).permutation(n)


def deal(rows: Sequence[int], micro_batch_size: int, processes: int, rank: int) -> list[MicroBatch]:
    """This rank's micro-batches of one step; every rank has as many."""
    dealt = []
    for start in range(0, len(rows), micro_batch_size * processes):
        first = start + rank * micro_batch_size
        mine = tuple(rows[first : first + micro_batch_size])
        dealt.append(MicroBatch(mine, 1) if mine else MicroBatch((rows[0],), 0))
    return dealt


@dataclass(frozen=True)
class MicroBatchSampler:
    """A `batch_sampler`: this rank's micro-batches of steps `start_step` to `stop_step` - 1, one after another."""

    start_step: int
    stop_step: int
    n: int
    batch_size: int
    micro_batch_size: int
    processes: int
    rank: int
    seed: int
    order: Order

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.stop_step):
            epoch, rows = rows_of_step(step, self.n, self.batch_size, self.seed, self.order)
            for micro_batch in deal(rows, self.micro_batch_size, self.processes, self.rank):
                yield [Key(epoch, row, micro_batch.weight) for row in micro_batch.rows]


class ExampleSet(Dataset[Example]):
    """Examples by `Key`; one of weight 0 comes with nothing to be learnt."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Example:
        example = self.examples[key.row]
        return example if key.weight else without_weight(example)


def without_weight(example: Example) -> Example:
    """To be run along by a process that has no row: it counts for nothing and teaches nothing."""
    return replace(example, labels=np.full_like(example.labels, IGNORED), weight=0.0)
