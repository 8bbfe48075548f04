"""Fusion at the input: items' tokens said in the language model's own words.

Shapes: N items, T tokens an item, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.functional import normalize

from runner.fusion.splice import splice
from runner.protocols import Batch, Fused, Tokens


class Llm(Protocol):
    """What this fusion needs of a language model."""

    embedding: nn.Embedding

    def embed(self, input_ids: Tensor) -> Tensor: ...


class TokenMixture(nn.Module):
    """Each token becomes a mean of the vocabulary's embeddings, weighted by how near it is to each, so that it lies
    where the language model is used to read (Masry et al., "AlignVLM", 2025, whose weights come from a copy of the
    language model's head; here from its embeddings, by cosine). `sharpness`, learnt, is where the factor on the cosines
    starts."""

    placement: Literal["front", "placeholder"] = "placeholder"
    packs = True

    def __init__(self, llm_width: int, sharpness: Annotated[float, Gt(0)]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(llm_width)
        self.sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self._embedding: tuple[nn.Embedding, ...] = ()  # in a tuple, so that it is no child of this part
        self.length = 1.0
        """Of an embedding as the language model reads it, in lengths of its row in the table."""

    def attach(self, llm: Llm) -> None:
        self._embedding = (llm.embedding,)
        weight = llm.embedding.weight
        if weight.device.type != "meta":
            with torch.no_grad():  # Gemma's kind gives embeddings that are longer than the rows of its table
                some = torch.arange(min(64, len(weight)), device=weight.device)
                given = torch.linalg.vector_norm(llm.embed(some).float())
                self.length = float(given / torch.linalg.vector_norm(weight[some].float()).clamp(min=1e-9))

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, M, D]"""
        mixed = {name: Tokens(self.mixture(tokens.features), tokens.mask) for name, tokens in streams.items()}
        return splice(text, batch, mixed, side)

    def mixture(self, features: Tensor) -> Tensor:
        """[N, T, D] -> [N, T, D]"""
        words = self._embedding[0].weight.to(features.dtype)  # [V, D]
        near = normalize(self.norm(features), dim=2) @ normalize(words, dim=1).T  # [N, T, V]
        shares = torch.softmax(self.sharpness.exp() * near.float(), dim=2).to(words.dtype)
        return self.length * (shares @ words)
