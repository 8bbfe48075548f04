"""When each optimizer step of a process ended. The stamps come from torch's own hooks, so they are the same for all."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stopwatch:
    """Runs from the moment it is made. `started` is `time.time()` just before the process began."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._first_batch = self._first_step = 0.0
        register_optimizer_step_post_hook(self._after_update)
        self._entered = register_module_forward_pre_hook(self._before_forward)

    def _before_forward(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        if module.training:  # what is tried before training, is tried in eval mode
            self._first_batch = time.time() - self._started
            self._entered.remove()

    def _after_update(self, _optimizer: Optimizer, _arguments: tuple[Any, ...], _named: dict[str, Any]) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())
        if len(self._wall) == 1:
            self._first_step = time.time() - self._started

    def record(self, tokens: list[int], warm_up: int) -> dict[str, Any]:
        """What was measured. `tokens` [steps] are those of each step without padding."""
        if len(self._wall) != len(tokens):
            raise SystemExit(f"The stopwatch saw {len(self._wall)} updates, but {len(tokens)} steps were to be made.")
        wall, cpu = self._wall[warm_up - 1 :], self._cpu[warm_up - 1 :]
        return {
            "tokens_per_s": sum(tokens[warm_up:]) / (wall[-1] - wall[0]),
            "step_ms": statistics.median(milliseconds_between(wall)),
            "cpu_ms": statistics.median(milliseconds_between(cpu)),
            "first_batch_s": self._first_batch,
            "first_step_s": self._first_step,
            "peak_rss_bytes": peak_rss(),
            "threads": torch.get_num_threads(),
        }


def milliseconds_between(stamps: list[float]) -> list[float]:
    """`stamps` in seconds."""
    return [(after - before) * 1e3 for before, after in zip(stamps, stamps[1:], strict=False)]


def peak_rss() -> int:
    """Bytes of memory that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
