"""What the processes of a run tell each other: small things over the CPU, so that no GPU is waited for.

A run of one process goes the same ways; it is told what it said itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed

from runner.signals import CAUGHT, StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator


class Peers:
    """This process among those of its run. Every process must make the same calls in the same order."""

    def __init__(self, accelerator: Accelerator, stop: StopRequest) -> None:
        self.processes: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self._stop = stop
        self._group = None
        if self.processes > 1:
            ours = distributed.get_backend() == "gloo"
            self._group = distributed.group.WORLD if ours else distributed.new_group(backend="gloo")

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's folder, shows its numbers and feeds its trackers."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Of each number over all processes, in float64."""
        if self._group is None:
            return list(numbers)
        vector = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(vector, group=self._group)
        return list(vector.tolist())

    def sum_and_stop(self, numbers: Sequence[float]) -> tuple[list[float], int | None]:
        """The sums, and the signal that asked any of the processes to stop: all learn of it at once."""
        if self._group is None:
            return list(numbers), self._stop.number
        totals = self.sum([*numbers, *(float(self._stop.number == one) for one in CAUGHT)])
        asked = [number for number, times in zip(CAUGHT, totals[len(numbers) :], strict=True) if times]
        return totals[: len(numbers)], asked[0] if asked else None

    def stop(self) -> int | None:
        """The signal that asked any of the processes to stop."""
        return self.sum_and_stop(())[1]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.processes
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def take_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the first process's values into the others' tensors."""
        for tensor in tensors if self._group is not None else ():
            distributed.broadcast(tensor, src=0)
