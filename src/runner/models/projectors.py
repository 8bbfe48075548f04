"""Projectors: an encoder's tokens to the language model's width, [N, T, E] -> [N, T, D]."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import nn

from runner.protocols import Tokens


class Linear(nn.Module):
    def __init__(self, encoder_width: int, llm_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(encoder_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(self.projection(tokens.features), tokens.mask)


class Mlp(nn.Module):
    """Source: LLaVA 1.5, Liu et al., "Improved Baselines with Visual Instruction Tuning", 2023."""

    def __init__(self, encoder_width: int, llm_width: int, hidden_size: Annotated[int, Ge(1)] | None) -> None:
        super().__init__()
        hidden_size = hidden_size or llm_width
        self.layers = nn.Sequential(nn.Linear(encoder_width, hidden_size), nn.GELU(), nn.Linear(hidden_size, llm_width))

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(self.layers(tokens.features), tokens.mask)
