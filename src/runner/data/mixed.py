"""Rows that are drawn from several sources by weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runner.protocols import BadRow, Row


@dataclass(frozen=True)
class Mixed:
    """A split whose rows are drawn by weights: each of the parts is a source's rows."""

    parts: tuple[Iterable[Row | BadRow], ...]
    weights: tuple[float, ...]
