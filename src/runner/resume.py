"""Going on with a run: which changes of its config pass in silence, which with a word, and which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from torch import nn

from runner.checkpoint import own_tensors, restore, restore_optimizer
from runner.folders import refuse_a_second_run
from runner.protocols import CheckpointContent, Checkpointer, Mistake
from runner.run_folder import read_json, run_of
from runner.session import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from runner.build import Parts
    from runner.config import Composed
    from runner.recording import Recorder
    from runner.settings import Run

SILENT = (
    "resume", "force_resume", "name", "train.log_every", "train.log_level", "evaluation.samples", "data.workers",
    "data.worker_timeout", "data.cache", "checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_best", "tracker",
)  # fmt: skip
TOLD = (
    "train.max_steps", "train.epochs", "train.micro_batch_size", "train.micro_batch_tokens", "data.packing",
    "train.clip_norm", "train.eval_every", "train.log_ids",
    "train.max_skipped_steps", "evaluation", "early_stopping", "checkpoint", "optimizer", "schedule", "precision",
    "cluster", "lora.dropout", "model.max_new_tokens", "llm.attention", "data.cache_features",
)  # fmt: skip
NEVER = ("optimizer._target_", "model.aligner", "model.aligner_width")
"""Not by force either: an aligner's weights are in the checkpoint, so another one would not be read."""


@dataclass(frozen=True)
class Change:
    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"optimizer": {"lr": 1}}` as `{"optimizer.lr": 1}`."""
    if isinstance(node, dict) and node:
        return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}
    return {prefix[:-1]: node}


def flat_config(text: str) -> dict[str, Any]:
    """A config's YAML, flat; secrets stay the interpolations that they are."""
    return flat(yaml.safe_load(text))


def within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def told_changes(saved_config: Path, now: str, force: bool) -> list[Change]:
    """The changes that a person should hear of. Raises `Mistake` for those that make it another run, unless forced."""
    if not saved_config.is_file():
        raise Mistake(
            f"{saved_config} is not there, so nobody can tell how the checkpoint was trained. Give a checkpoint inside "
            "its run's folder."
        )
    before, after = flat_config(saved_config.read_text(encoding="utf-8")), flat_config(now)
    changes = [
        Change(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not within(key, SILENT)
    ]
    never = [change for change in changes if within(change.key, NEVER)]
    refused = [change for change in changes if not within(change.key, TOLD) or change in never]
    if never or (refused and not force):
        lines = "\n".join(f"  {change}" for change in refused)
        raise Mistake(
            f"{saved_config.parent} was trained with another config, so it cannot go on exactly:\n{lines}\n"
            "Set these back, start a new run, or set force_resume=true to go on all the same."
        )
    return changes


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    content: CheckpointContent | None
    """None: from the first step."""
    path: Path | None
    parent: Path | None
    """The checkpoint of another run that this one starts from."""
    sentences: tuple[str, ...]
    """What a person should hear."""

    @property
    def memory(self) -> Mapping[str, Any] | None:
        """What the model kept of its rows, or of the run that it was built on."""
        return self.content.state.get("memory", {}) if self.content else None


def find_start(composed: Composed, folder: Path, given: Run, checkpointer: Checkpointer) -> Start:
    """Raises `Mistake` where resume names nothing usable, or the run there was trained with another config."""
    if given.resume is None:
        refuse_a_second_run(folder)  # a sweep's folder may have been used before
        return Start(None, None, None, ())
    named = Path(given.resume) if given.resume != "auto" else folder
    passed_over: list[str] = []
    path: Path | None = named
    origin: Path | None = None
    if given.resume == "auto" or (named / "config.yaml").is_file():
        origin = named
        path, passed_over = checkpointer.newest(named)
        if path is None and (passed_over or given.resume != "auto"):
            reasons = "\n".join(passed_over)
            raise Mistake(f"resume={given.resume}: {named} has no whole checkpoint to go on from.\n{reasons}".rstrip())
        if path is not None and passed_over and given.resume != "auto":
            raise Mistake("\n".join(passed_over) + f"\nSet resume=auto to go on from {path}, or give a checkpoint.")
    forked_from = read_json(folder / "environment.json").get("parent")
    if path is None and forked_from:
        path, origin = Path(forked_from), None  # a fork that was killed before it had a checkpoint of its own
    if path is None:
        return Start(
            None, None, None, (f"resume=auto: {folder} has no checkpoint yet, so it starts from the first step.",)
        )
    content = checkpointer.load(path)
    origin = origin or run_of(path) or path.parent
    changes = told_changes(origin / "config.yaml", composed.saved, given.force_resume)
    parent = path if origin.resolve() != folder.resolve() else None
    where = f"from {path} in a new run" if parent else f"in {folder}"
    sentences = [*passed_over, f"Goes on {where} after step {content.step}."]
    if changes:
        sentences.append("With changes: " + "; ".join(map(str, changes)) + ".")
    return Start(content, path, parent, tuple(sentences))


def check_same(start: Start, parts: Parts) -> None:
    """Raises `Mistake` when rows or frozen weights are not those of the checkpoint, unless forced."""
    if start.content is None:
        return
    content = start.content
    names = {
        "data": "the training rows (or how they are rendered)",
        "files": "the frozen weights' files",
        "memory": "what the model keeps of the rows (classes, or scales and lengths)",
    }
    changed = [names[key] for key, value in parts.fingerprints.items() if content.state.get(key, {}) != value]
    if changed and not parts.settings.run.force_resume:
        raise Mistake(
            f"{start.path}: {' and '.join(changed)} are not those that it was trained with, so the run cannot go on "
            "exactly. Put them back, start a new run, or set force_resume=true to go on all the same."
        )


def continue_from(start: Start, parts: Parts, progress: Progress, recorder: Recorder, accelerator: Accelerator) -> None:
    """Put weights, optimizer, counters and scaler back where the checkpoint has them."""
    assert start.content is not None and start.path is not None
    content = start.content
    restore(own_tensors(cast(nn.Module, parts.objective)), content.trainable, start.path)
    restore_optimizer(parts.optimizer, content.optimizer, start.path)
    progress.__dict__.update(Progress.of_state(content.state["progress"]).__dict__)
    if start.parent is not None:
        progress.tracker_key = None
    recorder.restore(content.state["recorder"])
    if accelerator.scaler is not None and content.state["scaler"] is not None:
        accelerator.scaler.load_state_dict(content.state["scaler"])
