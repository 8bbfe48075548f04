"""Chats in the formats of five families, held against files: what the model reads, and in ⟦ ⟧ what it learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from runner.data.chat import ChatFormat
from runner.protocols import IGNORED, Message, Row
from tests.chat_families import END_OF_TURN, families, marked, saved

GOLDEN = Path(__file__).parent / "golden" / "chat"
ROLES = ("user", "assistant")
SYSTEM = (Message("system", "Answer in one sentence."),)
TURNS = ("What is on\nthe picture?", 'A cat, "Miez".\n\nIt sleeps.', "Wie heißt sie? 猫😀", "Miez.")
AT_PLACES = ("<image> and <image>: what is it?\n", "Cats.", "And <image>?", r"The tag \<image>.", "Sure?", "Yes.")


def turns(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(ROLES[k % 2], content) for k, content in enumerate(contents))


def rows() -> dict[str, tuple[Row, str]]:
    """By name: a row, and data.learn."""
    pictures = {"image": ("1.png", "2.png", "3.png")}
    return {
        "with system": (Row("r1", "a.jsonl:1", SYSTEM + turns(*TURNS)), "all"),
        "without system": (Row("r2", "a.jsonl:2", turns(*TURNS)), "all"),
        "last answer": (Row("r3", "a.jsonl:3", SYSTEM + turns(*TURNS)), "last"),
        "pictures at their places": (Row("r4", "a.jsonl:4", SYSTEM + turns(*AT_PLACES), pictures), "all"),
        "an answer is due": (Row("r5", "a.jsonl:5", turns(*TURNS[:3])), "all"),
    }


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerFast]:
    folder = tmp_path_factory.mktemp("families")
    return {name: saved(family, folder / name) for name, family in families().items()}


def chat(tokenizers: dict[str, PreTrainedTokenizerFast], family: str, learn: str) -> ChatFormat:
    # Gemma has no system role.
    return ChatFormat(
        tokenizers[family], ("image",), "placeholder", learn, "into_user" if family == "gemma" else "template"
    )


def sections(text: str) -> dict[str, str]:
    """`=== name ===` and what follows up to the next one."""
    found = re.split(r"^=== (.+) ===\n", text, flags=re.MULTILINE)[1:]
    return {name: body.removesuffix("\n") for name, body in zip(found[::2], found[1::2], strict=True)}


@pytest.mark.parametrize("family", END_OF_TURN)
def test_golden(family: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    written = {
        name: marked(tokenizers[family], chat(tokenizers, family, learn).example(row))
        for name, (row, learn) in rows().items()
    }
    assert written == sections((GOLDEN / f"{family}.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", END_OF_TURN)
def test_what_is_learnt_is_each_answer_and_its_end(family: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    end = END_OF_TURN[family]
    for row, learn in rows().values():
        format = chat(tokenizers, family, learn)
        example = format.example(row)
        assert format.end_of_turn == tokenizers[family].convert_tokens_to_ids(end)
        assert (example.labels[example.labels != IGNORED] == example.input_ids[example.labels != IGNORED]).all()
        answers = [one.content.replace("\\<", "<") for one in row.messages if one.role == "assistant"]
        expected = "".join(answer + end for answer in (answers if learn == "all" else answers[-1:]))
        assert tokenizers[family].decode(example.labels[example.labels != IGNORED]) == expected
        assert example.labels[example.labels != IGNORED][-1] == format.end_of_turn


@pytest.mark.parametrize("family", END_OF_TURN)
def test_one_beginning_of_sequence(family: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    bos = tokenizers[family].bos_token_id
    for row, learn in rows().values():
        ids = chat(tokenizers, family, learn).example(row).input_ids.tolist()
        assert ids.count(bos) == (family in ("llama3", "gemma"))
        assert bos is None or ids[0] == bos
