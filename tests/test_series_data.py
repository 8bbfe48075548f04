"""Series from files, and windows of a long one: each value where it belongs, nothing of the future in the scaling."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import config
from runner.data.bad_rows import BadRows
from runner.data.csv_series import CsvSeries
from runner.data.decode import decode
from runner.data.jsonl import Jsonl
from runner.data.series_files import read_series
from runner.protocols import Horizon, Message, Mistake, Row

SOURCE: dict[str, Any] = {
    "time": "date", "channels": None, "targets": None, "lookback": 4, "horizon": 2, "stride": 1,
    "borders": [0.6, 0.8, 1.0], "reach_back": True, "scaling": "z_score", "apart": False, "missing": "error",
    "prompt": None,
}  # fmt: skip


def numbers(rows: int, channels: int, seed: int = 0) -> np.ndarray:
    """float64 [rows, channels]"""
    return np.random.RandomState(seed).randn(rows, channels).cumsum(axis=0) * 3 + 50


def write(file: Path, values: np.ndarray, names: str = "abcdefgh", time: bool = True) -> Path:
    start = datetime(2020, 1, 1)
    lines = [",".join([*(["date"] if time else []), *names[: values.shape[1]]])]
    for k, row in enumerate(values):
        cells = ["" if np.isnan(value) else repr(float(value)) for value in row]
        lines.append(",".join([*([str(start + timedelta(hours=k))] if time else []), *cells]))
    file.write_text("\n".join(lines) + "\n")
    return file


def due_of(row: Row) -> Horizon:
    assert row.horizon is not None
    return row.horizon


def read(file: Path, **changed: Any) -> dict[str, list[Row]]:
    return CsvSeries(str(file), **(SOURCE | changed)).read(["series"])


def windows_one_by_one(
    scaled: np.ndarray, first: int, end: int, lookback: int, horizon: int, stride: int, reach_back: bool
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(start, lookback [C, lookback], horizon [C, horizon]) by plain slicing of [rows, C]."""
    start = max(0, first - lookback) if reach_back else first
    found = []
    while start + lookback + horizon <= end:
        found.append(
            (start, scaled[start : start + lookback].T, scaled[start + lookback : start + lookback + horizon].T)
        )
        start += stride
    return found


COUNTER = itertools.count()


@settings(max_examples=40, deadline=None)
@given(
    lookback=st.integers(1, 6), horizon=st.integers(1, 5), stride=st.integers(1, 7), reach_back=st.booleans(),
    channels=st.integers(1, 4), extra=st.integers(0, 9), target=st.booleans(),
)  # fmt: skip
def test_windows_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    lookback: int,
    horizon: int,
    stride: int,
    reach_back: bool,
    channels: int,
    extra: int,
    target: bool,
) -> None:
    length = lookback + horizon
    borders = [length + extra, 2 * length + extra, 3 * length + extra]
    values = numbers(borders[-1] + 3, channels, lookback)
    file = write(tmp_path_factory.getbasetemp() / f"windows-{next(COUNTER)}.csv", values)
    splits = read(
        file, lookback=lookback, horizon=horizon, stride=stride, reach_back=reach_back, borders=borders,
        targets=["a"] if target else None,
    )  # fmt: skip
    train = values[: borders[0]]
    scaled = (values - train.mean(axis=0)) / train.std(axis=0)
    assert list(splits) == ["train", "val", "test"]
    for (split, rows), first, end in zip(splits.items(), [0, *borders], borders, strict=False):
        expected = windows_one_by_one(scaled, first, end, lookback, horizon, stride, reach_back)
        assert len(rows) == len(expected), split
        assert len({row.id for row in rows}) == len(rows)
        for row, (start, before, after) in zip(rows, expected, strict=True):
            (series,) = row.items["series"]
            assert series.dtype == due_of(row).values.dtype == np.float32
            np.testing.assert_allclose(series, before, atol=1e-5)
            np.testing.assert_allclose(due_of(row).values, after[:1] if target else after, atol=1e-5)
            assert row.where == f"{file.name}:{start + 2}-{start + lookback + 1}"
            own = due_of(row).values * due_of(row).targets.scale[:, None] + due_of(row).targets.mean[:, None]
            np.testing.assert_allclose(own, values[start + lookback : start + length].T[: len(own)], rtol=1e-4)


