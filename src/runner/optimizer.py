"""Optimizers as the config names them. An option may also name a class of `torch.optim` itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Len, Lt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def adamw(
    parameters: Sequence[nn.Parameter],
    lr: Annotated[float, Gt(0)],
    weight_decay: Annotated[float, Ge(0)],
    betas: Annotated[list[Annotated[float, Ge(0), Lt(1)]], Len(2, 2)],
    eps: Annotated[float, Gt(0)],
) -> Optimizer:
    """Fused AdamW in two groups: matrices decay, vectors (biases, norms) do not.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017.
    """
    from torch.optim import AdamW

    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)
