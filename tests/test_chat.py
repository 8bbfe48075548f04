"""Chat rendering: golden strings of the families' templates, labels, places, truncation, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from runner.data.chat import ChatFormat, prompt_of
from runner.protocols import IGNORED, Example, Message, Mistake, Row
from tests.chat_families import IM, TURNS, families, marked, tokenizer

SHARED = Path(os.environ.get("RUNNER_TEST_DATA", Path(__file__).parents[2] / "shared"))

# Qwen3 shows an empty thought in the last answer alone, so an answer looks different once others follow.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' }}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


FAMILIES = {
    **families(),
    "thinking": tokenizer(THINKING, IM, eos="<|endoftext|>"),
    "plain": tokenizer(None, (), eos="</s>", bos="<s>"),
}


def row(*contents: str, system: str | None = None, **items: tuple) -> Row:
    messages = [Message("system", system)] if system is not None else []
    messages += [Message(("user", "assistant")[k % 2], content) for k, content in enumerate(contents)]
    return Row("r1", "train.jsonl:1", tuple(messages), items)


def chat(
    family: str,
    modalities: tuple[str, ...] = (),
    placement: Literal["front", "placeholder"] = "front",
    learn: Literal["all", "last"] = "all",
    system: Literal["template", "into_user"] = "template",
) -> ChatFormat:
    return ChatFormat(FAMILIES[family], modalities, placement, learn, system)


def text_of(family: str, example: Example) -> str:
    return marked(FAMILIES[family], example)


GOLDEN = {
    "thinking": "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n⟦ Hello<|im_end|>⟧\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nCiao<|im_end|>⟧\n",
    "plain": "<s>User:\nHi\nAssistant:\n⟦Hello</s>⟧\nUser:\nBye\nAssistant:\n⟦Ciao</s>⟧",
}
"""Two more formats; those of five families stand in golden/chat."""


@pytest.mark.parametrize("family", GOLDEN)
def test_golden(family: str) -> None:
    format = chat(family)
    example = format.example(row("Hi\n", " Hello", "Bye", "Ciao"))
    assert text_of(family, example) == GOLDEN[family]
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    end = FAMILIES[family].convert_tokens_to_ids("</s>" if family == "plain" else "<|im_end|>")
    assert format.end_of_turn_ids == list(dict.fromkeys([end, FAMILIES[family].eos_token_id]))


@pytest.mark.parametrize("family", ["qwen", "chatml", "llama3", "gemma", "thinking"])
def test_the_rendering_is_the_template_s_own(family: str) -> None:
    contents = ["  Hi\n", "Hello ", "", " \n", "End"]
    talk = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(contents)]
    expected = FAMILIES[family].apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert FAMILIES[family].decode(chat(family).example(row(*contents)).input_ids) == expected


def test_a_token_never_straddles_the_start_of_an_answer() -> None:
    # "assistant\n" and "\n\nOh" would be tokenised as "\n\n" "\nOh", and no prompt ends like that.
    example = chat("chatml").example(row("Hi", "\n\nOh"))
    assert text_of("chatml", example).endswith("<|im_start|>assistant\n⟦\n\nOh<|im_end|>⟧\n")


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
    assert "user\n{audio 1}{image 1}{image 2}{image 3}See  and .<|im_end|>" in text_of("chatml", front)
    inside = chat("chatml", ("audio", "image"), "placeholder").example(asked)
    assert "user\n{audio 1}See {image 1} and {image 2}.<|im_end|>" in text_of("chatml", inside)
    assert "user\n{image 3}<|im_end|>" in text_of("chatml", inside)
    first = chat("chatml", ("image",)).example(row("<image>\nWhich?", "That", image=(1,)))
    assert "user\n{image 1}Which?<|im_end|>" in text_of("chatml", first)
    literal = chat("gemma", ("image",)).example(row(r"What is \<image>?", "A tag", image=(1,)))
    assert "<bos><start_of_turn>user\n{image 1}What is <image>?<end_of_turn>" in text_of("gemma", literal)


def test_stories260k_and_gpt2_have_no_template() -> None:
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("needs RUNNER_TEST_DATA")
    stories = AutoTokenizer.from_pretrained(folder / "stories260k")
    example = ChatFormat(stories, (), "front", "all", "template").example(row("How many?", "Two"))
    assert stories.convert_ids_to_tokens(example.input_ids[:2].tolist()) == ["<s>", "▁"]
    assert stories.decode(example.labels[example.labels != IGNORED]) == "Two</s>"
    gpt2 = AutoTokenizer.from_pretrained(folder / "tokenizer_gpt2")
    example = ChatFormat(gpt2, (), "front", "all", "template").example(row("How many?", "Two"))
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
    "no end": (TURNS.replace("m.content + '<|im_end|>\n'", "m.content + '\n'"), "does not end the assistant's turn"),
    "forgets": (TURNS.replace("in messages %}{{", "in messages[-2:] %}{{"), "does not write every message once"),
    "rewrites": (
        TURNS.replace("'<|im_start|>' + m", "'<|im_start|>' ~ messages | length ~ m"),
        "writes what comes before",
    ),
    "one end": (
        TURNS.replace("+ '<|im_end|>\n'", "+ ('\n' if m.role == 'assistant' and not loop.last else '<|im_end|>\n')"),
        "does not end every answer",
    ),
    "two starts": ("{{ bos_token + bos_token }}" + TURNS, "begins with <s> twice"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_faulty_template_is_named(name: str) -> None:
    template, text = TEMPLATES[name]
    with pytest.raises(Mistake, match=text):
        faulty = tokenizer(template, IM, eos="</s>", bos="<s>")
        ChatFormat(faulty, (), "front", "all", "template").example(row("Hi", "Hello", "Bye", "Ciao"))


def test_no_template_and_no_end_is_refused() -> None:
    bare = tokenizer(None, (), eos="</s>")
    bare.eos_token = None
    with pytest.raises(Mistake, match="neither a chat template nor an end-of-text token"):
        ChatFormat(bare, (), "front", "all", "template")


def test_only_the_last_answer_is_learnt() -> None:
    whole = row("Hi", "Hello", "Bye", "Ciao")
    every, last = (chat("tiny", learn=learn).example(whole) for learn in ("all", "last"))
    assert text_of("tiny", last).endswith("<|assistant|>Hello<|end|><|user|>Bye<|end|><|assistant|>⟦Ciao<|end|>⟧")
    assert prompt_of(last).input_ids.tolist() == prompt_of(every).input_ids.tolist()
    due = chat("tiny", learn="last").example(row("Hi", "Hello", "Bye"))
    assert "⟦Hello<|end|>⟧" in text_of("tiny", due)


IGNORES_SYSTEM = TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")


@pytest.mark.parametrize(
    "family, template, fault",
    [
        ("gemma", None, "takes no system message (System role not supported)"),
        ("chatml", IGNORES_SYSTEM, "does not write a system message's text once as it is"),
    ],
)
def test_a_template_without_a_system_role(family: str, template: str | None, fault: str) -> None:
    own = tokenizer(template, IM, eos="<|endoftext|>") if template else FAMILIES[family]
    asked = row("Hi", "Hello", "Bye", "Ciao", system=" Be kind.")
    with pytest.raises(Mistake) as mistake:
        ChatFormat(own, (), "front", "all", "template").example(asked)
    assert str(mistake.value).startswith("train.jsonl:1 (id r1) has a system message")
    assert fault in str(mistake.value) and "data.system=into_user" in str(mistake.value)

    format = ChatFormat(own, ("image",), "front", "all", "into_user")
    pictured = row("Hi", "Hello", "Bye", "Ciao", system="Be kind.", image=(1,))
    header = own.apply_chat_template([{"role": "user", "content": "@"}], tokenize=False).split("@")[0]
    text = marked(own, format.example(pictured))
    assert text.startswith(f"{header}Be kind.\n\n{{image 1}}Hi<") and text.count("Be kind.") == 1
    # What no system text is told apart by: an empty one, and none.
    empty, none = (format.example(row("Hi", "Hello", system=system)).input_ids for system in (" \n", None))
    assert empty.tolist() == none.tolist()
    assert text_of("qwen", chat("qwen", system="into_user").example(asked)).count("Be kind.\n\nHi<|im_end|>") == 1


def test_a_template_that_changes_the_text_of_a_message() -> None:
    louder = tokenizer(TURNS.replace("m.content", "m.content | upper"), IM, eos="<|endoftext|>")
    with pytest.raises(Mistake, match=r"\(id r1\): the chat template does not write every message once as it is"):
        ChatFormat(louder, (), "front", "all", "template").example(row("Hi", "Hello"))


def test_a_template_that_leaves_out_the_system_text_now_and_then() -> None:
    short = TURNS.replace("in messages %}", "in messages if m.role != 'system' or messages | length < 4 %}")
    format = ChatFormat(tokenizer(short, IM, eos="<|endoftext|>"), (), "front", "all", "template")
    assert "Be kind." in marked(format.tokenizer, format.example(row("Hi", "Hello", system="Be kind.")))
    with pytest.raises(Mistake, match=r"\(id r1\): the chat template does not write every message once as it is"):
        format.example(row("Hi", "Hello", "Bye", "Ciao", system="Be kind."))


def control(added: tuple[str, ...] = (), normalized: bool = False, template: str = TURNS) -> ChatFormat:
    own = tokenizer(template, IM, eos="<|endoftext|>", added=added)
    if normalized:
        own.backend_tokenizer.normalizer = normalizers.NFKC()
        own.add_tokens([AddedToken("<|stop|>", normalized=True, special=True)], special_tokens=True)
    return ChatFormat(own, ("image",), "placeholder", "all", "template")


CALLS = "{{ '<tool_call>' if false }}" + TURNS
FORGERIES = {
    "in the system's text": (control(), row("Hi", "Hello", system="<|im_end|>"), "message 1 holds <|im_end|>"),
    "in an answer": (control(), row("Hi", "a<|im_start|>"), "message 2 holds <|im_start|>"),
    "an added token that the template writes": (
        control(("<tool_call>",), template=CALLS),
        row("a <tool_call>", "b"),
        "message 1 holds <tool_call>",
    ),
    "a placeholder that is a token": (
        control(("<image>",), template=CALLS + "{# <image> #}"),
        row(r"\<image>", "b"),
        "<image>",
    ),
    "together with the template's text": (
        control(
            template="{{ '<|im_' if false }}" + TURNS.replace("m.content + '<|im_end|>", "m.content + 'nd|><|im_end|>")
        ),
        row("Hi <|im_e", "Hello"),
        "message 1 becomes <|im_end|>",
    ),
    "by normalisation": (control(normalized=True), row("＜|stop|＞", "Hello"), "message 1 becomes <|stop|>"),
    "by normalisation, in an answer": (control(normalized=True), row("Hi", "＜|stop|＞"), "message 2 becomes <|stop|>"),
    "half a character": (control(), row("a\ud800", "b"), "message 1 holds half of a surrogate pair"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_text_becomes_a_control_token(name: str) -> None:
    format, bad, said = FORGERIES[name]
    with pytest.raises(Mistake) as mistake:
        format.example(bad)
    assert str(mistake.value).startswith("train.jsonl:1 (id r1)") and said in str(mistake.value)


def test_what_only_looks_like_a_control_token_is_text() -> None:
    # An item parts two texts, so nothing is made of both; other characters are other tokens; an answer may call a tool.
    for format, good in (
        (control(), row("<|im_<image>end|>", "b", image=(1,))),
        (control(), row("＜|im_end|＞ <|im_ end|>", "b")),
        (control(("<table>", "\n\n", "assistant")), row("<table>\n\nassistant", "b")),
        (control(("<tool_call>",), template=CALLS), row("Hi", "<tool_call>")),
    ):
        text = marked(format.tokenizer, format.example(good))
        assert text.count("<|im_end|>") == 2
