"""An encoder and what an earlier run learnt to bring its tokens into a space that it shares with others."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from runner.protocols import Encoder, Projector, Tokens


class Aligned(nn.Module):
    """An encoder with a projector of phase 1 on it, both frozen. An item's tokens are scaled so that their mean points
    where phase 1 had it, and its numbers are about 1: its length is the square root of the width.

    Shapes: N items, T tokens an item, W the width of the shared space.
    """

    def __init__(self, encoder: Encoder, aligner: Projector, width: int) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, encoder)
        self.aligner = cast(nn.Module, aligner)
        self.preprocess = encoder.preprocess
        self.width = width

    @property
    def family(self) -> str:
        """`Patch + Mlp`"""
        return " + ".join(getattr(one, "family", type(one).__name__) for one in (self.encoder, self.aligner))

    def forward(self, **inputs: Tensor) -> Tokens:
        """What the encoder takes -> [N, T, W]"""
        tokens: Tokens = self.aligner(self.encoder(**inputs))
        length = torch.linalg.vector_norm(tokens.mean().float(), dim=1).clamp(min=1e-6)
        scale = math.sqrt(self.width) / length
        features = tokens.features * scale.to(tokens.features.dtype).reshape(-1, 1, 1)
        return Tokens(features, tokens.mask, tokens.grid)
