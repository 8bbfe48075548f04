"""Rows from JSONL files: UTF-8, one JSON object a line, read strictly and with every mistake told by file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.data.rows import (
    MODALITIES,
    check_items,
    check_messages,
    check_placeholders,
    kind,
    placeholder_names,
)
from runner.protocols import Mistake, Row
from runner.spelling import did_you_mean

TOLD = 10
"""Different row mistakes told at once."""


class Jsonl:
    """`path` is a file, the train split, or a folder with train.jsonl and, if there, val.jsonl and test.jsonl."""

    def __init__(self, path: str, val_path: str | None, fields: dict[str, str | None], extra: list[str]) -> None:
        self.path = path
        self.val_path = val_path
        self.fields = {ours: theirs for ours, theirs in fields.items() if theirs is not None}
        self.extra = set(extra)
        self.asked = list(fields)

    def read(self, modalities: Sequence[str]) -> dict[str, list[Row]]:
        columns = Columns(self.fields, self.asked, self.extra, modalities)
        mistakes: dict[str, list[str]] = {}
        records = {
            split: (file, read_records(file, mistakes)) for split, file in split_files(self.path, self.val_path).items()
        }
        columns.check_mapping([record for _, lines in records.values() for _, record in lines])
        splits = {split: read_rows(file, lines, columns, mistakes) for split, (file, lines) in records.items()}
        tell(mistakes, self.path)
        for split, (file, lines) in records.items():
            if not lines:
                raise Mistake(f"{file}, the {split} split, has no rows.")
        return splits


def split_files(path: str, val_path: str | None) -> dict[str, Path]:
    given = Path(path)
    files = {"train": given}
    if given.is_dir():
        files = {split: given / f"{split}.jsonl" for split in ("train", "val", "test")}
        files = {split: file for split, file in files.items() if split == "train" or file.exists()}
    if val_path is not None:
        files["val"] = Path(val_path)
    for split, file in files.items():
        if not file.is_file():
            key = "data.val_path" if split == "val" and val_path is not None else "data.path"
            beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
            raise Mistake(f"{key}: there is no file {file}{did_you_mean(file.name, beside)}")
    return files


def read_records(file: Path, mistakes: dict[str, list[str]]) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank; lines end with \\n or \\r\\n and nothing else."""
    records = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                records.append((number, parse(text)))
        except UnicodeDecodeError as error:
            note(mistakes, f"is not UTF-8 at byte {error.start + 1} of the line.", file, number)
        except json.JSONDecodeError as error:
            note(mistakes, f"is not JSON: {error.msg} at character {error.pos + 1} of the line.", file, number)
        except RecursionError:
            note(mistakes, "is nested too deeply.", file, number)
        except ValueError as error:
            note(mistakes, str(error), file, number)
    return records


def parse(text: str) -> dict[str, Any]:
    record = json.loads(text, parse_constant=finite, parse_float=finite, object_pairs_hook=without_duplicates)
    if not isinstance(record, dict):
        raise ValueError(f"is not a JSON object but {kind(record)}.")
    if "\\ud" in text.lower():  # half of an escaped pair is legal JSON and no Unicode text
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is not a character.") from error
    return record


def finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"holds {number}, which is not a finite number.")
    return value


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has the key `{twice}` twice.")
    return record


