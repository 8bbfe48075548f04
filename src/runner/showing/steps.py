"""The micro-batches of one optimizer step, of every process, just as training deals them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from runner.build import Parts
from runner.data.dealing import ExampleSet, MicroBatchSampler
from runner.data.stream import START, StreamedSteps
from runner.protocols import Batch, Mistake


@dataclass(frozen=True)
class Dealt:
    """One micro-batch of one process."""

    batch: Batch
    number: int
    """Counted from 1, of its process."""
    process: int


def total_steps(parts: Parts) -> int:
    train = parts.settings.train
    return train.max_steps or (train.epochs or 0) * parts.order.steps_per_epoch


def micro_batches(parts: Parts, step: int) -> Iterator[Dealt]:
    """Raises `Mistake` for a step that the run does not come to."""
    total = total_steps(parts)
    if step >= total:
        raise Mistake(f"show.step={step}: the run has {total:,} steps, 0 to {total - 1}. Set one of them.")
    for process in range(parts.settings.cluster.num_processes):
        batches = planned(parts, step, process) if parts.splits["train"].stream is None else read(parts, step, process)
        for number, batch in enumerate(batches, start=1):
            yield Dealt(batch, number, process)


def planned(parts: Parts, step: int, process: int) -> Iterator[Batch]:
    """Of rows that are known beforehand."""
    examples = ExampleSet(parts.splits["train"].examples)
    for keys in MicroBatchSampler(step, step + 1, parts.order, parts.dealer, process):
        yield parts.collate([examples[key] for key in keys])


def read(parts: Parts, step: int, process: int) -> Iterator[Batch]:
    """Of a stream: what comes before the step is read, and no item of it decoded."""
    stream = parts.splits["train"].stream
    assert stream is not None
    size = parts.settings.train.batch_size
    steps = StreamedSteps(stream, START, size, parts.dealer, process, parts.collate)
    rows = list(islice(stream.examples(START), step * size, (step + 1) * size))
    yield from steps.dealt([example for example, _ in rows], rows[-1][1], stream.intake()).micro_batches
