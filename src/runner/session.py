"""What a run carries while it trains: its parts, what it knows of itself, the gate before an update, and its saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from runner.checkpoint import optimizer_tensors, own_tensors, snapshot
from runner.protocols import Batch, CheckpointContent, Fault, Objective, Prediction, Step, Term
from runner.settings import Checkpoint

if TYPE_CHECKING:
    from runner.build import Parts
    from runner.peers import Peers
    from runner.precision import ActivePrecision
    from runner.recording import Recorder
    from runner.run_folder import RunFolder
    from runner.terminal import Terminal


@dataclass
class Progress:
    """What a run knows of itself beside its weights; it travels in each checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    last: dict[str, float] = field(default_factory=dict)
    """The metrics of the last evaluation, and its step."""
    best: dict[str, float] = field(default_factory=dict)
    monitored: str = ""
    """checkpoint.monitor and its mode: what best, scores and the count below are about."""
    scores: dict[int, float] = field(default_factory=dict)
    """The monitored metric by the step of its evaluation."""
    without_improvement: int = 0
    """Evaluations since the monitored metric was better than `to_beat` by early_stopping.min_delta."""
    to_beat: float | None = None
    owes_evaluation: bool = False
    """A signal stopped the run where an evaluation was due."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    wall_s: float = 0.0
    """Seconds of the run's earlier lives."""
    tracker_key: str | None = None
    cursor: Sequence[int] | None = None
    """Where a stream of rows stands."""

    def note_evaluation(self, metrics: Mapping[str, float], checkpoint: Checkpoint, min_delta: float) -> None:
        """`metrics` by `split/name`. A metric that is not a number counts as no improvement."""
        self.last = {**metrics, "step": self.step}
        score = metrics.get(checkpoint.monitor, float("nan"))
        sign = 1 if checkpoint.mode == "max" else -1
        self.without_improvement += 1
        if math.isnan(score):
            return
        self.scores[self.step] = score
        if not self.best or sign * (score - self.best[checkpoint.monitor]) > 0:
            self.best = dict(self.last)
        if self.to_beat is None or sign * (score - self.to_beat) > min_delta:
            self.to_beat = score
            self.without_improvement = 0

    def watch(self, checkpoint: Checkpoint) -> None:
        """Forget what was best by another metric, after a resume with another checkpoint.monitor."""
        monitored = f"{checkpoint.monitor} {checkpoint.mode}"
        if self.monitored != monitored:
            self.monitored, self.best, self.scores = monitored, {}, {}
            self.without_improvement, self.to_beat = 0, None

    def kept_steps(self, checkpoint: Checkpoint, steps: list[int]) -> set[int]:
        """Of the checkpoints' steps: the last ones and the best ones."""
        sign = 1 if checkpoint.mode == "min" else -1
        scored = sorted(
            (step for step in steps if step in self.scores), key=lambda step: (sign * self.scores[step], step)
        )
        return {*sorted(steps)[-checkpoint.keep_last :], *scored[: checkpoint.keep_best]}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Progress:
        """Out of JSON, whose keys are text."""
        return cls(**{**state, "scores": {int(step): score for step, score in state["scores"].items()}})


@dataclass
class Session:
    """What the parts of a run share while it runs."""

    parts: Parts
    run: RunFolder
    terminal: Terminal
    peers: Peers
    accelerator: Accelerator
    precision: ActivePrecision
    model: nn.Module
    """The objective as Accelerate prepared it."""
    optimizer: AcceleratedOptimizer
    gate: Gate
    progress: Progress
    recorder: Recorder
    total_steps: int
    began: float
    predictions: list[Prediction] | None = None
    """Of the last evaluation."""

    def share_buffers(self) -> None:
        """Give every process the first one's running statistics, which each collects from its own rows."""
        own = own_tensors(cast(nn.Module, self.parts.objective))
        self.peers.take_from_first([one for one in own.values() if not isinstance(one, nn.Parameter)])


