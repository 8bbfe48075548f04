"""Causal language models: where they come from, and what the objectives need of them.

Only labelled positions reach the head: a hook picks them before it, so soft caps, logit scales and whatever else a
family does behind its head stay its own.

Shapes: B rows, M tokens, D width, K labelled positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from runner import pretrained
from runner.models.architecture import check_agrees, check_all_read, of_fields, of_path, quiet_about_towers
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.decoding import with_cache, without_cache
from runner.models.quantization import is_quantised, prepared
from runner.protocols import IGNORED, Decoding, Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from runner.models.quantization import Quantization


class LanguageModelSource(Protocol):
    """What an `llm` option offers: the tokenizer first, so that bad data is told before weights are read."""

    trainable: bool
    gradient_checkpointing: bool

    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    def max_length(self) -> int | None:
        """Tokens that the model takes, if it says so."""
        ...

    def width(self) -> int:
        """D: the width of a token's embedding."""
        ...

    def load(self, quantization: Quantization | None = None) -> PreTrainedModel: ...

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
        gradient_checkpointing: bool,
    ) -> None:
        if hidden_size % heads or heads % key_value_heads:
            raise Mistake(
                f"llm.heads={heads} must divide llm.hidden_size={hidden_size}, and "
                f"llm.key_value_heads={key_value_heads} must divide llm.heads."
            )
        self.gradient_checkpointing = gradient_checkpointing
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

    def load(self, quantization: Quantization | None = None) -> PreTrainedModel:
        assert quantization is None, "a config with both is refused"
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

    def __init__(
        self,
        path: str,
        dtype: Literal["float32", "bfloat16", "float16"],
        trainable: bool,
        architecture: Mapping[str, Any] | None,
        gradient_checkpointing: bool,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.trainable = trainable
        self.architecture = architecture
        """Fields of the published config.json; where they are given nothing is read before the weights are."""
        self.gradient_checkpointing = gradient_checkpointing

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
        return getattr(self._config().get_text_config(), "max_position_embeddings", None)

    def width(self) -> int:
        config = self._config().get_text_config()
        if not isinstance(getattr(config, "hidden_size", None), int):
            raise Mistake(
                f"llm.path={self.path}: a {config.model_type} model is no causal language model. Give one that is."
            )
        return int(config.hidden_size)

    def _config(self) -> PreTrainedConfig:
        return of_path(self.path) if self.architecture is None else of_fields(self.architecture)

    def load(self, quantization: Quantization | None = None) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = getattr(torch, self.dtype)
        config = of_path(self.path)
        if self.architecture is not None:
            check_agrees(self.path, config, self.architecture)
        if quantization is not None and getattr(config, "quantization_config", None):
            raise Mistake(f"quantization: llm.path={self.path} is quantised already. Set quantization=none.")
        given: dict[str, Any] = {} if quantization is None else quantization.arguments(dtype, config)
        what, read = "a causal language model", AutoModelForCausalLM.from_pretrained
        with quiet_about_towers(config):
            model, loaded = self._read(what, read, config=config, dtype=dtype, output_loading_info=True, **given)
        check_all_read(self.path, config, loaded)
        if is_quantised(model):
            model = prepared(model)
        # Torch cannot tell of float8 whether it is finite.
        weights = [(name, one) for name, one in model.named_parameters() if one.dtype.itemsize > 1]
        broken = next((name for name, one in weights if not torch.isfinite(one).all()), None)
        if broken:
            raise Mistake(f"llm.path={self.path}: {broken} holds NaN or infinity. Give a folder with sound weights.")
        # Else generation takes what is not said from the folder's own: a repetition penalty would make greedy another.
        model.generation_config = GenerationConfig()
        return cast("PreTrainedModel", model)

    def skeleton(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        config = self._config()
        return self._read("a causal language model", lambda _: AutoModelForCausalLM.from_config(config))

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
        """The decoder's layers."""
        count = self.base.config.get_text_config().num_hidden_layers
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
