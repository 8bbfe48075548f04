"""Fusion at the input: all items before the first user text, inside the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from runner.fusion.splice import splice
from runner.protocols import Batch, Fused, Tokens


class Prefix(nn.Module):
    placement: Literal["front", "placeholder"] = "front"

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, M, D]"""
        return splice(text, batch, streams, side)
