"""A series on an even clock: gaps, resampling and several files, and nothing of a later time in an earlier step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import CONF
from runner.data.csv_series import CsvSeries
from runner.protocols import Mistake, Row

DEFAULTS = yaml.safe_load((CONF / "data" / "csv_series.yaml").read_text())
START = datetime(2020, 1, 1)
COUNTER = itertools.count()
FORECAST: dict[str, Any] = {"lookback": 3, "horizon": 2, "borders": [1.0], "scaling": "none"}
WHOLE: dict[str, Any] = FORECAST | {"horizon": 0}


def source(path: Any, **changed: Any) -> CsvSeries:
    given = DEFAULTS | {"path": path, "time": "t"} | changed
    return CsvSeries(**{name: value for name, value in given.items() if name != "_target_"})


def rows(path: Any, **changed: Any) -> dict[str, list[Row]]:
    return source(str(path) if isinstance(path, Path) else path, **changed).read(["series"])


def write(file: Path, minutes: Sequence[float], *channels: Sequence[Any], names: str = "abcd") -> Path:
    """A line for each of these minutes after START."""
    lines = [",".join(["t", *names[: len(channels)]])]
    for minute, *cells in zip(minutes, *channels, strict=True):
        lines.append(
            ",".join([str(START + timedelta(minutes=minute)), *("" if one is None else str(one) for one in cells)])
        )
    file.write_text("\n".join(lines) + "\n")
    return file


def series(path: Any, steps: int, **changed: Any) -> np.ndarray:
    """float32 [C, steps]: the whole series as one window."""
    (row,) = rows(path, **(WHOLE | {"lookback": steps} | changed))["train"]
    return row.items["series"][0]


def same(found: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float32), rtol=1e-6)


NAN = np.nan
HOURS = [60 * k for k in (0, 1, 2, 3, 6, 7, 8, 9, 10)]
"""Four and five o'clock are missing."""


def test_a_gap_is_told_kept_as_missing_or_never_crossed(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", HOURS, range(9))
    with pytest.raises(
        Mistake, match="step is 01:00:00 .the median., and the clock has 1 gap, 2 steps in all, "
    ) as told:
        rows(file, **FORECAST)
    assert "first x.csv:5-6 (03:00:00)" in str(told.value) and "data.gaps=split" in str(told.value)
    same(series(file, 11, gaps="missing"), [[0, 1, 2, 3, NAN, NAN, 4, 5, 6, 7, 8]])
    found = rows(file, gaps="split", **FORECAST)["train"]
    assert [row.where for row in found] == ["x.csv:6-8"], "three steps and two due lie within the second stretch alone"
    found = rows(file, gaps="split", **WHOLE)["train"]
    assert [row.where for row in found] == ["x.csv:2-4", "x.csv:3-5", "x.csv:6-8", "x.csv:7-9", "x.csv:8-10"]
    assert len(rows(file, gaps="ignore", **FORECAST)["train"]) == 5
    found = rows(file, gaps="missing", **FORECAST)["train"]
    assert len(found) == 6, "the horizon of the third window is the gap: nothing is due"
    assert found[0].where == "x.csv:2-4" and found[2].where == "x.csv, 2020-01-01T03:00:00 to 2020-01-01T05:00:00"
    with pytest.raises(
        Mistake, match="the train split has 5 rows to take windows from between two gaps .the longest of 2"
    ):
        rows(file, gaps="split", lookback=5, horizon=1, borders=[1.0])
    same(series(file, 11, gaps="missing", fill="ffill"), [[0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8]])
    same(series(file, 11, gaps="missing", fill="ffill", fill_limit=1), [[0, 1, 2, 3, 3, NAN, 4, 5, 6, 7, 8]])
    same(series(file, 11, gaps="missing", fill="linear"), [[0, 1, 2, 3, 10 / 3, 11 / 3, 4, 5, 6, 7, 8]])


def test_clocks_that_are_not_of_one_length(tmp_path: Path) -> None:
    """Months, and times that jitter, are steps; a month that is not there is a gap; an uneven clock is told."""
    months = ["2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30", "2020-05-31", "2020-07-31"]
    file = tmp_path / "x.csv"
    file.write_text("t,a\n" + "".join(f"{month},{k}\n" for k, month in enumerate(months[:5])))
    same(series(file, 5), [range(5)])
    file.write_text("t,a\n" + "".join(f"{month},{k}\n" for k, month in enumerate(months)))
    with pytest.raises(Mistake, match="1 gap, 1 step in all, first x.csv:6-7"):
        rows(file, **FORECAST)
    same(series(file, 7, gaps="missing"), [[0, 1, 2, 3, 4, NAN, 5]])
    same(series(write(file, [0, 61, 119, 180.5, 241], range(5)), 5), [range(5)])
    uneven = write(file, [0, 60, 120, 130, 180, 240, 300, 360], range(8))
    for gaps in ("error", "missing", "split"):
        with pytest.raises(Mistake, match="1 of 7 steps are shorter than half of it, first x.csv:4-5. .*gaps=ignore"):
            rows(uneven, gaps=gaps, **FORECAST)
    same(series(uneven, 8, gaps="ignore"), [range(8)])
    file.write_text("t,a\n1990,1\n1991,2\n1993,3\n1994,4\n")
    with pytest.raises(Mistake, match=r"step is 1 .* 1 gap, 1 step in all, first x.csv:3-4 \(2\)"):
        rows(file, **FORECAST)
    same(series(file, 5, gaps="missing"), [[1, 2, NAN, 3, 4]])
    file.write_text("t,a\n2020-01-01 00:00,1\n2020-01-01 00:00:01,2\n2020-01-01 00:00:02,3\n2250-01-01,4\n")
    with pytest.raises(Mistake, match="would make more than 50,000,000 steps"):
        rows(file, gaps="missing", **FORECAST)
    with pytest.raises(Mistake, match="would make more than 50,000,000 steps"):
        rows(file, resample="1s", gaps="missing", **FORECAST)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 600), st.integers(-99, 99) | st.none()),
        min_size=3, max_size=40, unique_by=lambda line: line[0],
    ),
    st.sampled_from(["7min", "15min", "1h", "D"]),
    st.sampled_from(["mean", "sum", "min", "max", "median", "first", "last"]),
)  # fmt: skip
def test_gathered_steps_are_those_of_pandas(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, Any]], rule: str, how: str
) -> None:
    lines = sorted(lines, key=lambda line: line[0])
    frame = pd.DataFrame(
        {"a": [NAN if value is None else float(value) for _, value in lines]},
        index=pd.DatetimeIndex([START + timedelta(minutes=minute) for minute, _ in lines]),
    )
    bins = frame.resample(rule)
    expected = bins.sum(min_count=1) if how == "sum" else getattr(bins, how)()
    if not expected["a"].notna().any():
        return
    file = write(tmp_path_factory.getbasetemp() / f"bins-{next(COUNTER)}.csv", *zip(*lines, strict=True))
    same(series(file, len(expected), resample=rule, how=how, gaps="missing", missing="keep"), expected.to_numpy().T)


