"""What the loop is fed: each step's rows and this process's micro-batches, loaded here or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from runner.data.dealing import ExampleSet, MicroBatchSampler
from runner.data.loading import Watch
from runner.data.stream import START, Cursor, StreamedSteps
from runner.protocols import Batch, Fault, Mistake
from runner.signals import CAUGHT, end_with_parent

if TYPE_CHECKING:
    from runner.data.bad_rows import BadReport
    from runner.data.length import LengthReport
    from runner.data.stream import Stream
    from runner.session import Session


@dataclass(frozen=True)
class Loaded:
    """A step's rows, and what this process computes of them."""

    micro_batches: Sequence[Batch]
    ids: Callable[[], list[str]]
    """Over all processes, in order."""
    samples: int
    tokens: int
    """Text tokens over all processes."""
    padded: int
    """The same with the padding beside them."""
    cursor: Cursor | None = None
    """Where a stream stands after it."""
    left_out: tuple[BadReport, LengthReport] | None = None
    """Of a stream: of all its rows so far."""


@dataclass(frozen=True)
class FedStep:
    step: int
    """Optimizer steps done before it."""
    loaded: Loaded
    counts: dict[str, float]
    """What each term's sum is divided by: over all micro-batches and processes."""
    stop: int | None
    """The signal that asked a process of the run to stop: the same for all of them."""


def steps_of(session: Session) -> Generator[FedStep, None, None]:
    """Each step that is left."""
    stream = session.parts.splits["train"].stream
    with closing(planned(session) if stream is None else streamed(session, stream)) as steps:
        for step in range(session.progress.step, session.total_steps):
            loaded = next(steps)
            counts = counts_of(session, loaded.micro_batches)
            sums, stop = session.peers.sum_and_stop(list(counts.values()))
            yield FedStep(step, loaded, dict(zip(counts, sums, strict=True)), stop)


def planned(session: Session) -> Generator[Loaded, None, None]:
    """Steps whose rows are known beforehand."""
    parts, rank = session.parts, session.peers.rank
    examples = parts.splits["train"].examples
    span = (session.progress.step, session.total_steps)
    sampler = MicroBatchSampler(*span, parts.order, parts.dealer, rank)
    how = {"batch_sampler": sampler, "collate_fn": parts.collate}
    with closing(loaded_by(session, ExampleSet(examples), parts.settings.data.workers, **how)) as batches:
        for step in range(*span):
            rows = parts.order.of_step(step)[1].tolist()
            dealt = parts.dealer.deal(rows)
            yield Loaded(
                [next(batches) for _ in dealt],
                lambda rows=rows: [examples[row].id for row in rows],  # type: ignore[misc]
                len(rows),
                int(parts.dealer.lengths[rows].sum()),
                parts.dealer.padded(dealt),
            )


def streamed(session: Session, stream: Stream) -> Generator[Loaded, None, None]:
    """Steps whose rows are read as they are needed, from where the run's cursor stands."""
    parts = session.parts
    cursor = Cursor(*session.progress.cursor) if session.progress.cursor else START
    size, rank = parts.settings.train.batch_size, session.peers.rank
    steps = StreamedSteps(stream, cursor, size, parts.dealer, rank, parts.collate)
    with closing(loaded_by(session, steps, parts.settings.data.workers, batch_size=None)) as loaded:
        for one in loaded:
            ids = list(one.ids)
            yield Loaded(
                one.micro_batches, ids.copy, len(ids), one.tokens, one.padded, one.cursor, (one.bad, one.lengths)
            )


def loaded_by(session: Session, data: Any, workers: int, **how: Any) -> Generator[Any, None, None]:
    """What a loader gives, here or in worker processes. Raises `Fault` with the row of a worker that died or hangs."""
    given = session.parts.settings.data
    watch = Watch(workers)
    batches = iter(
        DataLoader(
            data,
            num_workers=workers,
            timeout=(given.worker_timeout or 0) if workers else 0,
            worker_init_fn=partial(start_worker, session.run.lock, os.getpid(), watch),
            generator=torch.Generator(),  # of its own, or making the iterator would draw from the global one
            pin_memory=session.accelerator.device.type == "cuda",
            **how,
        )
    )
    try:
        yield from told(batches, watch)
    finally:
        # Workers ignore SIGTERM, which is how Python ends children at its exit: they are told to stop while that works,
        # and one that hangs, which would not hear it, is killed.
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in getattr(batches, "_workers", ()):
            if worker.is_alive():
                worker.kill()


def told(batches: Iterator[Any], watch: Watch) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Mistake as mistake:
            raise as_told(mistake) from mistake
        except RuntimeError as error:
            reason = watch.explain(error)
            if reason is None:
                raise
            raise Fault(reason) from error
        yield batch


def as_told(mistake: Mistake) -> Mistake:
    """One from a loader worker carries that worker's traceback before its sentence."""
    return Mistake(str(mistake).rpartition("runner.protocols.Mistake: ")[2].strip())


def counts_of(session: Session, micro_batches: Sequence[Batch]) -> dict[str, float]:
    """Each term's count in this process. Raises `Fault` for an objective whose terms come and go: the processes could
    not add theirs up."""
    parts = [session.parts.objective.counts(batch) for batch in micro_batches]
    names = list(parts[0])
    if any(list(part) != names for part in parts):
        raise Fault(
            f"model: {type(session.parts.objective).__name__}.counts gives {sorted({*map(tuple, parts)})}; it must "
            "give the same names in the same order for every batch, 0 where a term is absent."
        )
    return {name: sum(part[name] for part in parts) for name in names}


def start_worker(lock: int | None, parent: int, watch: Watch, worker: int) -> None:
    """In a loader worker: signals are the run's to handle, the run's lock is not held here, and no run, no worker."""
    watch.begin(worker)
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    if multiprocessing.get_start_method() != "fork":  # the lock's number may be another file's, the parent a server
        return
    if lock is not None:
        os.close(lock)
    end_with_parent(signal.SIGKILL, parent)