def test_scaling_knows_the_train_rows_alone(tmp_path: Path) -> None:
    values = numbers(40, 2)
    other = values.copy()
    other[24:] = other[24:] * 100 - 7
    first = read(write(tmp_path / "one.csv", values), borders=[24, 32, 40])
    second = read(write(tmp_path / "two.csv", other), borders=[24, 32, 40])
    for one, two in zip(first["train"], second["train"], strict=True):
        np.testing.assert_array_equal(one.items["series"][0], two.items["series"][0])
        np.testing.assert_array_equal(due_of(one).values, due_of(two).values)
        np.testing.assert_array_equal(due_of(one).targets.scale, due_of(two).targets.scale)
    plain = read(tmp_path / "one.csv", scaling="none", borders=[24])
    np.testing.assert_allclose(plain["train"][0].items["series"][0], values[:4].T, rtol=1e-6)


def test_windows_of_val_reach_back_or_not(tmp_path: Path) -> None:
    file = write(tmp_path / "one.csv", numbers(40, 1))
    assert read(file, borders=[20, 30])["val"][0].where == "one.csv:18-21"  # line 22, row 20, is the first that is due
    assert read(file, borders=[20, 30], reach_back=False)["val"][0].where == "one.csv:22-25"
    assert list(read(file, borders=[20])) == ["train"]


def test_borders_are_rows_shares_or_times(tmp_path: Path) -> None:
    file = write(tmp_path / "one.csv", numbers(40, 1))
    by_rows = {split: len(rows) for split, rows in read(file, borders=[20, 30, 40]).items()}
    assert by_rows == {"train": 15, "val": 9, "test": 9}
    assert {split: len(rows) for split, rows in read(file, borders=[0.5, 0.75, 1.0]).items()} == by_rows
    times = ["2020-01-01 20:00:00", "2020-01-02T06:00", "2020-01-02 16:00"]
    assert {split: len(rows) for split, rows in read(file, borders=times).items()} == by_rows
    for wrong, said in (
        ([30, 20], "must end after the other"),
        ([20, 41], r"\[20, 41\] end splits at rows \[20, 41\] of 40"),
        ([0.5, 2.0], "shares of the rows lie between 0 and 1"),
        (["yesterday"], "'yesterday' is no time"),
        (["2020-01-01T00:00+02:00"], "cannot be held against the file's times"),
        ([20, 30, 31], "the test split has 5 rows"),
        ([3], "the train split has 3 rows to take windows from, fewer than data.lookback"),
        ([], "one to three ends"),
    ):
        with pytest.raises(Mistake, match=said):
            read(file, borders=wrong)
    untimed = write(tmp_path / "untimed.csv", numbers(40, 1), time=False)
    with pytest.raises(Mistake, match="data.time names no column"):
        read(untimed, time=None, borders=times)
    with pytest.raises(Mistake, match=r"untimed.csv:1 has no column `date` for the time"):
        read(untimed)
    assert len(read(untimed, time=None)["train"]) == 19


def test_missing_values_are_refused_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = numbers(40, 2)
    values[5, 1] = values[9, 0] = np.nan
    file = write(tmp_path / "one.csv", values)
    with pytest.raises(Mistake, match=r"one.csv:7: `b` is missing; one.csv:11: `a` is missing. .*data.missing=keep"):
        read(file, borders=[40])
    rows = read(file, borders=[40], missing="keep")["train"]
    assert len(rows) == 35 and np.isnan(rows[2].items["series"][0]).tolist() == [[False] * 4, [False] * 3 + [True]]
    assert np.isnan(due_of(rows[0]).values).tolist() == [[False] * 2, [False, True]]
    assert abs(np.nanmean(values[:, 0]) - due_of(rows[0]).targets.mean[0]) < 1e-9
    values[10:20] = np.nan
    rows = read(write(file, values), borders=[40], missing="keep")["train"]
    assert all(np.isfinite(row.items["series"][0]).any() and np.isfinite(due_of(row).values).any() for row in rows)
    assert f"{35 - len(rows)} of 35 windows of the train split are left out" in caplog.text
    values[:, 1] = np.nan
    with pytest.raises(Mistake, match="`b` has no number in the train rows"):
        read(write(file, values), borders=[40], missing="keep")


