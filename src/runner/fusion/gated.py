"""Fusion at the input: all items before the first user text, each times a gate that its modality learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.fusion.splice import splice
from runner.protocols import Batch, Fused, Tokens


class Gated(nn.Module):
    """An item's tokens times sigmoid(w . mean + b), with w and b of its modality: a modality that does not help can be
    shut, and a bad item of one that does. b starts at `opening`, w at zero, so that all start equally open.

    Source: Arevalo et al., "Gated Multimodal Units for Information Fusion", 2017, with a gate an item.
    """

    placement: Literal["front", "placeholder"] = "front"

    def __init__(
        self, llm_width: int, modalities: Sequence[str], opening: float, dropout: Annotated[float, Ge(0), Lt(1)]
    ) -> None:
        super().__init__()
        self.gate = nn.ModuleDict({name: nn.Linear(llm_width, 1) for name in modalities})
        for gate in self.gate.values():
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, opening)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, M, D]"""
        return splice(text, batch, {name: self.gated(name, tokens) for name, tokens in streams.items()}, side)

    def gated(self, name: str, tokens: Tokens) -> Tokens:
        opened = torch.sigmoid(self.gate[name](tokens.mean())).unsqueeze(1)  # [N, 1, 1]
        return Tokens(self.dropout(tokens.features * opened), tokens.mask)
