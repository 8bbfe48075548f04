"""Bring several encoders into one space: what belongs to one row comes together, what does not goes apart.

Shapes: B rows of this process, R rows of all processes, M modalities, D the shared width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from runner.models.all_gather import AllGather
from runner.models.initialization import seed_of
from runner.models.pooling import row_means
from runner.models.projected import check_names, projected, projector_counts, projector_terms
from runner.models.retrieval import Retrieval, retrieval
from runner.protocols import Batch, Encoder, Mistake, Prediction, Projector, Row, Step, Term, Tokens

LARGEST_SCALE = 100.0
"""Of the logits, as CLIP holds it; beyond it training becomes unstable. A temperature is at least its inverse."""


class Align(nn.Module):
    """Each modality's projected tokens are averaged to one unit vector a row; every two modalities are a term.

    loss: `infonce`, the softmax over the step's rows of all processes, both ways (Radford et al., "Learning
    Transferable Visual Models From Natural Language Supervision", 2021); `sigmoid`, each pair of rows on its own (Zhai
    et al., "Sigmoid Loss for Language Image Pre-Training", 2023). class_aware: rows with the same label belong together
    too (Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", 2022), and any of them is a hit.
    A row counts for the pairs of which it has both. temperature, and sigmoid's bias, are where the learnt ones start.
    """

    splits_exactly = False

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        projectors: Mapping[str, Projector],
        width: Annotated[int, Ge(1)],
        loss: Literal["infonce", "sigmoid"],
        class_aware: bool,
        temperature: Annotated[float, Ge(0.01)],
        bias: float,
    ) -> None:
        super().__init__()
        if len(encoders) < 2:
            raise Mistake(
                f"model=align brings encoders together, and there is {len(encoders)}. Choose two or more, by "
                "encoder/image=OPTION encoder/audio=OPTION for instance."
            )
        self.encoder = nn.ModuleDict(cast(Mapping[str, nn.Module], encoders))
        self.projector = nn.ModuleDict(cast(Mapping[str, nn.Module], projectors))
        self.modalities = tuple(encoders)
        self.pairs = tuple(combinations(self.modalities, 2))
        check_names(projectors, map(name_of, self.pairs))
        self.width = width
        self.class_aware = class_aware
        self.scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(bias))) if loss == "sigmoid" else None
        ways = [f"{one}_to_{other}_recall_at_1" for one, other in permutations(self.modalities, 2)]
        self.metric_names = ("recall_at_1", "recall_at_5", "median_rank", *ways)
        self._all_gather = AllGather()

    def check_row(self, row: Row) -> None:
        """Raises `Mistake` for a row whose class is to be known and is not."""
        if self.class_aware and row.label is None:
            raise Mistake(f"{row.where} (id {row.id}) has no label, which model.class_aware=true goes by. Give it one.")

    def check_rows(self, split: str, rows: Sequence[Row]) -> None:
        """Raises `Mistake` for a split of which no two rows have both of any two modalities."""
        for pair in self.pairs:
            if sum(all(row.items.get(name) for name in pair) for row in rows) > 1:
                return
        raise Mistake(
            f"The {split} split has no two rows with both of {' or both of '.join(map(' and '.join, self.pairs))}, so "
            "there is nothing to bring together. Give it such rows, or take the split away."
        )

    def counts(self, batch: Batch) -> dict[str, float]:
        """Of each two modalities, the rows that have both; and of each part of the loss of the projectors' own, the
        items."""
        known = self._known(batch)
        both = {name_of(pair): float(self._both(known, pair).sum()) for pair in self.pairs}
        return both | projector_counts(self.projector, batch)

    def forward(self, batch: Batch) -> Step:
        with torch.no_grad():  # as CLIP does: beyond the limit it would have no gradient that leads it back
            self.scale.clamp_(max=math.log(LARGEST_SCALE))
        streams = self._streams(batch)
        # A process may have no item of what the others have; its rows hang on the scale, so that all go the way back.
        mine = self._vectors(streams, batch) + 0.0 * self.scale
        parts = self._all_gather.values(self._known(batch))
        sizes = [len(part.classes) for part in parts]
        rank = self._all_gather.rank
        every = self._all_gather.rows(mine, sizes)  # [R, M, D]
        known = Known(torch.cat([part.there for part in parts]), torch.cat([part.classes for part in parts]))
        start = sum(sizes[:rank])
        own = slice(start, start + sizes[rank])
        belong = known.classes[own, None] == known.classes[None]  # [B, R]
        terms = {}
        with torch.autocast(mine.device.type, enabled=False):
            for pair in self.pairs:
                one, other = (self.modalities.index(name) for name in pair)
                both = self._both(known, pair)
                # float32 [B, R]: what this process's rows should find in the others, and which rows there are at all
                wanted, there = (
                    part.to(mine.device, non_blocking=True)
                    for part in ((belong & both).float(), (both[own, None] & both).float())
                )
                ways = ((mine[:, one], every[:, other]), (mine[:, other], every[:, one]))
                losses = [self._loss(rows @ columns.T, wanted, there) for rows, columns in ways]
                terms[name_of(pair)] = Term((losses[0] + losses[1]) / 2, weight=1 / len(self.pairs))
        return Step(terms | projector_terms(self.projector, streams, batch, mine.device))

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Each row's unit vectors, by modality, as `numbers`."""
        vectors = self._vectors(self._streams(batch), batch).double().cpu().numpy()
        return [
            Prediction(
                id=row.id,
                prompt=", ".join(row.items),
                answer="",
                truth=str(row.label) if row.label is not None else None,
                items=row.items,
                numbers={name: one[k] for k, name in enumerate(self.modalities) if row.items.get(name)},
            )
            for row, one in zip(batch.rows, vectors, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """How early each row's own partner comes among all rows', and the means over the ways that were measured."""
        ways = self._retrieval(predictions)
        if not ways:
            return {}
        means = {name: float(np.mean([getattr(one, name) for one in ways.values()])) for name in Retrieval._fields}
        return means | {f"{way}_recall_at_1": one.recall_at_1 for way, one in ways.items()}

    def details(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Each way in full."""
        return {"retrieval": {way: one._asdict() for way, one in self._retrieval(predictions).items()}}

    def _retrieval(self, predictions: Sequence[Prediction]) -> dict[str, Retrieval]:
        ways = {}
        for one, other in permutations(self.modalities, 2):
            rows = [row for row in predictions if row.numbers and one in row.numbers and other in row.numbers]
            if rows:
                queries, found = (np.stack([row.numbers[name] for row in rows if row.numbers]) for name in (one, other))
                classes = [row.truth for row in rows] if self.class_aware else [row.id for row in rows]
                ways[f"{one}_to_{other}"] = retrieval(queries, found, classes)
        return ways

    def _streams(self, batch: Batch) -> dict[str, Tokens]:
        return projected(self.encoder, self.projector, batch, self.scale.device)

    def _vectors(self, streams: Mapping[str, Tokens], batch: Batch) -> Tensor:
        """float32 [B, M, D], of length 1; zeros where a row lacks a modality."""
        widths = dict.fromkeys(self.modalities, self.width)
        vectors, _ = row_means(streams, widths, batch, self.scale.device)
        return normalize(torch.stack([vectors[name].float() for name in self.modalities], dim=1), dim=2)

    def _loss(self, similar: Tensor, wanted: Tensor, there: Tensor) -> Tensor:
        """Summed over this process's rows; similar, wanted and there are [B, R]."""
        scale = self.scale.exp()
        wanted = wanted * there
        if self.bias is not None:
            sign = 2 * wanted - 1
            return -(logsigmoid(sign * (scale * similar + self.bias)) * there).sum()
        scores = (scale * similar).masked_fill(there == 0, torch.finfo(similar.dtype).min)
        shares = wanted / wanted.sum(1, keepdim=True).clamp(min=1)
        return -(shares * scores.log_softmax(1)).sum()

    def _known(self, batch: Batch) -> Known:
        counted = [weight > 0 for weight in batch.weights]
        there = [
            [bool(row.items.get(name)) and counts for name in self.modalities]
            for row, counts in zip(batch.rows, counted, strict=True)
        ]
        # Numbers that mean the same in every process, also for classes that no training row has.
        names = [f"class {row.label}" if self.class_aware else f"row {row.id}" for row in batch.rows]
        return Known(torch.tensor(there), torch.tensor([seed_of(name) for name in names]))

    def _both(self, known: Known, pair: tuple[str, str]) -> Tensor:
        one, other = (self.modalities.index(name) for name in pair)
        return known.there[:, one] & known.there[:, other]


@dataclass(frozen=True)
class Known:
    """What a process knows of its rows without a look at their items; on the CPU."""

    there: Tensor
    """bool [B, M]"""
    classes: Tensor
    """int64 [B]: rows with the same belong together"""


def name_of(pair: tuple[str, str]) -> str:
    return "_".join(pair)
