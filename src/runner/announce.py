"""What is said before the first step and after the last: batch arithmetic, data, what trains, where everything lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.inventory import Component, adapted_by, components_of
from runner.terminal import listed

PARAMETER_COLUMNS = ("component", "kind", "trainable", "frozen")
LOSSES = {
    "over": "over length",
    "dropped": "dropped",
    "truncated": "truncated",
    "split": "split up",
    "pieces_dropped": "pieces dropped",
    "prompt_tokens_lost": "prompt tokens",
    "answer_tokens_lost": "answer tokens",
    "items_lost": "items",
    "unended": "without end of turn",
}
"""Counts of a `LengthReport`, by what a person calls them."""
ENDED = 0.99
"""Share of a split's rows that end in a supervised end of turn; where fewer do, it is told."""

if TYPE_CHECKING:
    from runner.data.intake import Split
    from runner.data.length import LengthReport
    from runner.precision import ActivePrecision
    from runner.session import Session
    from runner.settings import Part


def announce(session: Session) -> None:
    given, terminal = session.parts.settings, session.terminal
    processes = session.accelerator.num_processes
    count = f"{processes} process{'es' if processes > 1 else ''}"
    if given.accumulation is None:
        arithmetic = (
            f"{given.train.batch_size} rows a step, on {count} in micro-batches of at most "
            f"{given.train.micro_batch_tokens:,} text tokens"
        )
    else:
        arithmetic = (
            f"{given.micro_batch_size} rows a micro-batch x {given.accumulation} accumulated x {count} = "
            f"{given.train.batch_size} rows a step"
        )
    terminal.say(f"Batch: {arithmetic}; {session.total_steps:,} steps.")
    for split, one in session.parts.splits.items():
        terminal.say(f"Data, {split}: {describe(one)}")
        for line in one.bad.lines:
            terminal.say(line, "yellow")
    lengths = {split: one.lengths for split, one in session.parts.splits.items()}
    table = loss_table(lengths)
    if table:
        terminal.say("")
        terminal.table(*table)
    for sentence in endless(lengths):
        terminal.say(sentence, "yellow")
    terminal.say(computing(session.precision))
    for sentence in session.parts.notes:
        terminal.say(sentence)
    terminal.say("")
    terminal.table(
        "Parameters",
        PARAMETER_COLUMNS,
        parameter_rows(components_of(session.parts.objective), adapted_by(session.parts.objective)),
        PARAMETER_COLUMNS[2:],
    )
    for part in session.parts.model_parts:
        never = part.given.from_step >= session.total_steps
        told = f"; it never trains in this run's {session.total_steps} steps" if never else ""
        terminal.say(f"{part.name}: {how(part.given)}{told}.", "yellow" if never else None)


def how(part: Part) -> str:
    """`lr 1e-05, frozen before step 200`"""
    words = [f"lr {part.lr:g}"] if part.lr else []
    words += [f"frozen before step {part.from_step}"] if part.from_step else []
    words += [f"frozen from step {part.until_step} on"] if part.until_step else []
    return ", ".join(words) or "as the others"


def computing(active: ActivePrecision) -> str:
    computed = active.autocast or ("tf32" if active.tf32 else "float32")
    return f"Precision: {active.requested}, matrix products in {computed} on {active.device}."


def parameter_rows(components: Sequence[Component], adapted: Sequence[Component]) -> list[tuple[str, ...]]:
    """A row for each component; under LoRA's, one for each of its patterns."""
    rows: list[tuple[str, ...]] = []
    for one in components:
        rows.append((one.name, one.kind, f"{one.trainable:,}", f"{one.frozen:,}"))
        if one.name == "lora":
            rows += [(f"  {part.name}", part.kind, f"{part.trainable:,}", f"{part.frozen:,}") for part in adapted]
    trainable, frozen = sum(one.trainable for one in components), sum(one.frozen for one in components)
    return [*rows, ("all", f"{trainable / (trainable + frozen):.2%} trains", f"{trainable:,}", f"{frozen:,}")]


def describe(split: Split) -> str:
    """`1,437 rows, the longest 31 text tokens; 12 over length: 2 dropped, 10 truncated.`"""
    report = split.lengths
    text = "read as they are needed, so far " if split.stream else ""
    text += f"{report.total:,} rows" + (f", the longest {report.longest:,} text tokens" if report.longest else "")
    if split.bad.skipped:
        text += f"; {split.bad.skipped:,} of {split.bad.total:,} left out (data.on_bad_row=skip)"
    if report.over:
        became = {
            "dropped": report.dropped,
            "truncated": report.truncated,
            f"split into {report.kept - report.total + report.dropped + report.split:,}": report.split,
        }
        text += f"; {report.over:,} over length: "
        text += ", ".join(f"{count:,} {what}" for what, count in became.items() if count)
    return text + "."


def loss_table(reports: Mapping[str, LengthReport]) -> tuple[str, Sequence[str], list[list[str]], Sequence[str]] | None:
    """What rows lost to their length, by split: title, columns, rows, columns with numbers. None where nothing was."""
    rows = [
        [split, *(f"{getattr(report, name):,}" for name in LOSSES)]
        for split, report in reports.items()
        if not report.is_whole
    ]
    return ("Lost to length", ("split", *LOSSES.values()), rows, tuple(LOSSES.values())) if rows else None


def endless(reports: Mapping[str, LengthReport]) -> Iterator[str]:
    """A sentence for each split of whose rows fewer than ENDED end in a supervised end of turn."""
    for split, report in reports.items():
        if report.unended > (1 - ENDED) * report.kept:
            share = report.unended / report.kept
            yield (
                f"Data, {split}: {report.unended:,} of {report.kept:,} rows ({share:.1%}) end in no end of turn that "
                "is learnt, as their answers were cut to length: from them the model does not learn to stop."
            )


def conclude(session: Session, summary: dict[str, Any]) -> None:
    """The last evaluation, the best one, and where everything lies."""
    terminal, folder = session.terminal, session.run.path
    for title, metrics in (("Last", summary["last"]), ("Best", summary["best"])):
        if metrics:
            values = {name: value for name, value in metrics.items() if name != "step"}
            terminal.say(f"{title}: {listed(values)} (step {metrics['step']})")
    train = session.parts.splits["train"]
    if train.stream is not None and (train.bad.skipped or not train.lengths.is_whole):
        terminal.say(f"Data, train, {describe(train)}")
        for line in train.bad.lines:
            terminal.say(line, "yellow")
    rate = summary["throughput"]
    tokens = f"{rate['tokens_per_s']:,.0f} tokens/s; " if rate["tokens_per_s"] else ""
    terminal.say(
        f"Time: {summary['wall_s']:.1f} s, {rate['samples_per_s']:,.0f} samples/s, {tokens}"
        f"peak memory {summary['peak_memory'].get('gpu', summary['peak_memory']['process']) / 1e9:.2f} GB."
    )
    places = (("Run", folder), ("Checkpoint", summary["checkpoint"]), ("Metrics", folder / "metrics.jsonl"))
    for name, place in places:
        terminal.say(f"{name}: {place}")
