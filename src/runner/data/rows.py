"""The row schema, held strictly: what the messages and items of any source must look like.

A function here raises `Mistake` with the reason alone; whoever reads the source adds the file and the line.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.protocols import Message, Mistake, Row
from runner.spelling import did_you_mean

MODALITIES = ("image", "audio", "text", "series")
ROLES = ("system", "user", "assistant")
LARGEST_NUMBER = 3.4e38
"""Numbers of a series become float32."""
SERIES_FILES = (".csv", ".json", ".npy")


def check_messages(value: Any) -> tuple[Message, ...]:
    """An optional system turn, then user and assistant in turn, starting with the user."""
    if not isinstance(value, list) or not value:
        raise Mistake('`messages` is not a list of {"role", "content"}.')
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise Mistake(f'message {number} is not an object with "role" and "content".')
        for key in turn:
            if key not in ("role", "content"):
                raise Mistake(f"message {number} has an unknown key `{key}`{did_you_mean(key, ('role', 'content'))}")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise Mistake(f"message {number} has the role {role!r}, not one of system, user, assistant.")
        if not isinstance(content, str):
            raise Mistake(f"the content of message {number} is not a string but {kind(content)}.")
        messages.append(Message(role, content))
    turns = messages[1:] if messages[0].role == "system" else messages
    first = len(messages) - len(turns) + 1
    if not turns:
        raise Mistake("`messages` has no user turn.")
    for position, message in enumerate(turns):
        expected = ROLES[1 + position % 2]
        if message.role != expected:
            raise Mistake(
                f"message {first + position} is the {message.role}'s where the {expected}'s is due: system may only "
                "come first, then user and assistant take turns."
            )
    return tuple(messages)


def check_items(modality: str, value: Any, folder: Path) -> tuple[Any, ...]:
    """The items of one modality field, several as {"items": [...]} or as a list of strings: resolved paths inside
    `folder`, channels of numbers, or strings for `text`."""
    if isinstance(value, dict):
        for key in value:
            if key != "items":
                raise Mistake(
                    f"`{modality}` has an unknown key `{key}`; several items are written " + '{"items": [...]}.'
                )
        if not isinstance(value.get("items"), list):
            raise Mistake(f'the "items" of `{modality}` are not a list.')
        return tuple(check_item(modality, item, folder) for item in value["items"])
    if isinstance(value, list) and value and all(isinstance(item, str | Path) for item in value):
        return tuple(check_item(modality, item, folder) for item in value)
    return () if value is None else (check_item(modality, value, folder),)


def check_item(modality: str, item: Any, folder: Path) -> Any:
    if isinstance(item, Path):  # a source's own file, which no record named
        return item
    if isinstance(item, str):
        if modality == "series" and not item.lower().endswith(SERIES_FILES):
            raise Mistake(f"`series` names {item[:200]!r}; a file with a series is one of {', '.join(SERIES_FILES)}.")
        return item if modality == "text" else check_path(modality, item, folder)
    if isinstance(item, list) and modality not in ("image", "audio", "text"):
        one_channel = item and not any(isinstance(value, list) for value in item)
        return check_channels(modality, [item] if one_channel else item)
    expected = {"text": "a string", "image": "a path", "audio": "a path"}.get(modality, "a path or a list of channels")
    raise Mistake(f"an item of `{modality}` is not {expected} but {kind(item)}.")


def check_path(modality: str, item: str, folder: Path) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", item):
        raise Mistake(f"`{modality}` is not a path but a URL, which is never fetched: {item[:80]}.")
    try:
        path = (folder / item).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
    except PermissionError as error:
        raise Mistake(f"`{modality}` may not be read: {item[:200]!r} in {folder}.") from error
    except (OSError, ValueError, RuntimeError) as error:  # missing, too long, a NUL in it, a loop of links
        raise Mistake(f"`{modality}` does not exist: {item[:200]!r}; paths are relative to {folder}.") from error
    if not path.is_relative_to(folder.resolve()):
        raise Mistake(
            f"`{modality}` lies outside {folder}: {item[:200]!r}; move the file, or the JSONL, so that it lies inside."
        )
    if not regular:
        raise Mistake(f"`{modality}` is not a regular file: {item[:200]!r}.")
    return path


def check_channels(modality: str, channels: list[Any]) -> list[list[float | None]]:
    """[C][T] finite numbers, null for a missing one; every channel as long as the others, one number at least."""
    for number, channel in enumerate(channels, start=1):
        if not isinstance(channel, list) or not channel:
            raise Mistake(
                f"channel {number} of `{modality}` is not a list of numbers; one series is [[1.0, 2.0, ...]]."
            )
        if len(channel) != len(channels[0]):
            lengths = f"{len(channel)} numbers, the first {len(channels[0])}"
            raise Mistake(f"channel {number} of `{modality}` has {lengths}: channels are equally long.")
        for value in channel:
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
                raise Mistake(
                    f"channel {number} of `{modality}` holds {str(value)[:40]}, not a finite float32 number; a missing "
                    "value is null."
                )
    if not channels:
        raise Mistake(f"an item of `{modality}` has no channel; leave it out or write null.")
    if all(value is None for channel in channels for value in channel):
        raise Mistake(f"an item of `{modality}` has no number, only null; leave it out.")
    return channels


def placeholder_names(modalities: Iterable[str]) -> tuple[str, ...]:
    """Every name that `<name>` in a content is a place for: text items have no place in a text."""
    return tuple(name for name in dict.fromkeys([*MODALITIES, *modalities]) if name != "text")


def split_content(content: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    r"""Texts and the placeholders between them, one fewer than the texts; `\<image>` is the text `<image>`."""
    texts, found, end = [""], [], 0
    for match in re.finditer(rf"(\\?)<({'|'.join(map(re.escape, names))})>", content):
        texts[-1] += content[end : match.start()]
        end = match.end()
        if match[1]:
            texts[-1] += match[0][1:]
        else:
            found.append(match[2])
            texts.append("")
    texts[-1] += content[end:]
    return texts, found


def check_placeholders(row: Row, names: Sequence[str]) -> None:
    """Placeholders and items must agree in number, where there are any placeholders."""
    counts = dict.fromkeys(names, 0)
    for message in row.messages:
        if "<" not in message.content:
            continue
        for name in split_content(message.content, names)[1]:
            counts[name] += 1
            if message.role == "assistant":
                raise Mistake(
                    f"an assistant's turn holds <{name}>, but the model answers in text; "
                    rf"write \<{name}> if these characters are meant."
                )
    for name, count in counts.items():
        items = len(row.items.get(name, ()))
        if count and count != items:
            raise Mistake(
                f"the messages hold {count} <{name}> and the row has {items} `{name}` "
                rf"item{'s' if items != 1 else ''}; write \<{name}> where these characters are meant as text."
            )


def with_text(row: Row, names: Sequence[str]) -> Row:
    """The row with something for a text encoder: where it has no `text`, its last user turn without placeholders."""
    turns = [message.content for message in row.messages if message.role == "user"]
    if row.items.get("text") or not turns:
        return row
    text = "".join(split_content(turns[-1], names)[0]).strip()
    return replace(row, items={**row.items, "text": (text,)}) if text else row


def check_modalities(rows: Iterable[Row], seats: Collection[str]) -> None:
    """Refuse items that the model would never see. `seats` are the modalities that have an encoder."""
    for row in rows:
        for modality, items in row.items.items():
            if items and modality not in seats:
                raise Mistake(
                    f"{row.where} (id {row.id}) has `{modality}`, and the model has no encoder for it. Give it one "
                    f"(encoder/{modality}=...), or keep the field as metadata (data.extra=[{modality}])."
                )


def kind(value: Any) -> str:
    """What a JSON value is, for messages to people."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
