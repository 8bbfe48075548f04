"""A causal language model as the objectives use it: its loss where something is to be learnt, and its answers.

Only labelled positions reach the head: a hook picks them before it, so soft caps, logit scales and whatever else a
family does behind its head stay its own.

Shapes: B rows, M tokens, D width, K labelled positions, L text tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from runner.models.decoding import with_cache, without_cache
from runner.protocols import IGNORED, Decoding, Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModel(nn.Module):
    """A causal language model with its head at labelled positions only."""

    def __init__(self, model: PreTrainedModel, files: dict[str, str]) -> None:
        super().__init__()
        self.model = model
        self.files = files
        self._labelled: Tensor | None = None
        # In a tuple, so that it is no second child; PEFT looks it up anew at each call.
        self._embedding = (cast(nn.Embedding, model.get_input_embeddings()),)
        head = model.get_output_embeddings()
        if head is None:
            raise Mistake(f"llm: {type(model).__name__} has no language model head that transformers knows of.")
        head.register_forward_pre_hook(self._keep_labelled)
        self._ids: Tensor | None = None
        for module in model.modules():
            if hasattr(type(module), "get_per_layer_inputs"):
                module.register_forward_pre_hook(self._embed_in_layers, with_kwargs=True)

    @property
    def base(self) -> PreTrainedModel:
        """Without what PEFT puts around it."""
        unwrap: Any = getattr(self.model, "get_base_model", lambda: self.model)
        return cast("PreTrainedModel", unwrap())

    @property
    def family(self) -> str:
        """The architecture's class."""
        return type(self.base).__name__

    @property
    def width(self) -> int:
        """D"""
        return int(self.embedding.weight.shape[1])

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, each called with [B, M, D]."""
        config = self.base.config.get_text_config()
        if getattr(config, "altup_num_inputs", 1) > 1:
            raise Mistake(
                f"llm: the layers of {self.family} carry several copies of a text, so no fusion can work inside it. "
                "Choose one at the input, by fusion=prefix for instance."
            )
        count = config.num_hidden_layers
        lists = (one for one in self.base.modules() if isinstance(one, nn.ModuleList) and len(one) == count)
        found = next(lists, None)
        if found is None:
            raise Mistake(f"llm: {self.family} does not keep its layers in one list, so no fusion can work inside it.")
        return found

    def _keep_labelled(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._labelled is None:
            return None
        hidden = arguments[0]  # [B, M, D] -> [1, K, D]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._labelled).unsqueeze(0), *arguments[1:])

    def _embed_in_layers(
        self, tower: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Gemma 3n embeds each token in every layer too, by its id, and leaves that out where embeddings come in."""
        if named.get("inputs_embeds") is None:
            return None
        if self._ids is None:
            raise Mistake(
                f"model: {self.family} embeds tokens in every layer, so it needs the ids beside the embeddings. Give "
                "the language model input_ids=fused.input_ids beside inputs_embeds=fused.embeddings."
            )
        # An item has no id: the family's own model with towers takes 0 there.
        return arguments, named | {"per_layer_inputs": cast(Any, tower).get_per_layer_inputs(self._ids.clamp(min=0))}

    @contextmanager
    def ids_beside(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The inputs as families take them, ids or embeddings; inside, ids beside embeddings are there for layers."""
        given = dict(inputs)
        if "inputs_embeds" in given and "input_ids" in given:
            self._ids = given.pop("input_ids").to(self.embedding.weight.device, non_blocking=True)
        try:
            yield given
        finally:
            self._ids = None

    @property
    def embedding(self) -> nn.Embedding:
        """[V, D]"""
        return self._embedding[0]

    def embed(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, D]"""
        return cast(Tensor, self.embedding(input_ids))

    def loss_sum(self, labels: Tensor, **inputs: Any) -> Tensor:
        """The summed cross-entropy of the labelled tokens, in float32 or finer. `labels` int64 [B, M] on the CPU.

        `inputs` are input_ids int64 [B, M], or inputs_embeds [B, M, D] with the ids beside them, and what a family
        takes with either.
        """
        targets = labels[:, 1:]
        flat = torch.nn.functional.pad(targets, (0, 1), value=IGNORED).reshape(-1)
        positions = (flat != IGNORED).nonzero().squeeze(1)  # [K]: the positions before the labelled tokens
        logits = self.logits_at(positions, **inputs)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(wide, flat[positions].to(wide.device, non_blocking=True), reduction="sum")

    def logits_at(self, positions: Tensor, **inputs: Any) -> Tensor:
        """[K, V] at `positions`, int64 [K] on the CPU, of the batch laid out flat [B * M]. The head sees no others."""
        self._labelled = positions.to(self.embedding.weight.device, non_blocking=True)
        try:
            with self.ids_beside(inputs) as given:
                logits: Tensor = self.model(**given, use_cache=False).logits  # [1, K, V]
        finally:
            self._labelled = None
        return logits.reshape(-1, logits.shape[-1])

    @torch.no_grad()
    def generate(self, decoding: Decoding, end_ids: Sequence[int], pad_id: int, **inputs: Tensor) -> list[list[int]]:
        """Answers, batched. Prompts are padded on the left. Ids up to the end of the turn. `inputs`: see `loss_sum`."""
        decode = with_cache if decoding.use_cache else without_cache
        ends = set(end_ids)
        answers = []
        for ids in decode(self, decoding, end_ids, pad_id, inputs).tolist():
            stop = next((k for k, token in enumerate(ids) if token in ends), len(ids))
            answers.append(ids[:stop])
        return answers