class Columns:
    """Which key of a file's object is which field of a row."""

    def __init__(
        self, fields: Mapping[str, str], asked: Sequence[str], extra: set[str], modalities: Sequence[str]
    ) -> None:
        self.modalities = tuple(dict.fromkeys([*MODALITIES, *modalities]))
        self.extra = extra
        self.mapped = fields
        ours = ("id", "messages", "system", "user", "assistant", "label", *self.modalities)
        for name in asked:
            if name not in ours:
                raise Mistake(
                    f"data.fields.{name} is not a field of a row{did_you_mean(name, ours)} Known: {', '.join(ours)}."
                )
        for name, key in fields.items():
            if key in extra:
                raise Mistake(f"data.extra and data.fields.{name} both name `{key}`; take it out of one of them.")
        self.exchange = {role: fields[role] for role in ("system", "user", "assistant") if role in fields}
        if self.exchange and "messages" in fields:
            raise Mistake(f"data.fields names messages and {', '.join(self.exchange)}: a row has one or the other.")
        if self.exchange and "user" not in self.exchange:
            raise Mistake(
                f"data.fields names {', '.join(self.exchange)} without user; a conversation needs its question."
            )
        # A key that data.fields gives to one field is not read as another, nor is one that data.extra keeps.
        taken = {*fields.values(), *extra}
        plain = ["id", "label", *self.modalities, *([] if self.exchange else ["messages"])]
        self.keys = {name: name for name in plain if name not in taken} | dict(fields)
        self.known = {*self.keys.values(), *extra}
        self.placeholders = placeholder_names(self.modalities)

    def check_mapping(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A mapped key that no row of any split has is a slip of the pen."""
        seen = dict.fromkeys(key for record in records for key in record)
        for name, key in self.mapped.items():
            if records and key not in seen:
                known = ", ".join(seen)
                raise Mistake(
                    f"data.fields.{name}={key}: no row has the key `{key}`{did_you_mean(key, seen)} Keys: {known}."
                )

    def row(self, record: Mapping[str, Any], file: Path, number: int) -> Row:
        for key in record:
            if key not in self.known and not key.startswith("_"):
                raise Mistake(
                    f"has an unknown key `{key}`{did_you_mean(key, self.known)} Map it (data.fields) or keep it as "
                    f"metadata (data.extra=[{key}])."
                )
        values = {name: record.get(key) for name, key in self.keys.items()}
        items = {name: check_items(name, values.get(name), file.parent) for name in self.modalities}
        row = Row(
            id=identity(values.get("id"), f"{file.stem}:{number}"),
            where=f"{file.name}:{number}",
            messages=check_messages(self.conversation(values)) if self.has_conversation(values) else (),
            items={name: value for name, value in items.items() if value},
            label=check_label(values.get("label")),
            extra={key: value for key, value in record.items() if key in self.extra or key.startswith("_")},
        )
        check_placeholders(row, self.placeholders)
        return row

    def has_conversation(self, values: Mapping[str, Any]) -> bool:
        return bool(self.exchange) or values.get("messages") is not None

    def conversation(self, values: Mapping[str, Any]) -> Any:
        """The value of `messages`, or one exchange out of plain columns; a row may lack the system or the answer."""
        if not self.exchange:
            return values["messages"]
        turns = []
        for role, key in self.exchange_in_order():
            content = values[role]
            if content is None and role != "user":
                continue
            if not isinstance(content, str):
                raise Mistake(f"`{key}`, the {role}'s turn, is not a string but {kind(content)}.")
            turns.append({"role": role, "content": content})
        return turns

    def exchange_in_order(self) -> list[tuple[str, str]]:
        return [(role, self.exchange[role]) for role in ("system", "user", "assistant") if role in self.exchange]


def identity(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Mistake(f"its id is not a string or a whole number but {kind(value) if value != '' else 'empty'}.")
    return str(value)


def check_label(value: Any) -> str | int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Mistake(f"its label is not a string or a number but {kind(value)}.")
    return value


def read_rows(
    file: Path, records: Sequence[tuple[int, dict[str, Any]]], columns: Columns, mistakes: dict[str, list[str]]
) -> list[Row]:
    rows = []
    lines: dict[str, int] = {}
    for number, record in records:
        try:
            row = columns.row(record, file, number)
            if row.id in lines:
                raise Mistake(f"has the id `{row.id}`, which line {lines[row.id]} has already.")
            lines[row.id] = number
            rows.append(row)
        except Mistake as mistake:
            note(mistakes, str(mistake), file, number)
    return rows


def note(mistakes: dict[str, list[str]], reason: str, file: Path, number: int) -> None:
    mistakes.setdefault(reason, []).append(f"{file.name}:{number}")


def tell(mistakes: Mapping[str, Sequence[str]], path: str) -> None:
    """Raise one `Mistake` for all of them, the same reason told once."""
    if not mistakes:
        return
    count = sum(map(len, mistakes.values()))
    lines = [f"data.path={path}: {count:,} row{'s break' if count > 1 else ' breaks'} the row schema."]
    for reason, places in list(mistakes.items())[:TOLD]:
        more = f" and {len(places) - 1:,} more lines" if len(places) > 1 else ""
        lines.append(f"  {places[0]}{more}: {reason}")
    hidden = sum(len(places) for places in list(mistakes.values())[TOLD:])
    if hidden:
        lines.append(f"  ... and {hidden:,} more rows.")
    raise Mistake("\n".join(lines))
