"""A loss of one's own (`model.loss`): what it must be, and give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from runner.protocols import Mistake


def check_loss(loss: Any) -> None:
    if loss is not None and not isinstance(loss, nn.Module):
        raise Mistake(f"model.loss={loss!r} is no loss; name a class: model.loss._target_=torch.nn.HuberLoss.")


def check_values(values: Any, shape: Sequence[int], of: str) -> None:
    """Raises `Mistake` for anything but a value for each of what the loss was given."""
    if not isinstance(values, Tensor) or tuple(values.shape) != tuple(shape):
        gave = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise Mistake(
            f"model.loss gave {gave}; it must give a value for each of the {math.prod(shape)} {of}, {list(shape)} "
            "(reduction=none)."
        )
