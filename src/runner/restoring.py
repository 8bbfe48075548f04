"""A checkpoint's weights put back into the run's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from runner.checkpoint import own_tensors, restore
from runner.chosen import Chosen
from runner.protocols import Mistake, Objective


def put_back(chosen: Chosen, objective: Objective, files: Mapping[str, Mapping[str, str]]) -> None:
    """Give the objective the checkpoint's weights. `files`: hashes of its base weights' files, by part.

    Raises `Mistake` when these are not the files that the run was trained on, or the weights are another model's.
    """
    saved = chosen.content.state["files"]
    changed = [name for name in {**saved, **files} if saved.get(name) != files.get(name)]
    if changed:
        raise Mistake(
            f"{chosen.path}: the weight files of {', '.join(changed)} are not those that the run was trained on. Put "
            "them back, or name the folder where they lie now (llm.path=FOLDER)."
        )
    restore(own_tensors(cast(nn.Module, objective)), chosen.content.trainable, chosen.path)
