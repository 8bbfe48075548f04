"""Rows of TimeSeriesExam: the right letter stays with the right option, and no held-out row is trained on."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import tsexam

OPTIONS = st.lists(
    st.floats(-50, 50).map(lambda one: round(one, 2)) | st.text("abcde", min_size=1), min_size=2, max_size=4
)


def question(number: int, pair: bool, steps: int = 128) -> dict[str, Any]:
    draw = np.random.default_rng(number)
    names = ("ts1", "ts2") if pair else ("ts",)
    series = {name: draw.normal(size=steps).tolist() for name in names}
    options = ["Yes, time series 1 leads Time Series 2", "No", "Yes, time series 2 leads Time Series 1"]
    return {"id": f"q{number}", "question": "Which leads?", "options": options, "answer": options[number % 3], **series}


@given(OPTIONS.filter(lambda some: len(set(map(str, some))) == len(some)), st.randoms(use_true_random=False))
def test_the_letter_is_that_of_the_right_option_in_any_order(options: list[Any], draw: random.Random) -> None:
    right = draw.choice(options)
    shuffled = draw.sample(options, len(options))
    asked, answered = (
        tsexam.exchange({"question": "Which?", "options": some, "answer": right}) for some in (options, shuffled)
    )
    assert asked[1] == answered[1]
    assert f"{asked[1]['content']}) {right}" in asked[0]["content"].splitlines()
    assert sorted(asked[0]["content"].splitlines()) == sorted(answered[0]["content"].splitlines())


@given(st.integers(0, 50))
def test_series_exchanged_twice_are_where_they_were(number: int) -> None:
    one = question(number, pair=True)
    other = tsexam.exchanged(one)
    assert (other["ts1"], other["ts2"]) == (one["ts2"], one["ts1"])
    assert other["options"][0] == "Yes, time series 2 leads Time Series 1"
    twice = tsexam.exchanged(other)
    assert {**twice, "file": None} == {**one, "file": None}


@given(st.integers(0, 50), st.booleans(), st.sampled_from([65, 128, 188]), st.floats(0.1, 10))
def test_views_are_twelve_channels_of_the_series_alone(number: int, pair: bool, steps: int, scale: float) -> None:
    series = tsexam.series_of(question(number, pair, steps))
    views = np.array(tsexam.views(series))
    assert views.shape == (tsexam.VIEWS, max(steps, tsexam.STEPS))
    np.testing.assert_array_equal(views[0][:steps], series[0])
    shown = np.isfinite(views).any(axis=1)
    assert shown.sum() == (12 if pair else 5)
    larger = np.array(tsexam.views([one * scale for one in series]))
    np.testing.assert_allclose(larger[2], views[2], atol=1e-6)  # autocorrelation knows no scale
    np.testing.assert_allclose(larger[0], views[0] * scale)


@pytest.mark.parametrize("fold", [None, 3])
def test_held_out_rows_are_converted_and_nothing_else(
    fold: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"train": [question(number, bool(number % 2)) for number in range(10)]}
    sets["val"] = [question(number, bool(number % 2)) for number in range(10, 14)]
    for name, rows in sets.items():
        tsexam.write(tmp_path / f"{name}.jsonl", rows)
    if fold is not None:
        (tmp_path / "val.jsonl").unlink()  # is not read
    monkeypatch.setattr(tsexam, "COPIES", 3)
    monkeypatch.setattr(tsexam, "DRILLS", 2)
    folder = tmp_path / "rows"
    chosen = [] if fold is None else ["--fold", str(fold)]
    monkeypatch.setattr(sys, "argv", ["tsexam", str(tmp_path), str(folder), *chosen])
    tsexam.main()
    train, val = ([json.loads(line) for line in (folder / name).open()] for name in ("train.jsonl", "val.jsonl"))
    trained = {row["id"].split("-")[0] for row in train}
    held_out = {row["id"] for row in val}
    assert trained | held_out == {one["id"] for one in sets["train"] + (sets["val"] if fold is None else [])}
    assert not trained & held_out
    assert len(held_out) == (4 if fold is None else 2)
    assert len(train) == len(trained) * 5
    assert [row["messages"][0]["content"] for row in train[: 2 * len(trained)]] == ["measured<series>"] * 2 * len(
        trained
    )
    asked = [*train[2 * len(trained) :], *val]
    assert all(row["messages"][0]["content"].startswith("Which leads?\n") for row in asked)
    assert all(np.load(folder / row["series"]).shape == (tsexam.VIEWS, tsexam.STEPS) for row in [*train, *val])
