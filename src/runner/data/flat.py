"""Rows as numbers in flat arrays with offsets: in memory, or memory-mapped from a folder that was written once.

However many rows there are, a folder's cost no Python object; in memory the rows are held as they are. Shapes: R rows,
L text tokens and P items of all rows together.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from runner.data.row_json import row_of_json, row_to_json
from runner.protocols import IGNORED, Example, Row

KINDS = {
    name: np.dtype(kind)
    for name, kind in {"tokens": "i4", "learnt": "?", "places": "i4", "rows": "u1", "ends": "i8"}.items()
}
"""By file: `tokens` [L]; whether each is `learnt` [L]; `places` [P, 3] of items (modality, item, token); the `rows` as
JSON in UTF-8; and where each row's tokens, places and JSON end, `ends` [R + 1, 3]."""


class FlatWriter:
    """Takes examples one by one. `folder` None: in memory; `holds_rows`: rows are kept as the objects that they are,
    since they hold what JSON cannot."""

    def __init__(self, folder: Path | None, holds_rows: bool) -> None:
        self.folder = folder
        self.held: list[tuple[str, Row]] | None = [] if holds_rows else None
        self.streams: dict[str, IO[bytes]] = {
            name: io.BytesIO() if folder is None else (folder / name).open("wb") for name in KINDS
        }
        self.modalities: list[str] = []
        self.ends = np.zeros(3, dtype=np.int64)
        self.count = 0
        self.streams["ends"].write(self.ends.tobytes())

    def append(self, example: Example) -> None:
        for modality, _, _ in example.places:
            if modality not in self.modalities:
                self.modalities.append(modality)
        places = [(self.modalities.index(name), item, place) for name, item, place in example.places]
        self.streams["tokens"].write(example.input_ids.astype(np.int32).tobytes())
        self.streams["learnt"].write((example.labels != IGNORED).tobytes())
        self.streams["places"].write(np.array(places, dtype=np.int32).tobytes())
        text = b""
        if self.held is None:
            text = row_to_json(example.row, example.id).encode()
            self.streams["rows"].write(text)
        else:
            self.held.append((example.id, example.row))
        self.ends += (len(example.input_ids), len(places), len(text))
        self.streams["ends"].write(self.ends.tobytes())
        self.count += 1

    def row_at(self, index: int) -> Row:
        """One that was taken before, for a message: read again from what was written."""
        if self.held is not None:
            return self.held[index][1]
        assert self.folder is not None
        for name in ("rows", "ends"):
            self.streams[name].flush()
        first, last = mapped(self.folder / "ends", KINDS["ends"]).reshape(-1, 3)[index : index + 2, 2].tolist()
        return row_of_json(mapped(self.folder / "rows", KINDS["rows"])[first:last].tobytes())[1]

    def close(self) -> FlatExamples:
        if self.folder is not None:
            (self.folder / "modalities.json").write_text(json.dumps(self.modalities))
            for stream in self.streams.values():
                stream.close()
            return FlatExamples.open(self.folder)
        arrays = {
            name: np.frombuffer(stream.getbuffer(), KINDS[name]) if stream.tell() else np.zeros(0, KINDS[name])
            for name, stream in self.streams.items()
            if isinstance(stream, io.BytesIO)
        }
        return FlatExamples(arrays, self.modalities, self.held)


class FlatExamples(Sequence[Example]):
    """Examples made of their part of the arrays when they are asked for."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        modalities: Sequence[str],
        held: list[tuple[str, Row]] | None,
        folder: Path | None = None,
    ) -> None:
        self.tokens, self.learnt = arrays["tokens"], arrays["learnt"]
        self.places = arrays["places"].reshape(-1, 3)
        self.rows = memoryview(arrays["rows"])  # type: ignore[arg-type]
        self.ends = arrays["ends"].reshape(-1, 3)
        self.modalities = modalities
        self.held = held
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> FlatExamples:
        modalities = json.loads((folder / "modalities.json").read_text())
        return cls({name: mapped(folder / name, kind) for name, kind in KINDS.items()}, modalities, None, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader worker that does not share memory opens the folder again instead of being sent the arrays."""
        if self.folder is not None:
            return FlatExamples.open, (self.folder,)
        arrays = {"tokens": self.tokens, "learnt": self.learnt, "places": self.places, "ends": self.ends}
        return FlatExamples, (arrays | {"rows": np.asarray(self.rows)}, self.modalities, self.held)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        (token, place, text), (last_token, last_place, last_text) = self.ends[index : index + 2].tolist()
        input_ids = self.tokens[token:last_token]
        id, row = self.held[index] if self.held is not None else row_of_json(bytes(self.rows[text:last_text]))
        return Example(
            id=id,
            input_ids=input_ids,
            labels=np.where(self.learnt[token:last_token], input_ids, np.int32(IGNORED)),
            places=self._places(place, last_place) if last_place > place else (),
            row=row,
        )

    def _places(self, first: int, last: int) -> tuple[tuple[str, int, int], ...]:
        return tuple((self.modalities[name], item, place) for name, item, place in self.places[first:last].tolist())

    @property
    def lengths(self) -> np.ndarray:
        """int32 [R], text tokens"""
        ends = self.ends[:, 0]
        return np.subtract(ends[1:], ends[:-1], out=np.empty(len(self), np.int32), casting="unsafe")


def mapped(file: Path, kind: np.dtype[Any]) -> np.ndarray:
    """A plain array over a memory-mapped file: slices of `np.memmap` itself cost more than what is read."""
    if not file.stat().st_size:  # which cannot be mapped
        return np.zeros(0, dtype=kind)
    return np.asarray(np.memmap(file, dtype=kind, mode="r"))


class RowsOf(Sequence[Row]):
    """The rows of examples, each made when it is asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [one.row for one in self.examples[index]]
        return self.examples[index].row
