"""A column of times as a clock that rises strictly: instants, local times, or numbers.

Instants and local times are int64 nanoseconds since 1970, of UTC and of the wall clock. Shapes: R lines of a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from runner.data.series_files import Table
from runner.protocols import Mistake
from runner.spelling import did_you_mean

NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
YEAR = re.compile(r"(?<![\d.:])\d{4}")
"""A date without one is filled up from today's by pandas, so it is no date here."""
ZONED = re.compile(r"[T ]\s*\d{2}.*(?:[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$")
WORDS = set("jan feb mar apr may jun jul aug sep oct nov dec mon tue wed thu fri sat sun t z utc gmt am pm".split())
"""What a date may hold beside numbers, by its first three letters; of other words pandas makes what it likes."""
LARGEST = 2**63 - 1
NO_TIME = "no time"
FAR = "not between the years 1678 and 2262"
TWOFOLD = "which begins with its day or with its month (say data.time_format=%d/%m/%Y)"
TOLD_TWICE = " Say which is meant: data.ambiguous=order (the first of two lines is the earlier), earlier or later."
TOLD_NEVER = " No clock there ever showed it: correct it, or data.timezone."
TOLD_UNSORTED = " Sort the file by time, or set data.unsorted=sort."
TOLD_BACK = (
    f"{TOLD_UNSORTED} Where clocks went back, say the zone, and that lines are in order "
    "(data.timezone=Europe/Berlin data.ambiguous=order)."
)
TOLD_ZONE = " Say in which zone times without one are (data.timezone=Europe/Berlin)."


@dataclass(frozen=True)
class Reading:
    """How times are read: the keys of the same names in `data`."""

    time: str | None
    time_format: str | None
    time_unit: Literal["s", "ms", "us", "ns"] | None
    timezone: str | None
    ambiguous: Literal["error", "earlier", "later", "order"]
    unsorted: Literal["error", "sort"]
    duplicates: Literal["error", "first", "last", "mean"]


@dataclass(frozen=True)
class Clock:
    kind: Literal["instants", "local times", "numbers"]
    values: np.ndarray
    """int64 [R] nanoseconds; of numbers float64 [R]"""
    zone: str | None
    """In which instants are told, and days begin; None: UTC."""
    ends: np.ndarray | None = None
    """[R], where each step gathers what is from its time up to this one, without it."""

    def at(self, chosen: np.ndarray) -> Clock:
        return Clock(self.kind, self.values[chosen], self.zone, None if self.ends is None else self.ends[chosen])

    def told(self, step: int) -> str:
        if self.kind == "numbers":
            return f"{self.values[step]:g}"
        import pandas as pd

        moment = pd.Timestamp(int(self.values[step]), unit="ns")
        if self.kind == "instants":
            moment = moment.tz_localize("UTC").tz_convert(self.zone or "UTC")
        return str(moment.isoformat())

    def dates(self) -> Any:
        """pandas.DatetimeIndex [R], with a zone where they are instants."""
        import pandas as pd

        index = pd.DatetimeIndex(self.values.view("datetime64[ns]"))
        return index.tz_localize("UTC").tz_convert(self.zone or "UTC") if self.kind == "instants" else index

    def told_length(self, length: float) -> str:
        import pandas as pd

        return f"{length:g}" if self.kind == "numbers" else str(pd.Timedelta(int(length), "ns")).removeprefix("0 days ")


@dataclass(frozen=True)
class Moments:
    """Cells as they were read, before they are held against each other; [R] each."""

    kinds: np.ndarray
    """`instants`, `local times`, `numbers`; `` where a cell is no time."""
    nanoseconds: np.ndarray
    numbers: np.ndarray
    faults: dict[int, str]
    """By cell, what is said of it (`no time`)."""


