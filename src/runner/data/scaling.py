"""A series scaled by its train steps. Shapes: C channels, R steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runner.data.steps import say
from runner.protocols import Channels, Mistake

FLAT = 1e-8
"""A channel whose deviation is at most this part of its largest value is constant."""


@dataclass(frozen=True)
class Scaled:
    values: np.ndarray
    """float32 [C, R], read-only: every row shares it"""
    channels: Channels


def scaled(
    where: str, names: Sequence[str], values: np.ndarray, train: int, scaling: Literal["z_score", "none"]
) -> Scaled:
    """float64 [C, R] by mean and standard deviation of each channel over the first `train` steps; a constant one is
    only shifted."""
    first = values[:, :train]
    for name, numbers, in_train in zip(names, np.isfinite(values), np.isfinite(first), strict=True):
        if not in_train.any():
            place = "in the train rows; leave it out" if numbers.any() else "at all; leave it out"
            raise Mistake(f"{where}: `{name}` has no number {place} (data.channels, data.targets).")
    if scaling == "none":
        mean, deviation = np.zeros((len(names), 1)), np.ones((len(names), 1))
    else:
        mean, deviation = np.nanmean(first, axis=1, keepdims=True), np.nanstd(first, axis=1, keepdims=True)
        constant = deviation <= FLAT * np.nanmax(np.abs(first), axis=1, keepdims=True)
        if constant.any():
            flat = ", ".join(f"`{name}`" for name, one in zip(names, constant[:, 0], strict=True) if one)
            say(f"{where}: constant in the train rows, so not scaled to deviation 1 but only shifted: {flat}.")
        # The mean of equal numbers is not always that number.
        mean = np.where(constant, np.nanmax(first, axis=1, keepdims=True), mean)
        deviation = np.where(constant, 1.0, deviation)
    with np.errstate(over="ignore"):
        numbers = ((values - mean) / deviation).astype(np.float32)
    if lost := [name for name, one in zip(names, np.isinf(numbers).any(axis=1), strict=True) if one]:
        raise Mistake(f"{where}: `{lost[0]}` has numbers out of all proportion to those in the train rows.")
    return read_only(Scaled(numbers, Channels(tuple(names), mean[:, 0], deviation[:, 0])))


def chosen(whole: Scaled, names: Sequence[str]) -> Scaled:
    """Of some channels, in this order."""
    if tuple(names) == whole.channels.names:
        return whole
    kept = [whole.channels.names.index(name) for name in names]
    channels = Channels(tuple(names), whole.channels.mean[kept], whole.channels.scale[kept])
    return read_only(Scaled(whole.values[kept], channels))


def read_only(one: Scaled) -> Scaled:
    for array in (one.values, one.channels.mean, one.channels.scale):
        array.flags.writeable = False
    return one
