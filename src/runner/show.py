"""What the model will see: rows as tokens with the supervised ones marked, a step's micro-batches as training runs
them, and its parameters by component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from runner import answering, config, labelling
from runner.announce import PARAMETER_COLUMNS, describe, parameter_rows
from runner.build import Parts, build, kind_of, skeleton
from runner.config import Composed
from runner.data.chat import ChatFormat
from runner.data.flat import RowsOf
from runner.inventory import Component, adapted_by, components_of
from runner.protocols import IGNORED, Example, Mistake, Row
from runner.seats import read_splits
from runner.settings import Show
from runner.showing import page, reading, words
from runner.showing.glyphs import Glyphs
from runner.showing.steps import micro_batches, total_steps
from runner.showing.wholes import Wholes
from runner.terminal import Screen, print_table


def show(composed: Composed) -> dict[str, Any]:
    """Raises `Mistake` for whatever config or rows have wrong. Nothing is written but show.html."""
    given = config.section(composed.tree["show"], Show)
    console = Screen(soft_wrap=True, highlight=False)
    if given.html is not None and given.part != "batch":
        raise Mistake(f"show.html={given.html} is of a batch. Set show.part=batch, or take it away.")
    if given.part == "batch":
        return show_batch(console, composed, given)
    if given.part == "parameters":
        objective = skeleton(composed)
        counted = show_parameters(console, components_of(objective), adapted_by(objective))
        if composed.tree["model"].get("aligner"):
            console.print("Not counted: what model.aligner lays on the encoders, frozen.")
        return counted
    if not composed.tree.get("llm"):
        splits = read_splits(composed, labelling.build_frame(composed, None))
        return show_labels(console, {split: RowsOf(one.examples) for split, one in splits.items()}, given)
    frame = answering.bare_frame(composed)
    splits = read_splits(composed, frame)
    split = splits[check_split(given.split, splits)]
    shown = split.examples[: given.rows]
    console.print(f"{given.split}: {describe(split)}", markup=False)
    for example in shown:
        show_row(console, example, frame.chat)
    return {"split": given.split, "rows": [example.id for example in shown]}


def show_batch(console: Console, composed: Composed, given: Show) -> dict[str, Any]:
    """The micro-batches of optimizer step show.step, of every process, in the terminal or as a page."""
    file = None if given.html is None else page.check_writable(given.html)
    parts = build(composed, None, tracks=False)
    processes = parts.settings.cluster.num_processes
    batches = read_step(composed, parts, given.step)
    rows = sum(row.weight > 0 for micro in batches for row in micro.rows)
    title = f"Step {given.step} of {total_steps(parts):,}: {words.many(rows, 'row')} in "
    title += f"{words.many(len(batches), 'micro-batch', 'micro-batches')}"
    console.print(f"train: {describe(parts.splits['train'])}\n{title}.", markup=False)
    if file is None:
        for micro in batches:
            words.tell(console, micro, processes)
    else:
        page.write(file, title, batches, processes)
        for micro in batches:
            console.print(words.head(micro, processes), markup=False)
        console.print(f"Page: {file}", markup=False)
    return {"step": given.step, "micro_batches": [words.figures(micro) for micro in batches]}


def read_step(composed: Composed, parts: Parts, step: int) -> list[reading.MicroBatch]:
    """Nothing is learnt, and the language model is not run: only what comes before it."""
    objective: Any = parts.objective
    dealt = list(micro_batches(parts, step))
    if kind_of(composed) is labelling:
        return [reading.labelled(objective, one) for one in dealt]
    if not hasattr(objective, "reads"):
        raise Mistake(
            f"model: {type(objective).__name__} does not say what its language model reads (reads, as Instruct has it "
            "in runner/models/instruct.py), so show.part=batch cannot show it. Give it that, or set show.part=rows."
        )
    objective.eval()
    chat = objective.chat
    wholes = Wholes(composed, chat, parts.collate.preprocess).of([one.batch for one in dealt])
    glyphs = Glyphs(chat.tokenizer)
    # Only how many tokens there are is looked at, so any low precision stands for the one that training has.
    with torch.autocast("cpu", torch.bfloat16, enabled=parts.settings.precision.compute in ("bf16", "fp16")):
        return [reading.read_by(objective, one, wholes, glyphs) for one in dealt]


def check_split(split: str, splits: Mapping[str, Any]) -> str:
    if split not in splits:
        raise Mistake(f"show.split={split}: the data has {', '.join(splits)}.")
    return split


def show_labels(console: Console, rows: Mapping[str, Sequence[Row]], given: Show) -> dict[str, Any]:
    """Rows of an objective without a language model: what they hold and what is to be found out."""
    split = rows[check_split(given.split, rows)]
    console.print(f"{given.split}: {len(split):,} rows.", markup=False)
    shown = split[: given.rows]
    for row in shown:
        items = ", ".join(f"{name} {str(item)[:80]}" for name, some in row.items.items() for item in some)
        console.print(f"\n{row.where} (id {row.id}): {items}", markup=False, style="bold")
        console.print(f"⟦{row.label}⟧", markup=False, style="green")
    return {"split": given.split, "rows": [row.id for row in shown]}


def show_parameters(console: Console, components: Sequence[Component], adapted: Sequence[Component]) -> dict[str, Any]:
    print_table(console, "Parameters", PARAMETER_COLUMNS, parameter_rows(components, adapted), PARAMETER_COLUMNS[2:])
    return {one.name: {"trainable": one.trainable, "frozen": one.frozen} for one in components}


def show_row(console: Console, example: Example, chat: ChatFormat) -> None:
    supervised = int((example.labels != IGNORED).sum())
    items = ", ".join(f"{name} {item + 1}" for name, item, _ in example.places) or "none"
    console.print(
        f"\n{example.row.where} (id {example.id}): {len(example.input_ids)} text tokens, {supervised} supervised; "
        f"items: {items}",
        markup=False,
        style="bold",
    )
    console.print(marked(example, chat))


def marked(example: Example, chat: ChatFormat) -> Text:
    """The decoded tokens; what is learnt stands in ⟦ ⟧ and in green, an item in [ ] at its place."""
    text, places = Text(), list(example.places)
    learnt = example.labels != IGNORED
    start = 0
    for stop in range(1, len(learnt) + 1):
        while places and places[0][2] <= start:
            name, item, _ = places.pop(0)
            text.append(f"[{name} {item + 1}]", style="magenta")
        if stop == len(learnt) or learnt[stop] != learnt[start] or any(place == stop for _, _, place in places):
            piece = str(chat.tokenizer.decode(example.input_ids[start:stop].tolist()))
            text.append(f"⟦{piece}⟧" if learnt[start] else piece, style="green" if learnt[start] else "dim")
            start = stop
    for name, item, _ in places:
        text.append(f"[{name} {item + 1}]", style="magenta")
    return text