def test_a_constant_channel_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = numbers(40, 2)
    values[:30, 1] = 7.3
    rows = read(write(tmp_path / "one.csv", values), borders=[30, 40])
    assert "constant in the train rows" in caplog.text and "`b`" in caplog.text and "`a`" not in caplog.text
    assert due_of(rows["train"][0]).targets.scale[1] == 1 and not rows["train"][0].items["series"][0][1].any()
    np.testing.assert_allclose(due_of(rows["val"][-1]).values[1], values[-2:, 1] - 7.3, rtol=1e-5)


FILES = {
    "date,a\n2020-01-02,1\n2020-01-01,2\n": r"x.csv:3: `date` is 2020-01-01, earlier than the line before",
    "date,a\n2020-01-01,1\n\n2020-01-01,2\n": r"x.csv:4: `date` is 2020-01-01, the time of the line before again",
    "date,a\n2020-01-01,1\nlater,2\n": r"x.csv:3: `date` is 'later', no time",
    "date,a\n2020-01-01,1\n7,2\n": r"x.csv:3: `date` is 7, which cannot be held against",
    "date,a\n1,1\n2,x\n3,y\n": r"x.csv:3: `a` is 'x', no number; x.csv:4: `a` is 'y', no number",
    "date,a\n1,1\n2,inf\n": r"x.csv:3: `a` is 'inf', no number",
    "date,a\n1,1\n2,1e39\n": r"x.csv:3: `a` is '1e39', no number",
    "date,a\n1,1\n2\n": r"x.csv:3: 1 cells, not 2",
    "date,a,a\n1,1,2\n": r"x.csv:1 has two columns named `a`",
    "date,,a\n1,1,2\n": r"x.csv:1 has a column without a name",
    "date\n1\n": r"x.csv:1 has no column of values",
    "date,a\n": r"x.csv has no line of values",
    "": r"x.csv is empty",
}


@pytest.mark.parametrize("text", FILES, ids=repr)
def test_a_file_that_cannot_be_read_is_told_by_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(Mistake, match=FILES[text]) as told:
        read(tmp_path / "x.csv")
    assert str(told.value).startswith(f"data.path={tmp_path}/x.csv: ")


def test_columns_are_chosen_and_a_prompt_given(tmp_path: Path) -> None:
    values = numbers(40, 3)
    file = write(tmp_path / "one.csv", values)
    row = read(file, channels=["c", "a"], targets=["b"], scaling="none", prompt="Go on.", borders=[40])["train"][0]
    np.testing.assert_allclose(row.items["series"][0], values[:4, [2, 0]].T, rtol=1e-6)
    np.testing.assert_allclose(due_of(row).values, values[4:6, [1]].T, rtol=1e-6)
    assert row.messages == (Message("user", "Go on."),)
    for changed, said in (
        ({"channels": ["A"]}, "data.channels names `A`"),
        ({"targets": ["date"]}, "data.targets names `date`"),
        ({"channels": ["a", "a"]}, "twice"),
        ({"channels": []}, "data.channels is empty"),
    ):
        with pytest.raises(Mistake, match=said):
            read(file, **changed)
    with pytest.raises(Mistake, match=r"there is no file .*onne.csv; did you mean one.csv"):
        read(tmp_path / "onne.csv")


def test_windows_take_no_memory_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "one.csv", numbers(600, 1))
    source = CsvSeries(str(file), **(SOURCE | {"lookback": 400, "horizon": 100, "borders": [600]}))
    rows = source.read([])["train"]
    bases = {id(array.base) for row in rows for array in (row.items["series"][0], due_of(row).values)}
    assert len(rows) == 101 and len(bases) == 1
    with pytest.raises(ValueError, match="read-only"):
        rows[0].items["series"][0][0, 0] = 1
    tracemalloc.start()
    kept = source.read([])
    assert tracemalloc.get_traced_memory()[0] < 101 * 2_000 and kept
    tracemalloc.stop()


