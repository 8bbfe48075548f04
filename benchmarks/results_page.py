"""What the recipes' runs came to, as tables for docs/RESULTS.md.

`measured` is {a recipe's name: {"words", "machine", "threads", "runs": [{"seed", "figure", "seconds", ...}]}}.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.recipes import SOURCES, Recipe, Source
from benchmarks.report import counted, table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
COLUMNS = ("recipe", "metric", "bar", "seeds", "median", "result", "seconds a run", "baselines")
QUOTED = "*?[]{}() "
"""Characters that a shell would take for its own."""


def page(recipes: Sequence[Recipe], measured: Mapping[str, Any]) -> str:
    """Markdown without its markers."""
    lines = table(COLUMNS, [row(recipe, measured.get(recipe.name)) for recipe in recipes])
    for recipe in recipes:
        lines += ["", *details(recipe, measured.get(recipe.name))]
    named = {recipe.source: SOURCES[recipe.source] for recipe in recipes}
    lines += ["", "## Where the sets come from", ""]
    lines += table(("set", "source", "licence", "can a reader rebuild it"), [origin(*one) for one in named.items()])
    return "\n".join(lines)


def row(recipe: Recipe, one: Mapping[str, Any] | None) -> tuple[str, ...]:
    wanted = f"{'at most' if recipe.lower_is_better else 'at least'} {recipe.bar:.2f}" if recipe.bar is not None else ""
    if one is None:
        return (f"`{recipe.name}`", recipe.metric, wanted, "", "", "not measured", "", recipe.baselines)
    figures = [run["figure"] for run in one["runs"]]
    return (
        f"`{recipe.name}`",
        recipe.metric,
        wanted,
        " / ".join(f"{figure:.4f}" for figure in figures),
        f"{median(figures):.4f}",
        result(recipe, figures),
        " / ".join(seconds(run, recipe.longest) for run in one["runs"]),
        recipe.baselines,
    )


def median(figures: Sequence[float]) -> float:
    return float(statistics.median(figures))


def result(recipe: Recipe, figures: Sequence[float]) -> str:
    """Of the unrounded median, so that no rounding reaches a bar."""
    if recipe.bar is None:
        return "reported"
    return "reached" if recipe.reached(median(figures)) else "**missed**"


def seconds(run: Mapping[str, Any], longest: int) -> str:
    """Of each of its phases."""
    taken = [run[name] for name in ("phase_1_seconds", "seconds") if name in run]
    return " + ".join(f"{one:.0f}" if one <= longest else f"**{one:.0f}** (over {longest})" for one in taken)


def details(recipe: Recipe, one: Mapping[str, Any] | None) -> list[str]:
    scored = f"Scored on {recipe.scored}. {recipe.tuned}"
    rows = [f"python -m benchmarks.{recipe.rows} $DATA/data/{recipe.source} $ROWS"] if recipe.rows else []
    first = [command(recipe.phase_1, "hydra.run.dir=$PHASE_1")] if recipe.phase_1 else []
    commands = [*rows, *first, command(recipe.words)]
    if recipe.split is not None:
        commands.append(f"runner evaluate run=DIR at=last evaluate.split={recipe.split}")
    return [f"## {recipe.name}", "", " ".join([scored, *conditions(one)]), "", "```", *commands, "```"]


def conditions(one: Mapping[str, Any] | None) -> list[str]:
    if one is None:
        return []
    where, threads = one["machine"], counted(one["threads"], "thread")
    versions = ", ".join(f"{package} {where['versions'][package]}" for package in ("torch", "transformers"))
    return [f"Measured on {threads} of {where['cpu_count']} CPU cores, Python {where['python']}, {versions}."]


def command(given: Sequence[str], *more: str) -> str:
    """A run with the first seed, as a reader types it."""
    words = [quoted(word) for word in (*given, "seed=0", "tracker=none", *more)]
    lines = ["runner train"]
    for word in words:  # lines of a page, not of a screen
        if len(lines[-1]) + len(word) > 110:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def quoted(word: str) -> str:
    """As a shell has to have it; "$DATA" stays open to it."""
    if not set(word) & set(QUOTED):
        return word
    return f'"{word}"' if "$" in word else f"'{word}'"


def origin(name: str, source: Source) -> tuple[str, ...]:
    return (f"`{name}`", source.address, source.licence, source.rebuild)
