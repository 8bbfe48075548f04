"""A step's rows, dealt to processes as micro-batches: by a number of rows, or by a budget of tokens.

Every process gets as many micro-batches; one that gets no row runs one with weight 0, so that all do the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from runner.data.order import Order, without_weight
from runner.protocols import Example


class Key(NamedTuple):
    """What a loader asks its data set for; the epoch is for random transforms."""

    epoch: int
    row: int
    weight: Literal[0, 1]


@dataclass(frozen=True)
class MicroBatch:
    rows: tuple[int, ...]
    weight: Literal[0, 1]


@dataclass(frozen=True)
class Dealer:
    """A micro-batch has so many `rows`, or at most so many `tokens`, padding with them; `packing`: there is none."""

    rows: int
    tokens: int | None
    packing: bool
    processes: int
    lengths: np.ndarray
    """int32, text tokens of each row that there is"""

    def deal(self, step: Sequence[int]) -> list[list[MicroBatch]]:
        """[micro-batches][processes]"""
        parts = self.by_rows(step) if self.tokens is None else self.by_tokens(step, self.tokens)
        parts += [() for _ in range(-len(parts) % self.processes)]
        dealt = [MicroBatch(rows, 1) if rows else MicroBatch((step[0],), 0) for rows in parts]
        return [dealt[first : first + self.processes] for first in range(0, len(dealt), self.processes)]

    def of(self, lengths: np.ndarray) -> Dealer:
        """The same for other rows."""
        return replace(self, lengths=lengths)

    def by_rows(self, step: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(step[first : first + self.rows]) for first in range(0, len(step), self.rows)]

    def by_tokens(self, step: Sequence[int], budget: int) -> list[tuple[int, ...]]:
        """Longest first. Packed, each row goes where it leaves the least room (best fit); padded, rows of about one
        length come together. A row that is longer than the budget has one of its own."""
        rows = sorted(step, key=lambda row: -int(self.lengths[row]))
        parts: list[list[int]] = []
        room: list[int] = []
        for row in rows:
            length = int(self.lengths[row])
            if self.packing:
                fits = [k for k, left in enumerate(room) if left >= length]
                best = min(fits, key=room.__getitem__) if fits else None
            else:
                fits_last = parts and (len(parts[-1]) + 1) * int(self.lengths[parts[-1][0]]) <= budget
                best = len(parts) - 1 if fits_last else None
            if best is None:
                parts.append([row])
                room.append(budget - length)
            else:
                parts[best].append(row)
                room[best] -= length
        return [tuple(part) for part in parts]

    def padded(self, dealt: Sequence[Sequence[MicroBatch]]) -> int:
        """Tokens of a step that are computed, padding with them, over all processes."""
        lengths = [self.lengths[list(one.rows)] for some in dealt for one in some if one.weight]
        return int(sum(some.sum() if self.packing else len(some) * some.max(initial=0) for some in lengths))


@dataclass(frozen=True)
class MicroBatchSampler:
    """A `batch_sampler`: this rank's micro-batches of steps `start_step` to `stop_step` - 1, one after another."""

    start_step: int
    stop_step: int
    order: Order
    dealer: Dealer
    rank: int

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.stop_step):
            epoch, rows = self.order.of_step(step)
            for dealt in self.dealer.deal(rows.tolist()):
                mine = dealt[self.rank]
                yield [Key(epoch, row, mine.weight) for row in mine.rows]


class ExampleSet(Dataset[Example]):
    """Examples by `Key`; one of weight 0 comes with nothing to be learnt."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Example:
        example = self.examples[key.row]
        return example if key.weight else without_weight(example)
