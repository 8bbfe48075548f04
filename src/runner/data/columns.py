"""Which key of a source's record is which field of a row: one answer for all sources, whatever file they read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.data.formats import FORMATS, likely_format, text_of
from runner.data.rows import (
    MODALITIES,
    check_items,
    check_messages,
    check_placeholders,
    kind,
    placeholder_names,
)
from runner.protocols import BadRow, Mistake, Row
from runner.spelling import did_you_mean

EXCHANGE = ("system", "user", "assistant")
LISTS = ("messages", "conversations", "history")
"""Keys of formats that hold lists."""
REMEMBERED = 200
"""Names of keys that were seen, for messages: rows may have as many different ones as they like."""


@dataclass(frozen=True)
class Record:
    """One record of a source as it stands there."""

    values: Mapping[str, Any]
    where: str
    id: str
    """Where it has none of its own."""
    root: Path
    """What its paths are relative to, and may not leave."""


class SplitRows:
    """The rows of one split, read anew each time they are gone through. `source` is its name for people."""

    def __init__(
        self, name: str, columns: Columns, records: Callable[[], Iterator[Record | BadRow]], source: str
    ) -> None:
        self.name = name
        self.columns = columns
        self.records = records
        self.source = source

    def restore(self, unseen: Mapping[str, str]) -> None:
        """These rows were gone through before; which mapped keys none of them had is known."""
        self.columns.unseen_here = dict(unseen)
        self.columns.finish(self.name, 1)

    @property
    def unseen(self) -> Mapping[str, str]:
        """Mapped keys that no row had, after they were gone through."""
        return self.columns.unseen_here

    def __iter__(self) -> Iterator[Row | BadRow]:
        self.columns.unseen_here = dict(self.columns.all_mapped)
        sound, total = 0, 0
        for record in self.records():
            total += 1
            if isinstance(record, BadRow):
                yield record
                continue
            try:
                row = self.columns.row(record)
            except Mistake as mistake:
                yield BadRow(record.where, str(mistake))
                continue
            sound += 1
            yield row
        if not total:
            raise Mistake(f"{self.source}, the {self.name} split, has no rows.")
        self.columns.finish(self.name, sound)


class Columns:
    """`fields` maps our names to the source's, `format` says how its conversations are written, and `extra` are further
    keys to keep. `splits` are those that will be read; once all are, each mapped key must have been seen."""

    def __init__(
        self,
        fields: Mapping[str, str | list[str] | None],
        format: str | None,
        extra: Sequence[str],
        modalities: Sequence[str],
        splits: Sequence[str],
    ) -> None:
        self.modalities = tuple(dict.fromkeys([*MODALITIES, *modalities]))
        self.extra = set(extra)
        self.mapped = {ours: theirs for ours, theirs in fields.items() if isinstance(theirs, str)}
        self.several = {ours: theirs for ours, theirs in fields.items() if isinstance(theirs, list)}
        """Modalities whose items stand under keys of their own."""
        self.format = None if format is None else FORMATS[format]
        self.check(fields, format)
        self.exchange = {role: self.mapped[role] for role in EXCHANGE if role in self.mapped}
        # A key that data.fields gives to one field is not read as another, nor is one that data.extra keeps.
        own_turns = not self.exchange and not self.format
        plain = ["id", "label", *self.modalities, *(["messages"] if own_turns else [])]
        named = {name: key for name, key in self.mapped.items() if name != "messages" or own_turns}
        apart = {key for keys in self.several.values() for key in keys}
        taken = {*self.mapped.values(), *apart, *self.extra}
        self.keys = {name: name for name in plain if name not in {*taken, *self.several}} | named
        self.turns = self.turn_keys()
        for key in self.turns.values():
            self.keys = {name: own for name, own in self.keys.items() if own != key}
        self.known = {*self.keys.values(), *self.turns.values(), *apart, *self.extra}
        lists = ("messages", *(name for name in self.modalities if name != "text"))
        turns = [self.turns[key] for key in LISTS if key in self.turns]
        self.structured = {self.keys[name] for name in lists if name in self.keys}.union(turns, apart)
        """Keys whose values may be lists or objects: where a cell is a text, it has them in JSON."""
        self.placeholders = placeholder_names(self.modalities)
        self.all_mapped: dict[str, str] = self.mapped | {
            f"{name}.{k}": key for name, some in self.several.items() for k, key in enumerate(some)
        }
        self.unseen = dict(self.all_mapped)
        """Mapped keys that no row of any split had yet; `unseen_here`: of the split that is gone through."""
        self.unseen_here = dict(self.all_mapped)
        self.seen: dict[str, None] = {}
        self.unread = set(splits)

    def check(self, fields: Mapping[str, str | list[str] | None], format: str | None) -> None:
        ours = ("id", "messages", *EXCHANGE, "label", *self.modalities)
        for name in fields:
            if name not in ours:
                raise Mistake(
                    f"data.fields.{name} is not a field of a row{did_you_mean(name, ours)} Known: {', '.join(ours)}."
                )
        for name in self.several:
            if name not in self.modalities:
                raise Mistake(
                    f"data.fields.{name} names several keys, which only a modality's items may have. Name one."
                )
        for name, key in self.mapped.items():
            if key in self.extra:
                raise Mistake(f"data.extra and data.fields.{name} both name `{key}`; take it out of one of them.")
        exchange = [role for role in EXCHANGE if role in self.mapped]
        if exchange and format:
            raise Mistake(
                f"data.format={format} says where the conversation is, and data.fields names {', '.join(exchange)} "
                "too; take one of them out."
            )
        if exchange and "messages" in self.mapped:
            raise Mistake(f"data.fields names messages and {', '.join(exchange)}: a row has one or the other.")
        if exchange and "user" not in exchange:
            raise Mistake(f"data.fields names {', '.join(exchange)} without user; a conversation needs its question.")
        if self.format and "messages" in self.mapped and len(self.format.needs) > 1:
            raise Mistake(f"data.format={format} has no list of messages; take data.fields.messages out.")

    def turn_keys(self) -> dict[str, str]:
        """The format's name of each of its keys: the source's, which data.fields.messages may have renamed."""
        if self.format is None:
            return {}
        turns = {key: key for key in self.format.takes if key not in self.extra}
        if "messages" in self.mapped:
            turns[self.format.needs[0]] = self.mapped["messages"]
        return turns

    def check_names(self, names: Sequence[str], source: str) -> None:
        """Of a table's header: an unknown column is one mistake, not one of each row."""
        for name in names:
            self.note(name)
            if not self.knows(name):
                raise Mistake(f"{source} has an unknown column `{name}`{self.hint(name, dict.fromkeys(names))}")

    def knows(self, key: str) -> bool:
        return key in self.known or key.startswith("_")

    def note(self, key: str) -> None:
        if len(self.seen) < REMEMBERED:
            self.seen[key] = None
        if self.unseen_here:
            self.unseen_here = {name: own for name, own in self.unseen_here.items() if own != key}

    def finish(self, split: str, sound: int) -> None:
        """Raises `Mistake` for a mapped key that no row has, once that is known: a slip of the pen.

        It is told early where it may be what made every row of the split a bad one.
        """
        self.unread.discard(split)
        self.unseen = {name: key for name, key in self.unseen.items() if name in self.unseen_here}
        if not self.unread or not sound:
            for name, key in self.unseen.items():
                known = ", ".join(self.seen)
                raise Mistake(
                    f"data.fields.{name}={key}: no row has the key `{key}`{did_you_mean(key, self.seen)} Keys: {known}."
                )

    def row(self, record: Record) -> Row:
        """Raises `Mistake` with the reason alone."""
        values = record.values
        for key in values:
            if key not in self.seen or self.unseen_here:
                self.note(key)
        try:
            return self.strictly(record, values)
        except Mistake as mistake:
            meant = None if self.format or self.exchange else likely_format(values)
            if meant and "data.format=" not in str(mistake):
                raise Mistake(f"{mistake} Did you mean data.format={meant}?") from mistake
            raise

    def strictly(self, record: Record, values: Mapping[str, Any]) -> Row:
        for key in values:
            if not self.knows(key):
                raise Mistake(f"has an unknown key `{key}`{self.hint(key, values)}")
        given = {name: values.get(key) for name, key in self.keys.items()}
        for name, keys in self.several.items():
            there = [values[key] for key in keys if values.get(key) is not None]
            given[name] = {"items": there} if there else None
        given |= self.conversation(values)
        items = {name: check_items(name, given.get(name), record.root) for name in self.modalities}
        row = Row(
            id=identity(given.get("id"), record.id),
            where=record.where,
            messages=() if given.get("messages") is None else check_messages(given["messages"]),
            items={name: value for name, value in items.items() if value},
            label=check_label(given.get("label")),
            extra={key: value for key, value in values.items() if key in self.extra or key.startswith("_")},
        )
        check_placeholders(row, self.placeholders)
        return row

    def hint(self, key: str, values: Mapping[str, Any]) -> str:
        """The end of the sentence about an unknown key."""
        meant = None if self.format or self.exchange else likely_format(values)
        if meant:
            return f"; did you mean data.format={meant}?"
        keep = f"Map it (data.fields) or keep it as metadata (data.extra=[{key}])."
        return f"{did_you_mean(key, self.known)} {keep}"

    def conversation(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`messages`, and what of the row's items stands in them, out of plain columns or as the format has them."""
        if self.exchange:
            return {"messages": list(self.turns_of(values))}
        if self.format is None:
            return {}
        made = self.format.messages({ours: values.get(key) for ours, key in self.turns.items()}, self.placeholders)
        for modality in made.keys() - {"messages"}:
            if modality in self.keys and values.get(self.keys[modality]) is not None:
                raise Mistake(f"has items of `{modality}` in its messages and beside them; keep them in one place.")
        return made

    def turns_of(self, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A row may lack the system or the answer."""
        for role, key in self.exchange.items():
            content = values.get(key)
            if content is None and role != "user":
                continue
            yield {"role": role, "content": text_of(content, f"`{key}`, the {role}'s turn,")}


def identity(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Mistake(f"its id is not a string or a whole number but {kind(value) if value != '' else 'empty'}.")
    return str(value)


def check_label(value: Any) -> str | int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Mistake(f"its label is not a string or a number but {kind(value)}.")
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise Mistake(f"its label is {str(value)[:40]}, not a finite number.")
    return value


def fingerprint_of_columns(
    fields: Mapping[str, str | list[str] | None], format: str | None, extra: Sequence[str]
) -> dict[str, Any]:
    """Of what shapes the rows of a source beside its files."""
    return {"fields": dict(fields), "format": format, "extra": list(extra)}
