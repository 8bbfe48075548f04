"""Image encoders: pictures to tokens, each with its own preprocess.

Shapes: N pictures, C channels, H = W = size pixels, T patches, E width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from runner.protocols import Mistake, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PatchPreprocess:
    """A picture to `pixels` [C, H, W] in -1..1."""

    size: int
    channels: int

    def __call__(self, picture: Image) -> dict[str, Tensor]:
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), resample=3)  # 3: bicubic
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 127.5 - 1.0
        return {"pixels": pixels.unsqueeze(0) if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()}


class Patch(nn.Module):
    """A vision transformer with learnt positions and pre-norm layers, from scratch.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.
    """

    def __init__(
        self,
        size: Annotated[int, Ge(1)],
        channels: Literal[1, 3],
        patch_size: Annotated[int, Ge(1)],
        hidden_size: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        initializer_range: Annotated[float, Gt(0)],
        position_range: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__()
        if size % patch_size:
            raise Mistake(f"encoder.image.patch_size={patch_size} does not divide encoder.image.size={size}.")
        if hidden_size % heads:
            raise Mistake(f"encoder.image.heads={heads} does not divide encoder.image.hidden_size={hidden_size}.")
        self.width = hidden_size
        self.preprocess = PatchPreprocess(size, channels)
        self.patches = nn.Conv2d(channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.grid = (size // patch_size, size // patch_size)
        self.positions = nn.Parameter(torch.empty(math.prod(self.grid), hidden_size))
        layer = nn.TransformerEncoderLayer(
            hidden_size, heads, 4 * hidden_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        # TransformerEncoder copies one layer, so each would start from the same numbers.
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=position_range if name == "positions" else initializer_range)

    def forward(self, pixels: Tensor) -> Tokens:
        """pixels [N, C, H, W] -> [N, T, E]"""
        features = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions
        features = self.layers(features)
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return Tokens(features, mask, self.grid)
