"""Answers token by token: with the cache by transformers' own loop, or without it, each token reading all before anew.

transformers keeps the cache on whenever a prompt comes as embeddings, so the loop without it stands here.

Shapes: B rows, M tokens of the longest prompt, A tokens of the longest answer, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from runner.protocols import Decoding

if TYPE_CHECKING:
    from runner.models.llm import LanguageModel


def with_cache(
    llm: LanguageModel, decoding: Decoding, end_ids: Sequence[int], pad_id: int, inputs: Mapping[str, Tensor]
) -> Tensor:
    """int64 [B, A]"""
    from transformers import GenerationConfig

    chance: dict[str, Any] = {"temperature": float(decoding.temperature), "top_k": 0} if decoding.temperature else {}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=bool(chance),
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        use_cache=True,
        **chance,
    )
    with llm.ids_beside(inputs) as given:
        # Of a prompt of embeddings transformers gives the answer alone; after it, it goes on with ids by itself.
        prompt = given["input_ids"].shape[1] if "input_ids" in given else 0
        return cast(Tensor, cast(Any, llm.model).generate(**given, generation_config=config)[:, prompt:])


def without_cache(
    llm: LanguageModel, decoding: Decoding, end_ids: Sequence[int], pad_id: int, inputs: Mapping[str, Tensor]
) -> Tensor:
    """int64 [B, A]. `inputs` are attention_mask int64 [B, M], and input_ids int64 [B, M] or inputs_embeds [B, M, D] or
    both."""
    read = dict(inputs)
    rows = len(read["attention_mask"])
    device = read["attention_mask"].device
    ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    said: list[Tensor] = []
    while len(said) < decoding.max_new_tokens and not bool(ended.all()):
        mask = read["attention_mask"]
        last = torch.arange(1, rows + 1) * mask.shape[1] - 1  # prompts are padded on the left
        # A family that counts positions by itself would count the padding.
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes_positions(llm) else {}
        token = next_token(llm.logits_at(last, **read, **places), decoding.temperature)
        token = torch.where(ended, pad_id, token)
        ended = ended | torch.isin(token, ends)
        said.append(token)
        new = token.unsqueeze(1)
        read["attention_mask"] = torch.cat([mask, torch.ones_like(new)], dim=1)
        if "input_ids" in read:
            read["input_ids"] = torch.cat([read["input_ids"], new.to(read["input_ids"].device)], dim=1)
        if "inputs_embeds" in read:
            embedded = llm.embed(new).to(read["inputs_embeds"].dtype)
            read["inputs_embeds"] = torch.cat([read["inputs_embeds"], embedded], dim=1)
    return torch.stack(said, dim=1)


def next_token(logits: Tensor, temperature: float) -> Tensor:
    """[B, V] -> int64 [B]: the likeliest, or one drawn at a temperature above 0."""
    if not temperature:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits.float() / temperature).softmax(dim=-1), 1).squeeze(1)


def takes_positions(llm: LanguageModel) -> bool:
    return "position_ids" in inspect.signature(llm.base.forward).parameters
