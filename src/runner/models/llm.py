"""Causal language models: where they come from, and what the objectives need of them.

Only labelled positions reach the head: a hook picks them before it, so soft caps, logit scales and whatever else a
family does behind its head stay its own.

Shapes: B rows, M tokens, D width, K labelled positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from runner import pretrained
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.decoding import with_cache, without_cache
from runner.protocols import IGNORED, Decoding, Fault, Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEAD_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference between the loss at labelled positions and a family's own, by the weights' type."""


class LanguageModelSource(Protocol):
    """What an `llm` option offers: the tokenizer first, so that bad data is told before weights are read."""

    trainable: bool

    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    def max_length(self) -> int | None:
        """Tokens that the model takes, if it says so."""
        ...

    def width(self) -> int:
        """D: the width of a token's embedding."""
        ...

    def load(self) -> PreTrainedModel: ...

    def skeleton(self) -> PreTrainedModel:
        """The architecture alone; call it under `torch.device("meta")`."""
        ...

    def files(self) -> dict[str, str]:
        """sha256 of each weight file by name; empty when the weights have no file and belong into checkpoints."""
        ...


class Tiny:
    """A random Qwen2 with the byte-level tokenizer."""

    trainable = True

    def __init__(
        self,
        hidden_size: Annotated[int, Ge(1)],
        intermediate_size: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        key_value_heads: Annotated[int, Ge(1)],
        max_length: Annotated[int, Ge(1)],
        initializer_range: Annotated[float, Gt(0)],
    ) -> None:
        if hidden_size % heads or heads % key_value_heads:
            raise Mistake(
                f"llm.heads={heads} must divide llm.hidden_size={hidden_size}, and "
                f"llm.key_value_heads={key_value_heads} must divide llm.heads."
            )
        self.shape: dict[str, Any] = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": max_length,
            "initializer_range": initializer_range,
            "tie_word_embeddings": True,
        }

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return byte_tokenizer()

    def max_length(self) -> int | None:
        return int(self.shape["max_position_embeddings"])

    def width(self) -> int:
        return int(self.shape["hidden_size"])

    def load(self) -> PreTrainedModel:
        return self.skeleton()

    def skeleton(self) -> PreTrainedModel:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        tokenizer = self.tokenizer()
        config = Qwen2Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **self.shape)
        return Qwen2ForCausalLM(config)

    def files(self) -> dict[str, str]:
        return {}


