"""A run, from top to bottom: build -> loop { fetch, forward and backward, update, record } -> close.

Steps are optimizer steps. The loop knows of the model only that it gives sums and counts: each term's sum is divided by
its count over all micro-batches and processes of the step, so the curve is the same however the batch is split.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import Tensor

from runner.announce import announce, conclude
from runner.build import build, read_settings
from runner.config import Composed
from runner.data.bad_rows import BadReport
from runner.data.length import LengthReport
from runner.evaluate import evaluate
from runner.features import collate_with_features
from runner.feed import steps_of
from runner.model_parts import frozen_at
from runner.models.initialization import reseed
from runner.offers import check_step
from runner.peers import Peers
from runner.precision import start_accelerator
from runner.protocols import Fault, Mistake, RunDescription, Stopped
from runner.recording import Recorder
from runner.resume import check_same, continue_from, find_start, flat_config
from runner.run_folder import open_run
from runner.seats import build_checkpointer, held_out
from runner.session import Anchored, Gate, Progress, Session, save
from runner.signals import stop_on_signal
from runner.summary import peak_memory, summarised
from runner.terminal import Terminal, listed


def train(composed: Composed, folder: Path) -> dict[str, Any]:
    """Train one run in its folder and return its summary.

    Raises `Mistake` for what the user can mend, `Fault` for what went wrong, `Stopped` after a signal, all saved.
    """
    began = time.monotonic()
    given = read_settings(composed)
    with ExitStack() as stack:
        # Where the processes wait for each other no Python handler runs, so a signal ends them as it ends any program.
        accelerator, precision = start_accelerator(given.precision, given.cluster)
        stop = stack.enter_context(stop_on_signal())
        peers = Peers(accelerator, stop)
        run = stack.enter_context(open_run(folder, peers.is_first))
        log_file = folder / ("train.log" if peers.is_first else f"logs/rank{peers.rank}.log")
        terminal = stack.enter_context(Terminal(log_file, given.train.log_level, peers.is_first))
        start = find_start(composed, folder, given.run, build_checkpointer(composed))
        for sentence in start.sentences:
            terminal.say(sentence)
        parts = build(composed, start.memory, tracks=peers.is_first)
        check_same(start, parts)
        model, optimizer = accelerator.prepare(Anchored(parts.objective, check_step), parts.optimizer)
        progress, recorder = Progress(), Recorder(accelerator)
        if start.content is not None:
            continue_from(start, parts, progress, recorder, accelerator)
        steps = given.train.max_steps or (given.train.epochs or 0) * parts.order.steps_per_epoch
        if progress.step > steps:
            raise Mistake(
                f"The run stands at step {progress.step:,}, past the {steps:,} that it is to have. Raise that."
            )
        progress.watch(given.checkpoint)
        stop.waits = True
        if peers.is_first:
            parts.checkpointer.cut_back(folder, progress.step)
        goes_on = start.content is not None
        run.begin(composed.saved, start.parent, goes_on, progress.step, progress.owes_evaluation)
        gate = Gate(optimizer, accelerator, progress)
        session = Session(
            parts,
            run,
            terminal,
            peers,
            accelerator,
            precision,
            model,
            optimizer,
            gate,
            progress,
            recorder,
            steps,
            began,
        )
        announce(session)
        parts.tracker.start(
            RunDescription(
                given.run.name,
                folder,
                flat_config(composed.saved),
                folder / "config.yaml",
                resume_key=progress.tracker_key,
            )
        )
        ended: Literal["finished", "failed", "stopped"] = "failed"
        try:
            if given.data.cache_features:
                collate = collate_with_features(session, composed, lambda: check_stop(session))
                session.parts = replace(parts, collate=collate)
            loop(session)
            summary = close(session)
            ended = "finished"
        except Stopped:
            ended = "stopped"
            raise
        finally:
            parts.tracker.finish(ended)
        run.write_status("finished", progress.step, exit_code=0)
        return summary


def loop(session: Session) -> None:
    """Every optimizer step from where the run stands to its end."""
    given, progress, recorder = session.parts.settings, session.progress, session.recorder
    accelerator, model, optimizer, peers = session.accelerator, session.model, session.optimizer, session.peers
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gate = session.gate
    if progress.owes_evaluation:
        hold_out(session)
    if patience_is_spent(session):  # also of a run that was killed after its early stop
        log_open(session)
        return
    began, first = time.monotonic(), progress.step
    model.train()
    recorder.restart_clock()
    with session.terminal.progress(progress.step, session.total_steps), closing(steps_of(session)) as steps:
        for fed in steps:
            if fed.stop:
                stop_here(session, fed.stop)

            # 1. What the step's sums are divided by came with it: the targets in all its micro-batches and processes.
            counts, last = fed.counts, len(fed.loaded.micro_batches) - 1

            # 2. Forward and backward; gradients cross processes on the last micro-batch only. Dropout is a function of
            #    the seed, the step, the process and the micro-batch, so nothing of it needs to be saved.
            sums: dict[str, Tensor] = {}
            weights: dict[str, float] = {}
            with frozen_at(fed.step, session.parts.model_parts):
                for k, batch in enumerate(fed.loaded.micro_batches):
                    reseed(accelerator.device, given.run.seed, "step", fed.step, peers.rank, k)
                    with nullcontext() if k == last else accelerator.no_sync(model):
                        terms = model(batch).terms
                        scaled = [
                            term.weight * term.sum * (peers.processes / max(counts[name], 1.0))
                            for name, term in terms.items()
                        ]
                        accelerator.backward(reduce(add, scaled))
                    for name, term in terms.items():
                        sums[name] = sums[name] + term.sum.detach() if name in sums else term.sum.detach()
                        weights[name] = term.weight

            # 3. Update. A gradient that is not finite leaves the weights as they are.
            grad_norm = accelerator.clip_grad_norm_(trainable, given.train.clip_norm or float("inf"))
            factor = session.parts.schedule(fed.step, session.total_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            gate.step(grad_norm)
            progress.step, progress.cursor = fed.step + 1, fed.loaded.cursor
            if fed.loaded.left_out is not None:
                note_stream(session, *fed.loaded.left_out)

            # 4. Record. The numbers stay on the device and are read one line later.
            rows = (fed.loaded.samples, fed.loaded.tokens, fed.loaded.padded)
            recorder.add(sums, weights, counts, rows, optimizer.param_groups[0]["lr"], grad_norm)
            done = progress.step == session.total_steps
            if given.train.log_ids or progress.step % given.train.log_every == 0 or done:
                ids = fed.loaded.ids() if given.train.log_ids else None
                log_train(session, recorder.line(progress.step, gate.skipped, ids))
            seconds_a_step = (time.monotonic() - began) / (progress.step - first)
            session.terminal.advance(progress.step, seconds_a_step * (session.total_steps - progress.step))

            # 5. Now and then: evaluate and save.
            if not done and pause(session):
                break
    log_open(session)


def note_stream(session: Session, bad: BadReport, lengths: LengthReport) -> None:
    """What was left out of a stream's rows so far."""
    splits = session.parts.splits
    train = replace(splits["train"], bad=bad, lengths=lengths)
    session.parts = replace(session.parts, splits={**splits, "train": train})