def test_etth1_has_the_windows_that_papers_count(shared: Path) -> None:
    """8,209, 2,785 and 2,785 for a lookback of 336 and a horizon of 96, as PatchTST's and DLinear's logs say."""
    changed = {"lookback": 336, "horizon": 96, "borders": [8640, 11520, 14400]}
    splits = read(shared / "data" / "ett" / "ETTh1.csv", **changed)
    assert [len(rows) for rows in splits.values()] == [8209, 2785, 2785]


def test_the_config_is_held_against_the_source(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    given = ["model=instruct", "data=csv_series", "data.path=x.csv", "train.epochs=1"]
    assert config.compose("train", [*given, "data.borders=[8640,11520,14400]"]).tree["data"]["lookback"] == 96
    for borders in ("[0.7,0.8,1]", "['2020-01-01']"):
        config.compose("train", [*given, f"data.borders={borders}"])
    for wrong in ("data.borders=0.7", "data.lookback=0", "data.scaling=minmax"):
        with pytest.raises(Mistake, match=wrong.partition("=")[0]):
            config.compose("train", [*given, wrong])


def test_rows_name_files_with_series(tmp_path: Path) -> None:
    values = numbers(5, 2).T.astype(np.float32)  # [C, T]
    np.save(tmp_path / "two.npy", values)
    np.save(tmp_path / "one.npy", values[0])
    write(tmp_path / "named.csv", values.T, time=False)
    (tmp_path / "plain.csv").write_text("1,2\n3,\n5,nan\n")
    (tmp_path / "two.json").write_text(json.dumps(values.tolist()))
    (tmp_path / "one.json").write_text("[1, null, 3]")
    names = ["two.npy", "one.npy", "named.csv", "two.json", "plain.csv", "one.json"]
    lines = [json.dumps({"series": name}) for name in names] + [json.dumps({"series": [[1, None], [None, 4]]})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    fields = {"id": None, "series": None}
    rows = Jsonl(str(tmp_path / "rows.jsonl"), None, fields, [], None).read(["series"])["train"]
    found = [decode("series", row.items["series"][0]) for row in rows]
    assert all(one.dtype == np.float32 for one in found)
    for one, expected in zip(
        found,
        [
            values, values[:1], values, values, [[1, 3, 5], [2, np.nan, np.nan]], [[1, np.nan, 3]],
            [[1, np.nan], [np.nan, 4]],
        ],
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(one, np.asarray(expected, dtype=np.float32))


def test_files_without_a_series_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "huge.npy", np.array([1e300]))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    texts = {"broken.npy": "x", "ragged.json": "[[1, 2], [3]]", "object.json": "{}", "broken.json": "[", "a.txt": "1"}
    texts |= {"empty.csv": "", "ragged.csv": "1,2\n3\n", "word.csv": "a,b\n1,x\n", "gaps.csv": "a\nnan\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name, said in {
        "cube.npy": r"holds float64 \[2, 2, 2\]", "huge.npy": "not finite in float32", "text.npy": "holds <U1",
        "object.npy": "not a whole .npy file", "broken.npy": "not a whole .npy file",
        "ragged.json": "channel 2 of `series` has 1 numbers, the first 2", "object.json": "holds an object",
        "broken.json": "is not JSON", "a.txt": "must be .csv, .npy or .json", "empty.csv": "is empty",
        "ragged.csv": "ragged.csv:2: 1 cells, not 2", "word.csv": "word.csv:2: `b` is 'x', no number",
        "gaps.csv": "has no number",
    }.items():  # fmt: skip
        with pytest.raises(Mistake, match=said) as told:
            read_series(tmp_path / name)
        assert name in str(told.value)


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"series": "x.txt"}', "`series` names 'x.txt'; a file with a series is one of .csv, .json, .npy"),
        ('{"series": "none.csv"}', "`series` does not exist"),
        ('{"series": [[null, null]]}', "has no number, only null"),
        ('{"series": [[1, NaN]]}', "not a finite number"),
        ('{"series": [[1, true]]}', "holds True, not a finite float32 number; a missing value is null"),
    ],
)
def test_rows_with_wrong_series_are_told(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(Mistake, match=said):
        rows = Jsonl(str(tmp_path / "rows.jsonl"), None, {}, [], None).read(["series"])["train"]
        list(BadRows("train", "error", 0).sound(rows))
