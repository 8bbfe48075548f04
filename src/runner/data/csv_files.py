"""Which CSV files a series stands in, and what their columns are called together."""

from __future__ import annotations

from pathlib import Path

from runner.data.series_files import Table
from runner.protocols import Mistake
from runner.spelling import did_you_mean


class Columns:
    """The channels of all files by what they are called: a column's name, or `file.column` where several have it."""

    def __init__(self, tables: dict[str, Table], time: str | None, label: str | None) -> None:
        found = [
            (file, column) for file, table in tables.items() for column in table.names if column not in (time, label)
        ]
        names = [column for _, column in found]
        self.places = {
            column if names.count(column) == 1 else f"{file}.{column}": (file, column) for file, column in found
        }
        self.first = next(iter(tables.values()))
        if len(self.places) < len(found):
            raise Mistake(
                "columns of several files would be called alike. Name the files: data.path={a: a.csv, b: b.csv}."
            )
        if not self.places:
            raise Mistake(f"{self.first.file.name}:1 has no column of values.")
        having = [file for file, table in tables.items() if label in table.names]
        if label is not None and len(having) != 1:
            known = [column for table in tables.values() for column in table.names]
            many = f" is in {len(having)} files" if having else f"{did_you_mean(label, known)}"
            raise Mistake(f"data.label={label} is a column of one file{many}")
        self.label_file = having[0] if label is not None else None

    def named(self, key: str, names: list[str] | None) -> list[str]:
        """The channels that are asked for; all where none are."""
        for name in names or ():
            if name not in self.places:
                raise Mistake(
                    f"data.{key} names `{name}`, which is no column of values{did_you_mean(name, self.places)}"
                )
        if names and len(set(names)) != len(names):
            raise Mistake(f"data.{key} names a column twice: {', '.join(names)}.")
        return names or list(self.places)


def files_of(path: str | list[str] | dict[str, str]) -> dict[str, Path]:
    """Each file by its name, or by the one that it is given."""
    if isinstance(path, str) and Path(path).expanduser().is_dir():
        found = sorted(Path(path).expanduser().glob("*.csv"))
        if not found:
            raise Mistake(f"data.path: there is no .csv file in the folder {path}.")
        return {file.stem: file for file in found}
    named = (
        path if isinstance(path, dict) else {Path(one).stem: one for one in ([path] if isinstance(path, str) else path)}
    )
    if not isinstance(path, str) and (len(named) < len(path) or not named):
        raise Mistake(
            f"data.path={path} must name files with differing names; else name them: {{a: one/x.csv, b: two/x.csv}}."
        )
    files = {name: Path(one).expanduser() for name, one in named.items()}
    for file in files.values():
        if not file.is_file():
            beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
            raise Mistake(f"data.path: there is no file {file}{did_you_mean(file.name, beside)}")
    return files
