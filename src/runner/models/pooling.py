"""Encoders' tokens as one vector a row and modality. Shapes: B rows, N items, T tokens an item, E encoder width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runner.protocols import Batch, Tokens


def encoded(encoders: Mapping[str, Any] | nn.ModuleDict, batch: Batch, device: torch.device) -> dict[str, Tokens]:
    """By modality that the batch has, in the order of the encoders: its items' tokens. An encoder whose tokens are kept
    is not asked."""
    tokens = {}
    for name, encoder in encoders.items():
        if name not in batch.streams:
            continue
        stream = batch.streams[name]
        if stream.kept is not None:
            features, mask = (one.to(device, non_blocking=True) for one in (stream.kept.features, stream.kept.mask))
            tokens[name] = Tokens(features, mask, stream.kept.grid)
        else:
            inputs = stream.inputs.items()
            tokens[name] = encoder(**{key: tensor.to(device, non_blocking=True) for key, tensor in inputs})
    return tokens


def pooled(
    encoders: Mapping[str, Any] | nn.ModuleDict,
    batch: Batch,
    device: torch.device,
    each: tuple[str, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By modality: the mean over the tokens of a row's items [B, E], zeros where it has none, and which have one,
    bool [B]. Padding counts for nothing.

    `each`, a modality and how many items K every row has of it, keeps these apart: [B * K, E], what a row has beside
    them repeated for each.
    """
    widths = {name: int(encoder.width) for name, encoder in encoders.items()}  # type: ignore[arg-type]
    return row_means(encoded(encoders, batch, device), widths, batch, device, each)


def row_means(
    tokens: Mapping[str, Tokens],
    widths: Mapping[str, int],
    batch: Batch,
    device: torch.device,
    each: tuple[str, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `pooled` gives, of tokens that are there already; `widths` names the modalities, also those without any."""
    vectors, present = {}, {}
    apart, copies = each or (None, 1)
    for name, width in widths.items():
        rows = len(batch.ids) * (copies if name == apart else 1)
        if name not in tokens:
            vectors[name] = torch.zeros(rows, width, device=device)
            present[name] = torch.zeros(rows, dtype=torch.bool, device=device)
            continue
        items = tokens[name].mean()
        places = batch.streams[name].places
        of_row = torch.arange(rows) if name == apart else torch.tensor([row for row, _, _ in places])
        count = torch.bincount(of_row, minlength=rows)
        total = torch.zeros(rows, items.shape[1], dtype=items.dtype, device=device)
        total = total.index_add(0, of_row.to(device, non_blocking=True), items)
        vectors[name] = total / count.clamp(min=1).to(device, non_blocking=True).unsqueeze(1)
        present[name] = (count > 0).to(device, non_blocking=True)
    if apart is None:
        return vectors, present
    shared = {name: copies if name != apart else 1 for name in vectors}
    return (
        {name: one.repeat_interleave(shared[name], dim=0) for name, one in vectors.items()},
        {name: one.repeat_interleave(shared[name], dim=0) for name, one in present.items()},
    )
