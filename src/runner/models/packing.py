"""Packing: the rows of a micro-batch as one sequence, each a document that sees no other.

A layout and nothing else: the rows of a step, its loss and its gradients are what they are side by side, without
padding. Transformers tells documents apart by positions that start again. Whether a family does is held of each at
build.

Shapes: B rows, M merged tokens, D width, S tokens of all documents without padding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runner.models.attention import FLASH, attention_of
from runner.models.head_check import TOLERANCE
from runner.models.language_model import LanguageModel
from runner.models.quantization import each_position_alone
from runner.protocols import IGNORED, Mistake

CHECKED = (9, 16, 7)
"""Tokens of the documents that a family is tried on."""


def packed(labels: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """labels [B, M] and inputs of `LanguageModel.loss_sum`, padded -> [1, S] and the same inputs [1, S, ...].

    No document predicts another's first token, so those labels are IGNORED, as the first column is side by side.
    """
    # The device is asked here: how many tokens of an item are no padding is known nowhere else.
    real = inputs["attention_mask"].cpu().bool()
    index = real.reshape(-1).nonzero().squeeze(1)  # [S]
    positions = (real.cumsum(1) - 1)[real]  # [S]

    def laid(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1).index_select(0, index.to(tensor.device, non_blocking=True)).unsqueeze(0)

    learnt = laid(labels).masked_fill(positions == 0, IGNORED)
    rest = {name: laid(one) for name, one in inputs.items() if name not in ("attention_mask", "position_ids")}
    return learnt, {**rest, "position_ids": positions.unsqueeze(0).to(inputs["attention_mask"].device)}


@torch.no_grad()
def check_packing(llm: LanguageModel) -> None:
    """Change one of three packed documents and hold the others' logits: not one bit may change. And hold their loss
    against the loss side by side. Raises `Mistake` for a family of which either is not so."""
    model, device = llm.model, llm.embedding.weight.device
    what = f"data.packing: {llm.family} with llm.attention={attention_of(llm.base)}"
    mend = "Set data.packing=false, or try another llm.attention."
    mask = (torch.arange(max(CHECKED)) < torch.tensor(CHECKED).unsqueeze(1)).long()
    ids = torch.arange(3, 3 + mask.numel()).reshape(mask.shape) * 7 % llm.embedding.weight.shape[0]
    labels = ids.masked_fill(mask == 0, IGNORED)
    first = CHECKED[0]
    flash = attention_of(llm.base) == FLASH  # it has no float32, and in training autocast gives it less
    training = model.training
    model.eval()
    try:
        side_by_side = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        learnt, inputs = packed(labels, side_by_side)
        changed = torch.cat([inputs["input_ids"][:, :first].flip(1), inputs["input_ids"][:, first:]], dim=1)
        others = torch.arange(first, sum(CHECKED))
        with each_position_alone(model), torch.autocast(device.type, torch.bfloat16, enabled=flash):
            before = llm.logits_at(others, **inputs)
            after = llm.logits_at(others, **(inputs | {"input_ids": changed}))
            together = float(llm.loss_sum(learnt, **inputs))
            apart = float(llm.loss_sum(labels, **side_by_side))
    except Exception as error:  # a family that takes no positions, say: each has its own way to say so
        raise Mistake(f"{what} cannot take packed rows ({type(error).__name__}: {error}). {mend}") from error
    finally:
        model.train(training)
    if not torch.equal(before, after):
        raise Mistake(
            f"{what} does not keep packed rows apart: the logits of one change by up to "
            f"{float((after - before).abs().max()):.2g} with the text of another, and not one bit may. {mend}"
        )
    if not abs(together - apart) <= TOLERANCE[torch.bfloat16 if flash else model.dtype] * max(1.0, abs(apart)):
        raise Mistake(f"{what} has the loss {together:.6g} for packed rows and {apart:.6g} side by side. {mend}")
