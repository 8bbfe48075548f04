"""From a checked config to everything a run needs; every verb builds through here.

The order matters: rows are read and checked before a language model's weights are loaded, and each part draws its first
weights from the run's seed and its own name, so that adding a part does not change another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from runner import answering, config, labelling, settings
from runner.config import Composed
from runner.inventory import data_fingerprint, files_of
from runner.model_parts import ModelPart, group_by_part, parts_of
from runner.offers import check_counts, check_offers, shown
from runner.protocols import Checkpointer, Mistake, Objective, Schedule, Tracker
from runner.seats import Learner, build_checkpointer, build_node, seat
from runner.trackers.isolated import Isolated

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Settings:
    """The plain nodes of the config."""

    run: settings.Run
    train: settings.Train
    evaluation: settings.Evaluation
    data: settings.Data
    precision: settings.Precision
    cluster: settings.Cluster
    checkpoint: settings.Checkpoint
    early_stopping: settings.EarlyStopping

    @property
    def micro_batch_size(self) -> int:
        return self.train.micro_batch_size or self.train.batch_size // self.cluster.num_processes

    @property
    def accumulation(self) -> int:
        return self.train.batch_size // (self.micro_batch_size * self.cluster.num_processes)


@dataclass(frozen=True)
class Parts(Learner):
    """Everything of a run, ready to go."""

    settings: Settings
    model_parts: tuple[ModelPart, ...]
    """Those with a learning rate or a freezing of their own."""
    optimizer: Optimizer
    schedule: Schedule
    checkpointer: Checkpointer
    tracker: Tracker
    fingerprints: dict[str, Any]
    """Hashes of the training rows (`data`) and of the weights' files (`files`), and what the objective keeps of the
    rows (`memory`): a resumed run must have the same."""


def build(composed: Composed, memory: Mapping[str, Any] | None, tracks: bool) -> Parts:
    """`memory`: of the checkpoint that the run goes on from; `tracks`: whether this process feeds the trackers.

    Raises `Mistake` for whatever config and rows have wrong.
    """
    given = read_settings(composed)
    learner = kind_of(composed).build_learner(composed, given.evaluation.predict_rows, memory)
    check_split(given, learner)
    check_counts(learner.objective, learner.collate(learner.examples["train"][:1]))
    check_monitor(given, learner)
    model = cast(nn.Module, learner.objective)
    parts = parts_of(model, given.train.parts)
    return Parts(
        **vars(learner),
        settings=given,
        model_parts=parts,
        optimizer=build_optimizer(composed, model, parts),
        schedule=build_schedule(composed),
        checkpointer=build_checkpointer(composed),
        tracker=build_tracker(composed) if tracks else Isolated({}),
        fingerprints={
            "data": data_fingerprint(learner.examples["train"]),
            "files": files_of(learner.objective),
            "memory": dict(learner.memory),
        },
    )


def kind_of(composed: Composed) -> Any:
    """The module that builds this kind of objective: with a language model, or without one."""
    return answering if composed.tree.get("llm") else labelling


def skeleton(composed: Composed) -> Objective:
    """The objective from the architecture alone: shapes without weights; the rows are read where they say how many
    classes there are."""
    with torch.device("meta"):
        return cast(Objective, kind_of(composed).skeleton(composed))


def read_settings(composed: Composed) -> Settings:
    tree = composed.tree
    return Settings(
        run=config.section(tree, settings.Run),
        train=config.section(tree["train"], settings.Train),
        evaluation=config.section(tree["evaluation"], settings.Evaluation),
        data=config.section(tree["data"], settings.Data),
        precision=config.section(tree["precision"], settings.Precision),
        cluster=config.section(tree["cluster"], settings.Cluster),
        checkpoint=config.section(tree["checkpoint"], settings.Checkpoint),
        early_stopping=config.section(tree["early_stopping"], settings.EarlyStopping),
    )


def build_optimizer(composed: Composed, objective: nn.Module, parts: tuple[ModelPart, ...]) -> Optimizer:
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if not parameters:
        raise Mistake(
            "Nothing trains: every parameter is frozen. Set lora=default or llm.trainable=true, or add a projector."
        )
    optimizer = seat(composed, "optimizer", parameters=parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Mistake(f"optimizer gave {shown(optimizer)}; it must give a torch.optim.Optimizer.")
    group_by_part(optimizer, parts)
    return optimizer


def check_split(given: Settings, learner: Learner) -> None:
    """Raises `Mistake` when a step's rows must be seen together and are to be split."""
    if learner.objective.splits_exactly:
        return
    if given.train.batch_size == 1:
        raise Mistake(
            f"train.batch_size=1: {type(learner.objective).__name__} compares a step's rows with each other. Set more."
        )
    if given.accumulation == 1:
        return
    raise Mistake(
        f"train.micro_batch_size={given.train.micro_batch_size}: {type(learner.objective).__name__} compares a step's "
        f"rows with each other, and {given.accumulation} micro-batches would not see each other. Leave it null, lower "
        "train.batch_size, or take more processes, whose rows do see each other (cluster=ddp)."
    )


def check_monitor(given: Settings, learner: Learner) -> None:
    """Raises `Mistake` when no evaluation will give checkpoint.monitor, or early stopping has none to go by."""
    held_out = learner.examples.get("val")
    if not held_out:
        if given.early_stopping.patience is not None:
            raise Mistake("early_stopping.patience is set, but the data has no val rows to stop by. Add data.val_path.")
        return
    names = {"loss", *learner.objective.counts(learner.collate(held_out[:1]))}
    if given.evaluation.predict_rows != 0:
        names |= set(learner.objective.metric_names)
    known = sorted(f"val/{name}" for name in names)
    if given.checkpoint.monitor not in known:
        hint = " It needs evaluation.predict_rows." if given.evaluation.predict_rows == 0 else ""
        raise Mistake(
            f"checkpoint.monitor={given.checkpoint.monitor}: an evaluation gives {', '.join(known)}; set one.{hint}"
        )


def build_schedule(composed: Composed) -> Schedule:
    schedule: Schedule = seat(composed, "schedule")
    check_offers(schedule, "schedule", Schedule)
    return schedule


def build_tracker(composed: Composed) -> Tracker:
    """All configured trackers as one, isolated so that none can hurt the run."""
    nodes = composed.tree.get("tracker") or {}
    trackers: dict[str, Tracker] = {}
    for name, node in nodes.items():
        if node is not None:
            trackers[name] = build_node(composed, f"tracker.{name}", node)
            check_offers(trackers[name], f"tracker.{name}", Tracker)
    return Isolated(trackers)
