"""A loop written by hand in plain torch, with logits at every position: with stock modules one can hardly do less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.peers.material import IGNORED, collator, load_model, make_optimizer, next_tokens
from benchmarks.peers.task import Task, read_task


def loss_sum(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = next_tokens(batch["labels"])
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def train(task: Task, loss_sum: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
    rows, collate = task.read_rows(), collator(task)
    model = load_model(task)
    optimizer = make_optimizer(model, task)
    trainable = optimizer.param_groups[0]["params"]
    losses: list[Tensor] = []
    for numbers in task.row_numbers():
        batch = collate([rows[number] for number in numbers])
        count = (batch["labels"][:, 1:] != IGNORED).sum()
        loss = loss_sum(model, batch) / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, task.recipe["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    task.answer([float(loss) for loss in losses])


if __name__ == "__main__":
    train(read_task("hand"), loss_sum)
