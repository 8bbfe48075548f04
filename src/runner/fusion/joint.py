"""Fusion at the input: all items of a row, of whatever modality, as a fixed number of tokens before its text.

Shapes: B rows, S tokens of all items of a row, k latents, D width, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.fusion.splice import splice
from runner.protocols import Batch, Fused, Mistake, Stream, Tokens
from runner.resampler import build_resampler

JOINT = "joint"


class Perceiver(nn.Module):
    """Learnt latents look at the tokens of all of a row's items at once (the resampler of Idefics2, after Alayrac et
    al., "Flamingo", 2022); each modality's tokens bear a vector that says which it is."""

    placement: Literal["front", "placeholder"] = "front"

    def __init__(
        self,
        llm_width: int,
        modalities: Sequence[str],
        tokens: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        dropout: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        super().__init__()
        if llm_width % heads:
            raise Mistake(f"fusion.heads={heads} does not divide the language model's width, {llm_width}.")
        self.kind = nn.ParameterDict({name: nn.Parameter(torch.randn(llm_width) * 0.02) for name in modalities})
        self.resampler = build_resampler(llm_width, tokens, layers, heads, dropout)

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, k + L, D] at most: a row without an item has no latents"""
        if not streams:
            return splice(text, batch, {}, side)
        features, mask, places = self.together(batch, streams)
        seen = self.resampler(context=features, attention_mask=mask.long())
        joint = Tokens(seen, torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device))
        return splice(text, replace(batch, streams={JOINT: Stream({}, places)}), {JOINT: joint}, side)

    def together(
        self, batch: Batch, streams: Mapping[str, Tokens]
    ) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
        """The items of each row that has any, in a line: [R, S, D], bool [R, S], and where its latents go."""
        sources, masks, first = [], [], 0
        lines: dict[int, list[tuple[int, int, np.ndarray]]] = {}
        for name, tokens in streams.items():
            count, length = tokens.features.shape[:2]
            sources.append((tokens.features + self.kind[name]).flatten(0, 1))
            masks.append(tokens.mask.flatten())
            for k, (row, place, rank) in enumerate(batch.streams[name].places):
                lines.setdefault(row, []).append((place, rank, np.arange(length) + first + k * length))
            first += count * length
        orders = [np.concatenate([one for _, _, one in sorted(lines[row], key=lambda item: item[:2])]) for row in lines]
        index = np.full((len(orders), max(map(len, orders))), first)  # `first`: one more source, of zeros
        for row, order in enumerate(orders):
            index[row, : len(order)] = order
        where = torch.from_numpy(index).to(sources[0].device, non_blocking=True)
        features = torch.cat([*sources, sources[0].new_zeros(1, sources[0].shape[1])])[where]
        mask = torch.cat([*masks, masks[0].new_zeros(1)])[where]
        return features, mask, [(row, min(place for place, _, _ in some), 0) for row, some in lines.items()]
