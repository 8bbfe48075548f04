"""What a run comes to: the figures of summary.json."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runner.inventory import components_of

if TYPE_CHECKING:
    from runner.session import Session


def summarised(session: Session, checkpoint: Path | None, memory: Mapping[str, int]) -> dict[str, Any]:
    """JSON of a run that ends; `memory` in bytes, of the process that has most."""
    parts, progress = session.parts, session.progress
    components = components_of(parts.objective)
    seconds = max(session.recorder.seconds, 1e-9)
    return {
        "step": progress.step,
        "last": progress.last,
        "best": progress.best,
        "parameters": {
            "total": sum(one.trainable + one.frozen for one in components),
            "trainable": sum(one.trainable for one in components),
            "by_component": {one.name: {"trainable": one.trainable, "frozen": one.frozen} for one in components},
        },
        "precision": session.precision.as_dict(),
        "data": {split: asdict(one.lengths) | {"skipped": one.bad.skipped} for split, one in parts.splits.items()},
        "skipped_steps": progress.skipped_steps,
        "throughput": {
            "samples_per_s": session.recorder.samples / seconds,
            "tokens_per_s": session.recorder.tokens / seconds,
            "padding_efficiency": session.recorder.tokens / max(session.recorder.padded, 1),
        },
        "peak_memory": memory,
        "wall_s": progress.wall_s + time.monotonic() - session.began,
        "checkpoint": str(checkpoint),
        **getattr(parts.objective, "details", lambda _: {})(session.predictions or []),
    }


def peak_memory(session: Session) -> dict[str, int]:
    """Bytes, of the process that has most."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if session.accelerator.device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated()
    peaks = session.peers.gather(peak)
    return {name: max(one[name] for one in peaks) for name in peak}
