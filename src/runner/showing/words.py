"""A micro-batch in words: what stands in the terminal, and the sentences that a page has too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text as Line

from runner.showing.glyphs import visible
from runner.showing.reading import Cut, Items, MicroBatch, ReadRow, Text
from runner.showing.wholes import Whole

LOST = {"user": "user's", "system": "system's", "answer": "answer's", "template": "template's"}


def tell(console: Console, micro: MicroBatch, processes: int) -> None:
    console.print(f"\n{head(micro, processes)}", markup=False, style="bold")
    for number, row in enumerate(micro.rows, start=1):
        line = Line()
        line.append(f"── {number}: {header(row)}", style="cyan")
        for sentence in badges(row):
            line.append(f" [{sentence}]", style="yellow")
        console.print(line)
        console.print(content(row))


def head(micro: MicroBatch, processes: int) -> str:
    where = f" of process {micro.process}" if processes > 1 else ""
    title = f"Micro-batch {micro.number}{where}: {many(len(micro.rows), 'row')}"
    if micro.tokens:
        lies = "packed" if micro.packed else "side by side"
        title += f" {lies}, {many(micro.tokens, 'token')} and {micro.padding:,} of padding ({micro.efficiency:.1%} is "
        title += f"read), {micro.learnt:,} supervised ({micro.learnt / micro.tokens:.1%})"
    return f"{title}; {counted(micro.counts)}."


def counted(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} counts {count:g}" for name, count in counts.items())


def header(row: ReadRow) -> str:
    """`id digit-0012, scan 12: positions 0 to 46, 47 tokens, 9 supervised`"""
    title = visible(f"id {row.id}, {row.row.where}")
    if row.whole is None:
        return f"{title}: {counted(row.counts)}"
    return f"{title}: positions {row.first} to {row.last}, {many(row.tokens, 'token')}, {row.learnt:,} supervised"


def badges(row: ReadRow) -> Iterator[str]:
    """What is not as the row was."""
    if not row.weight:
        yield "weight 0: run along, it counts for nothing"
    if row.whole is not None:
        yield from losses(row.whole)


def losses(whole: Whole) -> Iterator[str]:
    if whole.elsewhere:
        yield f"a piece: {len(whole.kept):,} of {len(whole.kinds):,} text tokens, {whole.elsewhere:,} in other pieces"
    said = [f"{whole.lost[kind]:,} {name}" for kind, name in LOST.items() if whole.lost.get(kind)]
    if said:
        yield f"text tokens {'in no piece' if whole.elsewhere else 'lost to length'}: {', '.join(said)}"
    if whole.lost.get("item"):
        yield f"items lost to length: {whole.lost['item']:,}"
    if whole.unlearnt:
        yield f"{many(whole.unlearnt, 'token')} of an answer read, not learnt: nothing comes before it"


def content(row: ReadRow) -> Line:
    """Supervised text in ⟦ ⟧ and green; items, cuts and padding in [ ]."""
    line, learnt = Line(), False
    for piece in row.pieces:
        if learnt and not (isinstance(piece, Text) and piece.learnt):
            line.append("⟧", style="green")
            learnt = False
        if isinstance(piece, Text):
            if piece.learnt and not learnt:
                line.append("⟦", style="green")
                learnt = True
            dim = "dim" if piece.kind == "template" else ""
            line.append(visible(piece.text), style="green" if piece.learnt else dim)
        else:
            line.append(f"[{chip(piece)}]", style="magenta" if isinstance(piece, Items) else "yellow")
    if learnt:
        line.append("⟧", style="green")
    if row.padding:
        line.append(f"[{row.padding:,} of padding]", style="dim")
    if row.whole is None:
        due = "" if row.row.label is None else f"⟦{visible(str(row.row.label))}⟧"
        line.append(f" {due}" if due else "", style="green")
        if row.row.horizon is not None:
            targets, steps = row.row.horizon.values.shape
            line.append(f" ⟦{many(steps, 'step')} of {many(targets, 'target')}⟧", style="green")
    return line


def chip(piece: Items | Cut) -> str:
    """`image 1: 16 tokens`"""
    if isinstance(piece, Cut):
        return f"✂ {many(piece.tokens, 'token')}"
    names = " + ".join(f"{name} {number + 1}" for name, number in piece.names) or "the fusion's own"
    if piece.tokens is None:
        return names
    told = many(piece.tokens, "token") if piece.tokens else "beside the text"
    return f"{names}: {told}" + (f" and {piece.padding} of padding" if piece.padding else "")


def figures(micro: MicroBatch) -> dict[str, Any]:
    """The same in numbers."""
    return {
        "process": micro.process,
        "rows": [row.id for row in micro.rows],
        "packed": micro.packed,
        "tokens": micro.tokens,
        "padding": micro.padding,
        "supervised": micro.learnt,
        "counts": dict(micro.counts),
    }


def many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
