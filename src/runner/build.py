"""From a checked config to everything a run needs; every verb builds through here.

The order matters: rows are read and checked before a language model's weights are loaded, and each part draws its first
weights from the run's seed and its own name, so that adding a part does not change another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from runner import answering, config, labelling, settings
from runner.config import Composed
from runner.data.dealing import Dealer
from runner.data.flat import FlatExamples
from runner.data.intake import Split
from runner.data.order import Order
from runner.inventory import files_of
from runner.model_parts import ModelPart, group_by_part, parts_of
from runner.offers import check_counts, check_offers, shown
from runner.protocols import Checkpointer, Mistake, Objective, Schedule, Tracker
from runner.seats import Learner, build_checkpointer, build_node, held_out, seat
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
        """Rows of one forward of one process, unless it goes by the rows' tokens."""
        return self.train.micro_batch_size or max(1, self.train.batch_size // self.cluster.num_processes)

    @property
    def accumulation(self) -> int | None:
        """None where it goes by the rows' tokens."""
        if self.train.micro_batch_tokens is not None:
            return None
        return self.train.batch_size // (self.micro_batch_size * self.cluster.num_processes)


@dataclass(frozen=True)
class Parts(Learner):
    """Everything of a run, ready to go."""

    settings: Settings
    order: Order
    """Which rows each step takes; not asked where they are read as they are needed."""
    dealer: Dealer
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
    train = learner.splits["train"]
    check_counts(learner.objective, learner.collate(train.examples[:1]))
    lengths = lengths_of(train)
    check_lengths(given, train, lengths)
    check_monitor(given, learner)
    model = cast(nn.Module, learner.objective)
    parts = parts_of(model, given.train.parts)
    return Parts(
        **vars(learner),
        settings=given,
        order=Order(len(lengths), given.train.batch_size, given.run.seed, given.data.order, lengths, train.shares),
        dealer=Dealer(
            given.micro_batch_size,
            given.train.micro_batch_tokens,
            given.data.packing,
            given.cluster.num_processes,
            lengths,
        ),
        model_parts=parts,
        optimizer=build_optimizer(composed, model, parts),
        schedule=build_schedule(composed),
        checkpointer=build_checkpointer(composed),
        tracker=build_tracker(composed) if tracks else Isolated({}),
        fingerprints={
            "data": train.digest,
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
    if given.accumulation is None:
        raise Mistake(
            f"train.micro_batch_tokens: {type(learner.objective).__name__} compares a step's rows with each other, so "
            "they are not split. Set it to null."
        )
    raise Mistake(
        f"train.micro_batch_size={given.train.micro_batch_size}: {type(learner.objective).__name__} compares a step's "
        f"rows with each other, and {given.accumulation} micro-batches would not see each other. Leave it null, lower "
        "train.batch_size, or take more processes, whose rows do see each other (cluster=ddp)."
    )


def lengths_of(split: Split) -> np.ndarray:
    """int32 [rows], text tokens"""
    examples = split.examples
    return (
        examples.lengths if isinstance(examples, FlatExamples) else np.array([len(one.input_ids) for one in examples])
    )


def check_lengths(given: Settings, train: Split, lengths: np.ndarray) -> None:
    """Raises `Mistake` for what goes by the rows' tokens where they have none, or more than are to be taken."""
    if not lengths.any():
        asked = {
            "data.order=grouped": given.data.order == "grouped",
            "data.packing=true": given.data.packing,
            "train.micro_batch_tokens": given.train.micro_batch_tokens is not None,
        }
        named = [name for name, there in asked.items() if there]
        if named:
            raise Mistake(f"{named[0]} goes by the rows' text tokens, and they have none. Take it away.")
    budget = given.train.micro_batch_tokens
    if budget is not None and lengths.max() > budget:
        longest = train.examples[int(lengths.argmax())]
        raise Mistake(
            f"train.micro_batch_tokens={budget}: {longest.row.where} (id {longest.id}) alone has {lengths.max()} text "
            "tokens. Raise it, or take shorter rows (data.max_length)."
        )


def check_monitor(given: Settings, learner: Learner) -> None:
    """Raises `Mistake` when no evaluation will give checkpoint.monitor, or early stopping has none to go by."""
    rows = held_out(learner.splits)
    if not rows:
        if given.early_stopping.patience is not None:
            raise Mistake("early_stopping.patience is set, but the data has no val rows to stop by. Add data.val_path.")
        return
    names = {"loss", *learner.objective.counts(learner.collate(rows[:1]))}
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
