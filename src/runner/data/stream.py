"""Rows that are read as they are needed: file order, shuffled within a buffer, and gone on with by a cursor.

A block of `buffer` examples is read and drawn from, then the next: where a run stands is a pass over the source, the
rows of it before the block, and how many of the block were taken. Nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from runner import settings
from runner.data.bad_rows import BadReport
from runner.data.collate import Collate
from runner.data.dealing import Dealer
from runner.data.digest import RowsDigest
from runner.data.intake import Intake, Reader, Split
from runner.data.length import LengthReport
from runner.data.mixed import Mixed
from runner.data.order import drawn, without_weight
from runner.fingerprint import of_json
from runner.protocols import BadRow, Batch, Example, Mistake, Row


class Cursor(NamedTuple):
    """Where a stream stands."""

    turn: int
    """Passes over the source before this one."""
    rows: int
    """Of the source, before the block."""
    taken: int
    """Examples of the block."""


@dataclass(frozen=True)
class Stream:
    split: str
    rows: Iterable[Row | BadRow]
    reader: Reader
    given: settings.Data
    seed: int

    def intake(self) -> Intake:
        return Intake(self.split, self.rows, self.reader, self.given)

    def examples(self, cursor: Cursor, intake: Intake | None = None) -> Iterator[tuple[Example, Cursor]]:
        """Without end, each with where the stream stands after it; `intake` counts what was left out.

        Raises `Mistake` for what may not be left out.
        """
        intake = intake or self.intake()
        turn, first, taken = cursor
        while True:
            found = first > 0
            for start, block in self.blocks(first, intake):
                found = found or bool(block)
                for position in range(taken, len(block)):
                    place = self.drawn(turn, start, len(block))[position]
                    yield block[place], Cursor(turn, start, position + 1)
                taken = 0
            if not found:
                raise Mistake(f"data, {self.split}: the stream has no row that can be used.")
            turn, first, taken = turn + 1, 0, 0

    def drawn(self, turn: int, start: int, size: int) -> np.ndarray:
        """The order of a block: a function of the seed, the pass and the block's place."""
        if self.given.order == "file":
            return np.arange(size)
        return drawn(f"stream/{self.seed}/{turn}/{start}").permutation(size)

    def blocks(self, first: int, intake: Intake) -> Iterator[tuple[int, list[Example]]]:
        """From row `first` of the source on: each block, and how many rows of the source come before it."""
        rows = islice(iter(self.rows), first, None)
        read = start = first
        block: list[Example] = []
        for row in rows:
            read += 1
            block += intake.of_stream(row)
            if len(block) >= self.given.buffer:
                intake.check_so_far()
                yield start, block
                start, block = read, []
        intake.check_so_far()
        if block:
            yield start, block


@dataclass(frozen=True)
class StreamedStep:
    """A step as the stream gave it, for one process."""

    micro_batches: list[Batch]
    ids: list[str]
    """Over all processes"""
    tokens: int
    padded: int
    cursor: Cursor
    bad: BadReport
    """Of all rows that were read so far."""
    lengths: LengthReport


class StreamedSteps(IterableDataset[StreamedStep]):
    """Steps of `batch_size` rows. Every process reads them all and makes its own micro-batches, so that their rows do
    not depend on the number of processes."""

    def __init__(
        self, stream: Stream, cursor: Cursor, batch_size: int, dealer: Dealer, rank: int, collate: Collate
    ) -> None:
        self.stream = stream
        self.cursor = cursor
        self.batch_size = batch_size
        self.dealer = dealer
        self.rank = rank
        self.collate = collate

    def __iter__(self) -> Iterator[StreamedStep]:
        intake = self.stream.intake()
        examples = self.stream.examples(self.cursor, intake)
        while True:
            step = list(islice(examples, self.batch_size))
            yield self.dealt([example for example, _ in step], step[-1][1], intake)

    def dealt(self, step: Sequence[Example], cursor: Cursor, intake: Intake) -> StreamedStep:
        lengths = np.array([len(example.input_ids) for example in step])
        dealer = self.dealer.of(lengths)
        dealt = dealer.deal(range(len(step)))
        mine = [some[self.rank] for some in dealt]
        micro_batches = [
            self.collate([step[row] if one.weight else without_weight(step[row]) for row in one.rows]) for one in mine
        ]
        ids = [example.id for example in step]
        bad, fitted = intake.bad.report(), intake.fitting.report()
        return StreamedStep(micro_batches, ids, int(lengths.sum()), dealer.padded(dealt), cursor, bad, fitted)


START = Cursor(0, 0, 0)


def open_stream(
    split: str,
    rows: Iterable[Row | BadRow],
    reader: Reader,
    given: settings.Data,
    seed: int,
    source: Mapping[str, Any] | None,
) -> Split:
    """With its first block as examples, by which parts are tried; `source` is what the row source calls itself."""
    if isinstance(rows, Mixed):
        raise Mistake(
            "data.streaming: sources are not mixed by weights while they are read. Set data.weights=null, or "
            "data.streaming=false."
        )
    stream, digest = Stream(split, rows, reader, given, seed), RowsDigest()
    intake = stream.intake()
    _, block = next(stream.blocks(0, intake), (0, []))
    for example in block:
        digest.update(example)
    whole = of_json([digest.hexdigest(), source])
    return Split(block, intake.fitting.report(), intake.bad.report(), whole, stream=stream)
