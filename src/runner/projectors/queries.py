"""Projectors whose learnt queries look at an encoder's tokens: [N, T, E] -> [N, k, D], whatever T is.

Shapes: k queries, H their width. Padding is not looked at.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.protocols import Mistake, Tokens
from runner.resampler import build_resampler

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


class Perceiver(nn.Module):
    """The resampler of Idefics2 (Laurençon et al., "What matters when building vision-language models?", 2024), after
    Alayrac et al., "Flamingo", 2022: in each layer the queries look at the tokens and at themselves."""

    def __init__(
        self,
        encoder_width: int,
        llm_width: int,
        tokens: Count,
        hidden_size: Count | None,
        layers: Count,
        heads: Count,
        dropout: Share,
    ) -> None:
        super().__init__()
        width = hidden_size or llm_width
        check_heads(width, heads)
        self.before = nn.Linear(encoder_width, width)
        self.resampler = build_resampler(width, tokens, layers, heads, dropout)
        self.after = nn.Linear(width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        seen = self.resampler(context=self.before(tokens.features), attention_mask=seen_mask(tokens))
        return of_queries(self.after(seen), tokens)


class QFormer(nn.Module):
    """The querying transformer of BLIP-2 (Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training", 2023)."""

    def __init__(
        self,
        encoder_width: int,
        llm_width: int,
        tokens: Count,
        hidden_size: Count | None,
        layers: Count,
        heads: Count,
        dropout: Share,
    ) -> None:
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        super().__init__()
        width = hidden_size or llm_width
        check_heads(width, heads)
        self.queries = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.transformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                encoder_hidden_size=encoder_width,
                cross_attention_frequency=1,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                initializer_range=width**-0.5,
            )
        )
        self.after = nn.Linear(width, llm_width)

    def forward(self, tokens: Tokens) -> Tokens:
        seen = self.transformer(
            query_embeds=self.queries.expand(len(tokens.features), -1, -1),
            encoder_hidden_states=tokens.features,
            encoder_attention_mask=seen_mask(tokens),
        ).last_hidden_state
        return of_queries(self.after(seen), tokens)


def check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise Mistake(f"projector.heads={heads} does not divide the queries' width, {width} (projector.hidden_size).")


def seen_mask(tokens: Tokens) -> Tensor:
    """int64 [N, T]. An item of padding alone is seen as one token, as attention must look somewhere; its queries are
    masked in turn."""
    empty = ~tokens.mask.any(1, keepdim=True)
    first = torch.arange(tokens.mask.shape[1], device=tokens.mask.device) == 0
    return (tokens.mask | (empty & first)).long()


def of_queries(features: Tensor, tokens: Tokens) -> Tokens:
    return Tokens(features, tokens.mask.any(1, keepdim=True).expand(features.shape[:2]))
