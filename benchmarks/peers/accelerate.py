"""A loop written by hand on Accelerate, with the model's own loss."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.material import IGNORED, collator, load_model, make_optimizer
from benchmarks.peers.task import Task, read_task


def train(task: Task) -> None:
    accelerator = Accelerator(cpu=True)
    rows = task.read_rows()
    in_order = [rows[number] for numbers in task.row_numbers() for number in numbers]
    loader = DataLoader(in_order, batch_size=task.recipe["batch_size"], collate_fn=collator(task))
    model = load_model(task)
    optimizer = make_optimizer(model, task)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    losses: list[Tensor] = []
    for batch in loader:
        count = (batch["labels"][:, 1:] != IGNORED).sum()
        loss = model(**batch, num_items_in_batch=count).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), task.recipe["clip_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    task.answer([float(loss) for loss in losses])


if __name__ == "__main__":
    train(read_task("accelerate"))