def test_days_and_months_begin_where_the_zone_says(tmp_path: Path) -> None:
    """On the day that summer begins, a day of Berlin has 23 hours."""
    index = pd.date_range("2021-03-27", "2021-03-30", freq="h", tz="Europe/Berlin", inclusive="left")
    file = tmp_path / "x.csv"
    file.write_text("t,a\n" + "".join(f"{time.isoformat()},1\n" for time in index))
    given: dict[str, Any] = {"resample": "D", "how": "sum", "timezone": "Europe/Berlin"}
    same(series(file, 3, **given), [[24, 23, 24]])
    same(series(file, 4, **(given | {"timezone": None})), [[1, 24, 24, 22]])
    same(series(file, 1, **(given | {"resample": "MS"})), [[71]])
    borders = ["2021-03-28", "2021-03-29"]
    counts = {
        split: len(some) for split, some in rows(file, **(WHOLE | given | {"lookback": 1, "borders": borders})).items()
    }
    assert counts == {"train": 1, "val": 1}
    for rule in ("W", "ME", "2MS", "-1h", "0h", "hourly", "B"):
        with pytest.raises(Mistake, match=f"data.resample={rule} is no length of a step"):
            rows(file, **(given | {"resample": rule}))
    file.write_text("t,a\n1,1\n2,2\n")
    with pytest.raises(Mistake, match="data.resample=1h needs times, and `x.csv` has numbers"):
        rows(file, resample="1h")


