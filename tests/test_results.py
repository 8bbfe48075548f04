"""The page of results tells figures as they came out, and the recipes can be typed; nothing is trained here."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.recipes import RECIPES, SOURCES, Recipe
from benchmarks.results_page import BEGIN, END, command, page, quoted

MACHINE = {"cpu_count": 2, "python": "3.11.0", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}


def of(*figures: float, recipe: Recipe = RECIPES[0], seconds: float = 30.0) -> dict[str, Any]:
    runs = [{"seed": seed, "figure": figure, "seconds": seconds} for seed, figure in enumerate(figures)]
    return {"words": list(recipe.words), "machine": MACHINE, "threads": 1, "runs": runs}


def row(recipe: Recipe, one: dict[str, Any] | None) -> list[str]:
    text = page([recipe], {recipe.name: one} if one else {})
    line = next(line for line in text.splitlines() if line.startswith(f"| `{recipe.name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_median_is_held_against_the_bar_without_rounding() -> None:
    recipe = replace(RECIPES[0], bar=0.80)
    assert row(recipe, of(0.9, 0.7, 0.8))[2:6] == ["at least 0.80", "0.9000 / 0.7000 / 0.8000", "0.8000", "reached"]
    assert row(recipe, of(0.9, 0.7, 0.79999))[4:6] == ["0.8000", "**missed**"]
    forecast = replace(recipe, bar=0.40, lower_is_better=True)
    assert row(forecast, of(0.39, 0.41, 0.5))[2:6] == [
        "at most 0.40",
        "0.3900 / 0.4100 / 0.5000",
        "0.4100",
        "**missed**",
    ]


def test_a_run_that_took_too_long_or_was_not_measured_is_told() -> None:
    assert row(RECIPES[0], of(0.9, 0.9, 0.9, seconds=91))[6] == " / ".join(["**91** (over 90)"] * 3)
    assert row(RECIPES[0], None)[3:7] == ["", "", "not measured", ""]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_command_is_what_the_run_was_given(recipe: Recipe) -> None:
    assert recipe.source in SOURCES
    typed = shlex.split(command(recipe.words).replace("\\\n", ""))
    assert typed == ["runner", "train", *recipe.words, "seed=0", "tracker=none"]
    words = results.words_of(recipe)
    assert not any(str(value).startswith("/") for value in (word.partition("=")[2] for word in words))
    # Evaluated once, at the end: nothing is picked on scored rows.
    assert "train.eval_every" not in " ".join(words).replace("train.eval_every=null", "")


def test_words_are_quoted_so_that_the_shell_still_fills_in_the_folder() -> None:
    assert quoted("data.extra=[a,b]") == "'data.extra=[a,b]'"
    assert quoted("data.path=$DATA/set") == "data.path=$DATA/set"
    assert quoted("data={path: $DATA/set}") == '"data={path: $DATA/set}"'


def test_figures_of_a_command_that_has_changed_are_not_kept(tmp_path: Path) -> None:
    one, other = RECIPES[:2]
    stale = of(0.9, 0.9, 0.9, recipe=other) | {"words": ["model=classify"]}
    file = tmp_path / "figures.json"
    assert results.kept(file) == {}
    file.write_text(json.dumps({one.name: of(0.8, 0.8, 0.8, recipe=one), other.name: stale, "gone": stale}))
    assert list(results.kept(file)) == [one.name]


def test_a_recipe_without_its_rows_is_left_out_and_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DOCS", "RECORD"):
        copy = tmp_path / getattr(results, name).name
        shutil.copyfile(getattr(results, name), copy)
        monkeypatch.setattr(results, name, copy)
    before = results.DOCS.read_text(), results.RECORD.read_text()
    results.main([RECIPES[0].name, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert f"{RECIPES[0].name} is left out: there is no $DATA/" in capsys.readouterr().out
    assert (results.DOCS.read_text(), results.RECORD.read_text()) == before


def test_what_is_published_is_what_was_measured() -> None:
    published = results.DOCS.read_text()
    assert page(RECIPES, results.kept(results.RECORD)) == published.partition(BEGIN)[2].partition(END)[0].strip()
    for file in (results.DOCS, results.RECORD):
        assert not any(place in file.read_text() for place in ("/work", "/tmp", "/home", "/root"))
