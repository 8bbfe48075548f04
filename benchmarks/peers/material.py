"""What the other loops train with: the fixture's model with its adapter, its optimizer, and padded batches.

Shapes: B rows, L tokens of the longest row in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.task import Task

IGNORED = -100


def load_model(task: Task) -> Any:
    """The model under PEFT, in training mode, with only the adapter to be trained."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task.fixture / "model", dtype=torch.float32)
    model.config.use_cache = False
    return PeftModel.from_pretrained(model, task.fixture / "adapter", is_trainable=True).train()


def make_optimizer(model: torch.nn.Module, task: Task) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=task.recipe["learning_rate"], weight_decay=0.0, fused=True)


def collator(task: Task) -> Any:
    """A function from a list of rows to a batch."""
    return partial(collate, pad_id=task.recipe["pad_id"])


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `attention_mask`, int64 [B, L], padded on the right."""
    lengths = [len(row["input_ids"]) for row in rows]
    input_ids = torch.full((len(rows), max(lengths)), pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    mask = torch.zeros_like(input_ids)
    for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        input_ids[k, :length] = torch.tensor(row["input_ids"])
        labels[k, :length] = torch.tensor(row["labels"])
        mask[k, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def next_tokens(labels: Tensor) -> Tensor:
    """[B, L] -> [B, L]: what each position is to predict. Shifting the labels spares a copy of all logits."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
