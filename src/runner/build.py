"""From a checked config to everything a run needs; every verb builds through here.

The order matters: rows are read and checked before a weight is loaded, and each part draws its first weights from the
run's seed and its own name, so that adding a part does not change another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from runner import config, settings
from runner.config import Composed
from runner.data.chat import ChatFormat, prompt_of
from runner.data.collate import Collate
from runner.data.length import LengthReport, fit
from runner.data.rows import check_modalities, with_text
from runner.inventory import data_fingerprint, files_of
from runner.models.freeze import keep_frozen
from runner.models.initialization import seeded
from runner.models.llm import LanguageModel, LanguageModelSource, check_fits
from runner.protocols import (
    Checkpointer,
    Encoder,
    Example,
    InputFusion,
    Mistake,
    Objective,
    Projector,
    RowSource,
    Schedule,
    Tracker,
)
from runner.trackers.isolated import Isolated

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

PLACEMENTS = ("front", "placeholder")
ITEM_FIELDS = ("image", "audio", "series")
"""The modalities of the row schema, whose fields hold items also where the model has no encoder for them."""


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
class Parts:
    """Everything of a run, ready to go."""

    settings: Settings
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    examples: Mapping[str, list[Example]]
    """By split: rows as numbers."""
    prompts: list[Example]
    """The val rows that are predicted: everything before the last answer."""
    lengths: Mapping[str, LengthReport]
    collate: Collate
    checkpointer: Checkpointer
    tracker: Tracker
    fingerprints: dict[str, Any]
    """Hashes of the training rows (`data`) and of the weights' files (`files`): a resumed run must have the same."""


def build(composed: Composed, tracks: bool) -> Parts:
    """`tracks`: whether this process feeds the trackers. Raises `Mistake` for whatever config and rows have wrong."""
    given = read_settings(composed)
    frame = build_frame(composed)
    texts = read_texts(composed, frame)
    objective = build_objective(composed, frame, build_llm(composed, frame.source), texts.chat)
    held_out = texts.examples.get("val", [])[: given.evaluation.predict_rows]
    preprocess = {name: encoder.preprocess for name, encoder in frame.encoders.items()}
    collate = Collate(preprocess, texts.chat.tokenizer.pad_token_id)
    check_monitor(given, objective, texts, collate)
    return Parts(
        settings=given,
        objective=objective,
        optimizer=build_optimizer(composed, cast(nn.Module, objective)),
        schedule=seat(composed, "schedule"),
        examples=texts.examples,
        prompts=[prompt_of(example) for example in held_out],
        lengths=texts.lengths,
        collate=collate,
        checkpointer=mixed_seat(composed, "checkpoint", settings.Checkpoint),
        tracker=build_tracker(composed) if tracks else Isolated({}),
        fingerprints={"data": data_fingerprint(texts.examples["train"]), "files": files_of(objective)},
    )


def skeleton(composed: Composed) -> Objective:
    """The objective from the architecture alone: shapes without weights, tokenizer or rows."""
    with torch.device("meta"):
        frame = build_frame(composed)
        return build_objective(
            composed, frame, LanguageModel(adapt(composed, frame.source, frame.source.skeleton()), {}), None
        )


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


def seat(composed: Composed, name: str, **runtime: Any) -> Any:
    """The part that sits in a seat (`encoder.image`), or None when nothing does."""
    node: Any = composed.tree
    for key in name.split("."):
        node = (node or {}).get(key)
    if node is None:
        return None
    return config.build(node, composed.plugin_folders, **runtime)


def mixed_seat(composed: Composed, name: str, shared: type) -> Any:
    """The part of a seat whose node also holds settings that all its options share."""
    return config.build(config.own_arguments(composed.tree[name], shared), composed.plugin_folders)


@dataclass(frozen=True)
class Frame:
    """The parts that must be there before rows can be read: they say what becomes of a row."""

    source: LanguageModelSource
    encoders: Mapping[str, Encoder]
    fusion: InputFusion | None


def build_frame(composed: Composed) -> Frame:
    source: LanguageModelSource = seat(composed, "llm")
    encoders = build_encoders(composed)
    return Frame(source, encoders, build_fusion(composed, encoders, source.width()))


def build_encoders(composed: Composed) -> dict[str, Encoder]:
    """By modality, in the config's order. Raises `Mistake` for a part that lacks what an encoder must offer."""
    encoders = {}
    for modality, node in (composed.tree.get("encoder") or {}).items():
        if node is None:
            continue
        name = f"encoder.{modality}"
        with seeded(composed.tree["seed"], name):
            encoder = seat(composed, name)
        check_offers(encoder, name, Encoder)
        encoders[modality] = encoder
    return encoders


def check_offers(part: Any, name: str, protocol: type) -> None:
    """Raises `Mistake` naming what a part lacks of its protocol."""
    methods = [key for key, value in vars(protocol).items() if callable(value) and not key.startswith("_")]
    lacks = [member for member in (*protocol.__annotations__, *methods) if not hasattr(part, member)]
    if not isinstance(part, nn.Module):
        lacks.insert(0, "the base class torch.nn.Module")
    if lacks:
        raise Mistake(
            f"{name}: {type(part).__module__}.{type(part).__name__} lacks {', '.join(lacks)}. "
            f"See {protocol.__name__} in runner/protocols.py for what it must offer."
        )


