"""Rows from JSONL files: UTF-8, one JSON object a line, read strictly and line by line as the rows are gone through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from runner.data.columns import Columns, Record, SplitRows, fingerprint_of_columns
from runner.data.rows import kind
from runner.data.shards import TOO_LONG, Shard, find_shards, fingerprint_of, not_utf8, read_lines
from runner.data.strict_json import parse
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
        fields: dict[str, str | list[str] | None],
        extra: list[str],
        format: Format | None,
    ) -> None:
        self.path = path
        self.val_path = val_path
        self.fields = fields
        self.extra = extra
        self.format = format

    def read(self, modalities: Sequence[str]) -> dict[str, SplitRows]:
        shards = find_shards(self.path, self.val_path, SUFFIXES)
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(shards))
        return {
            split: SplitRows(split, columns, partial(records_of, some), some[0].name) for split, some in shards.items()
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
                values = parse(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(where, not_utf8(error))
            except ValueError as error:
                yield BadRow(where, str(error))
            else:
                if isinstance(values, dict):
                    yield Record(values, where, f"{shard.stem}:{number}", shard.root)
                else:
                    yield BadRow(where, f"is not a JSON object but {kind(values)}.")
