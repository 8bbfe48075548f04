"""Forecasting windows of one long multichannel series in a CSV file: a lookback goes in, the horizon after it is due.

Windows, borders and scaling are those of Zhou et al., "Informer", 2021 (ETT), and what came after it.
Shapes: R rows of the file, C channels, K target channels, W windows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from runner.data.series_files import Table, read_table
from runner.protocols import Channels, Horizon, Message, Mistake, Row
from runner.spelling import did_you_mean

SPLITS = ("train", "val", "test")
FLAT = 1e-8
"""A channel whose deviation is at most this part of its largest value is constant."""


class CsvSeries:
    """`borders` are where train, val and test end: rows, shares of the rows, or the first time that belongs no more."""

    def __init__(
        self,
        path: str,
        time: str | None,
        channels: list[str] | None,
        targets: list[str] | None,
        lookback: Annotated[int, Ge(1)],
        horizon: Annotated[int, Ge(1)],
        stride: Annotated[int, Ge(1)],
        borders: list[int] | list[float] | list[str],
        reach_back: bool,
        scaling: Literal["z_score", "none"],
        apart: bool,
        missing: Literal["error", "keep"],
        prompt: str | None,
    ) -> None:
        if not 1 <= len(borders) <= len(SPLITS):
            raise Mistake(f"data.borders={borders} must hold one to three ends: of train, val and test.")
        if channels == [] or targets == []:
            raise Mistake(f"data.{'channels' if channels == [] else 'targets'} is empty; name columns, or null.")
        self.path = path
        self.time = time
        self.channels = channels
        self.targets = targets
        self.lookback, self.horizon, self.stride = lookback, horizon, stride
        self.borders = borders
        self.reach_back = reach_back
        self.scaling = scaling
        self.apart = apart
        self.missing = missing
        self.messages = () if prompt is None else (Message("user", prompt),)

    def read(self, modalities: Sequence[str]) -> dict[str, list[Row]]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
            raise Mistake(f"data.path: there is no file {file}{did_you_mean(file.name, beside)}")
        try:
            return self.windows(read_table(file, header=True))
        except Mistake as mistake:
            raise Mistake(f"data.path={self.path}: {mistake}") from mistake

    def windows(self, table: Table) -> dict[str, list[Row]]:
        times = times_of(table, self.time)
        channels = self.named(table, "channels", self.channels)
        targets = self.named(table, "targets", self.targets) if self.targets else channels
        if self.apart and targets != channels:
            raise Mistake("data.apart=true forecasts each channel from itself alone: data.targets must be null.")
        names = list(dict.fromkeys([*channels, *targets]))
        values = table.numbers(names)  # float64 [names, R]
        self.check_missing(table, names, values)
        ends = ends_of(self.borders, len(table.cells), times)
        scale = scale_of(names, values[:, : ends[0]], self.scaling, table)
        scaled = ((values - scale.mean) / scale.deviation).astype(np.float32)
        inputs = scaled if channels == names else scaled[[names.index(name) for name in channels]]
        dues = scaled if targets == names else scaled[[names.index(name) for name in targets]]
        known, due = (channels_of(one, names, scale) for one in (channels, targets))
        for array in (inputs, dues, known.mean, known.scale, due.mean, due.scale):
            array.flags.writeable = False  # every row shares them
        splits = {}
        for split, first, end in zip(SPLITS, [0, *ends], ends, strict=False):
            start = max(0, first - self.lookback) if self.reach_back else first
            splits[split] = self.rows(table, split, range(start, end), Scaled(inputs, known), Scaled(dues, due))
        return splits

    def rows(self, table: Table, split: str, span: range, inputs: Scaled, dues: Scaled) -> list[Row]:
        """The windows that lie in `span` whole. Their arrays are views: they take no memory of their own."""
        length = self.lookback + self.horizon
        if len(span) < length:
            raise Mistake(
                f"the {split} split has {len(span):,} rows to take windows from, fewer than data.lookback + "
                f"data.horizon = {length}. Move data.borders, or take shorter windows."
            )
        before = numbers_before(inputs.values, together=not self.apart)
        after = numbers_before(dues.values, together=True)
        rows = []
        starts = range(span.start, span.stop - length + 1, self.stride)
        for start in starts:
            due, end = start + self.lookback, start + length
            if not (before[:, due] > before[:, start]).all() or not (after[:, end] > after[:, due]).any():
                continue
            lookback = inputs.values[:, start:due]
            rows.append(
                Row(
                    id=f"{table.file.stem}-{start:06d}",
                    where=f"{table.file.name}:{table.lines[start]}-{table.lines[due - 1]}",
                    messages=self.messages,
                    items={"series": tuple(lookback[:, None]) if self.apart else (lookback,)},
                    horizon=Horizon(dues.values[:, due:end], inputs.channels, dues.channels),
                )
            )
        if not rows:
            raise Mistake(f"the {split} split has no window with a number in its lookback and in its horizon.")
        if len(rows) < len(starts):
            past = "the lookback of a channel" if self.apart else "their lookback"
            say(
                f"{table.file.name}: {len(starts) - len(rows):,} of {len(starts):,} windows of the {split} split are "
                f"left out: {past} or their horizon holds no number at all."
            )
        return rows

    def named(self, table: Table, key: str, names: list[str] | None) -> list[str]:
        """The columns that are asked for; all but the time where none are."""
        known = [name for name in table.names if name != self.time]
        for name in names or ():
            if name not in known:
                raise Mistake(f"data.{key} names `{name}`, which is no column of values{did_you_mean(name, known)}")
        if names and len(set(names)) != len(names):
            raise Mistake(f"data.{key} names a column twice: {', '.join(names)}.")
        if not known:
            raise Mistake(f"{table.file.name}:1 has no column of values.")
        return names or known

    def check_missing(self, table: Table, names: Sequence[str], values: np.ndarray) -> None:
        if self.missing == "keep":
            return
        gaps = [(int(row), f"`{names[channel]}` is missing") for channel, row in np.argwhere(np.isnan(values))]
        if gaps:
            raise Mistake(table.tell(gaps) + " Fill them, or keep them as missing (data.missing=keep).")


def times_of(table: Table, name: str | None) -> list[datetime] | list[float] | None:
    """The moments of a column, each later than the one before; None without a column."""
    if name is None:
        return None
    if name not in table.names:
        raise Mistake(
            f"{table.file.name}:1 has no column `{name}` for the time (data.time){did_you_mean(name, table.names)} "
            "Without one, set data.time=null."
        )
    times = [moment_of(cell) for cell in table.column(name)]
    wrong = [(k, f"`{name}` is {table.column(name)[k]!r}, no time") for k, time in enumerate(times) if time is None]
    if wrong:
        raise Mistake(table.tell(wrong) + " A time is a number, or a date as ISO 8601 writes it.")
    for k, (earlier, later) in enumerate(pairwise(times), start=1):
        try:
            if earlier < later:  # type: ignore[operator]
                continue
        except TypeError as error:  # a number and a date, or only one of them with a time zone
            said = f"`{name}` is {table.column(name)[k]}, which cannot be held against the time before it"
            raise Mistake(table.tell([(k, said)])) from error
        said = "the time of the line before again" if earlier == later else "earlier than the line before"
        raise Mistake(table.tell([(k, f"`{name}` is {table.column(name)[k]}, {said}")]) + " Sort the file by time.")
    return times  # type: ignore[return-value]


def moment_of(cell: str) -> datetime | float | None:
    try:
        number = float(cell)
        return number if math.isfinite(number) else None
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(cell)
    except ValueError:
        return None


def ends_of(
    borders: list[int] | list[float] | list[str], rows: int, times: list[datetime] | list[float] | None
) -> list[int]:
    """Where each split ends, as rows counted from 0."""
    if all(isinstance(border, str) for border in borders):
        if times is None:
            raise Mistake(f"data.borders={borders} are times, and data.time names no column.")
        ends = [rows_before(str(border), times) for border in borders]
    elif any(isinstance(border, float) for border in borders):
        if not all(0 < float(border) <= 1 for border in borders):
            raise Mistake(f"data.borders={borders}: shares of the rows lie between 0 and 1; rows are whole numbers.")
        ends = [int(float(border) * rows + 1e-6) for border in borders]
    else:
        ends = [int(border) for border in borders]
    if not all(one < other for one, other in pairwise([0, *ends])) or ends[-1] > rows:
        raise Mistake(f"data.borders={borders} end splits at rows {ends} of {rows:,}; each must end after the other.")
    return ends


def rows_before(border: str, times: list[datetime] | list[float]) -> int:
    moment = moment_of(border)
    if moment is None:
        raise Mistake(f"data.borders: {border!r} is no time; write a number, or a date as ISO 8601 writes it.")
    try:
        return sum(time < moment for time in times)  # type: ignore[operator]
    except TypeError as error:
        raise Mistake(f"data.borders: {border!r} cannot be held against the file's times ({times[0]}).") from error


@dataclass(frozen=True)
class Scale:
    """float64 [C, 1] each."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclass(frozen=True)
