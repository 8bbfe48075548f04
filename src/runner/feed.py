"""What the loop is fed: each step's rows and this process's micro-batches, loaded here or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from runner.data.order import ExampleSet, MicroBatchSampler, deal, rows_of_step
from runner.protocols import Batch, Example, Fault, Mistake
from runner.signals import CAUGHT, end_with_parent

if TYPE_CHECKING:
    from runner.session import Session


@dataclass(frozen=True)
class FedStep:
    step: int
    """Optimizer steps done before it."""
    rows: Sequence[Example]
    """Over all processes, in order."""
    micro_batches: Sequence[Batch]
    """Of this process."""
    counts: dict[str, float]
    """What each term's sum is divided by: over all micro-batches and processes."""
    stop: int | None
    """The signal that asked a process of the run to stop: the same for all of them."""


def steps_of(session: Session) -> Generator[FedStep, None, None]:
    """Each step that is left."""
    given, examples, peers = session.parts.settings, session.parts.examples["train"], session.peers
    layout = (len(examples), given.train.batch_size)
    share = (given.micro_batch_size, peers.processes, peers.rank)
    sampler = MicroBatchSampler(
        session.progress.step, session.total_steps, *layout, *share, given.run.seed, given.data.order
    )
    batches = iter(
        DataLoader(
            ExampleSet(examples),
            batch_sampler=sampler,
            collate_fn=session.parts.collate,
            num_workers=given.data.workers,
            worker_init_fn=partial(start_worker, session.run.lock, os.getpid()),
            generator=torch.Generator(),  # of its own, or making the iterator would draw from the global one
        )
    )
    try:
        for step in range(session.progress.step, session.total_steps):
            _, indices = rows_of_step(step, *layout, given.run.seed, given.data.order)
            try:
                micro_batches = [next(batches) for _ in deal(indices, *share)]
            except Mistake as mistake:
                raise as_told(mistake) from mistake
            counts = counts_of(session, micro_batches)
            sums, stop = peers.sum_and_stop(list(counts.values()))
            rows = [examples[index] for index in indices]
            yield FedStep(step, rows, micro_batches, dict(zip(counts, sums, strict=True)), stop)
    finally:
        # Workers ignore SIGTERM, which is how Python ends children at its exit: they are told to stop while that works.
        getattr(batches, "_shutdown_workers", lambda: None)()


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


def start_worker(lock: int | None, parent: int, worker: int) -> None:
    """In a loader worker: signals are the run's to handle, the run's lock is not held here, and no run, no worker."""
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    if multiprocessing.get_start_method() != "fork":  # the lock's number may be another file's, the parent a server
        return
    if lock is not None:
        os.close(lock)
    end_with_parent(signal.SIGKILL, parent)
