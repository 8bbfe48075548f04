"""Items through their encoders and projectors, and the parts of the loss that projectors have of their own.

A projector names them in `term_weights` and gives their values in `Tokens.terms`. Shapes: N items of a modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from runner.models.pooling import encoded
from runner.protocols import Batch, Mistake, Term, Tokens


def projected(
    encoders: nn.ModuleDict, projectors: nn.ModuleDict, batch: Batch, device: torch.device
) -> dict[str, Tokens]:
    """By modality that the batch has."""
    return {name: projectors[name](tokens) for name, tokens in encoded(encoders, batch, device).items()}


def check_names(projectors: Mapping[str, Any], taken: Iterable[str]) -> None:
    """Raises `Mistake` for a part of a projector's loss that has the name of one of the objective's own terms."""
    own = set(taken)
    for modality, projector in projectors.items():
        for name in sorted(own & set(weights_of(projector))):
            raise Mistake(
                f"projector (of encoder.{modality}): its term_weights name {name}, which is a term of the objective's "
                "own. Give it another name."
            )


def projector_counts(projectors: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """By term: the items whose rows count, of all modalities that have it; known before the forward pass."""
    return {
        name: float(sum(sum(counted(batch, modality)) for modality in weights))
        for name, weights in weights_by_term(projectors).items()
    }


def projector_terms(
    projectors: nn.ModuleDict, streams: Mapping[str, Tokens], batch: Batch, device: torch.device
) -> dict[str, Term]:
    """By term: its sum over the items whose rows count. A modality without an item adds zero that hangs on its
    projector, so that the way back is there in every process."""
    terms = {}
    for name, weights in weights_by_term(projectors).items():
        one_weight = len(set(weights.values())) == 1
        total = torch.zeros((), device=device)
        for modality, weight in weights.items():
            if modality in streams:
                there = torch.tensor(counted(batch, modality)).to(device, non_blocking=True)
                part = (streams[modality].terms[name].float() * there).sum()
            else:
                part = 0.0 * sum((one.sum() for one in islice(projectors[modality].parameters(), 1)), total)
            total = total + part * (1.0 if one_weight else weight)
        terms[name] = Term(total, weight=next(iter(weights.values())) if one_weight else 1.0)
    return terms


def weights_by_term(projectors: nn.ModuleDict) -> dict[str, dict[str, float]]:
    """By term, its weight in each modality that has it."""
    found: dict[str, dict[str, float]] = {}
    for modality, projector in projectors.items():
        for name, weight in weights_of(projector).items():
            found.setdefault(name, {})[modality] = weight
    return found


def weights_of(projector: Any) -> Mapping[str, float]:
    weights: Mapping[str, float] = getattr(projector, "term_weights", {})
    return weights


def counted(batch: Batch, modality: str) -> list[bool]:
    """Of each item whether its row counts: [N], empty where the batch has none."""
    stream = batch.streams.get(modality)
    return [] if stream is None else [batch.weights[row] > 0 for row, _, _ in stream.places]
