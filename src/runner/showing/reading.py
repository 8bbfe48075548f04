"""A micro-batch as the language model reads it: sequences of rows, each with its text, items and padding in order.

Everything is taken from what the objective gives the language model, so positions, packing and the number of an item's
tokens are those of training. Shapes: M tokens of a sequence, T of an item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.protocols import IGNORED, Batch, Mistake, Row, Tokens
from runner.showing.glyphs import Glyphs
from runner.showing.steps import Dealt
from runner.showing.wholes import Kind, Whole


@dataclass(frozen=True)
class Text:
    """What a person sees of one token, or of several that make one character."""

    text: str
    ids: tuple[int, ...]
    first: int
    """Position of the first."""
    learnt: bool
    kind: Kind


@dataclass(frozen=True)
class Items:
    """Items that stand together: one, or those whose tokens a fusion makes into others, `image 1` and `audio 1`."""

    names: tuple[tuple[str, int], ...]
    """Modality, and the item's number counted from 0."""
    tokens: int | None
    """0: beside the text, inside the language model; None: no language model reads them."""
    padding: int
    first: int
    """Position of the first token."""


@dataclass(frozen=True)
class Cut:
    """Here so many text tokens of the row were taken out."""

    tokens: int


@dataclass(frozen=True)
class ReadRow:
    row: Row
    id: str
    weight: float
    pieces: tuple[Text | Items | Cut, ...]
    tokens: int
    learnt: int
    padding: int
    """After it, where rows lie side by side."""
    first: int
    last: int
    """Positions."""
    whole: Whole | None
    counts: Mapping[str, float]
    """What it adds to what each term is divided by; of an objective without a language model."""


@dataclass(frozen=True)
class MicroBatch:
    number: int
    process: int
    packed: bool
    rows: tuple[ReadRow, ...]
    counts: Mapping[str, float]
    """What each term is divided by, its part."""

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def padding(self) -> int:
        inside = sum(piece.padding for row in self.rows for piece in row.pieces if isinstance(piece, Items))
        return inside + sum(row.padding for row in self.rows)

    @property
    def learnt(self) -> int:
        return sum(row.learnt for row in self.rows)

    @property
    def efficiency(self) -> float:
        """The share of what is computed that is no padding."""
        return self.tokens / max(1, self.tokens + self.padding)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, padding with them."""
        return self.tokens if self.packed else max(extent(row) for row in self.rows)


def extent(row: ReadRow) -> int:
    return row.tokens + row.padding + sum(piece.padding for piece in row.pieces if isinstance(piece, Items))


@torch.no_grad()
def read_by(objective: Any, dealt: Dealt, wholes: Mapping[tuple[str, str], Whole], glyphs: Glyphs) -> MicroBatch:
    """By an objective with a language model."""
    batch = dealt.batch
    labels, inputs, streams = objective.reads(batch)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask", torch.ones_like(labels)) == 1
    counted = torch.arange(ids.shape[1]).expand_as(ids)  # as language models count where they are given none
    positions = inputs.get("position_ids", counted)
    starts = np.flatnonzero(positions[0].cpu() == 0)[1:]

    def by_row(tensor: Tensor) -> list[np.ndarray]:
        array = tensor.cpu().numpy()
        return np.split(array[0], starts) if batch.packed else list(array)

    read, learnt, there, stand = by_row(ids), by_row(labels), by_row(mask), by_row(positions)
    items = items_of(batch, streams)
    rows = [
        ReadingRow(batch, k, read[k], learnt[k], there[k], stand[k], items[k], wholes[row.where, row.id], glyphs).read()
        for k, row in enumerate(batch.rows)
    ]
    return MicroBatch(dealt.number, dealt.process, batch.packed, tuple(rows), objective.counts(batch))


def labelled(objective: Any, dealt: Dealt) -> MicroBatch:
    """By an objective without a language model: what its rows hold."""
    batch = dealt.batch
    items = items_of(batch, {})
    rows = []
    for k, row in enumerate(batch.rows):
        alone = [weight if j == k else 0.0 for j, weight in enumerate(batch.weights)]
        chips = tuple(Items((item.name,), None, 0, 0) for item in items[k])
        counts = objective.counts(replace(batch, weights=alone))
        rows.append(ReadRow(row, row.id, batch.weights[k], chips, 0, 0, 0, 0, 0, None, counts))
    return MicroBatch(dealt.number, dealt.process, False, tuple(rows), objective.counts(batch))


@dataclass(frozen=True)
class PlacedItem:
    place: int
    """The text token that it comes before."""
    name: tuple[str, int]
    mask: np.ndarray
    """bool [T]; empty where nothing is known of its tokens"""


def items_of(batch: Batch, streams: Mapping[str, Tokens]) -> list[list[PlacedItem]]:
    """By row, in order. Packed, an item's padding is nowhere."""
    ranked: list[list[tuple[int, PlacedItem]]] = [[] for _ in batch.rows]
    for modality, stream in batch.streams.items():
        numbers = [0] * len(batch.rows)
        for k, (row, place, rank) in enumerate(stream.places):
            mask = streams[modality].mask[k].cpu().numpy() if modality in streams else np.zeros(0, dtype=bool)
            one = PlacedItem(place, (modality, numbers[row]), mask[mask] if batch.packed else mask)
            ranked[row].append((rank, one))
            numbers[row] += 1
    return [[one for _, one in sorted(some, key=lambda pair: (pair[1].place, pair[0]))] for some in ranked]


