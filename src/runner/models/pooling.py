"""Encoders' tokens as one vector a row and modality. Shapes: B rows, N items, T tokens an item, E encoder width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.protocols import Batch, Tokens


def pooled(encoders: nn.ModuleDict, batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By modality: the mean over the tokens of a row's items [B, E], zeros where it has none, and which have one,
    bool [B]. Padding counts for nothing."""
    vectors, present = {}, {}
    rows = len(batch.ids)
    for name, encoder in encoders.items():
        stream = batch.streams.get(name)
        if stream is None:
            vectors[name] = torch.zeros(rows, int(encoder.width), device=device)  # type: ignore[arg-type]
            present[name] = torch.zeros(rows, dtype=torch.bool, device=device)
            continue
        inputs = {key: tensor.to(device, non_blocking=True) for key, tensor in stream.inputs.items()}
        items = mean_of(encoder(**inputs))
        of_row = torch.tensor([row for row, _, _ in stream.places])
        count = torch.bincount(of_row, minlength=rows)
        total = torch.zeros(rows, items.shape[1], dtype=items.dtype, device=device)
        total = total.index_add(0, of_row.to(device, non_blocking=True), items)
        vectors[name] = total / count.clamp(min=1).to(device, non_blocking=True).unsqueeze(1)
        present[name] = (count > 0).to(device, non_blocking=True)
    return vectors, present


def mean_of(tokens: Tokens) -> Tensor:
    """[N, T, E] -> [N, E], over the tokens that are no padding."""
    mask = tokens.mask.unsqueeze(-1)
    return (tokens.features * mask).sum(1) / mask.sum(1).clamp(min=1)
