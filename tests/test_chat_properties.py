"""Any messages become tokens and back: what the model reads is what the template writes, and nothing is lost of it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.data.chat import ChatFormat
from runner.protocols import IGNORED, Message, Row
from tests.chat_families import END_OF_TURN, families

FAMILIES = families()
SPECIAL = {token for family in FAMILIES.values() for token in family.all_special_tokens}
TRIMMING = ("llama3", "gemma")
"""Families whose template takes off the white space around a content."""

PIECES = (
    "a", " ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "\ufeff", "\\", "<", "|", ">", "<|", "|>", "im_end",
    "eot_id", "<image>", "<audio>", r"\<image>", "<tool_call>", "{{ 1 + 1 }}", "{% raw %}", "é", "e\u0301", "שלום",
    "\u202e", "مرحبا", "猫", "👩\u200d👩\u200d👧", "🇩🇪", "\u0000", "\uffff", "⟦", "⟧", "user\n", "assistant\n",
)  # fmt: skip
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2")
texts = st.lists(st.sampled_from(PIECES) | st.text(characters, max_size=3), max_size=6).map("".join)


def escaped(text: str) -> str:
    """As a row has it, with every placeholder meant as text."""
    for name in ("image", "audio", "series"):
        text = text.replace(f"<{name}>", rf"\<{name}>")
    return text


@given(
    contents=st.lists(texts, min_size=1, max_size=6),
    system=st.none() | texts,
    family=st.sampled_from(list(FAMILIES)),
    learn=st.sampled_from(["all", "last"]),
    images=st.integers(0, 2),
)
def test_nothing_is_lost_between_messages_and_tokens(
    contents: list[str], system: str | None, family: str, learn: Literal["all", "last"], images: int
) -> None:
    said = [("user", "assistant")[k % 2] for k in range(len(contents))]
    turns = [("system", system)] if system is not None and family != "gemma" else []
    turns += list(zip(said, contents, strict=True))
    assume(not any(token in content for _, content in turns for token in SPECIAL | {"<tool_call>"}))
    tokenizer = FAMILIES[family]
    # Items before the first text, and none in it: the text is the same with and without them.
    row = Row(
        "r1",
        "train.jsonl:1",
        tuple(Message(role, escaped(content)) for role, content in turns),
        {"image": tuple(range(images))},
    )
    example = ChatFormat(tokenizer, ("image",), "front", learn, "template").example(row)

    rendering = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=turns[-1][0] == "user",
    )
    assert tokenizer.decode(example.input_ids) == rendering
    assert [item for _, item, _ in example.places] == list(range(images))

    answers = [content.strip() if family in TRIMMING else content for role, content in turns if role == "assistant"]
    taught = answers if learn == "all" else answers[-1:]
    learnt = example.labels != IGNORED
    assert (example.labels[learnt] == example.input_ids[learnt]).all()
    starts = np.flatnonzero(learnt & ~np.concatenate([[False], learnt[:-1]]))
    stops = np.flatnonzero(learnt & ~np.concatenate([learnt[1:], [False]])) + 1
    spans = [tokenizer.decode(example.labels[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    assert spans == [answer + END_OF_TURN[family] for answer in taught]
