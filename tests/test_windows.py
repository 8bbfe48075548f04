"""Windows of a series: each step where it is claimed, labels, what is too short, and missing values under the mask."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import runner
from runner.config import CONF
from runner.data.collate import stack
from runner.data.csv_series import CsvSeries
from runner.data.labels import labels_of
from runner.data.windows import cut, starts_of, stride_of, within
from runner.encoders.series_patch import SeriesPatch
from runner.protocols import Message, Mistake, Row

DEFAULTS = yaml.safe_load((CONF / "data" / "csv_series.yaml").read_text())
PLAIN: dict[str, Any] = {"time": None, "horizon": 0, "scaling": "none", "borders": [1.0], "missing": "keep"}


def rows(file: Path, **changed: Any) -> dict[str, list[Row]]:
    given = DEFAULTS | PLAIN | {"path": str(file)} | changed
    return CsvSeries(**{name: value for name, value in given.items() if name != "_target_"}).read(["series"])


def write(file: Path, *channels: Any, names: str = "abc") -> Path:
    lines = [",".join(names[: len(channels)])]
    lines += [",".join("" if one is None else str(one) for one in cells) for cells in zip(*channels, strict=True)]
    file.write_text("\n".join(lines) + "\n")
    return file


def items(found: list[Row]) -> list[list[float]]:
    """The first channel of each row."""
    return [row.items["series"][0][0].tolist() for row in found]


SIZES = st.integers(1, 9)


@settings(max_examples=300, deadline=None)
@given(start=st.integers(0, 5), steps=st.integers(0, 40), length=SIZES, stride=SIZES, pad=st.booleans())
def test_windows_cover_what_they_claim(start: int, steps: int, length: int, stride: int, pad: bool) -> None:
    span = range(start, start + steps)
    starts = starts_of(span, length, stride, pad)
    whole = [one for one in range(span.start, span.stop, stride) if one + length <= span.stop]
    assert list(starts)[: len(whole)] == whole and len(starts) - len(whole) in ((0, 1) if pad else (0,))
    assert len(whole) == max(0, (steps - length) // stride + 1)
    assert all(one in span for one in starts)
    seen = {step for one in starts for step in range(one, one + length)} & set(span)
    if pad and stride <= length:
        assert seen == set(span)
    if pad and len(starts) > len(whole):
        assert starts[-1] + length > span.stop, "the window that is filled up is no whole one"
        assert not {span.stop - 1} & {step for one in whole for step in range(one, one + length)}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(0, 499) | st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_an_overlap_is_steps_or_a_share(lookback: int, overlap: int | float) -> None:
    if isinstance(overlap, int) and overlap >= lookback:
        with pytest.raises(Mistake, match=f"data.overlap={overlap} must be less than data.lookback={lookback}"):
            stride_of(lookback, None, overlap)
        return
    stride = stride_of(lookback, None, overlap)
    assert 1 <= stride <= lookback
    shared = lookback - stride
    if isinstance(overlap, int):
        assert shared == overlap
    else:
        assert abs(shared - overlap * lookback) <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.lists(st.integers(0, 30), max_size=6))
def test_parts_of_a_span_lie_in_the_span_and_a_stretch(first: int, last: int, bounds: list[int]) -> None:
    bounds = sorted(bounds)
    stretches = [range(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)][::2]
    parts = within(range(first, last), stretches)
    inside = [step for step in range(first, last) if any(step in one for one in stretches)]
    assert sorted(step for part in parts for step in part) == inside and all(parts)


def test_windows_of_a_split_stay_in_it(tmp_path: Path) -> None:
    """Without a horizon none reaches back: it would be one of train's."""
    file = write(tmp_path / "x.csv", range(20))
    found = rows(file, lookback=4, stride=3, borders=[10, 15, 20])
    assert items(found["train"]) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert items(found["val"]) == [[10, 11, 12, 13]] and items(found["test"]) == [[15, 16, 17, 18]]
    padded = rows(file, lookback=4, stride=3, borders=[10, 15, 20], last="pad")
    assert items(padded["train"]) == items(found["train"])
    np.testing.assert_array_equal(items(padded["val"]), [[10, 11, 12, 13], [13, 14, np.nan, np.nan]])
    assert padded["val"][1].where == "x.csv:15-16" and padded["val"][1].id == "x-000013"
    halves = rows(file, lookback=4, stride=None, overlap=0.5)["train"]
    assert [row.id for row in halves] == [f"x-{start:06d}" for start in range(0, 17, 2)]
    with pytest.raises(Mistake, match="data.stride=2 and data.overlap=1: windows are so many steps apart, or overlap"):
        rows(file, lookback=4, stride=2, overlap=1)
    with pytest.raises(Mistake, match="data.stride=null and data.overlap=null"):
        rows(file, stride=None)


