"""Several encoders' vectors to one a row, for objectives without a language model.

Each takes vectors by modality, [B, E] of its encoder's width E, and which rows have them, bool [B]. What a row lacks
never counts: its vector is zeros on arrival, and what replaces it is the same for every row that lacks it. H is the
width that comes out. modality_dropout: while training, the share of a row's modalities that it is made to lack, all but
one at most (Neverova et al., "ModDrop: Adaptive Multi-modal Gesture Recognition", 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

Width = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


class ModalityDropout(nn.Module):
    """So that a model does not lean on one modality alone, and knows rows that lack another."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, present: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is left of `present`; a row that would lose all keeps all."""
        if not (self.training and self.share):
            return present
        there = torch.stack(list(present.values()))  # [modalities, B]
        kept = there & (torch.rand(there.shape, device=there.device) >= self.share)
        kept = torch.where(kept.any(0), kept, there)
        return dict(zip(present, kept, strict=True))


class Normalized(nn.Module):
    """Each modality's vector brought to one scale; where there is none, a vector that is learnt."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.norm = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in widths.items()})
        self.absent = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.where(present[name].unsqueeze(1), norm(vectors[name]), self.absent[name])
            for name, norm in self.norm.items()
        }


class Projected(nn.Module):
    """The same, brought to one width too: [B, H] by modality."""

    def __init__(self, widths: Mapping[str, int], hidden_size: int) -> None:
        super().__init__()
        self.normalized = Normalized(widths)
        self.layer = nn.ModuleDict({name: nn.Linear(width, hidden_size) for name, width in widths.items()})

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        normalized = self.normalized(vectors, present)
        return {name: layer(normalized[name]) for name, layer in self.layer.items()}


class Concat(nn.Module):
    """Side by side: H is the sum of the encoders' widths."""

    def __init__(self, widths: Mapping[str, int], modality_dropout: Share, dropout: Share) -> None:
        super().__init__()
        self.modality_dropout = ModalityDropout(modality_dropout)
        self.width = sum(widths.values())
        self.normalized = Normalized(widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        present = self.modality_dropout(present)
        return self.dropout(torch.cat(list(self.normalized(vectors, present).values()), dim=1))


class Gated(nn.Module):
    """A weighted sum; each row's weights over the modalities that it has are learnt from all of them (Arevalo et al.,
    "Gated Multimodal Units for Information Fusion", 2017)."""

    def __init__(self, widths: Mapping[str, int], hidden_size: Width, modality_dropout: Share, dropout: Share) -> None:
        super().__init__()
        self.modality_dropout = ModalityDropout(modality_dropout)
        self.width = hidden_size
        self.projected = Projected(widths, hidden_size)
        self.gate = nn.Linear(hidden_size * len(widths), len(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        present = self.modality_dropout(present)
        projected = self.projected(vectors, present)
        stacked = torch.stack([torch.tanh(one) for one in projected.values()], dim=1)  # [B, modalities, H]
        missing = ~torch.stack([present[name] for name in projected], dim=1)
        scores = self.gate(stacked.flatten(1)).float().masked_fill(missing, float("-inf"))
        weights = torch.softmax(scores, dim=1).to(stacked.dtype)
        return self.dropout((weights.unsqueeze(-1) * stacked).sum(1))


class Bilinear(nn.Module):
    """Every modality, and the product of every two (low-rank bilinear pooling: Kim et al., "Hadamard Product for
    Low-rank Bilinear Pooling", 2017)."""

    def __init__(self, widths: Mapping[str, int], hidden_size: Width, modality_dropout: Share, dropout: Share) -> None:
        super().__init__()
        self.modality_dropout = ModalityDropout(modality_dropout)
        pairs = len(widths) * (len(widths) - 1) // 2
        self.width = hidden_size * (len(widths) + pairs)
        self.projected = Projected(widths, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        present = self.modality_dropout(present)
        singles = list(self.projected(vectors, present).values())
        pairs = [torch.tanh(one) * torch.tanh(two) for one, two in combinations(singles, 2)]
        return self.dropout(torch.cat([*singles, *pairs], dim=1))


class Attention(nn.Module):
    """A learnt query looks at the modalities that a row has, through one attention layer."""

    def __init__(
        self, widths: Mapping[str, int], hidden_size: Width, heads: Width, modality_dropout: Share, dropout: Share
    ) -> None:
        super().__init__()
        self.modality_dropout = ModalityDropout(modality_dropout)
        self.width = hidden_size
        self.projected = Projected(widths, hidden_size)
        self.kind = nn.Parameter(torch.randn(len(widths), hidden_size) * 0.02)
        self.query = nn.Parameter(torch.randn(1, 1, hidden_size) * 0.02)
        self.attention = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        present = self.modality_dropout(present)
        projected = self.projected(vectors, present)
        tokens = torch.stack(list(projected.values()), dim=1) + self.kind
        missing = ~torch.stack([present[name] for name in projected], dim=1)
        query = self.query.expand(len(tokens), -1, -1)
        seen, _ = self.attention(query, tokens, tokens, key_padding_mask=missing, need_weights=False)
        return self.dropout((query + seen).squeeze(1))
