"""A row as one line of JSON and back, for what is kept on disk: a path says that it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.protocols import Message, Mistake, Row

MEND = "Give paths, texts or lists of numbers, or take `fingerprint` away."


def row_to_json(row: Row, id: str) -> str:
    """`id` is its example's, which is another where a row was split. Raises `Mistake` for what JSON cannot hold."""
    if row.horizon is not None:
        raise Mistake(f"data: the row source has a fingerprint, and {row.where} (id {row.id}) has a horizon. {MEND}")
    items = {name: [plain(item) for item in some] for name, some in row.items.items()}
    messages = [(message.role, message.content) for message in row.messages]
    try:
        return json.dumps([id, row.id, row.where, messages, items, row.label, row.extra], ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise Mistake(
            f"data: the row source has a fingerprint, and {row.where} (id {row.id}) holds what JSON cannot: {error}. "
            f"{MEND}"
        ) from error


def row_of_json(text: bytes) -> tuple[str, Row]:
    """The example's id, and the row."""
    id, name, where, messages, items, label, extra = json.loads(text)
    return id, Row(
        id=name,
        where=where,
        messages=tuple(Message(role, content) for role, content in messages),
        items={name: tuple(map(item_of, some)) for name, some in items.items()},
        label=label,
        extra=extra,
    )


def plain(item: Any) -> Any:
    if isinstance(item, dict):  # which is how a path is written
        raise TypeError("an object")
    return {"path": str(item)} if isinstance(item, Path) else item


def item_of(value: Any) -> Any:
    return Path(value["path"]) if isinstance(value, dict) else value