def log_open(session: Session) -> None:
    """Write every line that is due at the end: of the steps since the last one, too."""
    recorder = session.recorder
    if recorder.is_open:
        log_train(session, recorder.line(session.progress.step, session.gate.skipped, None))
    log_train(session, recorder.flush())


def log_train(session: Session, line: dict[str, Any] | None) -> None:
    """Write a line of training; stop when no step has been usable for too long."""
    if line is None:
        return
    in_a_row, limit = line.pop("skipped_in_a_row"), session.parts.settings.train.max_skipped_steps
    log(session, line)
    session.terminal.show_metrics(line, session.total_steps)
    if in_a_row >= limit:
        raise Fault(
            f"step {line['step']}: the gradient was not finite for {in_a_row} steps in a row, so nothing is learnt any "
            "more; the weights are unharmed. Lower optimizer.lr, look at the rows with train.log_ids=true, or set "
            "precision=fp32."
        )


def log(session: Session, line: Mapping[str, Any]) -> None:
    """A line into metrics.jsonl, and its numbers to the trackers as `split/name`."""
    session.run.log_metrics(line)
    numbers = {f"{line['split']}/{name}": value for name, value in line.items() if name not in ("step", "split", "ids")}
    session.parts.tracker.log_metrics(numbers, line["step"])


