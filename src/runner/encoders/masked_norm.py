"""The one layer of the wav2vec2 family that sees padding: a norm over all of a sound's time.

Shapes: N sounds, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MaskedGroupNorm(nn.GroupNorm):
    """A norm of each channel over the frames of its own sound; without `lengths` it is the layer that it replaces."""

    lengths: Tensor | None = None
    """int64 [N]"""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, T] -> [N, C, T]"""
        if self.lengths is None:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        inside = (torch.arange(wide.shape[-1], device=wide.device) < self.lengths.reshape(-1, 1)).unsqueeze(1)
        count = self.lengths.clamp(min=1).reshape(-1, 1, 1)
        mean = wide.masked_fill(~inside, 0.0).sum(-1, keepdim=True) / count
        variance = (wide - mean).square().masked_fill(~inside, 0.0).sum(-1, keepdim=True) / count
        normed = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (normed * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)).to(input.dtype)


def mask_norms(model: nn.Module) -> None:
    """Replace the norm of each first convolution (`...GroupNormConvLayer`); the weights keep their names."""
    for layer in model.modules():
        norm = getattr(layer, "layer_norm", None)
        if type(layer).__name__.endswith("GroupNormConvLayer") and isinstance(norm, nn.GroupNorm):
            if norm.num_groups == norm.num_channels:
                norm.__class__ = MaskedGroupNorm


@contextmanager
def lengths_known(model: nn.Module, samples: Tensor | None) -> Iterator[None]:
    """Tell the replaced norms how many samples each sound has, int64 [N]; None where there is no padding."""
    layers: list[Any] = [
        layer for layer in model.modules() if isinstance(getattr(layer, "layer_norm", None), MaskedGroupNorm)
    ]
    try:
        for layer in layers:
            if samples is not None:
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                layer.layer_norm.lengths = (samples - kernel) // stride + 1
        yield
    finally:
        for layer in layers:
            layer.layer_norm.lengths = None
