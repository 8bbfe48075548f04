"""Projectors that make fewer tokens of neighbours: [N, T, E] -> [N, T / k, D], the last ones of what is left.

Shapes: G groups of k tokens. Padding is neither averaged nor stacked.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import pad

from runner.projectors.two_layers import two_layers
from runner.protocols import Tokens

Group = Annotated[int, Ge(1)]
Width = Annotated[int, Ge(1)]


class FrameStack(nn.Module):
    """Neighbours side by side, [N, G, k * E], through two layers (Ma et al., "An Embarrassingly Simple Approach for LLM
    with Strong ASR Capacity", 2024)."""

    def __init__(self, encoder_width: int, llm_width: int, frames: Group, hidden_size: Width | None) -> None:
        super().__init__()
        self.frames = frames
        self.layers = two_layers(frames * encoder_width, hidden_size or llm_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        features, mask = grouped(tokens, self.frames)
        return Tokens(self.layers(features.flatten(2)), mask.any(2))


class AveragePool(nn.Module):
    """The mean of neighbours, [N, G, E], through two layers (Yao et al., "DeCo: Decoupling Token Compression from
    Semantic Abstraction", 2024, along one dimension)."""

    def __init__(self, encoder_width: int, llm_width: int, tokens: Group, hidden_size: Width | None) -> None:
        super().__init__()
        self.tokens = tokens
        self.layers = two_layers(encoder_width, hidden_size or llm_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        features, mask = grouped(tokens, self.tokens)
        return Tokens(self.layers(features.sum(2) / mask.sum(2, keepdim=True).clamp(min=1)), mask.any(2))


class SoftTokens(nn.Module):
    """The mean of all tokens, [N, E], through two layers to k tokens (Mokady et al., "ClipCap: CLIP Prefix for Image
    Captioning", 2021). `shared`: one for all modalities, whose encoders are then of one width."""

    def __init__(
        self, encoder_width: int, llm_width: int, tokens: Group, hidden_size: Width | None, shared: bool
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.shared = shared
        self.layers = two_layers(encoder_width, hidden_size or llm_width, tokens * llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        mask = tokens.mask.any(1, keepdim=True).expand(-1, self.tokens)
        return Tokens(self.layers(tokens.mean()).unflatten(1, (self.tokens, -1)), mask)


def grouped(tokens: Tokens, size: int) -> tuple[Tensor, Tensor]:
    """[N, G, k, E], zeros for padding, and which are there, bool [N, G, k]"""
    fill = -tokens.mask.shape[1] % size
    mask = pad(tokens.mask, (0, fill)).unflatten(1, (-1, size))
    features = pad(tokens.features, (0, 0, 0, fill)).unflatten(1, (-1, size))
    return torch.where(mask.unsqueeze(3), features, features.new_zeros(())), mask
