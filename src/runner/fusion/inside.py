"""Fusion inside the language model: its text stays as it is, and its layers read the items from beside.

The parts' own weights stand here, not in the language model: forward hooks that are put on its layers after LoRA call
them, so that LoRA's patterns never hit them. Each starts as if it were not there. A text token reads the items that
come before it, and what is generated reads all.

Shapes: B rows, Q tokens that a layer is given (the whole text, or what goes on from the cache), S tokens of a row's
items, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.fusion.lines import kinds, lined_up
from runner.fusion.splice import splice
from runner.protocols import Batch, Fused, Mistake, Tokens

Count = Annotated[int, Ge(1)]


class Llm(Protocol):
    """What these fusions need of a language model."""

    width: int
    layers: nn.ModuleList


@dataclass(frozen=True)
class Memory:
    """The items that the rows of a batch have beside their text."""

    features: Tensor
    """[B, S, D]"""
    mask: Tensor
    """bool [B, S]"""
    seen: Tensor
    """bool [B, L, S]: what each token of the text as it was given sees"""
    kept: dict[nn.Module, Any]
    """Keys and values by layer, while nothing is to be learnt: each token of an answer asks for them again."""

    def seen_by(self, tokens: int) -> Tensor:
        """bool [B, Q, S]. Fewer tokens than the text has go on from the cache; more are the text and what follows."""
        given = self.seen.shape[1]
        if tokens == given:
            return self.seen
        after = tokens if tokens < given else tokens - given
        later = self.mask.unsqueeze(1).expand(-1, after, -1)
        return later if tokens < given else torch.cat([self.seen, later], dim=1)


class Inside(nn.Module):
    """What both have in common: the text alone goes in, and layers of the language model find the items here.

    The items are those of the batch that was fused last, so a batch goes all the way back before another is fused:
    where layers are computed again for that (llm.gradient_checkpointing), they ask for the items again.
    """

    placement: Literal["front", "placeholder"] = "placeholder"
    packs = False

    def __init__(
        self, llm_width: int, modalities: Sequence[str], every: int, make_layer: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.every = every
        self.make_layer = make_layer
        self.kind = kinds(modalities, llm_width)
        self.layers = nn.ModuleList()
        self.memory: Memory | None = None

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D], streams of [N, T, D] -> [B, L, D], the text alone"""
        self.memory = None
        if streams:
            lines = lined_up(batch, streams, self.kind)
            seen = lines.seen(batch.lengths, max(batch.lengths), side)
            self.memory = Memory(lines.features, lines.mask, seen, {})
        return splice(text, batch, {}, side)

    def attach(self, llm: Llm) -> None:
        """Make a layer of this part's own for every so many of the language model's, to be called before them."""
        if self.every > len(llm.layers):
            raise Mistake(
                f"fusion.every={self.every}: the language model has {len(llm.layers)} layers. Set at most that."
            )
        for layer in list(llm.layers)[self.every - 1 :: self.every]:
            own = self.make_layer()
            self.layers.append(own)
            layer.register_forward_pre_hook(partial(self.before, own), with_kwargs=True)

    def before(
        self, own: nn.Module, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Called with what a layer of the language model is about to be; gives what it is to be instead."""
        memory = self.memory
        if memory is None:
            return None
        hidden: Tensor = given[0] if given else named["hidden_states"]
        if hidden.dim() != 3:
            raise Mistake(
                f"fusion: the layers of this language model carry {list(hidden.shape)}, not [rows, tokens, width], so "
                "nothing can work inside them. Choose a fusion at the input, by fusion=prefix for instance."
            )
        seen = memory.seen_by(hidden.shape[1])
        changed = own(hidden, memory, seen)
        hidden = torch.where(seen.any(2, keepdim=True), changed.to(hidden.dtype), hidden)
        return ((hidden, *given[1:]), named) if given else ((), {**named, "hidden_states": hidden})


class CrossAttention(Inside):
    """Before every so many layers the text's tokens attend to the items', through a gate that starts shut (Alayrac et
    al., "Flamingo: a Visual Language Model for Few-Shot Learning", 2022). The block is that of Llama 3.2 Vision."""

    def __init__(
        self,
        llm_width: int,
        modalities: Sequence[str],
        every: Count,
        heads: Count,
        intermediate_size: Count | None,
        dropout: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        if llm_width % heads:
            raise Mistake(f"fusion.heads={heads} does not divide the language model's width, {llm_width}.")
        make = partial(Attending, llm_width, intermediate_size or 4 * llm_width, heads, dropout)
        super().__init__(llm_width, modalities, every, make)


class Attending(nn.Module):
    def __init__(self, width: int, intermediate_size: int, heads: int, dropout: float) -> None:
        from transformers.models.mllama.configuration_mllama import MllamaTextConfig
        from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

        super().__init__()
        config = MllamaTextConfig(
            hidden_size=width,
            intermediate_size=intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            dropout=dropout,
        )
        config._attn_implementation = "sdpa"
        self.block = MllamaCrossAttentionDecoderLayer(config, layer_idx=0)

    def forward(self, hidden: Tensor, memory: Memory, seen: Tensor) -> Tensor:
        """[B, Q, D], and what they see of the items, bool [B, Q, S] -> [B, Q, D]"""
        from transformers import DynamicCache

        cache = None
        states: Tensor | None = memory.features
        if not torch.is_grad_enabled():
            states = None if self in memory.kept else states
            cache = memory.kept.setdefault(self, DynamicCache())
        # A token that sees nothing must look somewhere; what it finds is not taken.
        looks = (seen | ~seen.any(2, keepdim=True)).unsqueeze(1)
        return cast(Tensor, self.block(at_least_float32(hidden), states, looks, None, None, past_key_values=cache))


class Film(Inside):
    """Before every so many layers each of the text's numbers is scaled and shifted by what the mean of the items that
    it sees says (Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018)."""

    def __init__(self, llm_width: int, modalities: Sequence[str], every: Count, hidden_size: Count | None) -> None:
        super().__init__(llm_width, modalities, every, partial(Modulating, llm_width, hidden_size or llm_width))


class Modulating(nn.Module):
    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.condition = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden_size), nn.SiLU())
        self.scale_and_shift = nn.Linear(hidden_size, 2 * width)
        nn.init.zeros_(self.scale_and_shift.weight)
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, hidden: Tensor, memory: Memory, seen: Tensor) -> Tensor:
        """[B, Q, D], and what they see of the items, bool [B, Q, S] -> [B, Q, D]"""
        shares = seen.to(memory.features.dtype)
        mean = shares @ memory.features / shares.sum(2, keepdim=True).clamp(min=1)  # [B, Q, D]
        scale, shift = self.scale_and_shift(self.condition(mean)).chunk(2, dim=2)
        return at_least_float32(hidden) * (1 + scale) + shift


def at_least_float32(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
