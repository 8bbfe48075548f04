"""Rows from JSONL files: UTF-8, one JSON object a line, read strictly and line by line as the rows are gone through."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from runner.data.columns import Columns, Record, Split, fingerprint_of_columns
from runner.data.rows import kind
from runner.data.shards import TOO_LONG, Shard, find_shards, fingerprint_of, not_utf8, read_lines
from runner.protocols import BadRow
from runner.settings import Format

SUFFIXES = (".jsonl", ".jsonl.gz")


class Jsonl:
    """`path` is a file, the train split; a folder with train.jsonl or train/*.jsonl and, if there, val and test; or a
    pattern (`shards/*.jsonl`), whose files are the train split. `val_path` is a file, a folder or a pattern."""

    def __init__(
        self,
        path: str,
        val_path: str | None,
        fields: dict[str, str | None],
        extra: list[str],
        format: Format | None,
    ) -> None:
        self.path = path
        self.val_path = val_path
        self.fields = fields
        self.extra = extra
        self.format = format

    def read(self, modalities: Sequence[str]) -> dict[str, Split]:
        shards = find_shards(self.path, self.val_path, SUFFIXES)
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(shards))
        return {
            split: Split(split, columns, partial(records_of, some), ", ".join(one.name for one in some[:3]))
            for split, some in shards.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        files = fingerprint_of(find_shards(self.path, self.val_path, SUFFIXES))
        return {"files": files, **fingerprint_of_columns(self.fields, self.format, self.extra)}


def records_of(shards: Sequence[Shard]) -> Iterator[Record | BadRow]:
    for shard in shards:
        for number, line in read_lines(shard):
            where = f"{shard.name}:{number}"
            if line is None:
                yield BadRow(where, TOO_LONG)
                continue
            if not line.strip():
                continue
            try:
                yield Record(parse(line.decode("utf-8")), where, f"{shard.stem}:{number}", shard.root)
            except UnicodeDecodeError as error:
                yield BadRow(where, not_utf8(error))
            except json.JSONDecodeError as error:
                yield BadRow(where, f"is not JSON: {error.msg} at character {error.pos + 1} of the line.")
            except RecursionError:
                yield BadRow(where, "is nested too deeply.")
            except ValueError as error:
                yield BadRow(where, str(error))


def parse(text: str) -> dict[str, Any]:
    """Raises `ValueError` with the reason for what is no object of Unicode texts and finite numbers."""
    try:
        record = json.loads(text, parse_constant=finite, parse_float=finite, object_pairs_hook=without_duplicates)
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own limit, in words that name its settings
            raise ValueError("holds a whole number of more than 4,300 digits.") from error
        raise
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