@dataclass(frozen=True)
class ReadingRow:
    """A row's part of a sequence, [M], on its way to pieces."""

    batch: Batch
    number: int
    ids: np.ndarray
    labels: np.ndarray
    there: np.ndarray
    """bool [M]: no padding"""
    positions: np.ndarray
    items: list[PlacedItem]
    whole: Whole
    glyphs: Glyphs

    def read(self) -> ReadRow:
        row = self.batch.rows[self.number]
        text = np.flatnonzero((self.ids != IGNORED) & self.there)
        if len(text) != len(self.whole.kept):
            raise Mistake(
                f"fusion: of {row.where} (id {row.id}) the language model reads {len(text)} text tokens, and the row "
                f"has {len(self.whole.kept)}. A fusion keeps the text's ids in Fused.input_ids."
            )
        pieces = tuple(self.pieces(text))
        read = np.flatnonzero(self.there)
        inside = sum(piece.padding for piece in pieces if isinstance(piece, Items))
        return ReadRow(
            row=row,
            id=self.batch.ids[self.number],
            weight=self.batch.weights[self.number],
            pieces=pieces,
            tokens=len(read),
            learnt=int((self.labels != IGNORED).sum()),
            padding=len(self.ids) - len(read) - inside,
            first=int(self.positions[read[0]]),
            last=int(self.positions[read[-1]]),
            whole=self.whole,
            counts={},
        )

    def pieces(self, text: np.ndarray) -> Iterator[Text | Items | Cut]:
        """`text` are the row's text tokens in the sequence."""
        ends = [*text.tolist(), len(self.ids)]
        kept = [-1, *self.whole.kept.tolist(), len(self.whole.kinds)]
        start = 0
        before: tuple[int, ...] = ()
        for number, slot in enumerate(ends):
            first_of_gap = ends[number - 1] + 1 if number else 0
            chips = list(self.chips(number, first_of_gap, slot))
            taken_out = kept[number + 1] - kept[number] - 1
            if chips or taken_out or number == len(text) or (number and self.differs(text, number)):
                some = text[start:number]
                for written, ids in self.glyphs.split(self.ids[some].tolist(), before):
                    yield self.glyph(written, ids, start, text)
                    start, before = start + len(ids), ids
            yield from chips
            if taken_out:
                yield Cut(taken_out)

    def differs(self, text: np.ndarray, number: int) -> bool:
        """Whether a text token is of another kind than the one before it."""
        this, earlier = (
            (self.labels[text[k]] != IGNORED, self.whole.kinds[self.whole.kept[k]]) for k in (number, number - 1)
        )
        return bool(this != earlier)

    def glyph(self, written: str, ids: tuple[int, ...], number: int, text: np.ndarray) -> Text:
        slot = text[number]
        kind = self.whole.kinds[self.whole.kept[number]]
        return Text(written, ids, int(self.positions[slot]), bool(self.labels[slot] != IGNORED), kind)

    def chips(self, place: int, start: int, stop: int) -> Iterator[Items]:
        """The items before text token `place`, between whose neighbours the sequence has `start` to `stop`."""
        items = [item for item in self.items if item.place == place]
        masks = np.concatenate([item.mask for item in items]) if items else np.zeros(0, dtype=bool)
        there = self.there[start:stop]
        if np.array_equal(masks, there[: len(masks)]) and not there[len(masks) :].any():
            for item in items:
                yield self.chip([item], start, start + len(item.mask))
                start += len(item.mask)
        elif there.any():  # a fusion that makes other tokens of theirs
            yield self.chip(items, start, start + int(np.flatnonzero(there)[-1]) + 1)
        else:  # one that works inside the language model
            yield from (self.chip([item], start, start) for item in items)

    def chip(self, items: Iterable[PlacedItem], start: int, stop: int) -> Items:
        read = np.flatnonzero(self.there[start:stop])
        first = int(self.positions[start + read[0]]) if len(read) else 0
        return Items(tuple(item.name for item in items), len(read), stop - start - len(read), first)
