"""Items small enough for a page: a picture as PNG, a sound and a series as the paths of an SVG.

Shapes: C channels, T samples or numbers of a channel.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from runner.data.decode import decode
from runner.protocols import Row

LARGEST = 160
"""Pixels of a thumbnail's longer side, and points of a path."""
SMALLEST = 64
"""Pixels that a tiny picture is shown in, each of its own larger."""
HIGH = 32
"""Height of a path's picture."""
MOST_CHANNELS = 12
TEXT = 200
"""Characters of an item that is no picture, sound or series."""


@dataclass(frozen=True)
class Curve:
    path: str
    """Of an SVG that is LARGEST x HIGH"""
    name: str
    told: str
    """Its range."""


@dataclass(frozen=True)
class Drawing:
    told: str
    """`8 x 8 pixels`"""
    picture: str = ""
    """A data URL."""
    size: tuple[int, int] = (0, 0)
    """In which the picture is shown."""
    curves: tuple[Curve, ...] = ()
    filled: bool = False


def drawn(modality: str, value: Any, row: Row) -> Drawing:
    """An item of a row, decoded as the encoder's is. Raises `Mistake` where it cannot be."""
    item = decode(modality, value)
    if isinstance(item, Image.Image):
        return thumbnail(item)
    if modality == "audio" and isinstance(item, tuple):
        samples, rate = item
        return waveform(np.atleast_2d(np.asarray(samples)), int(rate))
    if modality == "series":
        names = row.horizon.inputs.names if row.horizon else ()
        return series(np.atleast_2d(np.asarray(item, dtype=np.float32)), names)
    text = str(item)
    return Drawing(text if len(text) <= TEXT else f"{text[: TEXT - 1]}…")


def thumbnail(picture: Image.Image) -> Drawing:
    told = f"{picture.width} x {picture.height} pixels"
    small = picture.copy()
    small.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    larger = max(1, SMALLEST // max(small.size))
    data = base64.b64encode(file.getvalue()).decode()
    return Drawing(told, f"data:image/png;base64,{data}", (small.width * larger, small.height * larger))


def waveform(samples: np.ndarray, rate: int) -> Drawing:
    """The lowest and the highest of all channels in each of LARGEST stretches of time, by the loudest sample."""
    low, high = samples.min(axis=0), samples.max(axis=0)
    parts = np.linspace(0, samples.shape[1], min(LARGEST, samples.shape[1]) + 1).astype(int)[:-1]
    loudest = max(float(np.abs(samples).max()), 1e-9)
    tops, bottoms = (np.round(HIGH / 2 * (1 - side / loudest), 1) for side in
                     (np.maximum.reduceat(high, parts), np.minimum.reduceat(low, parts)))  # fmt: skip
    across = np.round(np.linspace(0, LARGEST, len(parts)), 1)
    points = [*zip(across, tops, strict=True), *zip(across[::-1], bottoms[::-1], strict=True)]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z"
    channels = f", {samples.shape[0]} channels" if samples.shape[0] > 1 else ""
    told = f"{samples.shape[1] / rate:.2f} s, {rate:,} Hz{channels}"
    return Drawing(told, curves=(Curve(path, "", f"loudest {loudest:.2g}"),), filled=True)


def series(values: np.ndarray, names: Sequence[str]) -> Drawing:
    """A curve a channel, each by its own range."""
    channels, steps = values.shape
    curves = []
    for channel in range(min(channels, MOST_CHANNELS)):
        name = names[channel] if channel < len(names) else (f"channel {channel + 1}" if channels > 1 else "")
        curves.append(sparkline(values[channel], name))
    missing = int(np.isnan(values).sum())
    told = f"{steps:,} steps" + (f" of {channels} channels" if channels > 1 else "")
    told += f", {missing:,} missing" if missing else ""
    told += f"; the first {MOST_CHANNELS} are drawn" if channels > MOST_CHANNELS else ""
    return Drawing(told, curves=tuple(curves))


def sparkline(values: np.ndarray, name: str) -> Curve:
    """[T], with a gap where a value is missing; where steps lie closer than points, the mean of those that are one."""
    points = min(LARGEST, len(values))
    parts = (np.arange(len(values)) * points) // len(values)
    there = np.isfinite(values)
    if not there.any():
        return Curve("", name, "nothing there")
    count = np.bincount(parts[there], minlength=points)
    means = np.bincount(parts[there], values[there].astype(np.float64), minlength=points) / np.maximum(count, 1)
    low, high = float(values[there].min()), float(values[there].max())
    across = np.round(np.linspace(1, LARGEST - 1, points), 1) if points > 1 else np.array([LARGEST / 2])
    down = np.round(HIGH - 2 - (HIGH - 4) * ((means - low) / (high - low) if high > low else 0.5 + 0 * means), 1)
    pieces = []
    for stretch in np.split(np.arange(points), np.flatnonzero(np.diff(count > 0)) + 1):
        if count[stretch[0]]:
            line = "L".join(f"{across[k]:g} {down[k]:g}" for k in stretch)
            pieces.append(f"M{line}" + ("h0.1" if len(stretch) == 1 else ""))  # a dot, where caps are round
    return Curve("".join(pieces), name, f"{low:.3g} to {high:.3g}")
