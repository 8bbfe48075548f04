"""A frozen language model in 8 or 4 bits, by bitsandbytes, for adapters to train on.

Weights are quantised on the run's device while they are read: bitsandbytes leaves a part of an 8-bit layer that was
called behind when a model moves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from annotated_types import Ge

from runner.models.architecture import WEIGHTS_READ

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

NOISY = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn at every call of a cast that is part of the method, and of a kernel that is not used here."""


class Quantization(Protocol):
    """What a `quantization` option offers."""

    def arguments(self, dtype: torch.dtype, config: PreTrainedConfig) -> dict[str, Any]:
        """What from_pretrained is given for an architecture; layers compute in `dtype`."""
        ...


class Int8:
    """Rows of weights and of inputs in 8 bits; inputs with outliers apart. Source: Dettmers et al., "LLM.int8(): 8-bit
    Matrix Multiplication for Transformers at Scale", 2022."""

    def __init__(self, threshold: Annotated[float, Ge(0)]) -> None:
        self.threshold = threshold

    def arguments(self, dtype: torch.dtype, config: PreTrainedConfig) -> dict[str, Any]:
        return on_device(config, load_in_8bit=True, llm_int8_threshold=float(self.threshold))


class Nf4:
    """Blocks of 64 weights in 4 bits. Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs",
    2023."""

    def __init__(self, double_quantization: bool) -> None:
        self.double_quantization = double_quantization

    def arguments(self, dtype: torch.dtype, config: PreTrainedConfig) -> dict[str, Any]:
        return on_device(
            config,
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )


def on_device(config: PreTrainedConfig, **arguments: Any) -> dict[str, Any]:
    from accelerate.state import AcceleratorState, is_initialized
    from transformers import BitsAndBytesConfig

    hush()
    device = AcceleratorState().device if is_initialized() else "cpu"
    whole = WEIGHTS_READ.get(config.model_type)
    skipped = ["lm_head", *whole] if whole else None  # None: whatever is the family's head
    given = BitsAndBytesConfig(llm_int8_skip_modules=skipped, **arguments)
    return {"quantization_config": given, "device_map": {"": device}}


def hush() -> None:
    """Call it before anything imports bitsandbytes, as PEFT does where it is installed."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def each_position_alone(model: nn.Module) -> Iterator[None]:
    """LLM.int8() looks for outliers over a whole batch, so a position depends a little on all others; not inside."""
    states = []
    if getattr(model, "is_loaded_in_8bit", False):
        from bitsandbytes.nn import Linear8bitLt

        states = [layer.state for layer in model.modules() if isinstance(layer, Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def is_quantised(model: PreTrainedModel) -> bool:
    """By bitsandbytes, here or in its folder."""
    return getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """Ready for adapters: all is frozen, and what is not quantised, norms and embeddings, is in float32."""
    from bitsandbytes.nn import Linear4bit
    from peft import prepare_model_for_kbit_training

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            # Else an evaluation on a CPU with AVX512-BF16 repacks the weights for a kernel without a gradient, and
            # training goes on with it: adapters below would learn nothing.
            layer.support_avx512bf16_for_cpu = False
    return cast("PreTrainedModel", prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))
