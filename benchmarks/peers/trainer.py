"""transformers.Trainer with its fused AdamW, rows in the file's order, a log every 10 steps and nothing else."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.peers.material import collator, load_model
from benchmarks.peers.task import Task, read_task


def settings(task: Task) -> dict[str, Any]:
    """Of TrainingArguments. A run that checks logs each step and saves a checkpoint at its end."""
    return {
        "output_dir": str(task.work),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.recipe["batch_size"],
        "learning_rate": task.recipe["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": task.recipe["clip_norm"],
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1 if task.check else 10,
        "save_strategy": "steps" if task.check else "no",
        "save_steps": task.steps,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
    }


def answer(task: Task, trainer: Any) -> None:
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    task.answer(losses, task.work / f"checkpoint-{task.steps}" if task.check else None)


def without_comet() -> None:
    """Trainer imports Comet where it is installed, as this project makes it be: that second is not Trainer's."""
    sys.modules["comet_ml"] = None  # type: ignore[assignment]


def train(task: Task) -> None:
    without_comet()
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(
        model=load_model(task),
        args=TrainingArguments(**settings(task)),
        train_dataset=task.read_rows(),
        data_collator=collator(task),
    )
    trainer.train()
    answer(task, trainer)


if __name__ == "__main__":
    train(read_task("trainer"))
