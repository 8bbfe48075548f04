"""A folder that every peer trains on: random weights, an adapter to start from, and rows, all drawn from one seed.

    python -m benchmarks.fixture tiny FOLDER

FOLDER/model          a Qwen2 and its tokenizer, as transformers saves them
FOLDER/adapter        a PEFT LoRA adapter
FOLDER/train.jsonl    rows with `messages`, which this project reads
FOLDER/tokens.jsonl   the same rows as token ids and labels, made by this project's own rendering, for all others
FOLDER/recipe.json    how all of them train on it
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEED = 0
PAD, TURN, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
SPECIAL = (PAD, TURN, END, UNKNOWN, "system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|> ' + message.role + ' ' + message.content + ' <|im_end|> ' }}"
    "{% endfor %}"
    "{{ '<|im_start|> assistant ' if add_generation_prompt }}"
)
LORA: dict[str, Any] = {"r": 16, "alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
COPIED = 0.4
"""The share of an answer's words that stand in its question, so that there is something to learn."""


@dataclass(frozen=True)
class Lengths:
    """Words of a text: log-normal around `median`, cut to `least` and `most`. A `spread` of 0 makes all alike."""

    median: float
    spread: float
    least: int
    most: int

    def draw(self, generator: random.Random) -> int:
        words = round(generator.lognormvariate(math.log(self.median), self.spread))
        return min(max(words, self.least), self.most)


@dataclass(frozen=True)
class Variant:
    """Shapes of the model and of its rows, and how long peers train on them."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    rows: int
    """A multiple of the batch size, so that every peer's epochs end with a whole batch."""
    batch_size: int
    question: Lengths
    answer: Lengths
    steps: int
    """Optimizer steps of a timed run, those of the warm-up included."""
    warm_up: int
    """First steps that no figure counts."""
    threads: int


VARIANTS = {
    # 14 million parameters; lengths as in GSM8K: medians of 62 and 98 words, and few long rows.
    "tiny": Variant(
        vocabulary=32_000, hidden=256, layers=8, heads=4, key_value_heads=2, intermediate=688, rows=512, batch_size=8,
        question=Lengths(62, 0.42, 8, 240), answer=Lengths(98, 0.48, 8, 240), steps=24, warm_up=6, threads=2,
    ),
    # 15 thousand parameters, 12 tokens a step: what takes time is the framework, not the model.
    "empty": Variant(
        vocabulary=64, hidden=32, layers=1, heads=2, key_value_heads=1, intermediate=64, rows=1024, batch_size=1,
        question=Lengths(3, 0.0, 3, 3), answer=Lengths(3, 0.0, 3, 3), steps=800, warm_up=200, threads=1,
    ),
}  # fmt: skip


def build(variant: Variant, folder: Path) -> None:
    """Write the fixture; the same variant gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = word_tokenizer(variant.vocabulary)
    tokenizer.save_pretrained(folder / "model")
    parameters = write_weights(variant, folder)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for messages in conversations(variant):
            file.write(json.dumps({"messages": messages}) + "\n")
    tokens = write_tokens(folder)
    recipe = asdict(variant) | {"learning_rate": 1e-3, "clip_norm": 1.0, "lora": LORA, "pad_id": tokenizer.pad_token_id}
    measured = {"parameters": parameters, "tokens_a_row": tokens / variant.rows}
    (folder / "recipe.json").write_text(json.dumps(recipe | measured, indent=1) + "\n", encoding="utf-8")


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token a word: `w0`, `w1`, ..., the roles, and special tokens that begin and end a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{k}" for k in range(vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[TURN],
        chat_template=TEMPLATE,
    )


def write_weights(variant: Variant, folder: Path) -> dict[str, int]:
    """The model and the adapter; gives the numbers of their parameters."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    model = random_model(variant)
    model.save_pretrained(folder / "model")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=LORA["target_modules"]
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # not zero, as PEFT begins: so the first loss shows already whose adapter was loaded
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(str(folder / "adapter"))
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in adapted.parameters()]
    return {
        "total": sum(count for count, _ in counts),
        "trainable": sum(count for count, trains in counts if trains),
    }


def random_model(variant: Variant) -> PreTrainedModel:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=variant.vocabulary,
        hidden_size=variant.hidden,
        intermediate_size=variant.intermediate,
        num_hidden_layers=variant.layers,
        num_attention_heads=variant.heads,
        num_key_value_heads=variant.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )
    return Qwen2ForCausalLM(config)


def conversations(variant: Variant) -> Iterator[list[dict[str, str]]]:
    """One exchange a row. Words are drawn as in a text, few of them often: the logarithm of the rank is uniform."""
    generator = random.Random(SEED)
    words = variant.vocabulary - len(SPECIAL)

    def word() -> str:
        return f"w{int(words ** generator.random()) - 1}"

    for _ in range(variant.rows):
        question = [word() for _ in range(variant.question.draw(generator))]
        answer = [
            generator.choice(question) if generator.random() < COPIED else word()
            for _ in range(variant.answer.draw(generator))
        ]
        yield [{"role": "user", "content": " ".join(question)}, {"role": "assistant", "content": " ".join(answer)}]


def write_tokens(folder: Path) -> int:
    """The rows as this project reads and renders them; gives the number of their tokens."""
    from runner.data.chat import ChatFormat
    from runner.data.jsonl import Jsonl
    from runner.models.llm import Pretrained

    rows = Jsonl(str(folder / "train.jsonl"), None, {}, [], None).read([])["train"]
    chat = ChatFormat(Pretrained(str(folder / "model"), "float32", True, None, False).tokenizer(), [], "front")
    examples = [chat.example(row) for row in rows]
    with (folder / "tokens.jsonl").open("w", encoding="utf-8") as file:
        for example in examples:
            row = {"input_ids": example.input_ids.tolist(), "labels": example.labels.tolist()}
            file.write(json.dumps(row) + "\n")
    return sum(len(example.input_ids) for example in examples)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build what the peers train on.")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    build(VARIANTS[given.variant], given.folder)
