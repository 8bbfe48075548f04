"""Learning rate schedules: the factor on the peak at an optimizer step, counted from 0. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le


def warm_up(step: int, warmup_steps: int) -> float:
    """0 at step 0, 1 from `warmup_steps` on."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """0 at the end of the warm-up, 1 at the last step's end."""
    return min(1.0, max(0.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))


@dataclass(frozen=True)
class Constant:
    warmup_steps: Annotated[int, Ge(0)]

    def __call__(self, step: int, total_steps: int) -> float:
        return warm_up(step, self.warmup_steps)


@dataclass(frozen=True)
class Linear:
    warmup_steps: Annotated[int, Ge(0)]

    def __call__(self, step: int, total_steps: int) -> float:
        return warm_up(step, self.warmup_steps) * (1.0 - progress(step, total_steps, self.warmup_steps))


@dataclass(frozen=True)
class Cosine:
    """Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016; one half wave."""

    warmup_steps: Annotated[int, Ge(0)]
    final_ratio: Annotated[float, Ge(0), Le(1)]

    def __call__(self, step: int, total_steps: int) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * progress(step, total_steps, self.warmup_steps)))
        return warm_up(step, self.warmup_steps) * (self.final_ratio + (1.0 - self.final_ratio) * wave)
