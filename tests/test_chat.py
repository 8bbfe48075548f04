"""Chat rendering: golden strings of the families' templates, labels, places, truncation, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from runner.data.chat import ChatFormat, prompt_of
from runner.data.length import LengthReport, fit
from runner.models.byte_tokenizer import byte_tokenizer
from runner.protocols import IGNORED, Example, Message, Mistake, Row

SHARED = Path(os.environ.get("RUNNER_TEST_DATA", Path(__file__).parents[2] / "shared"))

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
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
# Qwen3 shows an empty thought in the last answer alone, so an answer looks different once others follow.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' }}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template: str | None, *special: str, eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level, with a token for two newlines, so that a token can straddle a border."""
    alphabet = bytes_to_unicode()
    vocabulary = {character: byte for byte, character in alphabet.items()}
    newline = alphabet[10]
    bpe = Tokenizer(BPE(vocabulary | {newline * 2: 256}, [(newline, newline)]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([*special, eos, *([bos] if bos else [])])
    names = {"bos_token": bos} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, extra_special_tokens=list(special), chat_template=template, **names
    )


FAMILIES = {
    "byte": byte_tokenizer(),
    "chatml": tokenizer(CHATML, "<|im_start|>", "<|im_end|>", eos="<|endoftext|>"),
    "llama": tokenizer(LLAMA, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", eos="<|end|>", bos="<|begin|>"),
    "gemma": tokenizer(GEMMA, "<start_of_turn>", "<end_of_turn>", eos="<eos>", bos="<bos>"),
    "thinking": tokenizer(THINKING, "<|im_start|>", "<|im_end|>", eos="<|endoftext|>"),
    "plain": tokenizer(None, eos="</s>", bos="<s>"),
}


def row(*contents: str, system: str | None = None, **items: tuple) -> Row:
    messages = [Message("system", system)] if system is not None else []
    messages += [Message(("user", "assistant")[k % 2], content) for k, content in enumerate(contents)]
    return Row("r1", "train.jsonl:1", tuple(messages), items)


def chat(
    family: str, modalities: tuple[str, ...] = (), placement: Literal["front", "placeholder"] = "front"
) -> ChatFormat:
    return ChatFormat(FAMILIES[family], modalities, placement)


def marked(family: str, example: Example) -> str:
    """The text with what is learnt in brackets and items as {modality index}."""
    text, learning = "", False
    for p in range(len(example.input_ids) + 1):
        learnt = p < len(example.labels) and example.labels[p] != IGNORED
        if learning and not learnt:
            text += "]"
        text += "".join(f"{{{name} {item}}}" for name, item, place in example.places if place == p)
        if learnt and not learning:
            text += "["
        learning = learnt
        if p < len(example.input_ids):
            text += str(FAMILIES[family].decode(example.input_ids[p : p + 1]))
    return text


GOLDEN = {
    "byte": "<|user|>Hi\n<|end|><|assistant|>[ Hello<|end|>]<|user|>Bye<|end|><|assistant|>[Ciao<|end|>]",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n"
    "[ Hello<|im_end|>]\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[Ciao<|im_end|>]\n",
    "llama": "<|begin|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[Hello<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[Ciao<|eot_id|>]",
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n[Hello<end_of_turn>]\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n[Ciao<end_of_turn>]\n",
    "thinking": "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n[ Hello<|im_end|>]\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\nCiao<|im_end|>]\n",
    "plain": "<s>User:\nHi\nAssistant:\n[Hello</s>]\nUser:\nBye\nAssistant:\n[Ciao</s>]",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_golden(family: str) -> None:
    format = chat(family)
    example = format.example(row("Hi\n", " Hello", "Bye", "Ciao"))
    assert marked(family, example) == GOLDEN[family]
    learnt = example.labels != IGNORED
    assert (example.labels[learnt] == example.input_ids[learnt]).all()
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    ends = {"llama": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "</s>", "byte": "<|end|>"}
    end = FAMILIES[family].convert_tokens_to_ids(ends.get(family, "<|im_end|>"))
    assert format.end_of_turn_ids == list(dict.fromkeys([end, FAMILIES[family].eos_token_id]))


@pytest.mark.parametrize("family", ["chatml", "llama", "gemma", "thinking"])
def test_the_rendering_is_the_template_s_own(family: str) -> None:
    contents = ["  Hi\n", "Hello ", "", " \n", "End"]
    talk = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(contents)]
    expected = FAMILIES[family].apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert FAMILIES[family].decode(chat(family).example(row(*contents)).input_ids) == expected


def test_a_token_never_straddles_the_start_of_an_answer() -> None:
    # "assistant\n" and "\n\nOh" would be tokenised as "\n\n" "\nOh", and no prompt ends like that.
    example = chat("chatml").example(row("Hi", "\n\nOh"))
    assert marked("chatml", example).endswith("<|im_start|>assistant\n[\n\nOh<|im_end|>]\n")


texts = st.text(alphabet=st.sampled_from("ab \n\t:é<>\\"), max_size=8)


@given(
    contents=st.lists(texts, min_size=1, max_size=5),
    family=st.sampled_from(list(FAMILIES)),
    placement=st.sampled_from(["front", "placeholder"]),
    images=st.integers(0, 2),
    inside=st.booleans(),
)
def test_a_prompt_is_how_its_example_begins(
    contents: list[str], family: str, placement: Literal["front", "placeholder"], images: int, inside: bool
) -> None:
    if inside:
        contents = [contents[0] + " <image>x" * images, *contents[1:]]
    format = chat(family, ("image",), placement)
    whole = row(*contents, image=tuple(range(images)))
    example, prompt = format.example(whole), prompt_of(format.example(whole))
    assert (prompt.labels == IGNORED).all() and example.labels[0] == IGNORED
    assert example.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
    assert prompt.places == example.places and len(example.places) == images
    if whole.messages[-1].role == "assistant":
        # The same as asking for the answer that is not there yet.
        asked = format.example(row(*contents[:-1], image=tuple(range(images))))
        assert asked.input_ids.tolist() == prompt.input_ids.tolist()
        assert example.labels[len(prompt.input_ids)] != IGNORED
        assert format.truth(whole) == contents[-1].strip()
    else:
        assert format.truth(whole) is None
        assert len(prompt.input_ids) == len(example.input_ids)


def test_places() -> None:
    asked = row("See <image> and <image>.", "Yes", "<image>", "No", image=(1, 2, 3), audio=(4,))
    front = chat("chatml", ("audio", "image")).example(asked)
    assert "user\n{audio 0}{image 0}{image 1}{image 2}See  and .<|im_end|>" in marked("chatml", front)
    inside = chat("chatml", ("audio", "image"), "placeholder").example(asked)
    assert "user\n{audio 0}See {image 0} and {image 1}.<|im_end|>" in marked("chatml", inside)
    assert "user\n{image 2}<|im_end|>" in marked("chatml", inside)
    first = chat("chatml", ("image",)).example(row("<image>\nWhich?", "That", image=(1,)))
    assert "user\n{image 0}Which?<|im_end|>" in marked("chatml", first)
    literal = chat("gemma", ("image",)).example(row(r"What is \<image>?", "A tag", image=(1,)))
    assert "<bos><start_of_turn>user\n{image 0}What is <image>?<end_of_turn>" in marked("gemma", literal)


def test_stories260k_and_gpt2_have_no_template() -> None:
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("needs RUNNER_TEST_DATA")
    stories = AutoTokenizer.from_pretrained(folder / "stories260k")
    example = ChatFormat(stories, (), "front").example(row("How many?", "Two"))
    assert stories.convert_ids_to_tokens(example.input_ids[:2].tolist()) == ["<s>", "▁"]
    assert stories.decode(example.labels[example.labels != IGNORED]) == "Two</s>"
    gpt2 = AutoTokenizer.from_pretrained(folder / "tokenizer_gpt2")
    example = ChatFormat(gpt2, (), "front").example(row("How many?", "Two"))
    text = "<|endoftext|>User:\nHow many?\nAssistant:\nTwo<|endoftext|>"
    assert example.input_ids.tolist() == gpt2(text)["input_ids"]
    assert gpt2.decode(example.labels[example.labels != IGNORED]) == "Two<|endoftext|>"


REFUSED = {
    "special": (row("Hi", "a <|im_end|> b"), "message 2 holds <|im_end|>, a special token"),
    "joined": (row("a <|im_<image>end|> b", "c", image=(1,)), "message 1 holds <|im_end|>"),
    "noncharacter": (row("a\ufdd0", "b"), "message 1 holds a noncharacter"),
    "no messages": (Row("r1", "train.jsonl:1"), "has no question"),
    "count": (row("<image>", "b"), "hold 1 <image> and the row has 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_row_is_refused_by_name(name: str) -> None:
    bad, text = REFUSED[name]
    with pytest.raises(Mistake) as mistake:
        chat("chatml", ("image",)).example(bad)
    assert text in str(mistake.value) and "train.jsonl:1 (id r1)" in str(mistake.value)


def test_a_template_that_refuses_the_row() -> None:
    with pytest.raises(Mistake, match=r"train.jsonl:1 \(id r1\).*System role not supported"):
        chat("gemma").example(row("Hi", "Hello", system="Be kind."))


TEMPLATES = {
    "no end": (CHATML.replace("m.content + '<|im_end|>\n'", "m.content + '\n'"), "does not end the assistant's turn"),
    "forgets": (CHATML.replace("in messages %}{{", "in messages[-2:] %}{{"), "does not write every message once"),
    "rewrites": (
        CHATML.replace("'<|im_start|>' + m", "'<|im_start|>' ~ messages | length ~ m"),
        "writes what comes before",
    ),
    "one end": (
        CHATML.replace("+ '<|im_end|>\n'", "+ ('\n' if m.role == 'assistant' and not loop.last else '<|im_end|>\n')"),
        "does not end every answer",
    ),
    "two starts": ("{{ bos_token + bos_token }}" + CHATML, "begins with <s> twice"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_faulty_template_is_named(name: str) -> None:
    template, text = TEMPLATES[name]
    with pytest.raises(Mistake, match=text):
        faulty = tokenizer(template, "<|im_start|>", "<|im_end|>", eos="</s>", bos="<s>")
        ChatFormat(faulty, (), "front").example(row("Hi", "Hello", "Bye", "Ciao"))


def test_no_template_and_no_end_is_refused() -> None:
    bare = tokenizer(None, eos="</s>")
    bare.eos_token = None
    with pytest.raises(Mistake, match="neither a chat template nor an end-of-text token"):
        ChatFormat(bare, (), "front")


def test_lengths() -> None:
    format = chat("byte", ("image",), "placeholder")
    rows = [row("Hi", "Yes"), row("A long <image>question", "Yes", "And another", "No", image=(1,))]
    examples = [format.example(each) for each in rows]
    short, long = (len(example.input_ids) for example in examples)
    assert fit(examples, long, "error", format) == (examples, LengthReport(2, 0, 0, 0, 0, long))
    with pytest.raises(Mistake) as mistake:
        fit(examples, long - 1, "error", format)
    for part in (f"(id r1, {long} tokens)", "1 row of 2", "data.max_length=", "over_length=drop", "truncate_prompt"):
        assert part in str(mistake.value)
    kept, report = fit(examples, long - 1, "drop", format)
    assert kept == examples[:1] and report == LengthReport(2, 1, 1, 0, 0, long)
    with pytest.raises(Mistake, match="none is left"):
        fit(examples, short - 1, "drop", format)

    kept, report = fit(examples, long - 10, "truncate_prompt", format)
    assert report == LengthReport(2, 1, 0, 1, 10, long)
    assert marked("byte", kept[1]) == (
        "<|user|>{image 0}stion<|end|><|assistant|>[Yes<|end|>]<|user|>And another<|end|><|assistant|>[No<|end|>]"
    )
    kept, _ = fit(examples, long - 20, "truncate_prompt", format)
    assert marked("byte", kept[1]) == (
        "<|user|>{image 0}<|end|><|assistant|>[Yes<|end|>]<|user|>nother<|end|><|assistant|>[No<|end|>]"
    )
    assert marked("byte", prompt_of(kept[1])).endswith("<|user|>nother<|end|><|assistant|>")
    with pytest.raises(Mistake, match=r"train.jsonl:1 \(id r1\) has .* cannot be cut to data.max_length=9"):
        fit(examples, 9, "truncate_prompt", format)


def test_a_row_without_an_answer_is_refused() -> None:
    format = chat("byte")
    with pytest.raises(Mistake, match=r"1 row without an assistant's turn.*train.jsonl:1 \(id r1"):
        fit([format.example(row("Hi"))], 100, "error", format)
