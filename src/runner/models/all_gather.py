"""What the processes of a run have in their batches, put together, with gradients.

Shapes: W processes, B rows of one of them, R the largest B, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.functional import pad


class AllGather:
    """Every process must make the same calls. Alone, a process is given what it has."""

    def __init__(self) -> None:
        self._groups: tuple[Any, Any] | None = None

    @property
    def rank(self) -> int:
        return distributed.get_rank() if is_split() else 0

    def values(self, value: Any) -> list[Any]:
        """Of each process, in the order of their ranks; over the CPU, so that no GPU is waited for."""
        if not is_split():
            return [value]
        values = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value, group=self._of(0))
        return values

    def rows(self, mine: Tensor, sizes: list[int]) -> Tensor:
        """[B, ...] of each process to [sum of sizes, ...]; a gradient of any of them goes back to where its row is.

        `mine` must need a gradient in every process or in none: the way back is gone together, too.
        """
        if not is_split():
            return mine
        padded = pad(mine, [0, 0] * (mine.dim() - 1) + [0, max(sizes) - len(mine)])
        every: Tensor = _Gathered.apply(padded, self._of(1))
        return torch.cat([one[:size] for one, size in zip(every, sizes, strict=True)])

    def _of(self, place: int) -> Any:
        """The CPU's group, and that of the run's device: of their own, so that they wait for no gradient's turn."""
        if self._groups is None:
            self._groups = (distributed.new_group(backend="gloo"), distributed.new_group())
        return self._groups[place]


def is_split() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        """[R, ...] -> [W, R, ...]"""
        ctx.group = group
        every = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(every, mine.contiguous(), group=group)
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What each process's loss wants of this one's rows, summed."""
        (gradient,) = gradients
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient, group=ctx.group)
        return gradient[distributed.get_rank()], None
