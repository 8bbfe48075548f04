"""A time series from a file: .csv with a column a channel, .npy, or .json with a list a channel.

Shapes: C channels, T steps.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.data.rows import LARGEST_NUMBER, check_channels, kind
from runner.protocols import Mistake
from runner.spelling import did_you_mean

MISSING = ("", "na", "nan", "null", "none")
"""Cells that stand for a missing value, in any case."""
TOLD = 5
"""Wrong cells told at once."""


def read_series(file: Path) -> np.ndarray:
    """float32 [C, T], NaN for a missing value. Raises `Mistake` for a file that holds no such thing."""
    read = {".csv": series_of_csv, ".npy": series_of_npy, ".json": series_of_json}.get(file.suffix.lower())
    if read is None:
        raise Mistake(f"{file.name} is no file with a series; it must be .csv, .npy or .json.")
    series = read(file)
    if not np.isfinite(series).any():
        raise Mistake(f"{file.name} has no number.")
    return series.astype(np.float32)


def series_of_npy(file: Path) -> np.ndarray:
    """[T] is one channel, [C, T] several."""
    try:
        series = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Mistake(f"{file.name} is not a whole .npy file of numbers: {error}.") from error
    if not isinstance(series, np.ndarray) or series.dtype.kind not in "iuf" or series.ndim not in (1, 2):
        said = f"{series.dtype} {list(series.shape)}" if isinstance(series, np.ndarray) else "several arrays"
        raise Mistake(f"{file.name} holds {said}; a series is an array of numbers, [channels, steps] or [steps].")
    series = np.atleast_2d(series).astype(np.float64)
    if (np.abs(series) > LARGEST_NUMBER).any():
        raise Mistake(f"{file.name} holds numbers that are not finite in float32; a missing value is NaN.")
    return series


def series_of_json(file: Path) -> np.ndarray:
    """A list of numbers is one channel, a list of such lists several; null is a missing value."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Mistake(f"{file.name} is not JSON: {error}.") from error
    if not isinstance(value, list):
        raise Mistake(f"{file.name} holds {kind(value)}; a series is a list of channels, each a list of numbers.")
    channels = value if value and isinstance(value[0], list) else [value]
    try:
        return np.asarray(check_channels("series", channels), dtype=np.float64)
    except Mistake as mistake:
        raise Mistake(f"{file.name}: {mistake}") from mistake


def series_of_csv(file: Path) -> np.ndarray:
    """Each column is a channel; the first line may name them."""
    table = read_table(file, header=None)
    return table.numbers(table.names)


def read_columns(file: Path, names: Sequence[str]) -> np.ndarray:
    """float64 [C, T] of these columns, whatever stands beside them; of all, where the first line names none."""
    table = read_table(file, header=None)
    if not table.has_header:
        return table.numbers(table.names)
    lacking = [name for name in names if name not in table.names]
    if lacking:
        raise Mistake(f"{file.name}:1 has no column `{lacking[0]}`{did_you_mean(lacking[0], table.names)}")
    return table.numbers(names)


@dataclass(frozen=True)
class Table:
    """A CSV file as text: `cells[k]` is what stands in line `lines[k]`, as many cells as names."""

    file: Path
    names: list[str]
    cells: list[list[str]]
    lines: list[int]
    has_header: bool

    def column(self, name: str) -> list[str]:
        position = self.names.index(name)
        return [row[position] for row in self.cells]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """float64 [C, T] of the named columns, NaN where a value is missing.

        Raises `Mistake` for cells that are no finite float32 numbers.
        """
        values = np.full((len(names), len(self.cells)), np.nan)
        wrong = []
        for channel, name in enumerate(names):
            for step, cell in enumerate(self.column(name)):
                try:
                    values[channel, step] = float(cell)
                except ValueError:
                    if cell.strip().lower() not in MISSING:
                        wrong.append((step, name, cell))
            for large in np.flatnonzero(np.abs(values[channel]) > LARGEST_NUMBER).tolist():
                wrong.append((large, name, self.column(name)[large]))
        if wrong:
            raise Mistake(self.tell([(step, f"`{name}` is {cell[:40]!r}, no number") for step, name, cell in wrong]))
        return values

    def tell(self, reasons: Sequence[tuple[int, str]]) -> str:
        """One sentence for the first few of (row, what is wrong there), by file and line."""
        reasons = sorted(reasons)
        said = "; ".join(f"{self.file.name}:{self.lines[row]}: {reason}" for row, reason in reasons[:TOLD])
        return said + (f"; and {len(reasons) - TOLD:,} more." if len(reasons) > TOLD else ".")


def read_table(file: Path, header: bool | None) -> Table:
    """`header`: whether the first line names the columns; None: it does when it holds a cell that is no number."""
    rows = list(read_lines(file))
    if not rows:
        raise Mistake(f"{file.name} is empty.")
    (_, first), *rest = rows
    if header is None:
        header = any(cell.lower() not in MISSING and not is_number(cell) for cell in first)
    names = first if header else [f"column {number}" for number in range(1, len(first) + 1)]
    rows = rest if header else rows
    if "" in names or len(set(names)) != len(names):
        wrong = next(name for name in names if name == "" or names.count(name) > 1)
        said = f"has two columns named `{wrong}`" if wrong else "has a column without a name"
        raise Mistake(f"{file.name}:1 {said}; name each column once, parted by commas.")
    if not rows:
        raise Mistake(f"{file.name} has no line of values.")
    table = Table(file, names, [row for _, row in rows], [line for line, _ in rows], header)
    ragged = [(k, f"{len(row)} cells, not {len(names)}") for k, row in enumerate(table.cells) if len(row) != len(names)]
    if ragged:
        raise Mistake(table.tell(ragged))
    return table


def read_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True, skipinitialspace=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if cells and cells != [""]:
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"{file.name} cannot be read as CSV in UTF-8: {error}.") from error


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
