"""The numbers of a run between two lines of its log: summed on the device and read one line late, so nothing waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


def read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start copying a vector to the CPU; the call that comes back gives its numbers, usually without waiting."""
    if values.device.type != "cuda":
        copy = values.detach().clone()
        return copy.tolist
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values.detach(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return pinned.tolist()

    return read


class Recorder:
    """Collects what optimizer steps give and makes a line of it. A logged loss is the mean over all its targets."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._pending: tuple[dict[str, Any], list[str], dict[str, float], Callable[[], list[float]]] | None = None
        self._weights: dict[str, float] = {}
        self._lr = 0.0
        self._grad_norm = torch.zeros(())
        self.samples = 0
        self.tokens = 0
        self.padded = 0
        self.seconds = 0.0
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._samples = 0
        self._tokens = 0
        self._padded = 0
        self._worked = 0.0
        self._began = time.perf_counter()

    def stop_clock(self) -> None:
        """What comes until `restart_clock`, an evaluation for instance, does not count into the throughput."""
        self._worked += time.perf_counter() - self._began
        self._began = time.perf_counter()

    def restart_clock(self) -> None:
        self._began = time.perf_counter()

    def window(self) -> dict[str, float]:
        """This process's sums since the last line. Reads the device."""
        return {name: float(value) for name, value in self._sums.items()}

    def state(self, windows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """The open window, `windows` of all processes, so that the line it goes into is the same after a resume."""
        window = {"sums": windows, "counts": self._counts, "samples": self._samples, "tokens": self._tokens}
        window |= {
            "padded": self._padded,
            "weights": self._weights,
            "lr": self._lr,
            "grad_norm": float(self._grad_norm),
        }
        return window | {"run": [self.samples, self.tokens, self.padded, self.seconds]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """For another number of processes than saved it, the first one takes all the sums."""
        rank, windows = self._accelerator.process_index, state["sums"]
        if len(windows) != self._accelerator.num_processes:
            total = {name: sum(window[name] for window in windows) for name in windows[0]}
            windows = [total if k == 0 else dict.fromkeys(total, 0.0) for k in range(rank + 1)]
        device = self._accelerator.device
        self._sums = {name: torch.tensor(value, device=device) for name, value in windows[rank].items()}
        self._counts = dict(state["counts"])
        self._samples, self._tokens, self._padded = state["samples"], state["tokens"], state["padded"]
        self._weights, self._lr = dict(state["weights"]), state["lr"]
        self._grad_norm = torch.tensor(state["grad_norm"], device=device)
        self.samples, self.tokens, self.padded, self.seconds = state["run"]

    @property
    def is_open(self) -> bool:
        """Whether steps have been added since the last line."""
        return self._samples > 0

    def add(
        self,
        terms: Mapping[str, Tensor],
        weights: Mapping[str, float],
        counts: Mapping[str, float],
        rows: tuple[int, int, int],
        lr: float,
        grad_norm: Tensor,
    ) -> None:
        """One optimizer step: this process's sums, and over all processes counts and its `rows`: how many, their text
        tokens, and these with padding."""
        self._weights, self._lr, self._grad_norm = dict(weights), lr, grad_norm
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + count
        samples, tokens, padded = rows
        self._samples += samples
        self._tokens += tokens
        self._padded += padded

    def line(self, step: int, skipped: Tensor, ids: list[str] | None) -> dict[str, Any] | None:
        """Close the window at `step` (steps done); gives the line of the window before, if there was one."""
        seconds = max(self._worked + time.perf_counter() - self._began, 1e-9)
        self.samples += self._samples
        self.tokens += self._tokens
        self.padded += self._padded
        self.seconds += seconds
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, "sum")
        numbers = read_later(torch.cat([sums, self._grad_norm.reshape(1), skipped]))
        known: dict[str, Any] = {
            "step": step,
            "split": "train",
            "lr": self._lr,
            "samples_per_s": self._samples / seconds,
            "tokens_per_s": self._tokens / seconds,
        }
        if self._padded:
            known["padding_efficiency"] = self._tokens / self._padded
        if ids is not None:
            known["ids"] = ids
        before = self.flush()
        self._pending = (known, names, dict(self._counts), numbers)
        self._clear()
        return before

    def flush(self) -> dict[str, Any] | None:
        """The line that was held back."""
        if self._pending is None:
            return None
        known, names, counts, numbers = self._pending
        self._pending = None
        *sums, grad_norm, in_a_row, skipped = numbers()
        means = {name: total / max(counts[name], 1.0) for name, total in zip(names, sums, strict=True)}
        loss = means.pop("loss", None)
        if loss is None:
            loss = sum(self._weights[name] * mean for name, mean in means.items())
        line = {"step": known["step"], "split": "train", "loss": loss}
        return (
            line
            | means
            | known
            | {"grad_norm": grad_norm, "skipped_steps": int(skipped), "skipped_in_a_row": int(in_a_row)}
        )
