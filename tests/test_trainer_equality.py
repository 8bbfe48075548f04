"""The loop reproduces transformers.Trainer: same rows in the same order, same losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import runner
from runner.data.chat import ChatFormat
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.lora import Lora
from runner.protocols import Message, Row

STEPS, WARMUP, ACCUMULATION, MICRO_BATCH = 20, 4, 2, 4
LEARNING_RATE = 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 with its tokenizer, an adapter that is not zero, and rows of very unequal length."""
    folder = tmp_path_factory.mktemp("trainer")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    adapted = Lora(4, 8, 0.0, ["q_proj", "v_proj"], False, False, None).apply(model)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "lemon", "tree", "a", "very", "long", "winding", "road"]
    with (folder / "rows.jsonl").open("w") as file:
        for k in range(64):
            question = " ".join(rng.choice(words, rng.integers(1, 12)))
            answer = " ".join(rng.choice(words, rng.integers(1, 20)))
            file.write(json.dumps({"id": str(k), "question": question, "answer": answer}) + "\n")
    return folder


def losses_of_trainer(folder: Path, with_lora: bool) -> list[float]:
    # Trainer imports Comet, which at that moment decides to ask the network; other tests forbid it.
    from transformers import Trainer, TrainingArguments

    tokenizer = byte_tokenizer()
    chat = ChatFormat(tokenizer, [], "front", "all", "template")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    examples = [
        chat.example(Row(row["id"], row["id"], (Message("user", row["question"]), Message("assistant", row["answer"]))))
        for row in rows
    ]
    data = [{"input_ids": one.input_ids.tolist(), "labels": one.labels.tolist()} for one in examples]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(one["input_ids"]) for one in batch)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([one[name] + [value] * (longest - len(one[name])) for one in batch])

        ids = padded("input_ids", tokenizer.pad_token_id)
        mask = torch.tensor([[1] * len(one["input_ids"]) + [0] * (longest - len(one["input_ids"])) for one in batch])
        return {"input_ids": ids, "labels": padded("labels", -100), "attention_mask": mask}

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if with_lora:
        model = Lora(4, 8, 0.0, ["q_proj", "v_proj"], False, False, str(folder / "adapter")).apply(model)
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        max_steps=STEPS,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        max_grad_norm=1.0,
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("with_lora", [False, True], ids=["whole", "lora"])
def test_twenty_losses_equal_transformers_trainer(folder: Path, tmp_path: Path, with_lora: bool) -> None:
    lora = [
        "lora=default",
        "lora.r=4",
        "lora.alpha=8",
        "lora.target_modules=[q_proj,v_proj]",
        f"lora.init={folder}/adapter",
    ]
    runner.train(
        [
            "model=chat", "llm=pretrained", f"llm.path={folder}/model", "data=jsonl", f"data.path={folder}/rows.jsonl",
            "data.fields={user: question, assistant: answer}", "data.order=file", "schedule=linear",
            f"schedule.warmup_steps={WARMUP}", f"optimizer.lr={LEARNING_RATE}", f"train.max_steps={STEPS}",
            f"train.batch_size={MICRO_BATCH * ACCUMULATION}", f"train.micro_batch_size={MICRO_BATCH}",
            "train.eval_every=null", "train.log_every=1", "tracker=none", f"hydra.run.dir={tmp_path}/run",
            *(lora if with_lora else []),
        ]
    )  # fmt: skip
    ours = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    theirs = losses_of_trainer(folder, with_lora)
    assert len(ours) == len(theirs) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1e-5
    assert ours[-1] < ours[0] - 0.3  # something was learnt, so equality says something
