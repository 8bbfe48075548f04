"""The jobs of a sweep, each composed and checked before the first one starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import IntervalSweep

from runner.config import Composed, Composer, Report
from runner.overrides import Given
from runner.protocols import Mistake


def check_sweep(composer: Composer, given: Sequence[Given], params: Sequence[str], report: Report) -> Composed:
    """The first right job. `params` are the sweep's axes that a YAML gives; an interval stands for its start.

    What must change for one job (see `Given.text`) changes in `given`, which Hydra gets. Raises `Mistake` when a key or
    an option is wrong in any job, or when every job has a mistake; a single job's wrong value is left for it to tell.
    """
    right: list[Composed] = []
    mistakes: list[str] = []
    axes = composer.read(params, report)
    for texts in itertools.product(*(values(composer, one) for one in [*axes, *given])):
        inside = Report(composition=list(report.composition))
        job = composer.read(texts, inside)
        config = composer.load(job, inside)
        if config.hydra.runtime.choices["hydra/sweeper"] == "basic":
            inside.composition += [no_interval(one) for one in (*axes, *given) if one.parsed.is_interval_sweep()]
        composed = composer.check(config, inside)
        if inside.composition:
            inside.raise_if_any()
        for outer, inner in zip(given, job[len(axes) :], strict=True):
            if inner.text.startswith("++"):
                outer.text = f"++{outer.text.lstrip('+')}"
        mistakes += inside.values
        if not inside.values:
            right.append(composed)
    if not right:
        raise Mistake("\n".join(dict.fromkeys(mistakes)))
    return right[0]


def no_interval(one: Given) -> str:
    return f"{one.text}: Hydra's basic sweeper takes no interval. Write range(START,STOP,STEP), or set hydra/sweeper."


def values(composer: Composer, one: Given) -> list[str]:
    """The override once for each of its values."""
    if not one.is_sweep:
        return [one.text]
    key = one.parsed.get_key_element()
    if isinstance(one.parsed._value, IntervalSweep):
        return [f"{key}={one.parsed._value.start}"]
    one.parsed.config_loader = composer.loader
    return [f"{key}={value}" for value in one.parsed.sweep_string_iterator()]