@dataclass(frozen=True)
class Texts:
    """Rows as numbers, by split."""

    examples: Mapping[str, list[Example]]
    lengths: Mapping[str, LengthReport]
    chat: ChatFormat


def read_texts(composed: Composed, frame: Frame) -> Texts:
    """Read every split, render it with the model's chat template, and hold the lengths against data.max_length."""
    given = config.section(composed.tree["data"], settings.Data)
    source: RowSource = mixed_seat(composed, "data", settings.Data)
    modalities = list(frame.encoders)
    chat = ChatFormat(frame.source.tokenizer(), modalities, frame.fusion.placement if frame.fusion else "front")
    examples, lengths = {}, {}
    for split, rows in source.read(sorted({*ITEM_FIELDS, *modalities})).items():
        check_modalities(rows, modalities)
        if "text" in modalities:
            rows = [with_text(row, chat.placeholders) for row in rows]
        rendered = [chat.example(row) for row in rows]
        limit = (
            given.max_length or frame.source.max_length() or max((len(one.input_ids) for one in rendered), default=0)
        )
        examples[split], lengths[split] = fit(rendered, limit, given.over_length, chat)
    if not examples.get("train"):
        raise Mistake("data: there is no row to train on. See what was dropped, or give another data.path.")
    return Texts(examples, lengths, chat)


def build_llm(composed: Composed, source: LanguageModelSource) -> LanguageModel:
    """Load or make the language model, put LoRA on it, and check that the head at labelled positions is its own."""
    files = source.files()
    with seeded(composed.tree["seed"], "llm"):
        model = source.load()
    check_fits(model, source)
    llm = LanguageModel(adapt(composed, source, model), files)
    low = [name for name, one in llm.named_parameters() if one.requires_grad and one.dtype.itemsize < 4]
    if low:
        raise Mistake(
            f"llm.dtype: {len(low)} tensors that train are not float32 ({low[0]}). Set llm.dtype=float32, or use LoRA."
        )
    if files:
        llm.check_head()
    return llm


def adapt(composed: Composed, source: LanguageModelSource, model: PreTrainedModel) -> PreTrainedModel:
    """Put LoRA on the language model, or freeze it where it is not to be trained."""
    adapter = seat(composed, "lora")
    if adapter is None:
        return model if source.trainable else model.requires_grad_(False)
    with seeded(composed.tree["seed"], "lora"):
        return adapter.apply(model)


def build_objective(composed: Composed, frame: Frame, llm: LanguageModel, chat: ChatFormat | None) -> Objective:
    projectors: dict[str, Projector] = {}
    for modality, encoder in frame.encoders.items():
        with seeded(composed.tree["seed"], f"projector.{modality}"):
            projector = seat(composed, "projector", encoder_width=encoder.width, llm_width=llm.width)
        if projector is None:
            raise Mistake(f"encoder.{modality} has no projector to the language model. Set projector=mlp or another.")
        check_offers(projector, "projector", Projector)
        projectors[modality] = projector
    objective = seat(
        composed, "model", llm=llm, encoders=frame.encoders, projectors=projectors, fusion=frame.fusion, chat=chat
    )
    check_offers(objective, "model", Objective)
    keep_frozen(objective)
    return cast(Objective, objective)


def build_fusion(composed: Composed, encoders: Mapping[str, Encoder], llm_width: int) -> InputFusion | None:
    """None without an encoder. Raises `Mistake` when there is one and no fusion."""
    if not encoders:
        return None
    with seeded(composed.tree["seed"], "fusion"):
        fusion = seat(composed, "fusion", llm_width=llm_width)
    if fusion is None:
        raise Mistake(
            f"encoder.{next(iter(encoders))} needs a fusion with the language model. Set fusion=prefix or another."
        )
    check_offers(fusion, "fusion", InputFusion)
    if fusion.placement not in PLACEMENTS:
        raise Mistake(f"fusion: placement is {fusion.placement!r}; it must be one of {', '.join(PLACEMENTS)}.")
    return fusion


def build_optimizer(composed: Composed, objective: nn.Module) -> Optimizer:
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if not parameters:
        raise Mistake(
            "Nothing trains: every parameter is frozen. Set lora=default or llm.trainable=true, or add a projector."
        )
    optimizer = seat(composed, "optimizer", parameters=parameters)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def check_monitor(given: Settings, objective: Objective, texts: Texts, collate: Collate) -> None:
    """Raises `Mistake` when no evaluation will give checkpoint.monitor, or early stopping has none to go by."""
    held_out = texts.examples.get("val")
    if not held_out:
        if given.early_stopping.patience is not None:
            raise Mistake("early_stopping.patience is set, but the data has no val rows to stop by. Add data.val_path.")
        return
    names = {"loss", *objective.counts(collate(held_out[:1]))}
    if given.evaluation.predict_rows != 0:
        names |= set(objective.metric_names)
    known = sorted(f"val/{name}" for name in names)
    if given.checkpoint.monitor not in known:
        hint = " It needs evaluation.predict_rows." if given.evaluation.predict_rows == 0 else ""
        raise Mistake(
            f"checkpoint.monitor={given.checkpoint.monitor}: an evaluation gives {', '.join(known)}; set one.{hint}"
        )


def build_tracker(composed: Composed) -> Tracker:
    """All configured trackers as one, isolated so that none can hurt the run."""
    nodes = composed.tree.get("tracker") or {}
    return Isolated(
        {name: config.build(node, composed.plugin_folders) for name, node in nodes.items() if node is not None}
    )