class Scaled:
    values: np.ndarray
    """float32 [C, R]"""
    channels: Channels


def channels_of(chosen: Sequence[str], names: Sequence[str], scale: Scale) -> Channels:
    kept = [names.index(name) for name in chosen]
    return Channels(tuple(chosen), scale.mean[kept, 0], scale.deviation[kept, 0])


def scale_of(names: Sequence[str], train: np.ndarray, scaling: str, table: Table) -> Scale:
    """Mean and standard deviation of each channel over the train rows alone, [C, rows]; a constant one is 1."""
    empty = [name for name, numbers in zip(names, np.isfinite(train).sum(axis=1), strict=True) if not numbers]
    if empty:
        raise Mistake(f"`{empty[0]}` has no number in the train rows; leave it out (data.channels, data.targets).")
    if scaling == "none":
        return Scale(np.zeros((len(names), 1)), np.ones((len(names), 1)))
    mean, deviation = np.nanmean(train, axis=1, keepdims=True), np.nanstd(train, axis=1, keepdims=True)
    constant = deviation <= FLAT * np.nanmax(np.abs(train), axis=1, keepdims=True)
    if constant.any():
        flat = ", ".join(f"`{name}`" for name, one in zip(names, constant[:, 0], strict=True) if one)
        say(f"{table.file.name}: constant in the train rows, so not scaled to deviation 1 but only shifted: {flat}.")
    # The mean of equal numbers is not always that number.
    mean = np.where(constant, np.nanmax(train, axis=1, keepdims=True), mean)
    return Scale(mean, np.where(constant, 1.0, deviation))


def numbers_before(values: np.ndarray, together: bool) -> np.ndarray:
    """int64 [C, R + 1] of [C, R]: how many steps before each have a number; `together` in any channel, [1, R + 1]."""
    there = np.isfinite(values)
    there = there.any(axis=0, keepdims=True) if together else there
    return np.concatenate([np.zeros((len(there), 1), dtype=np.int64), there.cumsum(axis=1)], axis=1)


def say(sentence: str) -> None:
    logging.getLogger("runner").warning(sentence)
