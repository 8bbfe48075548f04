"""Gaps of a clock: found, refused, filled with steps, or kept out of windows.

Shapes: C channels, R steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from runner.data.steps import MOST, Steps, say
from runner.protocols import Mistake

Gaps = Literal["error", "missing", "split", "ignore"]
Fill = Literal["missing", "ffill", "linear"]
LONG, SHORT = 1.5, 0.5
"""A difference of so many steps is a gap, one of less than so many is no step: months and jitter lie between."""


def opened(steps: Steps, gaps: Gaps) -> tuple[Steps, list[range]]:
    """Lines whose clock may have gaps: the steps, `missing` ones put in, and the stretches without a gap.

    The clock's step is the median difference. Raises `Mistake` for gaps that are an error, and for steps so short
    that they are none."""
    whole = [range(len(steps))]
    if steps.clock is None or gaps == "ignore" or len(steps) < 2:
        return steps, whole
    times = steps.clock.values
    differences = np.diff(times)
    step = np.sort(differences)[(len(differences) - 1) // 2]
    ratios = differences / step
    told = f"{steps.name}: the clock's step is {steps.clock.told_length(step)} (the median), and"
    if (short := np.flatnonzero(ratios < SHORT)).size:
        raise Mistake(
            f"{told} {len(short):,} of {len(ratios):,} steps are shorter than half of it, first "
            f"{steps.place(short[0], short[0] + 1)}. Put the series on even steps (data.resample=1h), or take each "
            "line as a step whatever the time between (data.gaps=ignore)."
        )
    long = np.flatnonzero(ratios >= LONG)
    if not len(long):
        return steps, whole
    lacking = np.round(ratios[long]) - 1
    if gaps == "error":
        raise Mistake(
            f"{told} the clock has {counted(len(long), 'gap')}, {counted(int(lacking.sum()), 'step')} in all, first "
            f"{steps.place(long[0], long[0] + 1)} ({steps.clock.told_length(differences[long[0]])}). {TOLD_GAPS}, or "
            "take each line as a step (data.gaps=ignore)."
        )
    if gaps == "split":
        return steps, [range(a, b) for a, b in zip([0, *(long + 1)], [*(long + 1), len(steps)], strict=True)]
    if len(steps) + lacking.sum() > MOST:
        raise Mistake(f"{told} gaps would make more than {MOST:,} steps, first {steps.place(long[0], long[0] + 1)}.")
    return put_in(steps, long, lacking.astype(np.int64)), [range(len(steps) + int(lacking.sum()))]


TOLD_GAPS = "Keep them as missing values (data.gaps=missing), take windows between them (data.gaps=split)"


def put_in(steps: Steps, after: np.ndarray, count: np.ndarray) -> Steps:
    """`count` steps without a value after each of these, evenly between their neighbours."""
    assert steps.clock is not None
    times = steps.clock.values
    source = np.repeat(np.arange(len(steps)), 1 + np.bincount(after, count, len(steps)).astype(np.int64))
    rank = np.arange(len(source)) - np.searchsorted(source, source)  # 0: the line itself
    there = rank == 0
    pieces = 1 + np.bincount(after, count, len(steps)).astype(np.int64)
    length = (
        np.append(np.diff(times), 0) // pieces if times.dtype == np.int64 else np.append(np.diff(times), 0) / pieces
    )
    clock = replace(steps.clock, values=times[source] + rank * length[source])
    labels = steps.labels[source] if steps.labels is not None else None
    if labels is not None:
        labels[~there] = None
    lines = np.where(there, steps.lines[source], 0) if steps.lines is not None else None
    say(f"{steps.name}: {int((~there).sum()):,} steps without a line are put in as missing values (data.gaps).")
    return Steps(steps.name, steps.names, np.where(there, steps.values[:, source], np.nan), labels, clock, lines, there)


def filled(steps: Steps, fill: Fill, limit: int | None, pieces: Sequence[range]) -> Steps:
    """Steps that no line stands for, filled from those before (`ffill`) or between two (`linear`). Between two, each
    piece (a split) by itself: nothing of a later one may be known in an earlier one."""
    import pandas as pd

    if fill == "missing" or steps.there.all():
        return steps
    frame = pd.DataFrame(steps.values.T)
    if fill == "ffill":
        found = frame.ffill(limit=limit)
    else:
        found = pd.concat(
            [frame.iloc[one.start : one.stop].interpolate(limit=limit, limit_area="inside") for one in pieces]
        )
    values = np.where(steps.there, steps.values, found.to_numpy().T)
    return replace(steps, values=values, there=steps.there | np.isfinite(values).any(axis=0))


def whole_stretches(steps: Steps, gaps: Gaps) -> list[range]:
    """Of gathered steps, those between steps without a value; all of them where these are kept."""
    holes = np.flatnonzero(~steps.there)
    if gaps == "missing" or not len(holes):
        return [range(len(steps))]
    if gaps == "error":
        raise Mistake(
            f"{steps.name}: {len(holes):,} of {len(steps):,} steps hold no line, first "
            f"{steps.place(holes[0], holes[0])}. {TOLD_GAPS}, fill them (data.fill=ffill), or take longer steps "
            "(data.resample)."
        )
    bounds = [-1, *holes, len(steps)]
    return [range(a + 1, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b - a > 1]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
