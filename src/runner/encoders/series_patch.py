"""A small transformer over patches of a time series, from scratch, that keeps the amplitude.

Shapes: N series, C channels, S steps, L steps of a patch, P patches, G groups of channels (one of all C, or C of one),
T = G * P tokens, E width.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from runner.encoders.series import SeriesPreprocess, in_patches, normalise, sinusoids
from runner.protocols import Mistake, Tokens

EPSILON = 1e-5
"""Added to a standard deviation, so that a constant channel can be divided by it."""


class SeriesPatch(nn.Module):
    """Patches of the normalised series through pre-norm layers, with the mean and deviation of each channel beside
    them: normalisation alone would forget how large a signal is, which often is what tells two classes apart.

    With `channels` given, a patch holds all channels and there are P tokens. Without, any number of channels is taken,
    each patch of each channel is a token, and all of them see each other.
    Source of patches as tokens: Nie et al., "A Time Series is Worth 64 Words" (PatchTST), 2023.
    """

    def __init__(
        self,
        channels: Annotated[int, Ge(1)] | None,
        patch_length: Annotated[int, Ge(1)],
        stride: Annotated[int, Ge(1)],
        hidden_size: Annotated[int, Ge(2)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        initializer_range: Annotated[float, Gt(0)],
        position_range: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__()
        if hidden_size % heads or hidden_size % 2:
            raise Mistake(
                f"encoder.series.hidden_size={hidden_size} must be even and a multiple of encoder.series.heads={heads}."
            )
        if stride > patch_length:
            raise Mistake(
                f"encoder.series.stride={stride} is larger than encoder.series.patch_length={patch_length}: steps "
                "between patches would be seen by none."
            )
        self.width = hidden_size
        self.channels = channels
        self.patch_length, self.stride = patch_length, stride
        self.preprocess = SeriesPreprocess(
            patch_length, stride, channels, longest=None, over_length="error", aligned="start", needs_whole_patch=False
        )
        together = channels or 1
        self.patches = nn.Linear(2 * together * patch_length, hidden_size)
        self.statistics = nn.Linear(3 * together, hidden_size)
        self.position = nn.Linear(hidden_size, hidden_size, bias=False)
        self.channel = None if channels else nn.Linear(hidden_size, hidden_size, bias=False)
        layer = nn.TransformerEncoderLayer(
            hidden_size, heads, 4 * hidden_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        # TransformerEncoder copies one layer, so each would start from the same numbers.
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                is_place = name in ("position.weight", "channel.weight")  # of sinusoids, whose squares sum to E / 2
                std = position_range / math.sqrt(hidden_size / 2) if is_place else initializer_range
                nn.init.normal_(parameter, std=std)

    def forward(self, values: Tensor, valid: Tensor, patches: Tensor, **lengths: Tensor) -> Tokens:
        """values [N, C, S], valid bool [N, C, S], patches bool [N, P] -> [N, T, E]; `lengths` of padded ones say no
        more than `valid` and `patches` do."""
        normalised = normalise(values, valid, EPSILON)
        steps = self.grouped(in_patches(normalised.values, self.patch_length, self.stride))  # [N, G, P, F * L]
        there = self.grouped(in_patches(valid, self.patch_length, self.stride))
        known = valid.any(dim=-1, keepdim=True)
        # asinh is the identity near 0 and a logarithm far from it: any unit of measurement gives a usable number.
        statistics = [normalised.mean.asinh(), normalised.scale.asinh(), normalised.scale.log()]
        amplitude = torch.where(known, torch.cat(statistics, dim=-1), values.new_zeros(()))  # [N, C, 3]
        amplitude = amplitude.flatten(1).unsqueeze(1) if self.channels else amplitude  # [N, G, F * 3]
        features = self.patches(torch.cat([steps, there.to(steps.dtype)], dim=-1))
        features = features + self.statistics(amplitude).unsqueeze(2) + self.places(features)
        mask = there.any(dim=-1) & patches.unsqueeze(1)  # [N, G, P]
        features, mask = features.flatten(1, 2), mask.flatten(1)
        features = self.layers(features, src_key_padding_mask=~mask)
        return Tokens(torch.where(mask.unsqueeze(-1), features, features.new_zeros(())), mask)

    def grouped(self, patches: Tensor) -> Tensor:
        """[N, C, P, L] -> [N, G, P, F * L] with F channels together"""
        return patches.transpose(1, 2).flatten(2).unsqueeze(1) if self.channels else patches

    def places(self, features: Tensor) -> Tensor:
        """[G, P, E]: which patch, and which channel where each is apart."""
        groups, patches = features.shape[1:3]
        places: Tensor = self.position(sinusoids(patches, self.width, features.device)).unsqueeze(0)
        if self.channel is None:
            return places
        return places + self.channel(sinusoids(groups, self.width, features.device)).unsqueeze(1)
