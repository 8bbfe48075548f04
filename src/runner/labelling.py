"""Objectives without a language model: encoders' tokens are pooled to vectors, and fused or brought into one space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from runner import settings
from runner.config import Composed
from runner.data.collate import Collate
from runner.data.flat import RowsOf
from runner.data.length import LengthReport
from runner.data.rows import check_modalities, placeholder_names, with_text
from runner.models.freeze import keep_frozen
from runner.models.initialization import seeded
from runner.offers import check_offers
from runner.protocols import Encoder, Example, LabelObjective, Mistake, Objective, PooledFusion, Projector, Row
from runner.seats import Learner, build_encoders, build_projectors, check_asks, held_out, read_splits, seat
from runner.targets import asked_by
from runner.trial import check_pools


@dataclass(frozen=True)
class Frame:
    """The parts that say what becomes of a row."""

    encoders: Mapping[str, Encoder]
    fusion: PooledFusion | None
    """None for an objective that has no such seat."""

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    @property
    def widths(self) -> dict[str, int]:
        """E, by modality."""
        return {name: encoder.width for name, encoder in self.encoders.items()}

    @property
    def takes(self) -> int | None:
        return None

    def example(self, row: Row) -> Example:
        check_modalities([row], self.modalities)
        if "text" in self.modalities:
            row = with_text(row, placeholder_names(self.modalities))
        if not any(row.items.get(modality) for modality in self.modalities):
            raise Mistake(
                f"{row.where} (id {row.id}) has none of {', '.join(self.modalities)}, so there is nothing to see. Give "
                "it an item or take it out."
            )
        return example_of(row, self.modalities)

    def fitting(self, given: settings.Data) -> AnyLength:
        return AnyLength()

    def reads(self) -> dict[str, Any]:
        return {"modalities": self.modalities}

    def prompts(self, examples: Iterable[Example]) -> list[Example]:
        return list(examples)

    def collate(self) -> Collate:
        return Collate({name: encoder.preprocess for name, encoder in self.encoders.items()}, pad_id=0)


def build_learner(composed: Composed, predict_rows: int | None, memory: Mapping[str, Any] | None) -> Learner:
    """Raises `Mistake` for whatever config and rows have wrong. What a run that goes on kept of its rows (`memory`) is
    told anew by them, so that other rows are found."""
    frame = build_frame(composed, memory)
    splits = read_splits(composed, frame)
    train = splits["train"].examples
    projectors = own_projectors(composed, frame)
    width = composed.tree["model"].get("width", 0)
    check_pools(frame.encoders, projectors, width, frame.fusion, frame.collate(), train)
    objective = build_objective(composed, frame, projectors, rows=RowsOf(train))
    for split, one in splits.items():
        rows = RowsOf(one.examples)
        for row in rows:
            objective.check_row(row)
        getattr(objective, "check_rows", lambda *_: None)(split, rows)
    kept: dict[str, Any] = getattr(objective, "memory", dict)()
    return Learner(objective, splits, list(held_out(splits)[:predict_rows]), frame.collate(), kept, ())


def build_trained(composed: Composed, frame: Frame, memory: Mapping[str, Any]) -> Objective:
    """Without rows, by what the objective kept of them."""
    return build_objective(composed, frame, own_projectors(composed, frame), rows=None, memory=memory)


def skeleton(composed: Composed) -> Objective:
    """Shapes without weights; rows are read where the objective goes by them, by their classes for instance."""
    frame = build_frame(composed, None)
    goes_by_rows = "rows" in asked_by_model(composed)
    rows = RowsOf(read_splits(composed, frame, lambda _: ["train"])["train"].examples) if goes_by_rows else None
    return build_objective(composed, frame, own_projectors(composed, frame), rows)


def build_frame(composed: Composed, memory: Mapping[str, Any] | None) -> Frame:
    encoders = build_encoders(composed)
    if not encoders:
        raise Mistake(
            "No encoder: there is nothing to see a row with. Choose one, by encoder/image=OPTION for instance."
        )
    return Frame(encoders, build_fusion(composed, encoders) if "fusion" in asked_by_model(composed) else None)


def asked_by_model(composed: Composed) -> set[str]:
    """Which parts the objective is made of, and whether it goes by rows: the names that its constructor takes."""
    return asked_by(composed.tree["model"], composed.plugin_folders)


def build_fusion(composed: Composed, encoders: Mapping[str, Encoder]) -> PooledFusion:
    given = {"widths": {name: encoder.width for name, encoder in encoders.items()}}
    check_asks(composed, "fusion", given, "fusion=pooled_concat, or another that gives a vector a row")
    with seeded(composed.tree["seed"], "fusion"):
        fusion = seat(composed, "fusion", **given)
    if fusion is None:
        raise Mistake("fusion is missing: encoders need one that gives a vector a row. Set fusion=pooled_concat.")
    check_offers(fusion, "fusion", PooledFusion)
    return cast(PooledFusion, fusion)


def own_projectors(composed: Composed, frame: Frame) -> dict[str, Projector]:
    """By modality; none for an objective that has no such seat."""
    if "projectors" not in asked_by_model(composed):
        return {}
    width = composed.tree["model"].get("width")
    if width is None:
        raise Mistake("projector: model.width is missing, the width that projectors give. Add it to the model's YAML.")
    return build_projectors(composed, frame.widths, width)


def build_objective(
    composed: Composed,
    frame: Frame,
    projectors: Mapping[str, Projector],
    rows: Sequence[Row] | None,
    memory: Mapping[str, Any] | None = None,
) -> LabelObjective:
    parts: dict[str, Any] = {"encoders": frame.encoders, "projectors": projectors, "fusion": frame.fusion}
    parts |= {"rows": rows, "memory": memory}
    with seeded(composed.tree["seed"], "model"):
        objective = seat(composed, "model", **parts)
    check_offers(objective, "model", Objective)
    check_offers(objective, "model", LabelObjective)
    keep_frozen(objective)
    return cast(LabelObjective, objective)


class AnyLength:
    """Rows without text have no length of their own: all are taken."""

    def __init__(self) -> None:
        self.count = 0

    def fit(self, example: Example) -> list[Example]:
        self.count += 1
        return [example]

    def check(self) -> None: ...

    def report(self) -> LengthReport:
        return LengthReport(total=self.count, kept=self.count, longest=0, longest_prompt=0)


def example_of(row: Row, modalities: Sequence[str]) -> Example:
    """A row without text: its items alone."""
    nothing = np.zeros(0, dtype=np.int32)
    places = [(name, item, 0) for name in modalities for item in range(len(row.items.get(name, ())))]
    return Example(row.id, nothing, nothing, tuple(places), row)
