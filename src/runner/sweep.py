"""The jobs of a sweep, each composed and checked before the first one starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from hydra.errors import HydraException

from runner.complaints import reason
from runner.config import Composed, Composer, Report
from runner.overrides import Given
from runner.protocols import Mistake

MOST_JOBS = 10_000


def check_sweep(composer: Composer, given: Sequence[Given], params: Sequence[str], report: Report) -> Composed:
    """The first right job. `params` are the sweep's axes that a YAML gives; an interval stands for its start.

    What must change for one job (see `Given.text`) changes in `given`, which Hydra gets. Raises `Mistake` when a key or
    an option is wrong in any job, or when every job has a mistake; a single job's wrong value is left for it to tell.
    """
    right: list[Composed] = []
    mistakes: list[str] = []
    axes = composer.read(params, report)
    listed = [values(composer, one) for one in [*axes, *given]]
    if math.prod(map(len, listed)) > MOST_JOBS:
        raise Mistake(f"The sweep has {math.prod(map(len, listed)):,} jobs, and {MOST_JOBS:,} is the most. Give less.")
    for texts in itertools.product(*listed):
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
    """The override once for each of its values. Raises `Mistake` where there is none, or no end of them."""
    if not one.is_sweep:
        return [one.text]
    key = one.parsed.get_key_element()
    if isinstance(one.parsed._value, IntervalSweep):
        return [f"{key}={one.parsed._value.start}"]
    one.parsed.config_loader = composer.loader
    try:
        if isinstance(one.parsed._value, RangeSweep) and more_than(MOST_JOBS, one.parsed._value.range()):
            raise Mistake(f"{one.text}: it has more than {MOST_JOBS:,} values. Take a larger step.")
        found = [f"{key}={value}" for value in one.parsed.sweep_string_iterator()]
    except (ValueError, ArithmeticError, HydraException) as error:  # a step of 0, not a number
        raise Mistake(f"{one.text}: it is no range of numbers ({reason(error)}).") from error
    if not found:
        raise Mistake(f"{one.text}: the sweep has no value. Give it at least one.")
    return found


def more_than(most: int, values: Iterable[object]) -> bool:
    """Without going through all of them: a range with a tiny step has no end."""
    return next(itertools.islice(values, most, None), None) is not None