def clock_of(table: Table, asked: Reading) -> tuple[Clock, np.ndarray] | None:
    """A column's times and, int64 [R], which lines they are of, in the order of time; a time may be there again, one
    after the other. None without a column. Raises `Mistake` by file and line."""
    name = asked.time
    if name is None:
        return None
    if name not in table.names:
        raise Mistake(
            f"{table.file.name}:1 has no column `{name}` for the time (data.time){did_you_mean(name, table.names)} "
            "Without one, set data.time=null."
        )
    cells = table.column(name)
    moments = read_moments(cells, asked)
    if moments.faults:
        wrong = [(k, f"`{name}` is {cells[k][:40]!r}, {fault}") for k, fault in moments.faults.items()]
        raise Mistake(
            table.tell(wrong) + " A time is a number, a date as ISO 8601 writes it, or as data.time_format says."
        )
    kinds, instants = moments.kinds, moments.nanoseconds
    if asked.timezone is not None and (local := np.flatnonzero(kinds == "local times")).size:
        instants[local], faults = into_zone(instants[local], asked)
        kinds[local] = "instants"
        if faults:
            told = [(int(local[k]), f"`{name}` is {cells[local[k]]}, {said}") for k, said in faults[0]]
            raise Mistake(table.tell(told) + faults[1])
    others = np.flatnonzero(kinds != kinds[0])
    if len(others):
        first = int(others[0])
        said = f"`{name}` is {cells[first]}, which cannot be held against the time before it"
        hint = "" if "numbers" in kinds[[0, first]] else TOLD_ZONE
        raise Mistake(table.tell([(first, said)]) + hint)
    values = moments.numbers if kinds[0] == "numbers" else instants
    order = np.arange(len(values))
    if asked.unsorted == "sort":
        order = np.argsort(values, kind="stable")
        values = values[order]
    for step in np.flatnonzero(values[1:] <= values[:-1]) + 1:
        again = values[step] == values[step - 1]
        if again and asked.duplicates != "error":
            continue
        line = table.lines[order[step - 1]]
        said = f"the time of the line before again (line {line})" if again else "earlier than the line before"
        hint = (
            " Say what becomes of such lines: data.duplicates=first, last or mean."
            if again
            else TOLD_BACK
            if kinds[0] == "local times"
            else TOLD_UNSORTED
        )
        raise Mistake(table.tell([(int(order[step]), f"`{name}` is {cells[order[step]]}, {said}")]) + hint)
    return Clock(kinds[0], values, asked.timezone), order


def read_moments(cells: Sequence[str], asked: Reading) -> Moments:
    """Each cell by itself: a number, or a date with its offset or without."""
    count = len(cells)
    kinds = np.full(count, "", dtype="<U11")
    nanoseconds, numbers = np.zeros(count, dtype=np.int64), np.full(count, np.nan)
    faults: dict[int, str] = {}
    rest = []
    for k, cell in enumerate(cells):
        number = None if asked.time_format else number_of(cell)
        if number is None:
            rest.append(k)
        elif asked.time_unit is None:
            kinds[k], numbers[k] = "numbers", number
        else:
            since = round(Decimal(cell) * NANOSECONDS[asked.time_unit])
            if abs(since) > LARGEST:
                faults[k] = f"{FAR} (data.time_unit={asked.time_unit})"
            else:
                kinds[k], nanoseconds[k] = "instants", since
    if not rest:
        return Moments(kinds, nanoseconds, numbers, faults)
    found, zoned, wrong = read_dates([cells[k] for k in rest], asked.time_format)
    nanoseconds[rest] = found
    kinds[rest] = np.where(wrong != "", "", np.where(zoned, "instants", "local times"))
    faults |= {k: str(fault) for k, fault in zip(rest, wrong, strict=True) if fault}
    return Moments(kinds, nanoseconds, numbers, dict(sorted(faults.items())))


