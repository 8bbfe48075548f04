"""Several files' steps on one clock: joined on time, or gathered into even steps.

Shapes: C channels, R steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from runner.data.clock import Clock
from runner.data.steps import LABEL, MOST, Steps, say
from runner.protocols import Mistake

How = Literal["mean", "sum", "min", "max", "median", "first", "last"]
Join = Literal["inner", "outer"]
THERE = "\n"
"""What columns begin with that say where a file has a line; no channel is called so."""


def together(parts: Sequence[Steps], join: Join, tolerance: str | float | None) -> Steps:
    """Several files' steps on one clock. Without a tolerance a step is a time that all files have (`inner`), or one
    (`outer`). With it the first file gives the clock, and of each other the latest line that is at most so much
    earlier is taken: never a later one, as that would be known too early."""
    import pandas as pd

    clock = check_kinds(parts)
    frames = [part.frame() for part in parts]
    if tolerance is None:
        whole = pd.concat(frames, axis=1, join=join, sort=True)
        used = [int(frame.index.isin(whole.index).sum()) for frame in frames]
    else:
        allowed = length_of("data.tolerance", tolerance, clock)
        whole, used = frames[0].assign(**{THERE: True}), []
        for number, frame in enumerate(frames[1:]):
            frame[f"{THERE}{number}"] = np.arange(len(frame))
            whole = pd.merge_asof(whole, frame, left_index=True, right_index=True, tolerance=allowed)
        marks = [f"{THERE}{number}" for number in range(len(frames) - 1)]
        if join == "inner":
            whole = whole.dropna(subset=marks)
        used = [len(whole), *(int(whole[mark].nunique()) for mark in marks)]
        whole = whole.drop(columns=[THERE, *marks])
    if not len(whole):
        raise Mistake(
            f"{listed(parts)} have no time in common. Give data.tolerance, put them on even steps (data.resample=1h), "
            "or keep all times (data.join=outer)."
        )
    for part, count in zip(parts, used, strict=True):
        if count < len(part):
            say(f"{part.name}: {len(part) - count:,} of {len(part):,} lines go with no line of the others: left out.")
    return from_frame(whole, parts, clock, np.ones(len(whole), dtype=bool), None)


def gathered(parts: Sequence[Steps], rule: str, how: How, join: Join) -> Steps:
    """Even steps: each gathers the lines from its time up to the next step's. A step without a line has no value. Over
    several files the steps are those that all reach (`inner`), or any (`outer`)."""
    import pandas as pd

    clock, offset = check_kinds(parts), offset_of(rule)
    if clock.kind == "numbers":
        raise Mistake(
            f"data.resample={rule} needs times, and `{parts[0].name}` has numbers. Say their unit (data.time_unit=s)."
        )
    frames = [part.frame() for part in parts]
    found: list[Any] = []
    start, fixed = min(frame.index[0] for frame in frames).normalize(), isinstance(offset, pd.offsets.Tick)
    for part, frame in zip(parts, frames, strict=True):
        length = offset if fixed else pd.Timedelta(days=1)
        if (frame.index[-1] - frame.index[0]) / length > MOST:
            raise Mistake(f"{part.name}: data.resample={rule} would make more than {MOST:,} steps. Take longer ones.")
        bins = frame[part.names].resample(offset, closed="left", label="left", **({"origin": start} if fixed else {}))
        even = bins.sum(min_count=1) if how == "sum" else getattr(bins, how)()
        if part.labels is not None:
            even[LABEL] = frame[[LABEL]].resample(offset, **({"origin": start} if fixed else {})).last()[LABEL]
        found.append(even.assign(**{f"{THERE}{len(found)}": bins.size() > 0}))
    first, last = [one.index[0] for one in found], [one.index[-1] for one in found]
    span = (max(first), min(last)) if join == "inner" else (min(first), max(last))
    if span[0] > span[1]:
        raise Mistake(f"{listed(parts)} have no time in common. Keep all times (data.join=outer).")
    index = pd.date_range(*span, freq=offset)
    whole = pd.concat([one.reindex(index) for one in found], axis=1)
    marks = [f"{THERE}{number}" for number in range(len(found))]
    there = whole[marks].eq(True).any(axis=1).to_numpy()
    return from_frame(whole.drop(columns=marks), parts, clock, there, nanoseconds(index + offset))


def from_frame(whole: Any, parts: Sequence[Steps], like: Clock, there: np.ndarray, ends: np.ndarray | None) -> Steps:
    names = [name for part in parts for name in part.names]
    values = whole[names].to_numpy(dtype=np.float64).T.copy()
    labels = None
    if LABEL in whole:
        labels = np.array([one if isinstance(one, str) else None for one in whole[LABEL]], dtype=object)
    times = whole.index.to_numpy() if like.kind == "numbers" else nanoseconds(whole.index)
    return Steps(listed(parts), names, values, labels, Clock(like.kind, times, like.zone, ends), None, there)


def check_kinds(parts: Sequence[Steps]) -> Clock:
    clocks = [part.clock for part in parts if part.clock is not None]
    for part, clock in zip(parts, clocks, strict=True):
        if clock.kind != clocks[0].kind:
            raise Mistake(
                f"{parts[0].name} has {clocks[0].kind} and {part.name} {clock.kind}, which cannot be held against each "
                "other. Say the zone of local times (data.timezone=Europe/Berlin), and the unit of numbers "
                "(data.time_unit=s)."
            )
    return clocks[0]


def offset_of(rule: str) -> Any:
    """pandas' offset of `15min`, `1h`, `D`, `MS`. Raises `Mistake` for another: its steps have no one beginning."""
    from pandas import offsets
    from pandas.tseries.frequencies import to_offset

    try:
        offset = to_offset(rule)
    except ValueError:
        offset = None
    calendar = (offsets.Day, offsets.MonthBegin, offsets.QuarterBegin, offsets.YearBegin)
    if isinstance(offset, offsets.Tick) and offset.n > 0:
        return offset
    if isinstance(offset, calendar) and offset.n == 1:
        return offset
    raise Mistake(
        f"data.resample={rule} is no length of a step. Write a fixed one (30s, 15min, 1h, 48h), or a day, month, "
        "quarter or year (D, MS, QS, YS)."
    )


def length_of(key: str, given: str | float, clock: Clock) -> Any:
    import pandas as pd

    try:
        if clock.kind == "numbers":
            return float(given)
        if isinstance(given, str):
            return pd.Timedelta(given)
    except ValueError:
        pass
    raise Mistake(f"{key}={given} is no length of time; write 5min, 1h or 2D, and a number where times are numbers.")


def nanoseconds(index: Any) -> np.ndarray:
    return np.asarray(index.as_unit("ns").asi8)


def listed(parts: Sequence[Steps]) -> str:
    names = [part.name for part in parts]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
