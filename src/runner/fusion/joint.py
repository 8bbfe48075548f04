"""Fusion at the input: all items of a row, of whatever modality, as a fixed number of tokens before its text.

Shapes: B rows, k latents, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.fusion.lines import kinds, lined_up
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
        self.kind = kinds(modalities, llm_width)
        self.resampler = build_resampler(llm_width, tokens, layers, heads, dropout)

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, k + L, D] at most: a row without an item has no latents"""
        if not streams:
            return splice(text, batch, {}, side)
        lines = lined_up(batch, streams, self.kind)
        first: dict[int, int] = {}  # by row: the text token that its latents come before
        for row, place, _ in (one for name in streams for one in batch.streams[name].places):
            first[row] = min(place, first.get(row, place))
        rows = torch.tensor(sorted(first)).to(lines.mask.device, non_blocking=True)
        seen = self.resampler(context=lines.features[rows], attention_mask=lines.mask[rows].long())
        joint = Tokens(seen, torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device))
        places = [(row, first[row], 0) for row in sorted(first)]
        return splice(text, replace(batch, streams={JOINT: Stream({}, places)}), {JOINT: joint}, side)
