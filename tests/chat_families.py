"""Tokenizers in the chat formats of five families, made here: templates in the published form, a small byte-level BPE.

Sources of the forms: ChatML, openai/openai-python's chatml.md; Qwen2.5, its model card (ChatML, and a system text of
its own where there is none); Llama 3, Meta's page of prompt formats; Gemma, Google's page on its formatting (turns of
`user` and `model`, no system role). The tiny family is this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from runner.models.byte_tokenizer import byte_tokenizer
from runner.protocols import IGNORED, Example

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + TURNS
)
LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first }}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

WORDS = "A small tokenizer has learnt these words: what is on the picture? assistant user system\n\nYes, no.\n\n1, 2\n"


def tokenizer(
    template: str | None, special: tuple[str, ...], eos: str, bos: str | None = None, added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level, with a few hundred merges, some of them over newlines. `added` are tokens that are not special."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(  # two newlines are one token where no word follows
        [WORDS, "\n\n"] * 3, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    )
    bpe.add_special_tokens([*special, eos, *([bos] if bos else [])])
    bpe.add_tokens(list(added))
    names = {"bos_token": bos} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, extra_special_tokens=list(special), chat_template=template, **names
    )


IM = ("<|im_start|>", "<|im_end|>")


def families() -> Mapping[str, PreTrainedTokenizerFast]:
    return {
        "qwen": tokenizer(QWEN, IM, eos="<|im_end|>", added=("<tool_call>", "</tool_call>")),
        "chatml": tokenizer(TURNS, IM, eos="<|endoftext|>"),
        "llama3": tokenizer(
            LLAMA3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            eos="<|end_of_text|>",
            bos="<|begin_of_text|>",
        ),
        "gemma": tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), eos="<eos>", bos="<bos>"),
        "tiny": byte_tokenizer(),
    }


def marked(tokenizer: PreTrainedTokenizerFast, example: Example) -> str:
    """The text with what is learnt in ⟦ ⟧ and items as {modality number}."""
    learnt = [bool(label != IGNORED) for label in example.labels]
    text, start = "", 0
    for stop in range(len(learnt) + 1):
        items = "".join(f"{{{name} {item + 1}}}" for name, item, place in example.places if place == stop)
        if items or stop == len(learnt) or (stop and learnt[stop] != learnt[stop - 1]):
            piece = str(tokenizer.decode(example.input_ids[start:stop].tolist()))
            text += (f"⟦{piece}⟧" if piece and learnt[start] else piece) + items
            start = stop
    return text


END_OF_TURN = {
    "qwen": "<|im_end|>",
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "tiny": "<|end|>",
}


def saved(family: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """As a run loads it: from its files."""
    family.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