def read_dates(texts: Sequence[str], written: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [R] nanoseconds; bool [R], whether a date says its own offset; and of each what is wrong with it, or ``."""
    import pandas as pd

    column = pd.Series(list(texts), dtype=object)
    if written is not None:
        try:
            dates = pd.to_datetime(column, format=written, errors="coerce", utc=True)
        except ValueError as error:
            raise Mistake(f"data.time_format={written!r} is no format of times: {error}.") from error
        return in_nanoseconds(dates)[0], np.full(len(texts), "%z" in written), in_nanoseconds(dates)[1]
    zoned = np.array([ZONED.search(text) is not None for text in texts])
    whole = np.array([YEAR.search(text) is not None for text in texts])
    standard = column.where(whole).str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
    found, wrong = in_nanoseconds(pd.to_datetime(standard, format="ISO8601", errors="coerce", utc=True))
    others = np.flatnonzero((wrong == NO_TIME) & whole & np.array([is_plain(text) for text in texts]))
    if len(others):
        month, day = (
            in_nanoseconds(
                pd.to_datetime(column.iloc[others], format="mixed", dayfirst=first, errors="coerce", utc=True)
            )
            for first in (False, True)
        )
        found[others] = day[0]
        wrong[others] = np.where((day[1] == "") & (month[1] == "") & (day[0] != month[0]), TWOFOLD, day[1])
    return found, zoned, wrong


def in_nanoseconds(dates: Any) -> tuple[np.ndarray, np.ndarray]:
    """pandas' dates as int64 [R] since 1970, and what is wrong with each, or ``."""
    import pandas as pd

    index = pd.DatetimeIndex(dates)
    known = ~np.asarray(index.isna())
    near = np.asarray((index > pd.Timestamp.min.tz_localize("UTC")) & (index < pd.Timestamp.max.tz_localize("UTC")))
    found = np.where(near, index.where(near).as_unit("ns").asi8, 0)
    return found, np.where(near, "", np.where(known, FAR, NO_TIME)).astype(object)


def is_plain(text: str) -> bool:
    """One that pandas may read where it is not ISO 8601; of a date with its year in front 13-01 would be turned."""
    return not re.match(r"\d{4}\D\d", text) and all(word[:3].lower() in WORDS for word in re.findall("[A-Za-z]+", text))


def into_zone(local: np.ndarray, asked: Reading) -> tuple[np.ndarray, tuple[list[tuple[int, str]], str] | None]:
    """Local times int64 [R] of a zone as instants; else those that it has twice or never, and what to do."""
    import pandas as pd

    index, zone = pd.DatetimeIndex(local.view("datetime64[ns]")), asked.timezone
    never = np.asarray(index.tz_localize(zone, ambiguous=True, nonexistent="NaT").isna())
    if never.any():
        return local, ([(int(k), f"which {zone} leaves out") for k in np.flatnonzero(never)], TOLD_NEVER)
    twice = np.asarray(index.tz_localize(zone, ambiguous="NaT").isna())
    told = [(int(k), f"which {zone} has twice") for k in np.flatnonzero(twice)]
    which: Any = np.full(len(local), asked.ambiguous == "earlier")  # True: summer time
    if twice.any() and asked.ambiguous == "error":
        return local, (told, TOLD_TWICE)
    if asked.ambiguous == "order":
        which = "infer"
    try:
        return np.asarray(index.tz_localize(zone, ambiguous=which).tz_convert("UTC").as_unit("ns").asi8), None
    except ValueError:  # pandas: the times do not fall back once, from the first of the two to the second
        return local, (
            told,
            " The order of the lines does not say which is which; set data.ambiguous=earlier or later.",
        )


def moment_like(text: str, clock: Clock, asked: Reading, key: str) -> int | float:
    """A time that the user wrote, as the clock counts it. Raises `Mistake` where it is none, or of another kind."""
    moments = read_moments([text], asked)
    if moments.faults and asked.time_format:  # a config may write ISO 8601 whatever the file does
        moments = read_moments([text], plain(asked))
    if moments.faults:
        raise Mistake(f"{key}: {text!r} is no time; write a number, or a date as ISO 8601 writes it.")
    kind, value = moments.kinds[0], moments.nanoseconds
    if kind == "local times" and asked.timezone is not None:
        value, faults = into_zone(value, asked)
        if faults:
            raise Mistake(f"{key}: {text!r} is a time {faults[0][0][1]}. Write it with its offset (+01:00).")
        kind = "instants"
    if kind != clock.kind:
        raise Mistake(f"{key}: {text!r} cannot be held against the file's times ({clock.told(0)}).")
    return float(moments.numbers[0]) if kind == "numbers" else int(value[0])


def plain(asked: Reading) -> Reading:
    return Reading(asked.time, None, asked.time_unit, asked.timezone, asked.ambiguous, asked.unsorted, asked.duplicates)


def number_of(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    if "_" in cell:  # Python's own grouping: 2020_01_01 is no number
        return None
    return number if math.isfinite(number) else None


def check_zone(name: str | None) -> None:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    if name is None:
        return
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Mistake(
            f"data.timezone={name} is no time zone{did_you_mean(name, sorted(available_timezones()), otherwise='.')}"
        ) from error
