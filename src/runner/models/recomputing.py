"""Gradient checkpointing: a decoder layer's activations are computed again in the backward pass instead of kept.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runner.models.llm import LanguageModel
from runner.protocols import Mistake

CACHES = ("past_key_values", "layer_past")


def recompute_layers(llm: LanguageModel) -> None:
    """Let the decoder layers compute again, with their hooks and adapters, wherever there is a gradient to come.

    Transformers' own switch goes by a layer's training mode, in which a frozen layer never is, and leaves a layer's
    hooks outside. Raises `Mistake` for a family whose layers transformers cannot compute again.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = llm.model.named_modules()
    layers: dict[str, Any] = {name: one for name, one in modules if isinstance(one, GradientCheckpointingLayer)}
    outermost = [
        one for name, one in layers.items() if not any(name.startswith(f"{other}.") for other in layers if other)
    ]
    if not outermost:
        raise Mistake(
            f"llm.gradient_checkpointing: transformers cannot compute the layers of {llm.family} again. Set "
            "it to false."
        )
    for layer in outermost:
        layer.__class__ = recomputed(layer.__class__)


@cache
def recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer, under its own name, whose call is computed again."""

    def call(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
        # With a cache it is generation, and a second time would write into the cache twice.
        if not torch.is_grad_enabled() or any(named.get(one) is not None for one in CACHES):
            return kind.__call__(layer, *arguments, **named)
        return checkpoint(kind.__call__, layer, *arguments, use_reentrant=False, **named)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
