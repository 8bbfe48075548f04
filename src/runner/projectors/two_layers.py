"""What most projectors end in."""

from __future__ import annotations

from torch import nn


def two_layers(width: int, hidden_size: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, width_out))