def test_finer_steps_are_filled_or_told(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", [0, 60, 120], [0, 4, 8])
    with pytest.raises(Mistake, match="x.csv: 6 of 9 steps hold no line, first x.csv, 2020-01-01T00:15:00 to .*ffill"):
        rows(file, resample="15min", **FORECAST)
    given: dict[str, Any] = {"resample": "15min"}
    same(series(file, 9, fill="ffill", **given), [[0, 0, 0, 0, 4, 4, 4, 4, 8]])
    same(series(file, 9, fill="linear", **given), [range(9)])
    same(series(file, 9, fill="linear", fill_limit=2, gaps="missing", **given), [[0, 1, 2, NAN, 4, 5, 6, NAN, 8]])
    found = rows(file, fill="ffill", fill_limit=2, gaps="split", **WHOLE, **given)["train"]
    assert [row.id for row in found] == ["x-000000", "x-000004"], "the stretch at the end is too short"
    for changed, said in (
        ({"fill": "linear", "horizon": 1, "resample": "1h"}, "data.fill=linear looks at the next value"),
        ({"fill": "ffill"}, "data.fill=ffill fills steps without a line, and there will be none"),
        ({"fill_limit": 2}, "data.fill_limit=2: nothing is filled"),
        ({"gaps": "ignore", "resample": "1h"}, "data.gaps=ignore takes lines as steps"),
        ({"tolerance": "1h", "resample": "1h"}, "data.tolerance joins lines"),
    ):
        with pytest.raises(Mistake, match=said):
            rows(file, **changed)


def test_a_filled_step_never_hides_an_empty_cell(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", [0, 60, 180], [1, 2, 3], [5, None, 6])
    with pytest.raises(Mistake, match="x.csv:3: `b` is missing"):
        rows(file, gaps="missing", **FORECAST)
    found = series(file, 4, gaps="missing", missing="keep", fill="ffill")
    same(found, [[1, 2, 2, 3], [5, NAN, 5, 6]])


MINUTES = st.lists(st.integers(0, 20), min_size=5, max_size=12, unique=True).map(sorted)


@settings(max_examples=40, deadline=None)
@given(
    first=MINUTES, second=MINUTES, change=st.integers(0, 20),
    given=st.sampled_from([
        {"gaps": "ignore"}, {"gaps": "ignore", "tolerance": "3min"}, {"gaps": "ignore", "join": "outer"},
        {"resample": "2min", "gaps": "missing"}, {"resample": "2min", "gaps": "missing", "fill": "ffill"},
        {"resample": "30s", "gaps": "missing", "fill": "ffill", "join": "outer"},
    ]),
)  # fmt: skip
def test_no_lookback_knows_of_a_later_time(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], second: list[int], change: int, given: dict[str, Any]
) -> None:
    """Whatever the lines from some minute on say, the steps that are over by then are the same."""
    folder = tmp_path_factory.mktemp("later")
    found = []
    for added in (0, 1000):
        parts = {"a": (first, 1), "b": (second, 50)}
        for name, (minutes, base) in parts.items():
            values = [base + k + (added if minute >= change else 0) for k, minute in enumerate(minutes)]
            write(folder / f"{name}.csv", minutes, values, names=name)
        try:
            read = rows(str(folder), **(WHOLE | {"lookback": 1, "missing": "keep", "time": "t"} | given))
        except Mistake as mistake:
            assert "have no time in common" in str(mistake) or "has no number" in str(mistake)
            return
        found.append({row.id: row for row in read["train"]})
    step = 2 if given.get("resample") == "2min" else 0.5 if "resample" in given else 0
    assert found[0].keys() == found[1].keys()
    for name, row in found[0].items():
        over = (pd.Timestamp(row.where.split(", ")[1].split(" to ")[0]) - START) / pd.Timedelta("1min") + step
        if over <= change and (step or over < change):
            np.testing.assert_array_equal(row.items["series"][0], found[1][name].items["series"][0])


@pytest.mark.parametrize("how", ["mean", "last", "sum"])
@pytest.mark.parametrize("fill, horizon", [("missing", 1), ("ffill", 1), ("linear", 0)])
@pytest.mark.parametrize("border", [265, 305])
def test_nothing_crosses_the_border_of_train_backwards(
    tmp_path: Path, border: int, how: str, fill: str, horizon: int
) -> None:
    """Where it lies in a gap that is filled, and where within a step: that one, which knows of both sides, is val's."""
    minutes = [minute for minute in range(0, 600, 5) if not 230 <= minute < 280]
    values = np.random.RandomState(0).randn(len(minutes)).cumsum()
    later = [value + (77 if minute >= border else 0) for minute, value in zip(minutes, values, strict=True)]
    given = {
        "resample": "20min", "how": how, "gaps": "missing", "fill": fill, "horizon": horizon, "lookback": 2,
        "borders": [str(START + timedelta(minutes=border)), str(START + timedelta(minutes=600))],
        "scaling": "z_score" if horizon else "none",
    }  # fmt: skip
    one = rows(write(tmp_path / "x.csv", minutes, values), **given)
    two = rows(write(tmp_path / "x.csv", minutes, later), **given)
    assert len(one["train"]) == len(two["train"]) > 5
    for a, b in zip(one["train"], two["train"], strict=True):
        np.testing.assert_array_equal(a.items["series"][0], b.items["series"][0])
        if horizon:
            assert a.horizon is not None and b.horizon is not None
            np.testing.assert_array_equal(a.horizon.values, b.horizon.values)
    assert any(
        (a.items["series"][0] != b.items["series"][0]).any() for a, b in zip(one["val"], two["val"], strict=True)
    )


def test_several_files_on_one_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "stations"
    folder.mkdir()
    write(folder / "north.csv", [0, 60, 120, 180], [1, 2, 3, 4], [10, 20, 30, 40])
    write(folder / "south.csv", [60, 120, 180, 240], [5, 6, 7, 8], names="a")
    (row,) = rows(folder, **WHOLE)["train"]
    same(row.items["series"][0], [[2, 3, 4], [20, 30, 40], [5, 6, 7]])
    assert (
        row.where == "north.csv and south.csv, 2020-01-01T01:00:00 to 2020-01-01T03:00:00"
        and row.id == "stations-000000"
    )
    assert "north.csv: 1 of 4 lines go with no line of the others" in caplog.text
    (forecast,) = rows(folder, lookback=2, horizon=1, borders=[1.0])["train"]
    assert forecast.horizon is not None and forecast.horizon.targets.names == ("north.a", "b", "south.a")
    same(series(folder, 5, join="outer", channels=["south.a", "north.a"]), [[NAN, 5, 6, 7, 8], [1, 2, 3, 4, NAN]])
    same(series(folder, 4, channels=["b"]), [[10, 20, 30, 40]])
    files = [str(folder / "south.csv"), str(folder / "north.csv")]
    same(series(files, 3, channels=["b", "south.a"]), [[20, 30, 40], [5, 6, 7]])
    same(series({"x": files[0], "y": files[1]}, 3, channels=["y.a", "x.a"]), [[2, 3, 4], [5, 6, 7]])
    write(folder / "south.csv", [10, 130, 240], [5, 6, 8], names="a")
    same(series(folder, 4, tolerance="1h", join="outer"), [[1, 2, 3, 4], [10, 20, 30, 40], [NAN, 5, NAN, 6]])
    same(series(folder, 2, tolerance="1h", gaps="ignore"), [[2, 4], [20, 40], [5, 6]])
    same(series(folder, 4, resample="1h", gaps="missing"), [[1, 2, 3, 4], [10, 20, 30, 40], [5, NAN, 6, NAN]])
    same(series(folder, 5, resample="1h", gaps="missing", join="outer")[2:], [[5, NAN, 6, NAN, 8]])
    for changed, said in (
        ({}, "north.csv and south.csv have no time in common. Give data.tolerance"),
        ({"channels": ["a"]}, "data.channels names `a`, which is no column of values"),
        ({"tolerance": "soon"}, "data.tolerance=soon is no length of time"),
        ({"time": None}, "data.time=null: files are joined"),
        ({"time": "when"}, "has no column `when` for the time"),
    ):
        with pytest.raises(Mistake, match=said):
            rows(folder, **(FORECAST | changed))
    (folder / "south.csv").write_text("t,a\n2020-01-01T00:00Z,1\n")
    with pytest.raises(Mistake, match="north.csv has local times and south.csv instants, which cannot be held"):
        rows(folder, **FORECAST)
    with pytest.raises(Mistake, match="must name files with differing names"):
        rows([files[0], files[0]], **FORECAST)
    with pytest.raises(Mistake, match="there is no .csv file in the folder"):
        rows(tmp_path, **FORECAST)


def test_files_that_begin_on_other_days_share_their_steps(tmp_path: Path) -> None:
    """Seven hours do not divide a day."""
    days = 24 * 60
    write(tmp_path / "a.csv", range(0, 3 * days, 60), [1] * 72)
    write(tmp_path / "b.csv", range(days, 3 * days, 60), [1] * 48, names="b")
    found = series(tmp_path, 11, resample="7h", how="sum", join="outer")
    same(found, [[7] * 10 + [2], [NAN] * 3 + [4] + [7] * 6 + [2]])


def test_files_with_numbers_as_times_are_joined_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a\n0,1\n0.5,2\n1,3\n")
    (tmp_path / "b.csv").write_text("t,b\n0,4\n0.4,5\n1,6\n")
    same(series(tmp_path, 2, gaps="ignore"), [[1, 3], [4, 6]])
    same(series(tmp_path, 3, tolerance=0.2), [[1, 2, 3], [4, 5, 6]])
