"""A trained run opened for use: its own config, the parts that rows need, then its model with a checkpoint's weights.

Nothing is read but the run's folder and the base weights: no training data, no optimizer, no tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from runner.build import Settings, kind_of, read_settings
from runner.chosen import choose
from runner.inventory import files_of
from runner.precision import start_accelerator
from runner.restoring import put_back
from runner.saved_config import read_run_config
from runner.seats import build_checkpointer

if TYPE_CHECKING:
    from accelerate import Accelerator

    from runner.chosen import Chosen
    from runner.config import Composed
    from runner.precision import ActivePrecision
    from runner.protocols import Objective
    from runner.seats import Frame


@dataclass(frozen=True)
class Trained:
    """A run up to the weights: enough to read rows, so that a wrong row is told before a large model is loaded."""

    folder: Path
    composed: Composed
    settings: Settings
    chosen: Chosen
    frame: Frame
    accelerator: Accelerator
    precision: ActivePrecision

    @property
    def batch_size(self) -> int:
        """Rows of one forward, as the run evaluated."""
        return self.settings.evaluation.batch_size or self.settings.micro_batch_size

    def load(self) -> Objective:
        """The model with the checkpoint's weights, on its device and in evaluation mode."""
        objective = kind_of(self.composed).build_trained(self.composed, self.frame, memory_of(self.chosen))
        put_back(self.chosen, objective, files_of(objective))
        cast(nn.Module, objective).to(self.accelerator.device).eval()
        return cast("Objective", objective)


def open_trained(asked: Mapping[str, Any], plugin_folders: Sequence[Path]) -> Trained:
    """`asked` is the tree of a verb that uses a run. Raises `Mistake` for a folder, a checkpoint or base weights that
    are not there."""
    folder = Path(asked["run"])
    composed = read_run_config(folder, asked, plugin_folders)
    given = read_settings(composed)
    chosen = choose(folder, asked["at"], build_checkpointer(composed))
    accelerator, precision = start_accelerator(given.precision, replace(given.cluster, num_processes=1))
    frame = kind_of(composed).build_frame(composed, memory_of(chosen))
    return Trained(folder, composed, given, chosen, frame, accelerator, precision)


def memory_of(chosen: Chosen) -> Mapping[str, Any]:
    """What the objective kept of its rows, and of the run that it was built on."""
    return cast("Mapping[str, Any]", chosen.content.state.get("memory", {}))
