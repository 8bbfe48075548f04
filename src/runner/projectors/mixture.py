"""A projector of several, which each token weighs: [N, T, E] -> [N, T, D]. Shapes: K experts."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from runner.projectors.two_layers import two_layers
from runner.protocols import Mistake, Tokens

Width = Annotated[int, Ge(1)]
Several = Annotated[int, Ge(2)]


class Mixture(nn.Module):
    """Two-layer experts and a linear router; a token is the weighted sum of its best `active` ones (Shazeer et al.,
    "Outrageously Large Neural Networks", 2017). The shares of the best are made to sum to 1, so that one alone would
    teach the router nothing. All experts are computed: a projector is small beside the model.

    `weight` is that of the term `balance`, a value an item: 1 where experts are used alike, up to K / active where
    always the same are (the sequence-wise loss of DeepSeek-AI, "DeepSeek-V3", 2024, after Fedus et al., "Switch
    Transformer", 2021). `shared`: one for all modalities, whose encoders are then of one width.
    """

    def __init__(
        self,
        encoder_width: int,
        llm_width: int,
        experts: Several,
        active: Several,
        hidden_size: Width | None,
        weight: Annotated[float, Ge(0)],
        shared: bool,
    ) -> None:
        super().__init__()
        if active > experts:
            raise Mistake(f"projector.active={active} is more than there are, projector.experts={experts}.")
        self.active = active
        self.shared = shared
        self.term_weights = {"balance": weight} if weight else {}
        self.router = nn.Linear(encoder_width, experts, bias=False)
        self.experts = nn.ModuleList(
            two_layers(encoder_width, hidden_size or llm_width, llm_width) for _ in range(experts)
        )

    def forward(self, tokens: Tokens) -> Tokens:
        # In bfloat16 close scores would be equal ones.
        with torch.autocast(tokens.features.device.type, enabled=False):
            shares = self.router(tokens.features.to(self.router.weight.dtype)).softmax(-1)
        chosen = torch.zeros_like(shares).scatter(-1, shares.topk(self.active).indices, 1.0)
        parts = shares * chosen
        parts = parts / parts.sum(-1, keepdim=True)
        weighed = [parts[..., k, None] * expert(tokens.features) for k, expert in enumerate(self.experts)]
        terms = {"balance": balance(shares, chosen, tokens.mask)} if self.term_weights else {}
        return Tokens(torch.stack(weighed).sum(0), tokens.mask, tokens.grid, terms)


def balance(shares: Tensor, chosen: Tensor, mask: Tensor) -> Tensor:
    """[N]: K * sum over the experts of f * P, f an expert's part of an item's choices, P the mean of its shares.

    shares [N, T, K], which are chosen, 1.0 or 0.0 [N, T, K], and mask bool [N, T]; padding counts for nothing.
    """
    there = mask.unsqueeze(2)
    tokens = there.sum(1).clamp(min=1)
    choices = (chosen * there).sum(1)
    part = choices / choices.sum(1, keepdim=True).clamp(min=1)
    share = (shares * there).sum(1) / tokens
    return shares.shape[2] * (part * share).sum(1)