def pause(session: Session) -> bool:
    """What may happen between two steps; True when early stopping ends the run."""
    given, step = session.parts.settings, session.progress.step
    evaluates = given.train.eval_every is not None and step % given.train.eval_every == 0
    saves = given.checkpoint.every is not None and step % given.checkpoint.every == 0
    if not (evaluates or saves):
        return False
    log_train(session, session.recorder.flush())
    session.recorder.stop_clock()
    if evaluates:
        hold_out(session)
    save(session)
    session.recorder.restart_clock()
    session.model.train()
    return evaluates and patience_is_spent(session)


def check_stop(session: Session) -> None:
    """Between two steps: save and end where a signal asked any of the processes for it."""
    number = session.peers.stop()
    if number:
        stop_here(session, number)


def stop_here(session: Session, number: int) -> NoReturn:
    """Save, and end the run as a signal asked for."""
    log_train(session, session.recorder.flush())
    session.recorder.stop_clock()
    save(session)
    step = session.progress.step
    session.run.write_status("stopped", step, exit_code=128 + number)
    raise Stopped(
        number, f"Stopped by signal {number} after step {step}; resume={session.run.path} goes on from there."
    )


def patience_is_spent(session: Session) -> bool:
    given, progress = session.parts.settings, session.progress
    patience = given.early_stopping.patience
    if patience is None or progress.without_improvement < patience:
        return False
    session.terminal.say(f"Early stopping: no better {given.checkpoint.monitor} in {patience} evaluations.")
    return True


def hold_out(session: Session) -> None:
    """Evaluate on the val rows, if there are any, log it, and remember whether it was the best."""
    parts, given, progress = session.parts, session.parts.settings, session.progress
    rows = held_out(parts.splits)
    if not rows:
        progress.owes_evaluation = False
        return
    progress.owes_evaluation = True
    session.share_buffers()
    try:
        metrics, session.predictions = evaluate(
            parts.objective,
            rows,
            parts.prompts,
            parts.collate,
            given.evaluation.batch_size or given.micro_batch_size,
            session.accelerator,
            session.peers,
            lambda: check_stop(session),
        )
    except Stopped:
        raise
    except Exception:  # a row that cannot be read, say: what was learnt until here is not lost to it
        if session.peers.is_first:
            save(session, alone=True)
        raise
    progress.owes_evaluation = False
    if progress.last.get("step") == progress.step:  # a finished run's earlier life has
        return
    log(session, {"step": progress.step, "split": "val"} | metrics)
    named = {f"val/{name}": value for name, value in metrics.items()}
    progress.note_evaluation(named, given.checkpoint, given.early_stopping.min_delta)
    session.terminal.say(f"step {progress.step}  {listed(named)}")


def close(session: Session) -> dict[str, Any]:
    """The last evaluation, checkpoint, samples and summary."""
    parts, progress, given = session.parts, session.progress, session.parts.settings
    session.recorder.stop_clock()
    if session.predictions is None or progress.last["step"] != progress.step:
        hold_out(session)
    checkpoint = save(session)
    if progress.skipped_steps == progress.step > 0:
        raise Fault(
            f"None of the {progress.step} steps had a finite gradient, so nothing was learnt. Lower optimizer.lr, look "
            "at the rows with train.log_ids=true, or set precision=fp32."
        )
    memory = peak_memory(session)
    if not session.peers.is_first:
        return {}
    samples = (session.predictions or [])[: given.evaluation.samples]
    if samples:
        session.terminal.samples(samples)
        parts.tracker.log_samples(samples, progress.step)
    summary = summarised(session, checkpoint, memory)
    session.run.write_summary(summary)
    conclude(session, summary)
    return summary
