"""Which checkpoint of a run is meant by best, last or a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.protocols import CheckpointContent, Checkpointer, Mistake


@dataclass(frozen=True)
class Chosen:
    path: Path
    content: CheckpointContent
    """Without the optimizer's state."""
    why: str
    """`the best, val/exact_match 0.9750`"""


def choose(folder: Path, at: str | int, checkpointer: Checkpointer) -> Chosen:
    """Raises `Mistake` when the run has no such checkpoint, or that is not whole."""
    steps = sorted(checkpointer.steps(folder))
    if not steps:
        raise Mistake(f"run={folder} has no checkpoint, so there are no trained weights. Give a run that has one.")
    step, why = (at, "as asked for") if isinstance(at, int) else last_or_best(folder, at, steps, checkpointer)
    if step not in steps:
        listed = ", ".join(map(str, steps))
        raise Mistake(f"at={at}: run={folder} keeps no checkpoint of step {step}. Set at=STEP; it has {listed}.")
    path = checkpointer.place(folder, step)
    return Chosen(path, checkpointer.load(path, optimizer=False), why)


def last_or_best(folder: Path, at: str, steps: list[int], checkpointer: Checkpointer) -> tuple[int, str]:
    """The step, and why it is that."""
    if at == "last":
        return steps[-1], "the last"
    states = (checkpointer.state(checkpointer.place(folder, step)).get("progress") for step in reversed(steps))
    progress: Mapping[str, Any] = next(filter(None, states), {})
    best = progress.get("best")
    if not best:
        return steps[-1], "the last, as no evaluation says which is best"
    monitor = str(progress["monitored"]).partition(" ")[0]
    return int(best["step"]), f"the best, {monitor} {best[monitor]:.4f}"
