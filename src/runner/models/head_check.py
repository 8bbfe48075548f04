"""What is held of every loaded language model once: its loss at labelled positions is its own, and it does not look
ahead.

Shapes: M tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from runner.models.llm import LanguageModel
from runner.models.quantization import each_position_alone
from runner.protocols import IGNORED, Fault, Mistake

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference between the loss at labelled positions and a family's own, by the weights' type."""


@torch.no_grad()
def check_head(llm: LanguageModel) -> None:
    """Hold the loss at labelled positions against the family's own on one row; raises `Fault` where they differ.

    Raises `Mistake` where a position sees later ones: such a model would read the answer that it is to learn.
    """
    model, device = llm.model, llm.embedding.weight.device
    vocabulary = llm.embedding.weight.shape[0]
    input_ids = (torch.arange(3, 35) * 7 % vocabulary).unsqueeze(0)
    labels = input_ids.clone()
    labels[:, :9] = IGNORED
    training = model.training
    model.eval()
    # Inputs as the objectives give them: a family that wants more than these is found here, not in training.
    inputs = {"input_ids": input_ids.to(device), "attention_mask": torch.ones_like(input_ids).to(device)}
    try:
        own = float(model(**inputs, labels=labels.to(device), use_cache=False).loss)
        ours = float(llm.loss_sum(labels, **inputs)) / int((labels[:, 1:] != IGNORED).sum())
        with each_position_alone(model):
            before = model(**inputs, use_cache=False).logits[:, :16].float()
            inputs["input_ids"][:, 16:] = inputs["input_ids"][:, 16:].flip(1)
            change = float((model(**inputs, use_cache=False).logits[:, :16].float() - before).abs().max())
    finally:
        model.train(training)
    if not math.isfinite(own):
        raise Mistake(
            f"llm: the loss of {llm.family} is {own}: its weights hold NaN or infinity, or its numbers grow too large "
            "for llm.dtype. Give a folder with sound weights, or another llm.dtype."
        )
    if not abs(ours - own) <= TOLERANCE[model.dtype] * max(1.0, abs(own)):
        raise Fault(
            f"llm: the loss of {llm.family} is {own:.6g} by its own rule and {ours:.6g} at labelled "
            "positions only, so this family cannot be trained here. Please report it with its name."
        )
    if not change <= TOLERANCE[model.dtype] * max(1.0, float(before.abs().max())):
        raise Mistake(
            f"llm: in {llm.family} a token sees those that come after it, so it is no causal language model. "
            "Give one that is."
        )
