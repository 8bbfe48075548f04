"""The layout that input fusions share: items' tokens put among the text's tokens.

Where everything goes is known on the CPU (text lengths, places, tokens an item), so the device is never asked and one
gather does it. A padded item token keeps its place with mask 0: it is not attended to and takes no position.

Shapes: B rows, L text tokens, N items of a modality, T tokens an item, D width, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.protocols import IGNORED, Batch, Fused, Tokens


def splice(text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]) -> Fused:
    """Put each item before its text token, in the order of its row's items. text [B, L, D]."""
    rows, text_length, width = text.shape
    sources = [text.reshape(-1, width)]
    masks = [torch.ones(rows * text_length, dtype=torch.long, device=text.device)]
    items: list[list[tuple[int, int, int, int]]] = [[] for _ in range(rows)]  # (place, rank, first source, tokens)
    first = rows * text_length
    for name, tokens in streams.items():
        count, length = tokens.features.shape[:2]
        for k, (row, place, rank) in enumerate(batch.streams[name].places):
            items[row].append((place, rank, first + k * length, length))
        first += count * length
        sources.append(tokens.features.reshape(-1, width).to(text.dtype))
        masks.append(tokens.mask.reshape(-1).long())
    nothing = first  # one more source, of zeros, that padding points to
    sources.append(text.new_zeros(1, width))
    masks.append(masks[0].new_zeros(1))

    layout = pad([order_of(row, batch.lengths[row], text_length, items[row]) for row in range(rows)], nothing, side)
    no_text = torch.full((nothing + 1 - rows * text_length,), IGNORED)
    index = layout.to(text.device, non_blocking=True)
    attention_mask = torch.cat(masks)[index]
    return Fused(
        embeddings=torch.cat(sources).index_select(0, index.reshape(-1)).reshape(*index.shape, width),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        labels=torch.cat([batch.labels.reshape(-1), no_text])[layout],
        input_ids=torch.cat([batch.input_ids.reshape(-1), no_text])[layout],
    )


def order_of(row: int, length: int, text_length: int, items: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The sources of one row in their order: its text tokens with the items between."""
    pieces, done, start = [], 0, row * text_length
    for place, _, first, count in sorted(items):
        pieces += [np.arange(start + done, start + place), np.arange(first, first + count)]
        done = place
    pieces.append(np.arange(start + done, start + length))
    return np.concatenate(pieces)


def pad(orders: list[np.ndarray], nothing: int, side: Literal["left", "right"]) -> Tensor:
    """int64 [B, M]"""
    layout = np.full((len(orders), max(map(len, orders))), nothing, dtype=np.int64)
    for row, order in enumerate(orders):
        if side == "right":
            layout[row, : len(order)] = order
        else:
            layout[row, layout.shape[1] - len(order) :] = order
    return torch.from_numpy(layout)
