"""Where the windows of a series lie: its splits, and within them each window's first step.

Shapes: C channels, R steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from runner.data.clock import Reading, moment_like
from runner.data.steps import Steps
from runner.protocols import Mistake

SPLITS = ("train", "val", "test")


def starts_of(span: range, length: int, stride: int, pad: bool) -> range:
    """The first steps of the windows that lie in `span` whole. `pad`: where steps remain after the last of them, one
    more begins a stride later and reaches past the end."""
    whole = range(span.start, span.stop - length + 1, stride)
    covered = whole[-1] + length if whole else span.start
    after = whole[-1] + stride if whole else span.start
    return range(span.start, after + 1, stride) if pad and max(covered, after) < span.stop else whole


def stride_of(lookback: int, stride: int | None, overlap: int | float | None) -> int:
    """Steps from one window to the next. `overlap`: steps that two lookbacks share, or which part of them."""
    if (stride is None) == (overlap is None):
        raise Mistake(
            f"data.stride={said(stride)} and data.overlap={said(overlap)}: windows are so many steps apart, or overlap "
            "by so many. Give one of them, and null for the other."
        )
    if stride is not None:
        return stride
    assert overlap is not None
    shared = overlap if isinstance(overlap, int) else round(lookback * overlap)
    if isinstance(overlap, int) and shared >= lookback:
        raise Mistake(f"data.overlap={overlap} must be less than data.lookback={lookback}: windows would stand still.")
    return max(1, lookback - int(shared))


def said(value: object) -> str:
    return "null" if value is None else str(value)


def ends_of(borders: Sequence[int | float | str], steps: Steps, asked: Reading) -> list[int]:
    """Where each split ends, as steps counted from 0."""
    count = len(steps)
    if all(isinstance(border, str) for border in borders):
        if steps.clock is None:
            raise Mistake(f"data.borders={borders} are times, and data.time names no column.")
        ends = [steps_before(str(border), steps, asked) for border in borders]
    elif any(isinstance(border, float) for border in borders):
        if not all(0 < float(border) <= 1 for border in borders):
            raise Mistake(f"data.borders={borders}: shares of the rows lie between 0 and 1; rows are whole numbers.")
        ends = [int(float(border) * count + 1e-6) for border in borders]
    else:
        ends = [int(border) for border in borders]
    if not all(one < other for one, other in pairwise([0, *ends])) or ends[-1] > count:
        raise Mistake(f"data.borders={borders} end splits at rows {ends} of {count:,}; each must end after the other.")
    return ends


def steps_before(border: str, steps: Steps, asked: Reading) -> int:
    """Steps that are over when this time comes: one that gathers what lies on both sides belongs to the later split."""
    assert steps.clock is not None
    moment = moment_like(border, steps.clock, asked, "data.borders")
    if steps.clock.ends is not None:
        return int((steps.clock.ends <= moment).sum())
    return int((steps.clock.values < moment).sum())


def pieces_of(ends: Sequence[int], count: int) -> list[range]:
    """The splits, and what comes after the last of them."""
    return [range(first, end) for first, end in pairwise([0, *ends, count]) if first < end]


def within(span: range, stretches: Sequence[range]) -> list[range]:
    """The parts of `span` that lie in the stretches."""
    parts = [range(max(span.start, one.start), min(span.stop, one.stop)) for one in stretches]
    return [part for part in parts if part]


def cut(values: np.ndarray, start: int, stop: int, end: int) -> np.ndarray:
    """[C, stop - start] of [C, R], read-only: a view, or where it reaches past `end` a copy with NaN there."""
    if stop <= end:
        return values[:, start:stop]
    window = np.full((len(values), stop - start), np.nan, dtype=values.dtype)
    window[:, : max(0, end - start)] = values[:, start:end]
    window.flags.writeable = False
    return window


def numbers_before(values: np.ndarray, together: bool) -> np.ndarray:
    """int64 [C, R + 1] of [C, R]: how many steps before each have a number; `together` in any channel, [1, R + 1]."""
    there = np.isfinite(values)
    there = there.any(axis=0, keepdims=True) if together else there
    return np.concatenate([np.zeros((len(there), 1), dtype=np.int64), there.cumsum(axis=1)], axis=1)
