"""Rows from tables, read as they are gone through: CSV files record by record, Parquet files a few rows at a time.

CSV is read by Python's own reader and not Arrow's: it knows the line of each record where cells hold line ends.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from runner.data.arrow import check_types, without_nulls
from runner.data.columns import Columns, Record, SplitRows, fingerprint_of_columns
from runner.data.shards import MAX_LINE, TOO_LONG, Shard, find_shards, fingerprint_of, not_utf8, read_lines
from runner.data.strict_json import parse
from runner.protocols import BadRow, Mistake
from runner.settings import Format

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet",)
BATCH = 64
"""Rows of a Parquet file that are in memory at a time."""
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""As JSON writes it: 007 and +1 are texts."""
OTHER_DELIMITERS = (";", "\t", "|", ",")


class Csv:
    """`path` and `val_path` as for data=jsonl. The first line names the columns; an empty cell is absent."""

    def __init__(
        self,
        path: str,
        val_path: str | None,
        delimiter: str,
        fields: dict[str, str | list[str] | None],
        extra: list[str],
        format: Format | None,
    ) -> None:
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise Mistake(f"data.delimiter={delimiter!r} must be one character, no quote and no end of a line.")
        self.path = path
        self.val_path = val_path
        self.delimiter = delimiter
        self.fields = fields
        self.extra = extra
        self.format = format

    def read(self, modalities: Sequence[str]) -> dict[str, SplitRows]:
        shards = find_shards(self.path, self.val_path, CSV_SUFFIXES)
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(shards))
        return {
            split: SplitRows(split, columns, partial(csv_records, some, columns, self.delimiter), some[0].name)
            for split, some in shards.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        files = fingerprint_of(find_shards(self.path, self.val_path, CSV_SUFFIXES))
        shape = fingerprint_of_columns(self.fields, self.format, self.extra)
        return {"files": files, "delimiter": self.delimiter, **shape}


class Parquet:
    """`path` and `val_path` as for data=jsonl. Null is absent."""

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
        shards = find_shards(self.path, self.val_path, PARQUET_SUFFIXES)
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(shards))
        return {
            split: SplitRows(split, columns, partial(parquet_records, some, columns), some[0].name)
            for split, some in shards.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        files = fingerprint_of(find_shards(self.path, self.val_path, PARQUET_SUFFIXES))
        return {"files": files, **fingerprint_of_columns(self.fields, self.format, self.extra)}


class Lines:
    """A file's lines as texts; `fault` says what is wrong with one that was taken since it was last None."""

    def __init__(self, shard: Shard) -> None:
        self.fault: str | None = None
        self.lines = read_lines(shard)

    def __iter__(self) -> Iterator[str]:
        for _, line in self.lines:
            if line is None:
                self.fault = TOO_LONG
                yield "\n"
                continue
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                self.fault = not_utf8(error)
                yield line.decode("utf-8", errors="replace")


def csv_records(shards: Sequence[Shard], columns: Columns, delimiter: str) -> Iterator[Record | BadRow]:
    for shard in shards:
        yield from records_of_csv(shard, columns, delimiter)


def records_of_csv(shard: Shard, columns: Columns, delimiter: str) -> Iterator[Record | BadRow]:
    names: list[str] | None = None
    for number, cells, fault in csv_cells(shard, delimiter):
        where = f"{shard.name}:{number}"
        if names is None:
            if fault:
                raise Mistake(f"{where} {fault}")
            check_header(cells, where, delimiter)
            columns.check_names(cells, where)
            names = cells
        elif fault or len(cells) != len(names):
            yield BadRow(where, fault or f"has {cells_in_words(len(cells))}, and the first line has {len(names)}.")
        else:
            try:
                values = {name: value_of(name, cell, columns) for name, cell in zip(names, cells, strict=True) if cell}
            except ValueError as error:
                yield BadRow(where, str(error))
            else:
                yield Record(values, where, f"{shard.stem}:{number}", shard.root)


def csv_cells(shard: Shard, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Of each record that is not blank: its first line, its cells, what is wrong with a line of it.

    Raises `Mistake` where a quote is not closed as it should be: what is a record after it cannot be known.
    """
    csv.field_size_limit(MAX_LINE)
    lines = Lines(shard)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    while True:
        first, lines.fault = reader.line_num + 1, None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Mistake(
                f"{shard.name}:{first} is not CSV: {error}. A cell with a quote, a delimiter or a line's end in it "
                'stands in quotes, its own quotes doubled ("a ""b"" c").'
            ) from error
        if cells or lines.fault:
            yield first, cells, lines.fault


def check_header(names: Sequence[str], where: str, delimiter: str) -> None:
    for name in names:
        if not name.strip():
            raise Mistake(f"{where} has a column without a name; name it, or take it out (pandas: index=False).")
        if names.count(name) > 1:
            raise Mistake(f"{where} has two columns named `{name}`; name each column once.")
    other = next((one for one in OTHER_DELIMITERS if one != delimiter and one in names[0]), None)
    if len(names) == 1 and other:
        raise Mistake(f"{where} has one column, `{names[0][:80]}`. Did you mean data.delimiter={other!r}?")


def cells_in_words(count: int) -> str:
    return "1 cell" if count == 1 else f"{count:,} cells"


def value_of(name: str, cell: str, columns: Columns) -> Any:
    """A cell is a text, but for a label that is written as a number and for lists and objects, in JSON, where a field
    holds them. Raises `ValueError` with the reason."""
    if name == columns.keys.get("label") and NUMBER.fullmatch(cell):
        return parse(cell)
    if name in columns.structured and cell.startswith(("[", "{")):
        try:
            return parse(cell)
        except ValueError as error:
            raise ValueError(f"has a cell `{name}` that {str(error).replace(' of the line', '')}") from error
    return cell


def parquet_records(shards: Sequence[Shard], columns: Columns) -> Iterator[Record | BadRow]:
    for shard in shards:
        yield from records_of_parquet(shard, columns)


def records_of_parquet(shard: Shard, columns: Columns) -> Iterator[Record | BadRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(shard.file, pre_buffer=False) as file:
            check_types(file.schema_arrow, shard.name)
            columns.check_names(file.schema_arrow.names, shard.name)
            for batch in file.iter_batches(batch_size=BATCH):
                for values in batch.to_pylist():
                    number += 1
                    where = f"{shard.name}:{number}"
                    try:
                        record = Record(without_nulls(values), where, f"{shard.stem}:{number}", shard.root)
                    except Mistake as mistake:
                        yield BadRow(where, str(mistake))
                    else:
                        yield record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        after = f" (after row {number:,})" if number else ""
        raise Mistake(f"{shard.name} is not a whole Parquet file{after}: {str(error).splitlines()[0]}") from error
