"""A series as steps of time: the lines of a file in their order, each time once.

Shapes: C channels, R steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.data.clock import Clock, Reading, clock_of
from runner.data.series_files import Table
from runner.protocols import Mistake

LABEL = ""
"""The label's column in a frame; no channel is called so."""
MOST = 50_000_000
"""Steps that a clock may have: a wrong date would fill the memory."""


@dataclass(frozen=True)
class Steps:
    name: str
    """Of the file or files, for people."""
    names: list[str]
    values: np.ndarray
    """float64 [C, R], NaN where a value is missing"""
    labels: np.ndarray | None
    """object [R], a cell's text or None"""
    clock: Clock | None
    lines: np.ndarray | None
    """int64 [R], 0 for a step that is no line; None where a step is no one line of one file."""
    there: np.ndarray
    """bool [R]: a line stands for it, or it was filled."""

    def __len__(self) -> int:
        return self.values.shape[1]

    def place(self, first: int, last: int) -> str:
        if self.lines is not None and (self.clock is None or (self.lines[first] and self.lines[last])):
            return f"{self.name}:{self.lines[first]}-{self.lines[last]}"
        assert self.clock is not None
        return f"{self.name}, {self.clock.told(first)} to {self.clock.told(last)}"

    def frame(self) -> Any:
        """pandas.DataFrame, a row a step."""
        import pandas as pd

        assert self.clock is not None
        index = pd.Index(self.clock.values) if self.clock.kind == "numbers" else self.clock.dates()
        frame = pd.DataFrame(self.values.T, index=index, columns=pd.Index(self.names, dtype=object))
        if self.labels is not None:
            frame[LABEL] = pd.Series(self.labels, index=index, dtype=object)
        return frame


def steps_of(
    table: Table, columns: Sequence[str], names: Sequence[str], label: str | None, asked: Reading, complete: bool
) -> Steps:
    """A file's lines in the order of time, each time once. `names`: what the columns are called; `complete`: an empty
    cell is refused. Raises `Mistake` by line."""
    timed = clock_of(table, asked)
    values = table.numbers(columns)
    if complete:
        empty = [(int(row), f"`{columns[channel]}` is missing") for channel, row in np.argwhere(np.isnan(values))]
        if empty:
            raise Mistake(table.tell(empty) + " Fill them, or keep them as missing (data.missing=keep).")
    lines = np.array(table.lines)
    labels = np.array([cell or None for cell in table.column(label)], dtype=object) if label is not None else None
    there = np.ones(len(lines), dtype=bool)
    if timed is None:
        return Steps(table.file.name, list(names), values, labels, None, lines, there)
    clock, order = timed
    values, lines, labels = values[:, order], lines[order], labels[order] if labels is not None else None
    new = np.concatenate([[True], clock.values[1:] != clock.values[:-1]])
    if not new.all():
        starts = np.flatnonzero(new)
        ends = np.concatenate([starts[1:], [len(new)]])
        chosen = ends - 1 if asked.duplicates == "last" else starts
        if asked.duplicates == "mean":
            known = np.add.reduceat(np.isfinite(values), starts, axis=1, dtype=np.int64)
            sums = np.add.reduceat(np.nan_to_num(values), starts, axis=1)
            means = np.divide(sums, known, out=np.full(sums.shape, np.nan), where=known > 0)
            values = np.where(ends - starts > 1, means, values[:, starts])
            check_same_label(table, labels, lines, starts, ends)
        else:
            values = values[:, chosen]
        say(
            f"{table.file.name}: {len(new) - len(starts):,} of {len(new):,} lines have the time of another: "
            f"data.duplicates={asked.duplicates}."
        )
        clock, lines, there = clock.at(chosen), lines[chosen], there[chosen]
        labels = labels[chosen] if labels is not None else None
    return Steps(table.file.name, list(names), values, labels, clock, lines, there)


def check_same_label(
    table: Table, labels: np.ndarray | None, lines: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> None:
    for start, end in zip(starts, ends, strict=True) if labels is not None else ():
        if labels is not None and len(set(labels[start:end])) > 1:
            raise Mistake(
                f"{table.file.name}:{lines[start]}: lines of the same time have different labels, of which there is no "
                "mean. Set data.duplicates=first or last."
            )


def say(sentence: str) -> None:
    logging.getLogger("runner").warning(sentence)
