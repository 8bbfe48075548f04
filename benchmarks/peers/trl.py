"""trl's SFTTrainer on the rows as token ids: no packing, and its own default, gradient checkpointing, turned off."""

from __future__ import annotations

from benchmarks.peers.material import collator, load_model
from benchmarks.peers.task import Task, read_task
from benchmarks.peers.trainer import answer, settings, without_comet


def train(task: Task) -> None:
    without_comet()
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    own = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    trainer = SFTTrainer(
        model=load_model(task),
        args=SFTConfig(**settings(task) | own),
        train_dataset=Dataset.from_list(task.read_rows()),
        processing_class=AutoTokenizer.from_pretrained(task.fixture / "model"),
        data_collator=collator(task),
    )
    trainer.train()
    answer(task, trainer)


if __name__ == "__main__":
    train(read_task("trl"))