def test_a_horizon_past_the_end_is_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", range(12))
    given: dict[str, Any] = {"lookback": 3, "horizon": 2, "stride": 4}
    assert items(rows(file, **given)["train"]) == [[0, 1, 2], [4, 5, 6]]
    *_, row = rows(file, last="pad", **given)["train"]
    assert row.horizon is not None and row.items["series"][0].tolist() == [[8, 9, 10]]
    np.testing.assert_array_equal(row.horizon.values, [[11, np.nan]])
    for array in (row.items["series"][0], row.horizon.values):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_a_cut_is_a_view_unless_it_is_filled_up() -> None:
    values = np.arange(8.0).reshape(2, 4)
    assert cut(values, 1, 3, 4).base is not None and cut(values, 1, 3, 4).base is not cut(values, 3, 5, 4).base
    np.testing.assert_array_equal(cut(values, 2, 5, 3), [[2, np.nan, np.nan], [6, np.nan, np.nan]])
    np.testing.assert_array_equal(cut(values, 3, 5, 2), np.full((2, 2), np.nan))


def test_a_window_has_the_label_of_its_last_or_of_most_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "x.csv", range(8), ["up", "up", "down", "down", "up", None, "up", None], names="as")
    found = rows(file, lookback=3, stride=1, label="s")["train"]
    assert [row.label for row in found] == ["down", "down", "up", "up"], "not where the last step has none"
    assert "x.csv: 2 of 6 windows of the train split have no label: left out" in caplog.text
    assert items(found)[2] == [2, 3, 4] and found[0].messages == ()
    most = rows(file, lookback=3, stride=1, label="s", label_from="most", prompt="Which way?")["train"]
    assert [row.label for row in most] == ["up", "down", "down", "up", "up", "up"], "of equally many the one seen last"
    assert most[0].messages == (Message("user", "Which way?"), Message("assistant", "up"))
    for cells, expected in (
        (["1", "02"], [1, 2]), (["1", "2.5"], [1.0, 2.5]), (["1", None, "x"], ["1", None, "x"]), (["nan"], ["nan"]),
        ([None], [None]), (["1_0"], ["1_0"]),
    ):  # fmt: skip
        assert labels_of(np.array(cells, dtype=object)).each == expected
    for changed, said in (
        ({"label": "z"}, "data.label=z is a column of one file"),
        ({"label": "s", "horizon": 2}, "data.label=s and data.horizon=2: a window has one or the other"),
        ({"label": "s", "channels": ["s"]}, "data.channels names `s`"),
        ({"scaling": "z_score"}, "data.scaling=z_score: without a horizon a run keeps no scale"),
        ({"targets": ["a"]}, "data.targets are due after the lookback, and data.horizon=0"),
        ({"label": "s", "borders": [5, 8], "stride": 9}, "the val split has no window .* and a label"),
    ):
        with pytest.raises(Mistake, match=said):
            rows(file, **({"lookback": 3} | changed))