class Pretrained:
    """A causal language model of transformers, from a folder or a hub name."""

    def __init__(self, path: str, dtype: Literal["float32", "bfloat16", "float16"], trainable: bool) -> None:
        self.path = path
        self.dtype = dtype
        self.trainable = trainable

    def tokenizer(self) -> PreTrainedTokenizerFast:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        # AutoTokenizer goes by the model's type even where the folder names the plain class: Qwen2's would add a token.
        plain = ("TokenizersBackend", "PreTrainedTokenizerFast")
        config = self._read("a tokenizer", get_tokenizer_config)
        is_plain = isinstance(config, dict) and config.get("tokenizer_class") in plain
        read = PreTrainedTokenizerFast if is_plain else AutoTokenizer
        return self._read("a tokenizer", read.from_pretrained)

    def max_length(self) -> int | None:
        return getattr(self._text_config(), "max_position_embeddings", None)

    def width(self) -> int:
        config = self._text_config()
        if not isinstance(getattr(config, "hidden_size", None), int):
            raise Mistake(
                f"llm.path={self.path}: a {config.model_type} model is no causal language model. Give one that is."
            )
        return int(config.hidden_size)

    def _text_config(self) -> Any:
        from transformers import AutoConfig

        return self._read("a config", AutoConfig.from_pretrained).get_text_config()

    def load(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = getattr(torch, self.dtype)
        what, read = "a causal language model", AutoModelForCausalLM.from_pretrained
        model, loaded = self._read(what, read, dtype=dtype, output_loading_info=True)
        if missing := sorted(loaded["missing_keys"]):
            raise Mistake(
                f"llm.path={self.path}: the folder lacks {len(missing)} of the model's tensors ({missing[0]}), which "
                "would be random. Give one with all its weights."
            )
        # Torch cannot tell of float8 whether it is finite.
        weights = [(name, one) for name, one in model.named_parameters() if one.dtype.itemsize > 1]
        broken = next((name for name, one in weights if not torch.isfinite(one).all()), None)
        if broken:
            raise Mistake(f"llm.path={self.path}: {broken} holds NaN or infinity. Give a folder with sound weights.")
        # Else generation takes what is not said from the folder's own: a repetition penalty would make greedy another.
        model.generation_config = GenerationConfig()
        return cast("PreTrainedModel", model)

    def skeleton(self) -> PreTrainedModel:
        from transformers import AutoConfig, AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(self._read("a config", AutoConfig.from_pretrained))

    def files(self) -> dict[str, str]:
        return pretrained.weight_files(self.path)

    def _read(self, what: str, from_pretrained: Any, **arguments: Any) -> Any:
        return pretrained.read("llm.path", self.path, what, from_pretrained, **arguments)


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

    @property
    def family(self) -> str:
        """The architecture's class, under PEFT too."""
        unwrap: Any = getattr(self.model, "get_base_model", lambda: self.model)
        return type(unwrap()).__name__

    @property
    def width(self) -> int:
        """D"""
        return int(self.embedding.weight.shape[1])

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, under PEFT too."""
        unwrap: Any = getattr(self.model, "get_base_model", lambda: self.model)
        base = unwrap()
        count = base.config.get_text_config().num_hidden_layers
        lists = (one for one in base.modules() if isinstance(one, nn.ModuleList) and len(one) == count)
        found = next(lists, None)
        if found is None:
            raise Mistake(f"llm: {self.family} does not keep its layers in one list, so no fusion can work inside it.")
        return found

    @property
    def recomputes(self) -> bool:
        """Whether its layers keep no activations for the backward pass (llm.gradient_checkpointing)."""
        return any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers)

    def _keep_labelled(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._labelled is None:
            return None
        hidden = arguments[0]  # [B, M, D] -> [1, K, D]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._labelled).unsqueeze(0), *arguments[1:])

    @property
    def embedding(self) -> nn.Embedding:
        """[V, D]"""
        return self._embedding[0]

    def embed(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, D]"""
        return cast(Tensor, self.embedding(input_ids))

    def loss_sum(self, labels: Tensor, **inputs: Any) -> Tensor:
        """The summed cross-entropy of the labelled tokens, in float32 or finer. `labels` int64 [B, M] on the CPU."""
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
            logits: Tensor = self.model(**inputs, use_cache=False).logits  # [1, K, V]
        finally:
            self._labelled = None
        return logits.reshape(-1, logits.shape[-1])

    @torch.no_grad()
    def generate(self, decoding: Decoding, end_ids: Sequence[int], pad_id: int, **inputs: Tensor) -> list[list[int]]:
        """Answers, batched. Prompts are padded on the left. Ids up to the end of the turn."""
        decode = with_cache if decoding.use_cache else without_cache
        ends = set(end_ids)
        answers = []
        for ids in decode(self, decoding, end_ids, pad_id, inputs).tolist():
            stop = next((k for k, token in enumerate(ids) if token in ends), len(ids))
            answers.append(ids[:stop])
        return answers

    @torch.no_grad()
    def check_head(self) -> None:
        """Hold the loss at labelled positions against the family's own on one row; raises `Fault` where they differ.

        Raises `Mistake` where a position sees later ones: such a model would read the answer that it is to learn.
        """
        device = self.embedding.weight.device
        vocabulary = self.embedding.weight.shape[0]
        input_ids = (torch.arange(3, 35) * 7 % vocabulary).unsqueeze(0)
        labels = input_ids.clone()
        labels[:, :9] = IGNORED
        training = self.model.training
        self.model.eval()
        # Inputs as the objectives give them: a family that wants more than these is found here, not in training.
        inputs = {"input_ids": input_ids.to(device), "attention_mask": torch.ones_like(input_ids).to(device)}
        try:
            own = float(self.model(**inputs, labels=labels.to(device), use_cache=False).loss)
            ours = float(self.loss_sum(labels, **inputs)) / int((labels[:, 1:] != IGNORED).sum())
            before = self.model(**inputs, use_cache=False).logits[:, :16].float()
            inputs["input_ids"][:, 16:] = inputs["input_ids"][:, 16:].flip(1)
            change = float((self.model(**inputs, use_cache=False).logits[:, :16].float() - before).abs().max())
        finally:
            self.model.train(training)
        if not abs(ours - own) <= HEAD_TOLERANCE[self.model.dtype] * max(1.0, abs(own)):
            raise Fault(
                f"llm: the loss of {self.family} is {own:.6g} by its own rule and {ours:.6g} at labelled "
                "positions only, so this family cannot be trained here. Please report it with its name."
            )
        if not change <= HEAD_TOLERANCE[self.model.dtype] * max(1.0, float(before.abs().max())):
            raise Mistake(
                f"llm: in {self.family} a token sees those that come after it, so it is no causal language model. "
                "Give one that is."
            )


def check_fits(model: PreTrainedModel, source: LanguageModelSource) -> None:
    """Raises `Mistake` when the embedding is not what the tokenizer and the config promise."""
    rows, width = cast(nn.Embedding, model.get_input_embeddings()).weight.shape
    tokens = len(source.tokenizer())
    if tokens > rows:
        raise Mistake(
            f"llm: the tokenizer has {tokens} tokens and the model's embedding only {rows}. "
            "They do not belong together; take both from one folder."
        )
    if width != source.width():
        raise Mistake(f"llm: {type(model).__name__} embeds tokens in {width} dimensions, not in its hidden size.")
