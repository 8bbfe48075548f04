"""Objectives without a language model: encoders' tokens are pooled and fused to one vector a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from runner import settings
from runner.config import Composed
from runner.data.collate import Collate
from runner.data.length import LengthReport
from runner.data.rows import check_modalities, placeholder_names, with_text
from runner.models.freeze import keep_frozen
from runner.models.initialization import seeded
from runner.offers import check_offers
from runner.protocols import Encoder, Example, LabelObjective, Mistake, Objective, PooledFusion, Row, RowSource
from runner.seats import ITEM_FIELDS, Learner, build_encoders, mixed_seat, seat


@dataclass(frozen=True)
class Frame:
    """The parts, and the rows, whose labels say what the objective has to tell apart."""

    encoders: Mapping[str, Encoder]
    fusion: PooledFusion
    rows: Mapping[str, Sequence[Row]]


def build_learner(composed: Composed, predict_rows: int | None) -> Learner:
    """Raises `Mistake` for whatever config and rows have wrong."""
    frame = build_frame(composed)
    objective = build_objective(composed, frame)
    for row in (row for rows in frame.rows.values() for row in rows):
        objective.check_row(row)
    examples = {split: [example_of(row, list(frame.encoders)) for row in rows] for split, rows in frame.rows.items()}
    collate = Collate({name: encoder.preprocess for name, encoder in frame.encoders.items()}, pad_id=0)
    lengths = {split: LengthReport(len(rows), 0, 0, 0, 0, 0) for split, rows in frame.rows.items()}
    return Learner(objective, examples, examples.get("val", [])[:predict_rows], lengths, collate)


def skeleton(composed: Composed) -> Objective:
    return build_objective(composed, build_frame(composed))


def build_frame(composed: Composed) -> Frame:
    encoders = build_encoders(composed)
    if not encoders:
        raise Mistake(
            "No encoder: there is nothing to see a row with. Choose one, by encoder/image=OPTION for instance."
        )
    with seeded(composed.tree["seed"], "fusion"):
        fusion = seat(composed, "fusion", widths={name: encoder.width for name, encoder in encoders.items()})
    if fusion is None:
        raise Mistake("fusion is missing: encoders need one that gives a vector a row. Set fusion=pooled_concat.")
    check_offers(fusion, "fusion", PooledFusion)
    return Frame(encoders, fusion, read_rows(composed, list(encoders)))


def read_rows(composed: Composed, modalities: Sequence[str]) -> Mapping[str, Sequence[Row]]:
    source: RowSource = mixed_seat(composed, "data", settings.Data)
    splits = dict(source.read(sorted({*ITEM_FIELDS, *modalities})))
    for split, rows in splits.items():
        check_modalities(rows, modalities)
        if "text" in modalities:
            rows = splits[split] = [with_text(row, placeholder_names(modalities)) for row in rows]
        for row in rows:
            if not any(row.items.get(modality) for modality in modalities):
                raise Mistake(
                    f"{row.where} (id {row.id}) has none of {', '.join(modalities)}, so there is nothing to see. "
                    "Give it an item or take it out."
                )
    if not splits.get("train"):
        raise Mistake("data: there is no row to train on. Give another data.path.")
    return splits


def build_objective(composed: Composed, frame: Frame) -> LabelObjective:
    with seeded(composed.tree["seed"], "model"):
        objective = seat(composed, "model", encoders=frame.encoders, fusion=frame.fusion, rows=frame.rows["train"])
    check_offers(objective, "model", Objective)
    check_offers(objective, "model", LabelObjective)
    keep_frozen(objective)
    return cast(LabelObjective, objective)


def example_of(row: Row, modalities: Sequence[str]) -> Example:
    """A row without text: its items alone."""
    nothing = np.zeros(0, dtype=np.int32)
    places = [(name, item, 0) for name in modalities for item in range(len(row.items.get(name, ())))]
    return Example(row.id, nothing, nothing, tuple(places), row)
