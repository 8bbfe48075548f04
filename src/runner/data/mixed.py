"""Rows that are drawn from several sources by weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from runner.protocols import BadRow, Row


@dataclass(frozen=True)
class Mixed:
    """A split whose rows are drawn by weights: each of the parts is a source's rows."""

    parts: tuple[Iterable[Row | BadRow], ...]
    weights: Mapping[str, float]
    """By the parts' names, in their order."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Each row once, where nothing is drawn."""
        return chain.from_iterable(self.parts)
