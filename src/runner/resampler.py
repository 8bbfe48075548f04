"""Learnt latents that look at tokens: the resampler of Idefics2, which a projector and a fusion are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler


def build_resampler(width: int, tokens: int, layers: int, heads: int, dropout: float) -> Idefics2PerceiverResampler:
    """`tokens` latents of `width`.

    Source: Laurençon et al., "What matters when building vision-language models?", 2024, after Alayrac et al.,
    "Flamingo", 2022.
    """
    from torch import nn
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    resampler = Idefics2PerceiverResampler(
        Idefics2PerceiverConfig(
            hidden_size=width,
            resampler_n_latents=tokens,
            resampler_depth=layers,
            resampler_n_heads=heads,
            resampler_head_dim=width // heads,
            num_key_value_heads=heads,
            attention_dropout=dropout,
            initializer_range=width**-0.5,  # the family's 0.02 is for thousands: narrow, it would see next to nothing
        )
    )
    # The family starts from equal latents, which would stay equal, as they all get the same gradient.
    nn.init.normal_(resampler.latents, std=1.0)
    return resampler
