"""Other people's conversations to ours: each format is a function from a record to its messages.

Sources: OpenAI, "Chat completions" and "Fine-tuning" (openai); FastChat and LLaVA (sharegpt); Stanford Alpaca, with
`system` and `history` as LLaMA-Factory reads them (alpaca); TRL, "Dataset formats" (prompt_completion).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.data.rows import kind
from runner.protocols import Mistake

Record = Mapping[str, Any]

ITEM_PARTS = {"image_url": "image", "image": "image", "audio_url": "audio", "audio": "audio"}
"""Type of a part of a message's content: the modality of its item. Its path stands under the type's name."""
OPENAI_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Format:
    takes: tuple[str, ...]
    """Keys of a record; those that `needs` lacks may be missing."""
    needs: tuple[str, ...]
    messages: Callable[[Record, Sequence[str]], dict[str, Any]]
    """Of a record and the names of places (`image` of `<image>`): `messages`, and by modality the items in them."""


def openai(record: Record, places: Sequence[str]) -> dict[str, Any]:
    return openai_turns(turns_in(record, "messages"), places)


def openai_turns(turns: Sequence[Any], places: Sequence[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    items: dict[str, list[str]] = {}
    for number, turn in enumerate(turns, start=1):
        check_turn(turn, number, ("role", "content"))
        for key in TOOL_KEYS:
            if turn.get(key):
                raise Mistake(f"message {number} has `{key}`: calls of tools are not learnt here.")
        role = role_of(turn.get("role"), number, OPENAI_ROLES)
        known = ("role", "content", *TOOL_KEYS)
        for key, value in turn.items():
            if key not in known and value is not None:
                raise Mistake(f"message {number} has an unknown key `{key}`; it holds role and content.")
        content = turn.get("content")
        if isinstance(content, list):
            content = content_of(content, number, places, items)
        messages.append({"role": role, "content": content})
    return {"messages": messages, **{modality: {"items": some} for modality, some in items.items()}}


def content_of(parts: Sequence[Any], number: int, places: Sequence[str], items: dict[str, list[str]]) -> str:
    """Texts one after another, and a place for each item, which goes to `items`."""
    pieces = []
    for part in parts:
        type = part.get("type") if isinstance(part, dict) else None
        value = part.get(type) if isinstance(type, str) else None
        if isinstance(value, dict) and type in ("image_url", "audio_url"):
            value = value.get("url")
        if type != "text" and type not in ITEM_PARTS:
            known = ", ".join(("text", *ITEM_PARTS))
            raise Mistake(f"message {number} holds a part of type {type!r}, not one of {known}.")
        if not isinstance(value, str):
            raise Mistake(f"a part of message {number} has a `{type}` that is not a string but {kind(value)}.")
        if type == "text":
            pieces.append(re.sub(rf"<({'|'.join(map(re.escape, places))})>", r"\\<\1>", value))  # no place but a text
        else:
            items.setdefault(ITEM_PARTS[type], []).append(value)
            pieces.append(f"<{ITEM_PARTS[type]}>")
    return "".join(pieces)


def sharegpt(record: Record, places: Sequence[str]) -> dict[str, Any]:
    messages = []
    if record.get("system") not in (None, ""):
        messages.append({"role": "system", "content": text_in(record, "system")})
    for number, turn in enumerate(turns_in(record, "conversations"), start=1):
        check_turn(turn, number, ("from", "value"))
        role = role_of(turn.get("from"), number, SHAREGPT_ROLES)
        for key, value in turn.items():
            if key not in ("from", "value") and value is not None:
                raise Mistake(f"message {number} has an unknown key `{key}`; it holds from and value.")
        messages.append({"role": role, "content": turn.get("value")})
    return {"messages": messages}


def alpaca(record: Record, places: Sequence[str]) -> dict[str, Any]:
    """Instruction and input on lines of their own, as LLaMA-Factory joins them."""
    messages = []
    if record.get("system") not in (None, ""):
        messages.append({"role": "system", "content": text_in(record, "system")})
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Mistake("`history` is not a list of [question, answer].")
    for question, answer in history:
        messages += exchange(question, answer)
    asked = text_in(record, "instruction")
    if record.get("input") not in (None, ""):
        asked = f"{asked}\n{text_in(record, 'input')}"
    return {"messages": [*messages, *exchange(asked, answer_in(record, "output"))]}


def prompt_completion(record: Record, places: Sequence[str]) -> dict[str, Any]:
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list):
        if completion is not None and not isinstance(completion, list):
            raise Mistake(f"`prompt` is a list of messages and `completion` is not one but {kind(completion)}.")
        return openai_turns([*prompt, *(completion or [])], places)
    return {"messages": exchange(text_in(record, "prompt"), answer_in(record, "completion"))}


def question_answer(record: Record, places: Sequence[str]) -> dict[str, Any]:
    return {"messages": exchange(text_in(record, "question"), answer_in(record, "answer"))}


FORMATS: dict[str, Format] = {
    "openai": Format(("messages",), ("messages",), openai),
    "sharegpt": Format(("conversations", "system"), ("conversations",), sharegpt),
    "alpaca": Format(("instruction", "input", "output", "system", "history"), ("instruction", "output"), alpaca),
    "prompt_completion": Format(("prompt", "completion"), ("prompt", "completion"), prompt_completion),
    "question_answer": Format(("question", "answer"), ("question", "answer"), question_answer),
}


def likely_format(record: Record) -> str | None:
    """The format that a record has by its keys; of `messages`, by what only OpenAI's have."""
    if "messages" not in record:
        return next((name for name, one in FORMATS.items() if all(key in record for key in one.needs)), None)
    turns = record["messages"]
    if not isinstance(turns, list):
        return None
    of_openai = [
        turn.get("role") == "developer"
        or isinstance(turn.get("content"), list)
        or any(key in turn for key in TOOL_KEYS)
        for turn in turns
        if isinstance(turn, dict)
    ]
    return "openai" if any(of_openai) else None


def exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    """A user's turn and the answer to it; a row may lack the answer."""
    turns = [{"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def turns_in(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise Mistake(f"`{key}` is not a list of messages but {kind(value) if value != [] else 'an empty one'}.")
    return value


def check_turn(turn: Any, number: int, keys: tuple[str, str]) -> None:
    if not isinstance(turn, dict) or keys[0] not in turn:
        raise Mistake(f'message {number} is not an object with "{keys[0]}" and "{keys[1]}".')


def role_of(role: Any, number: int, roles: Mapping[str, str]) -> str:
    if role in TOOL_ROLES:
        raise Mistake(f"message {number} has the role {role!r}: calls of tools are not learnt here.")
    if not isinstance(role, str) or role not in roles:
        raise Mistake(f"message {number} has the role {role!r}, not one of {', '.join(roles)}.")
    return roles[role]


def text_in(record: Record, key: str) -> str:
    return text_of(record.get(key), f"`{key}`")


def text_of(value: Any, name: str) -> str:
    """A column's text; a number is written as JSON writes it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        raise Mistake(f"{name} is not a string but {kind(value)}.")
    return value


def answer_in(record: Record, key: str) -> str | None:
    return None if record.get(key) is None else text_in(record, key)
