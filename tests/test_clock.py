"""Times of a series: every way to write an instant is that instant, and what is no clock is told by line."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import CONF
from runner.data.clock import Clock, Reading, clock_of
from runner.data.csv_series import CsvSeries
from runner.data.series_files import Table
from runner.protocols import Mistake, Row

DEFAULTS = yaml.safe_load((CONF / "data" / "csv_series.yaml").read_text())
BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3_600
SPRING = int(datetime(2021, 3, 28, 1, tzinfo=UTC).timestamp())
AUTUMN = int(datetime(2021, 10, 31, 1, tzinfo=UTC).timestamp())
"""Berlin's clocks go on, and back: the first second after, UTC."""
COUNTER = itertools.count()


def clock(cells: list[str], **changed: Any) -> tuple[Clock, np.ndarray]:
    keys = ("time", "time_format", "time_unit", "timezone", "ambiguous", "unsorted", "duplicates")
    asked = Reading(**({name: DEFAULTS[name] for name in keys} | {"time": "t"} | changed))
    table = Table(Path("x.csv"), ["t"], [[cell] for cell in cells], list(range(2, len(cells) + 2)), True)
    found = clock_of(table, asked)
    assert found is not None
    return found


def rows(file: Path, text: str, **changed: Any) -> dict[str, list[Row]]:
    file.write_text(text)
    given = DEFAULTS | {"path": str(file), "time": "t", "lookback": 2, "horizon": 1, "scaling": "none"} | changed
    given |= {"borders": changed.get("borders", [1.0])}
    return CsvSeries(**{name: value for name, value in given.items() if name != "_target_"}).read(["series"])


def seconds(found: Clock) -> list[float]:
    return [value / 10**9 for value in found.values.tolist()]


WAYS = {
    "utc": lambda t: datetime.fromtimestamp(t, UTC).isoformat(),
    "z": lambda t: datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
    "compact": lambda t: datetime.fromtimestamp(t, UTC).strftime("%Y%m%dT%H%M%S+0000"),
    "india": lambda t: datetime.fromtimestamp(t, timezone(timedelta(hours=5, minutes=30))).isoformat(sep=" "),
    "west": lambda t: datetime.fromtimestamp(t, timezone(-timedelta(hours=8))).isoformat(),
    "words": lambda t: datetime.fromtimestamp(t, UTC).strftime("%d %b %Y %H:%M:%S UTC"),
    "naive": lambda t: datetime.fromtimestamp(t, UTC).replace(tzinfo=None).isoformat(),
    "seconds": lambda t: str(t),
    "exponent": lambda t: f"{t}e0",
}
"""How an instant is written, naive ones in UTC."""
INSTANTS = st.lists(st.integers(-(2**32), 2**32), min_size=1, max_size=12, unique=True)


@settings(max_examples=80, deadline=None)
@given(INSTANTS, st.data())
def test_an_instant_is_the_same_however_it_is_written(instants: list[int], data: st.DataObject) -> None:
    ways = data.draw(st.lists(st.sampled_from(sorted(WAYS)), min_size=len(instants), max_size=len(instants)))
    cells = [WAYS[way](t) for way, t in zip(ways, instants, strict=True)]
    found, order = clock(cells, timezone="UTC", time_unit="s", unsorted="sort")
    assert seconds(found) == sorted(instants) and [instants[k] for k in order] == sorted(instants)
    assert found.kind == "instants" and (np.diff(found.values) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**62), 2**62), st.sampled_from(["s", "ms", "us", "ns"]))