def test_series_that_are_empty_short_or_constant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "x.csv"
    for text, said in (
        ("", "x.csv is empty"),
        ("a,b\n", "x.csv has no line of values"),
        ("a,b\n,\n,\n", "`a` has no number at all; leave it out"),
        ("a,b\n1,\n2,\n", "`b` has no number at all; leave it out"),
        ("a,b\n1,\n2,\n3,4\n", "`b` has no number in the train rows; leave it out"),
        ("a,b\n1,1\n2,2\n3,4\n", "the train split has 2 rows to take windows from, fewer than .* = 3. .*data.last=pad"),
    ):
        file.write_text(text)
        with pytest.raises(Mistake, match=said):
            rows(file, lookback=3, borders=[2])
    (row,) = rows(file, lookback=3, borders=[2], last="pad")["train"]
    np.testing.assert_array_equal(row.items["series"][0], [[1, 2, np.nan], [1, 2, np.nan]])
    file.write_text("a,b\n" + "7,1\n7,2\n" * 4 + "9,\n" * 3)
    found = rows(file, lookback=2, horizon=1, stride=3, borders=[8, 11], reach_back=False, scaling="z_score")
    assert "x.csv: constant in the train rows, so not scaled to deviation 1 but only shifted: `a`" in caplog.text
    (after,) = found["val"]
    np.testing.assert_array_equal(after.items["series"][0], [[2] * 2, [np.nan] * 2])
    file.write_text("a\n" + "1\n" * 4 + "\n".join(["nan"] * 4) + "\n1\n")
    assert len(rows(file, lookback=4, stride=4)["train"]) == 1
    assert "1 of 2 windows of the train split are left out: their lookback holds no number at all" in caplog.text
    file.write_text("a\n1e-38\n2e-38\n1e38\n1\n")
    with pytest.raises(Mistake, match="`a` has numbers out of all proportion to those in the train rows"):
        rows(file, lookback=1, horizon=1, borders=[2, 4], scaling="z_score")


def test_a_missing_step_never_reaches_the_encoder(tmp_path: Path) -> None:
    """Of windows with empty cells, a gap, and one filled up: whatever stands under the mask, features are bit-equal."""
    cells = [None if k in (2, 11, 12, 13) else float(k % 5) for k in range(18)]
    file = tmp_path / "x.csv"
    lines = [f"2020-01-01 {k:02d}:00,{'' if one is None else one},{k}" for k, one in enumerate(cells) if k != 7]
    file.write_text("date,a,b\n" + "\n".join(lines) + "\n")
    found = rows(file, time="date", gaps="missing", lookback=8, stride=5, last="pad")["train"]
    torch.manual_seed(0)
    encoder = SeriesPatch(2, 4, 3, 16, 2, 2, 0.0, 0.2, 0.7).eval()
    given = stack("series", [encoder.preprocess(row.items["series"][0]) for row in found])
    for row, valid in zip(found, given["valid"], strict=True):
        known = np.isfinite(row.items["series"][0])
        assert not known.all() and (valid.numpy()[:, :8] == known).all() and not valid[:, 8:].any()
    with torch.no_grad():
        first = encoder(**given)
        for other in (1e6, float("nan"), -3.0):
            under = torch.where(given["valid"], given["values"], other)
            again = encoder(**{**given, "values": under})
            assert torch.equal(first.features, again.features) and torch.equal(first.mask, again.mask)
        moved = encoder(**{**given, "values": given["values"] + given["valid"]})
    assert not torch.equal(first.features, moved.features), "what is not under it is seen"


@pytest.mark.zoo
def test_windows_are_classified_through_the_command_line(tmp_path: Path) -> None:
    """Two files on one clock; the state is that of the last step."""
    level = np.repeat(np.random.RandomState(0).randint(0, 2, 160), 6)
    noise = np.random.RandomState(1).randn(2, len(level)) * 0.1
    times = [str(datetime(2020, 1, 1) + timedelta(hours=k)) for k in range(len(level))]
    for name, channel, more in (("north", 0, True), ("south", 1, False)):
        lines = [
            f"{time},{noise[channel][k] + 3 * level[k]:.3f}" + (f",{'high' if level[k] else 'low'}" if more else "")
            for k, time in enumerate(times)
        ]
        (tmp_path / f"{name}.csv").write_text(f"date,heat{',state' if more else ''}\n" + "\n".join(lines) + "\n")
    summary = runner.train(
        [
            "model=classify", "encoder/series=series_patch", "data=csv_series",
            f"data.path=[{tmp_path}/north.csv,{tmp_path}/south.csv]", "data.label=state",
            "data.horizon=0", "data.scaling=none",
            "data.lookback=6", "data.stride=null", "data.overlap=0", "encoder.series.patch_length=6",
            "encoder.series.stride=6", "encoder.series.hidden_size=8", "encoder.series.heads=2",
            "encoder.series.layers=1", "train.max_steps=30", "train.batch_size=28", "optimizer.lr=1e-2",
            "tracker=none", f"hydra.run.dir={tmp_path}/run",
        ]
    )  # fmt: skip
    assert summary["last"]["val/accuracy"] == 1.0
