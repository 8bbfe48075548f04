"""Where causal language models come from: their tokenizer, their weights, and their shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import torch
from annotated_types import Ge, Gt
from torch import nn

from runner import pretrained
from runner.models.architecture import check_agrees, check_all_read, of_fields, of_path, quiet_about_towers
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.quantization import is_quantised, prepared
from runner.protocols import Mistake

Attention = Literal["eager", "sdpa", "sdpa_by_document", "flash_attention_2"]

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from runner.models.quantization import Quantization


class LanguageModelSource(Protocol):
    """What an `llm` option offers: the tokenizer first, so that bad data is told before weights are read."""

    trainable: bool
    attention: Attention | None
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
        attention: Attention | None,
        gradient_checkpointing: bool,
    ) -> None:
        if hidden_size % heads or heads % key_value_heads:
            raise Mistake(
                f"llm.heads={heads} must divide llm.hidden_size={hidden_size}, and "
                f"llm.key_value_heads={key_value_heads} must divide llm.heads."
            )
        self.attention = attention
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
        attention: Attention | None,
        gradient_checkpointing: bool,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.trainable = trainable
        self.architecture = architecture
        """Fields of the published config.json; where they are given nothing is read before the weights are."""
        self.attention = attention
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
