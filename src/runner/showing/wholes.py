"""What a row was before it was cut to length, so that what it lost can be told.

Shapes: L text tokens of a whole row, K of them that are left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from runner import config, settings
from runner.config import Composed
from runner.data.chat import ChatFormat, Encoded
from runner.data.length import LengthPolicy
from runner.data.mixed import Mixed
from runner.data.rows import with_text
from runner.protocols import IGNORED, Batch, Mistake, Row
from runner.seats import ITEM_FIELDS, mixed_seat, seat

Kind = Literal["user", "system", "answer", "template"]
CUTTING = ("truncate_prompt", "truncate", "split")
PIECE = re.compile(r"(.*)#(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Whole:
    """Where the tokens of a row, or of a piece of one, stand in all of it."""

    kinds: tuple[Kind, ...]
    """Of each of the L tokens whose text it is."""
    kept: np.ndarray
    """int64 [K]: their numbers, rising"""
    lost: Mapping[str, int]
    """By kind, tokens that no row has; `item` for items."""
    elsewhere: int
    """Tokens that other pieces have."""
    unlearnt: int
    """Tokens that are read and no longer learnt: the first of a piece."""


class TokenNumbers:
    """A `ChatFormat` that encodes a row to its tokens' numbers: what is cut to length then says which were kept."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self.end_of_turn = chat.end_of_turn

    def encode(self, row: Row) -> Encoded:
        encoded = self.chat.encode(row)
        return replace(encoded, example=replace(encoded.example, input_ids=np.arange(len(encoded.example.input_ids))))


class Wholes:
    """Of the rows of some micro-batches. A source is read again only where some of them may have been cut."""

    def __init__(self, composed: Composed, chat: ChatFormat, modalities: Collection[str]) -> None:
        self.composed = composed
        self.chat = chat
        self.modalities = modalities
        self.given = config.section(composed.tree["data"], settings.Data)
        self.limits = (self.given.max_length or seat(composed, "llm").max_length(), self.given.max_prompt_length)
        self.cuts = self.given.over_length in CUTTING and any(self.limits)

    def of(self, batches: Iterable[Batch]) -> dict[tuple[str, str], Whole]:
        """By the rows' places in the source and their ids."""
        read = [(batch.rows[k], batch.input_ids[k, :length].numpy()) for batch in batches
                for k, length in enumerate(batch.lengths)]  # fmt: skip
        originals = self.originals([row for row, _ in read]) if self.cuts else {}
        return {(row.where, row.id): self.whole(originals.get(row.where, row), row.id, ids) for row, ids in read}

    def originals(self, rows: Iterable[Row]) -> dict[str, Row]:
        """By their place in the source."""
        wanted = {row.where: self.own_id(row.id) for row in rows}
        source = mixed_seat(self.composed, "data", settings.Data, streaming=self.given.streaming)
        split = source.read(sorted({*ITEM_FIELDS, *self.modalities}))["train"]
        found: dict[str, Row] = {}
        for part in split.parts if isinstance(split, Mixed) else (split,):
            for row in part:
                if isinstance(row, Row) and wanted.get(row.where) == row.id:
                    text = "text" in self.modalities
                    found[row.where] = with_text(row, self.chat.placeholders) if text else row
                    if len(found) == len(wanted):
                        return found
        return found

    def own_id(self, id: str) -> str:
        """Of the row that a piece is of."""
        piece = PIECE.fullmatch(id) if self.given.over_length == "split" else None
        return piece[1] if piece else id

    def whole(self, row: Row, id: str, ids: np.ndarray) -> Whole:
        encoded = self.chat.encode(row)
        numbers = cast(ChatFormat, TokenNumbers(self.chat))
        policy = LengthPolicy(*self.limits, self.given.over_length, numbers)
        pieces = {one.id: one for one in policy.fit(numbers.encode(row).example)} if self.cuts else {}
        own = pieces.get(id)
        total = len(encoded.example.input_ids)
        kept = np.arange(total) if own is None else own.input_ids
        if not np.array_equal(encoded.example.input_ids[kept], ids):
            raise Mistake(
                f"{row.where} (id {id}) has other tokens than when the rows were read a moment ago: the source does "
                "not give the same rows each time. Let it, or set data.cache=null."
            )
        kinds = kinds_of(encoded, row)
        there = np.zeros(total, dtype=bool)
        for piece in pieces.values():
            there[piece.input_ids] = True
        lost: dict[str, int] = dict(Counter(kinds[number] for number in np.flatnonzero(~there))) if pieces else {}
        items = len(encoded.example.places) - sum(len(piece.places) for piece in pieces.values())
        if pieces and items:
            lost["item"] = items
        was_learnt = encoded.example.labels[kept] != IGNORED
        unlearnt = 0 if own is None else int((was_learnt & (own.labels == IGNORED)).sum())
        return Whole(kinds, kept, lost, int(there.sum()) - len(kept) if pieces else 0, unlearnt)


def kinds_of(encoded: Encoded, row: Row) -> tuple[Kind, ...]:
    kinds: list[Kind] = ["template"] * len(encoded.asked)
    for message, (start, stop) in zip(row.messages, encoded.messages, strict=True):
        for number in range(start, stop):
            if message.role == "user":
                kinds[number] = "user" if encoded.asked[number] else "template"
            else:
                kinds[number] = "answer" if message.role == "assistant" else "system"
    return tuple(kinds)
