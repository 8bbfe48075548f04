"""What is said before the first step and after the last: batch arithmetic, data, what trains, where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.inventory import Component, adapted_by, components_of
from runner.terminal import listed

PARAMETER_COLUMNS = ("component", "kind", "trainable", "frozen")

if TYPE_CHECKING:
    from runner.data.intake import Split
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
    """`1,437 rows, the longest 31 tokens; 12 over length: 12 dropped.`"""
    report = split.lengths
    text = "read as they are needed, the first " if split.stream else ""
    text += f"{report.total:,} rows" + (f", the longest {report.longest:,} text tokens" if report.longest else "")
    if split.bad.skipped:
        text += f"; {split.bad.skipped:,} of {split.bad.total:,} left out (data.on_bad_row=skip)"
    if report.over:
        text += f"; {report.over:,} over length: "
        text += f"{report.dropped:,} dropped" if report.dropped else f"{report.tokens_cut:,} prompt tokens cut"
    return text + "."


def conclude(session: Session, summary: dict[str, Any]) -> None:
    """The last evaluation, the best one, and where everything lies."""
    terminal, folder = session.terminal, session.run.path
    for title, metrics in (("Last", summary["last"]), ("Best", summary["best"])):
        if metrics:
            values = {name: value for name, value in metrics.items() if name != "step"}
            terminal.say(f"{title}: {listed(values)} (step {metrics['step']})")
    rate = summary["throughput"]
    tokens = f"{rate['tokens_per_s']:,.0f} tokens/s; " if rate["tokens_per_s"] else ""
    terminal.say(
        f"Time: {summary['wall_s']:.1f} s, {rate['samples_per_s']:,.0f} samples/s, {tokens}"
        f"peak memory {summary['peak_memory'].get('gpu', summary['peak_memory']['process']) / 1e9:.2f} GB."
    )
    places = (("Run", folder), ("Checkpoint", summary["checkpoint"]), ("Metrics", folder / "metrics.jsonl"))
    for name, place in places:
        terminal.say(f"{name}: {place}")
