"""Projectors that take each token by itself: [N, T, E] -> [N, T, D]."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.projectors.two_layers import two_layers
from runner.protocols import Tokens

Width = Annotated[int, Ge(1)]


class Linear(nn.Module):
    def __init__(self, encoder_width: int, llm_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(encoder_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(self.projection(tokens.features), tokens.mask, tokens.grid)


class Mlp(nn.Module):
    """Source: LLaVA 1.5, Liu et al., "Improved Baselines with Visual Instruction Tuning", 2023."""

    def __init__(self, encoder_width: int, llm_width: int, hidden_size: Width | None) -> None:
        super().__init__()
        self.layers = two_layers(encoder_width, hidden_size or llm_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(self.layers(tokens.features), tokens.mask, tokens.grid)


class ResidualMlp(nn.Module):
    """A linear layer, then blocks of norm, two layers and a way around them (He et al., "Identity Mappings in Deep
    Residual Networks", 2016); each block's last layer is zero at first, so that it starts as the linear projector."""

    def __init__(
        self,
        encoder_width: int,
        llm_width: int,
        blocks: Width,
        hidden_size: Width | None,
        dropout: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(encoder_width, llm_width)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            layers = two_layers(llm_width, hidden_size or llm_width, llm_width)
            last = layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.blocks.append(nn.Sequential(nn.LayerNorm(llm_width), *layers, nn.Dropout(dropout)))

    def forward(self, tokens: Tokens) -> Tokens:
        features: Tensor = self.projection(tokens.features)
        for block in self.blocks:
            features = features + block(features)
        return Tokens(features, tokens.mask, tokens.grid)