class Anchored(nn.Module):
    """An objective as the loop calls it: its loss hangs on something that trains, also for rows that use no such part.

    Else one process would have no backward pass, where the others wait for its gradients. `check` is called with the
    first step and its counts.
    """

    def __init__(self, objective: Objective, check: Callable[[Step, Mapping[str, float]], None]) -> None:
        super().__init__()
        self._check: Callable[[Step, Mapping[str, float]], None] | None = check
        self.objective = cast(nn.Module, objective)

    def forward(self, batch: Batch) -> Step:
        step: Step = self.objective(batch)
        if self._check is not None:
            self._check(step, cast(Objective, self.objective).counts(batch))
            self._check = None
        if any(term.sum.requires_grad for term in step.terms.values()):
            return step
        nothing = 0.0 * next(one for one in self.objective.parameters() if one.requires_grad).sum()
        return Step({name: Term(term.sum + nothing, term.weight) for name, term in step.terms.items()})


class Gate:
    """Lets an update through when its gradient is finite; checked on the device where the optimizer can take it."""

    def __init__(self, optimizer: AcceleratedOptimizer, accelerator: Accelerator, progress: Progress) -> None:
        self._prepared = optimizer
        # Accelerate's wrapper is for its scaler; it also looks for an optional package at each call, 0.15 ms.
        self._optimizer = optimizer.optimizer
        self._scaler = accelerator.scaler
        self._on_device = all(group.get("fused") for group in optimizer.param_groups)
        self._device = accelerator.device
        self._skipped = torch.tensor(
            [progress.skipped_in_a_row, progress.skipped_steps], dtype=torch.float32, device=self._device
        )
        self._flags: list[Tensor] = []
        """1.0 for each step since that had no update; counted together, as one by one would cost more."""

    @property
    def skipped(self) -> Tensor:
        """float32 [2]: steps without an update, in a row and in all."""
        if self._flags:
            flags = torch.stack(self._flags)
            last_update = ((1 - flags) * torch.arange(1, len(flags) + 1, device=self._device)).max()  # 0: none of them
            in_a_row = len(flags) - last_update + (last_update == 0) * self._skipped[0]
            self._skipped = torch.stack([in_a_row, self._skipped[1] + flags.sum()])
            self._flags = []
        return self._skipped

    def note(self, progress: Progress) -> None:
        """Read the device."""
        progress.skipped_in_a_row, progress.skipped_steps = map(int, self.skipped.tolist())

    def step(self, grad_norm: Tensor) -> None:
        """Update or skip, and clear the gradients."""
        bad = (~torch.isfinite(grad_norm)).float().to(self._device)
        if self._scaler is not None:  # the scaler looks at every gradient by itself
            self._prepared.step()
        elif self._on_device:
            self._optimizer.found_inf = bad
            self._optimizer.step()
        elif not bool(bad):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._flags.append(bad)


def save(session: Session, alone: bool = False) -> Path | None:
    """Write a checkpoint of where the run stands, unless there is one, and delete those that need not be kept.

    Every process calls it, and the first one writes and gets the path; `alone` it asks none of the others, which may
    have failed, for what they alone know: their part of the next logged loss.
    """
    parts, run, progress = session.parts, session.run, session.progress
    recorder, checkpointer = session.recorder, parts.checkpointer
    if not alone:
        session.share_buffers()
    windows = [recorder.window()] if alone else session.peers.gather(recorder.window())
    session.gate.note(progress)
    if not session.peers.is_first:
        return None
    tensors = snapshot(own_tensors(cast(nn.Module, parts.objective)))
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise Fault(
            f"step {progress.step}: {bad[0]} is not finite ({len(bad)} such tensors), so no checkpoint was written."
        )
    state = asdict(progress)
    state["wall_s"] += time.monotonic() - session.began
    state["tracker_key"] = parts.tracker.resume_key
    scaler = session.accelerator.scaler
    path = checkpointer.save(
        run.path,
        CheckpointContent(
            step=progress.step,
            trainable=tensors,
            optimizer=optimizer_tensors(session.optimizer.optimizer),
            state={
                "progress": state,
                "recorder": recorder.state(windows),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "processes": session.peers.processes,
                **parts.fingerprints,
            },
        ),
    )
    checkpointer.prune(run.path, progress.kept_steps(parts.settings.checkpoint, checkpointer.steps(run.path)))
    run.write_status("running", progress.step)
    return path
