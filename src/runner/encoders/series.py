"""What the encoders of time series share: from channels of numbers to patches that know which of their steps are there.

Shapes: N series, C channels, T steps, L steps of a patch, P patches, E width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from runner.protocols import Mistake, Tokens

OverLength = Literal["error", "keep_last"]
Reduction = Literal["mean", "concat"]


@dataclass(frozen=True)
class SeriesPreprocess:
    """A series, [C, T] with NaN or None for a missing value, to whole patches of it:

    `values` float32 [C, S], 0 where there is no value; `valid` bool [C, S]; `patches` bool [P], all True, with
    S = patch_length + (P - 1) * stride. A batch pads all three at the end, so that False means padding.
    """

    patch_length: int
    stride: int
    channels: int | None
    """How many there must be; None: any number."""
    longest: int | None
    """Steps that the encoder takes; None: any number."""
    over_length: OverLength
    aligned: Literal["start", "end"]
    """Where the series stands in its whole patches: what they have more than it is filled after or before it."""
    needs_whole_patch: bool
    """A patch counts only when none of its steps is missing, so one such there must be."""
    whole: bool = False
    """The series must have exactly `longest` steps, none of them missing."""

    def __call__(self, series: Any) -> dict[str, Tensor]:
        values = self.checked(series)
        steps = values.shape[1]
        patches = 1 + max(0, -(-(steps - self.patch_length) // self.stride))
        fill = self.patch_length + (patches - 1) * self.stride - steps
        values = np.pad(values, [(0, 0), (0, fill) if self.aligned == "start" else (fill, 0)], constant_values=np.nan)
        valid = np.isfinite(values)
        if self.needs_whole_patch:
            windows = np.lib.stride_tricks.sliding_window_view(valid, self.patch_length, axis=1)[:, :: self.stride]
            if not windows.all(axis=2).any():
                raise Mistake(
                    f"no stretch of {self.patch_length} steps, the encoder's patch, is there whole: the series has "
                    f"{steps} steps, {int(valid.any(axis=0).sum())} of them with a number. Take a longer one."
                )
        return {
            "values": torch.from_numpy(np.where(valid, values, np.float32(0))),
            "valid": torch.from_numpy(valid),
            "patches": torch.ones(patches, dtype=torch.bool),
        }

    def checked(self, series: Any) -> np.ndarray:
        """float32 [C, T]"""
        try:
            values = np.asarray(series, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise Mistake("the series is not a list of channels, each an equally long list of numbers.") from error
        if values.ndim != 2 or not values.size:
            raise Mistake(f"the series has the shape {list(values.shape)}; it must have a channel and a step: [C, T].")
        if self.channels is not None and len(values) != self.channels:
            raise Mistake(f"the series has {len(values)} channels, and the encoder takes {self.channels}.")
        if self.longest is not None and values.shape[1] > self.longest:
            if self.over_length == "error":
                raise Mistake(
                    f"the series has {values.shape[1]} steps, and the encoder takes {self.longest}. Shorten it, or "
                    "keep its end (encoder.series.over_length=keep_last)."
                )
            values = values[:, -self.longest :]
        finite = np.isfinite(values)
        if not finite.any():
            raise Mistake("the series has no number.")
        if self.whole and (values.shape[1] != self.longest or not finite.all()):
            raise Mistake(
                f"the series has {values.shape[1]} steps and {int((~finite).sum())} missing values; this encoder mixes "
                f"all steps and takes exactly {self.longest}, none missing."
            )
        return values


class Normalised(NamedTuple):
    """A series by its own mean and deviation."""

    values: Tensor
    """[N, C, S], 0 where there is no value"""
    mean: Tensor
    """[N, C, 1]"""
    scale: Tensor
    """[N, C, 1], the standard deviation and epsilon"""


def normalise(values: Tensor, valid: Tensor, epsilon: float) -> Normalised:
    """Each channel of each series by its own valid values alone, as MOMENT does it. values, valid [N, C, S].

    Source: Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting", 2022, without its
    affine parameters.
    """
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    nothing = values.new_zeros(())
    mean = torch.where(valid, values, nothing).sum(dim=-1, keepdim=True) / count
    centred = torch.where(valid, values - mean, nothing)
    scale = (centred.square().sum(dim=-1, keepdim=True) / count).sqrt() + epsilon
    return Normalised(centred / scale, mean, scale)


def in_patches(steps: Tensor, patch_length: int, stride: int) -> Tensor:
    """[N, C, S] -> [N, C, P, L]"""
    return steps.unfold(-1, patch_length, stride)


def over_channels(features: Tensor, valid: Tensor, reduction: Reduction) -> Tokens:
    """Channels that were encoded apart, [N, C, P, E], to one token a patch: their mean, or all of them in a row.

    `valid` bool [N, C, P]: a channel that is not there counts in no mean, and is 0 in a row of all.
    """
    features = torch.where(valid.unsqueeze(-1), features, features.new_zeros(()))
    if reduction == "concat":
        features = features.permute(0, 2, 3, 1).flatten(2)  # [N, P, E * C], the order of momentfm
    else:
        features = features.sum(dim=1) / valid.sum(dim=1).clamp(min=1).unsqueeze(-1)
    return Tokens(features, valid.any(dim=1))


def additive_mask(valid: Tensor) -> Tensor:
    """bool [B, P] of keys to float32 [B, 1, 1, P], to be added to attention's scores.

    Where no key is valid all are seen, lest the softmax of nothing be NaN; what comes of it is thrown away.
    """
    seen = valid | ~valid.any(dim=-1, keepdim=True)
    hidden = torch.finfo(torch.float32).min
    return torch.where(seen, 0.0, hidden)[:, None, None, :]


def sinusoids(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """[count, width], width even: sines at even places, cosines at odd ones.

    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """
    positions = torch.arange(count, dtype=torch.float32, device=device).unsqueeze(1)
    frequencies = (torch.arange(0, width, 2, dtype=torch.float32, device=device) * -(math.log(10000.0) / width)).exp()
    angles = positions * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