def test_numbers_since_1970_keep_every_nanosecond(nanoseconds: int, unit: str) -> None:
    digits = {"s": 9, "ms": 6, "us": 3, "ns": 0}[unit]
    sign, whole = "-" if nanoseconds < 0 else "", str(abs(nanoseconds)).rjust(digits + 1, "0")
    cell = sign + (f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole)
    assert clock([cell], time_unit=unit)[0].values.tolist() == [nanoseconds]
    assert clock([cell])[0].kind == "numbers"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([SPRING, AUTUMN]), st.integers(-6, 3), st.integers(8, 16), st.sampled_from([HOUR, HOUR // 2, 900])
)
def test_local_times_in_order_are_the_instants_they_were(change: int, before: int, count: int, step: int) -> None:
    """zoneinfo is the reference; the hour that there is twice is known where all of it is there."""
    first = change - 2 * HOUR + before * HOUR
    instants = [first + k * step for k in range(count * HOUR // step)]
    local = [datetime.fromtimestamp(t, BERLIN).replace(tzinfo=None) for t in instants]
    cells = [one.isoformat() for one in local]
    both = [
        one
        for one in local
        if len({one.replace(tzinfo=BERLIN, fold=fold).utcoffset() for fold in (0, 1)}) == 2  # fold: which of the two
    ]
    asked = {"timezone": "Europe/Berlin"}
    if not both:
        assert seconds(clock(cells, **asked)[0]) == instants
        return
    with pytest.raises(Mistake, match=r"`t` is 2021-10-31T02:.*, which Europe/Berlin has twice.* data.ambiguous=order"):
        clock(cells, **asked)
    if len(both) == 2 * len(set(both)):
        assert seconds(clock(cells, ambiguous="order", **asked)[0]) == instants


def test_a_time_that_a_zone_has_twice_or_never(tmp_path: Path) -> None:
    asked = {"timezone": "Europe/Berlin"}
    cells = ["2021-10-31T01:59:59", "2021-10-31T02:30:00", "2021-10-31T03:00:00"]
    for ambiguous, fold in (("earlier", 0), ("later", 1)):
        told = [datetime.fromisoformat(cell).replace(tzinfo=BERLIN, fold=fold).timestamp() for cell in cells]
        assert seconds(clock(cells, ambiguous=ambiguous, **asked)[0]) == told
    with pytest.raises(Mistake, match="x.csv:3: .*twice. The order of the lines does not say which is which; set"):
        clock(cells, ambiguous="order", **asked)
    never = ["2021-03-28T01:00", "2021-03-28T02:30", "2021-03-28T03:00"]
    for ambiguous in ("error", "earlier", "order"):
        with pytest.raises(Mistake, match="x.csv:3: `t` is 2021-03-28T02:30, which Europe/Berlin leaves out. No clock"):
            clock(never, ambiguous=ambiguous, **asked)
    mixed = ["2021-10-31T02:30:00+02:00", "2021-10-31T02:30:00+01:00", "2021-10-31T03:30"]
    assert seconds(clock(mixed, **asked)[0]) == [AUTUMN - HOUR // 2, AUTUMN + HOUR // 2, AUTUMN + 3 * HOUR // 2]
    with pytest.raises(Mistake, match="data.timezone=Europe/Berln is no time zone; did you mean Europe/Berlin"):
        rows(tmp_path / "x.csv", "t,a\n1,1\n", timezone="Europe/Berln")


def test_times_without_a_zone_stay_local_and_never_stand_beside_others() -> None:
    local = ["2020-03-29T02:30", "2020-03-29 03:30:00.5"]
    found, _ = clock(local)
    assert found.kind == "local times" and found.told(1) == "2020-03-29T03:30:00.500000"
    for cells, said in (
        ([*local, "2020-03-29T04:00Z"], "x.csv:4: `t` is 2020-03-29T04:00Z, which cannot be held .*data.timezone="),
        (["2020-03-29T04:00+01:00", "2020-03-29T05:00"], "x.csv:3: .* Say in which zone times without one are"),
        (["2020-03-29", "7"], "x.csv:3: `t` is 7, which cannot be held against the time before it.$"),
    ):
        with pytest.raises(Mistake, match=said):
            clock(cells)


@pytest.mark.parametrize(
    "cell, said",
    [
        ("now", "no time"), ("today", "no time"), ("10:30", "no time"), ("10:30:00.123456", "no time"), ("", "no time"),
        ("2020-13-01", "no time"), ("2020-13-01 10:00 UTC", "no time"), ("2020-02-30", "no time"), ("nan", "no time"),
        ("inf", "no time"), ("2020_01_01", "no time"),
        ("2020-01-01 10:00 EST", "no time"), ("Smarch 1 2020", "no time"), ("1 Jan", "no time"),
        ("01/02/2020", "which begins with its day or with its month .*data.time_format"),
        ("3000-01-01", "not between the years 1678 and 2262"), ("0001-01-01", "not between the years"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_time_is_told(cell: str, said: str) -> None:
    with pytest.raises(Mistake, match=rf"x.csv:3: `t` is '{cell}', {said}"):
        clock(["2020-01-01", cell])


def test_dates_of_other_forms() -> None:
    expected = [datetime(2020, 1, day, tzinfo=UTC).timestamp() for day in (13, 14)]
    for cells in (["13/01/2020", "14/01/2020"], ["01/13/2020", "Jan 14 2020"], ["2020-01-13", "14. January 2020"]):
        assert seconds(clock(cells)[0]) == expected
    assert seconds(clock(["2020-01-13T00:00:00.000000001"])[0])[0] == expected[0]
    assert clock(["2020-01-13T00:00:00.000000001"])[0].values[0] % 10 == 1
    found, _ = clock(["01/02/2020 00:00", "03/02/2020 00:00"], time_format="%d/%m/%Y %H:%M")
    assert found.told(1) == "2020-02-03T00:00:00" and found.kind == "local times"
    assert clock(["20200203"], time_format="%Y%m%d")[0].told(0) == "2020-02-03T00:00:00"
    zoned, _ = clock(["1.2.2020 00:00 +0200"], time_format="%d.%m.%Y %H:%M %z")
    assert zoned.kind == "instants" and zoned.told(0) == "2020-01-31T22:00:00+00:00"
    with pytest.raises(Mistake, match="x.csv:2: `t` is '2020-02-03', no time"):
        clock(["2020-02-03"], time_format="%d/%m/%Y")
    with pytest.raises(Mistake, match=r"`t` is '1e12', not between the years 1678 and 2262 \(data.time_unit=s\)"):
        clock(["1e12"], time_unit="s")


def test_lines_out_of_order_and_lines_of_one_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "t,a,b\n3,30,\n1,10,1\n2,20,2\n2,40,\n4,5,9\n"
    file, asked = tmp_path / "x.csv", {"missing": "keep", "lookback": 4, "horizon": 0}
    with pytest.raises(Mistake, match="x.csv:3: `t` is 1, earlier than the line before. .*data.unsorted=sort"):
        rows(file, text, **asked)
    with pytest.raises(Mistake, match=r"x.csv:5: `t` is 2, the time of the line before again \(line 4\).*duplicates="):
        rows(file, text, unsorted="sort", **asked)
    for duplicates, value, other in (("first", 20, 2), ("last", 40, np.nan), ("mean", 30, 2)):
        (row,) = rows(file, text, unsorted="sort", duplicates=duplicates, **asked)["train"]
        expected = [[10, value, 30, 5], [1, other, np.nan, 9]]
        np.testing.assert_array_equal(row.items["series"][0], np.array(expected, dtype=np.float32))
    assert "x.csv: 1 of 5 lines have the time of another: data.duplicates=mean" in caplog.text
    back = "t,a\n2021-10-31 02:30,1\n2021-10-31 02:00,2\n2021-10-31 02:30,3\n"
    with pytest.raises(Mistake, match="x.csv:3: .*earlier than the line before.* Where clocks went back, say the zone"):
        rows(file, back, **asked)
    labelled = "t,a,state\n1,1,x\n1,3,y\n2,2,y\n"
    with pytest.raises(Mistake, match="x.csv:2: lines of the same time have different labels"):
        rows(file, labelled, duplicates="mean", label="state", horizon=0)
    assert rows(file, labelled, duplicates="last", label="state", horizon=0)["train"][0].label == "y"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(-9, 9) | st.none()), min_size=1, max_size=20))
def test_the_mean_of_lines_of_one_time_is_that_of_pandas(tmp_path_factory: Any, lines: list[tuple[int, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(lines, columns=["t", "a"], dtype=float)
    expected = frame.groupby("t")["a"].mean()
    if expected.notna().sum() == 0:
        return
    file = tmp_path_factory.getbasetemp() / f"mean-{next(COUNTER)}.csv"
    text = "t,a\n" + "".join(f"{t},{'' if a is None else a}\n" for t, a in lines)
    asked = {"unsorted": "sort", "duplicates": "mean", "missing": "keep", "gaps": "ignore", "horizon": 0}
    (row,) = rows(file, text, lookback=len(expected), **asked)["train"]
    np.testing.assert_allclose(row.items["series"][0][0], expected.to_numpy(), rtol=1e-6)
