"""Projectors that make fewer tokens of neighbours in both directions of a picture: [N, T, E] -> [N, k, D].

They take the tokens that lie on the picture's grid and drop those before them, of the class for instance. Shapes: h
rows and w columns of the grid, r a factor. Padding is zeros.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from runner.projectors.convolution import Bottleneck, separable
from runner.projectors.two_layers import two_layers
from runner.protocols import Mistake, Tokens

Count = Annotated[int, Ge(1)]
Width = Annotated[int, Ge(1)]


class PixelShuffle(nn.Module):
    """Squares of r x r neighbours side by side, [N, h / r * w / r, r * r * E], a norm and two layers (InternVL 1.5,
    Chen et al., "How Far Are We to GPT-4V?", 2024), in the order of Idefics3 (Laurençon et al., "Building and better
    understanding vision-language models", 2024)."""

    def __init__(self, encoder_width: int, llm_width: int, factor: Count, hidden_size: Width | None) -> None:
        super().__init__()
        self.factor = factor
        width = factor * factor * encoder_width
        self.norm = nn.LayerNorm(width)
        self.layers = two_layers(width, hidden_size or llm_width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        seen, there = map_of(tokens, "pixel_shuffle")
        _, rows, columns, _ = seen.shape
        if rows % self.factor or columns % self.factor:
            raise Mistake(
                f"projector.factor={self.factor} does not divide the grid of {rows} x {columns} tokens. Set one that "
                "divides both, or change the pictures' or patches' size."
            )
        features = self.layers(self.norm(shuffled(seen, self.factor)))
        mask = shuffled(there.unsqueeze(3), self.factor).any(2)
        return Tokens(features, mask, (rows // self.factor, columns // self.factor))


class CAbstractor(nn.Module):
    """Convolution blocks, the mean over a coarser grid, convolution blocks again, and two layers: [N, side * side, D].

    Source: Honeybee, Cha et al., "Honeybee: Locality-enhanced Projector for Multimodal LLM", 2023; without its learnt
    positions, so that any grid is taken.
    """

    def __init__(
        self, encoder_width: int, llm_width: int, side: Count, blocks: Count, hidden_size: Width | None
    ) -> None:
        super().__init__()
        self.side = side
        width = hidden_size or llm_width
        widths = [encoder_width, *[width] * blocks]
        self.before = nn.Sequential(*(Bottleneck(widths[k], width) for k in range(blocks)))
        self.after = nn.Sequential(*(Bottleneck(width, width) for _ in range(blocks)))
        self.layers = two_layers(width, width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        seen, there = map_of(tokens, "c_abstractor")
        _, rows, columns, _ = seen.shape
        if self.side > min(rows, columns):
            raise Mistake(
                f"projector.side={self.side} is more than the grid of {rows} x {columns} tokens has. Set at most "
                f"{min(rows, columns)}."
            )
        coarse = adaptive_avg_pool2d(self.before(seen).permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)
        return on_grid(self.layers(self.after(coarse)), there)


class Ldp(nn.Module):
    """The lightweight downsample projector: two pointwise layers, a convolution block with a way around it, and one
    that takes every second row and column: [N, h / 2 * w / 2, D], rounded up.

    Source: Chu et al., "MobileVLM: A Fast, Strong and Open Vision Language Assistant for Mobile Devices", 2023.
    """

    def __init__(self, encoder_width: int, llm_width: int) -> None:
        super().__init__()
        self.layers = two_layers(encoder_width, llm_width, llm_width)
        self.block = separable(llm_width, stride=1)
        self.halves = separable(llm_width, stride=2)

    def forward(self, tokens: Tokens) -> Tokens:
        seen, there = map_of(tokens, "ldp")
        seen = self.layers(seen)
        return on_grid(self.halves(seen + self.block(seen)), there)


def map_of(tokens: Tokens, option: str) -> tuple[Tensor, Tensor]:
    """The picture's tokens as [N, h, w, E], zeros for padding, and which are there, bool [N, h, w]. Raises `Mistake`
    for tokens without a grid."""
    if tokens.grid is None:
        raise Mistake(
            f"projector={option} needs the tokens of a picture in rows and columns, and these lie on no such grid. The "
            "encoders patch, and hf_vision with pool=none where its model is a convolution or a plain vision "
            "transformer, have one. Choose such an encoder, or another projector; projector/NAME=mlp is for one "
            "encoder alone."
        )
    count = tokens.grid[0] * tokens.grid[1]
    there = tokens.mask[:, -count:]
    features = torch.where(there.unsqueeze(2), tokens.features[:, -count:], tokens.features.new_zeros(()))
    return features.unflatten(1, tokens.grid), there.unflatten(1, tokens.grid)


def shuffled(seen: Tensor, factor: int) -> Tensor:
    """[N, h, w, C] -> [N, h / r * w / r, r * r * C]: of each square the rows, of each row the columns, of each the
    channels."""
    squares = seen.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # [N, h / r, r, w / r, r, C]
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)


def on_grid(features: Tensor, there: Tensor) -> Tokens:
    """A map [N, h, w, D] as tokens; of an item of padding alone they are masked."""
    _, rows, columns, _ = features.shape
    mask = there.flatten(1).any(1, keepdim=True).expand(-1, rows * columns)
    return Tokens(features.flatten(1, 2), mask, (rows, columns))
