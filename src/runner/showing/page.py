"""A step as one page that needs nothing else: no script, no file beside it, and rows' text as text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from runner.protocols import Mistake
from runner.showing import words
from runner.showing.drawings import HIGH, LARGEST, Drawing, drawn, series
from runner.showing.glyphs import visible
from runner.showing.reading import Cut, Items, MicroBatch, ReadRow, Text, extent

MARK = "<!doctype html>\n<!-- runner show -->"
"""How a page begins: another file is not written over."""
TOLD_IN_FULL = 4
"""Tokens of one character whose numbers stand in its hint."""


def check_writable(name: str) -> Path:
    """Before anything is built. Raises `Mistake` for what could not be written, or would be lost."""
    file = Path(name).expanduser()
    try:
        if file.is_dir():
            raise Mistake(f"show.html={name} is a folder. Name a file in it, {file / 'batch.html'} for instance.")
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as stream:
                if stream.read(len(MARK)) != MARK:
                    raise Mistake(f"show.html={name} is there and no page of runner show. Name another file.")
        elif not file.parent.is_dir():
            raise Mistake(f"show.html={name}: there is no folder {file.parent}. Make it, or name another file.")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise Mistake(f"show.html={name} may not be written by you. Name a file in a folder of your own.")
    except OSError as error:
        raise Mistake(f"show.html={name} cannot be written: {error.strerror or error}. Name another file.") from error
    return file


def write(file: Path, title: str, batches: Sequence[MicroBatch], processes: int) -> None:
    try:
        file.write_text(page(title, batches, processes), encoding="utf-8")
    except OSError as error:
        raise Mistake(f"show.html={file} cannot be written: {error.strerror or error}. Name another file.") from error


def page(title: str, batches: Sequence[MicroBatch], processes: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "shown": shown, "hint": hint, "kind": kind}
    environment.globals |= {
        "words": words,
        "drawing": drawing,
        "due": due,
        "strip": strip,
        "wide": LARGEST,
        "high": HIGH,
    }
    return environment.get_template("page.html.jinja").render(
        mark=MARK, title=title, batches=batches, processes=processes
    )


def shown(piece: Text) -> str:
    """With a sign for the end of a line, beside it."""
    return visible(piece.text).replace("\n", "↵\n")


def hint(piece: Text) -> str:
    """What is said of a token when it is pointed at."""
    many = len(piece.ids) > 1
    ids = ", ".join(map(str, piece.ids[:TOLD_IN_FULL])) + (", …" if len(piece.ids) > TOLD_IN_FULL else "")
    positions = f"positions {piece.first} to {piece.first + len(piece.ids) - 1}" if many else f"position {piece.first}"
    label = f"label{'s' if many else ''} {ids}" if piece.learnt else "no label"
    return f"{positions} · id{'s' if many else ''} {ids} · {label} · {piece.kind}"


def kind(piece: Text | Items | Cut) -> str:
    return type(piece).__name__.lower()


def drawing(row: ReadRow, name: tuple[str, int]) -> Drawing:
    modality, number = name
    return drawn(modality, row.row.items[modality][number], row.row)


def due(row: ReadRow) -> Drawing | None:
    """Of a row with a horizon: what comes after its series."""
    horizon = row.row.horizon
    return None if horizon is None else series(horizon.values, horizon.targets.names)


def strip(row: ReadRow, longest: int) -> list[tuple[str, float]]:
    """The row's part of the longest sequence, as stretches of one kind: kind, per cent."""
    stretches: list[tuple[str, int]] = []
    for piece in row.pieces:
        if isinstance(piece, Text):
            stretches.append(("learnt" if piece.learnt else piece.kind, len(piece.ids)))
        elif isinstance(piece, Items) and piece.tokens:
            stretches += [("items", piece.tokens), ("padding", piece.padding)]
    stretches.append(("padding", row.padding))
    merged: list[tuple[str, int]] = []
    for name, count in stretches:
        if merged and merged[-1][0] == name:
            merged[-1] = (name, merged[-1][1] + count)
        elif count:
            merged.append((name, count))
    assert sum(count for _, count in merged) == extent(row)
    return [(name, 100 * count / longest) for name, count in merged]
