"""What the loop is fed: each step's rows and this process's micro-batches, loaded here or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from runner.data.order import ExampleSet, MicroBatchSampler, deal, rows_of_step
from runner.protocols import Batch, Mistake
from runner.signals import CAUGHT

if TYPE_CHECKING:
    from runner.session import Session


def steps_of(session: Session) -> Generator[tuple[int, list[Any], list[Batch]], None, None]:
    """(step, the rows of it over all processes, this process's micro-batches) for each step that is left."""
    given, examples, accelerator = session.parts.settings, session.parts.examples["train"], session.accelerator
    layout = (len(examples), given.train.batch_size)
    share = (given.micro_batch_size, accelerator.num_processes, accelerator.process_index)
    sampler = MicroBatchSampler(
        session.progress.step, session.total_steps, *layout, *share, given.run.seed, given.data.order
    )
    batches = iter(
        DataLoader(
            ExampleSet(examples),
            batch_sampler=sampler,
            collate_fn=session.parts.collate,
            num_workers=given.data.workers,
            worker_init_fn=partial(start_worker, session.run.lock),
            generator=torch.Generator(),  # of its own, or making the iterator would draw from the global one
        )
    )
    try:
        for step in range(session.progress.step, session.total_steps):
            _, indices = rows_of_step(step, *layout, given.run.seed, given.data.order)
            try:
                micro_batches = [next(batches) for _ in deal(indices, *share)]
            except Mistake as mistake:  # one from a loader worker carries that worker's traceback before its sentence
                raise Mistake(str(mistake).rpartition("runner.protocols.Mistake: ")[2].strip()) from mistake
            yield step, [examples[index] for index in indices], micro_batches
    finally:
        # Workers ignore SIGTERM, which is how Python ends children at its exit: they are told to stop while that works.
        getattr(batches, "_shutdown_workers", lambda: None)()


def start_worker(lock: int, worker: int) -> None:
    """In a loader worker: signals are the run's to handle, and the run's lock is not held here."""
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    if multiprocessing.get_start_method() == "fork":  # else the number may be another file's
        os.close(lock)
