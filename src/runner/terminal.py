"""What a person sees: tables, a progress bar, samples; plain lines into a file or a pipe, and into train.log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from runner.protocols import Prediction

PLAIN_WIDTH = 120
WIDE = 110
"""Columns from which on the bar shows more than step, loss and time."""
SECONDS_BETWEEN_LINES = 2.0


class Screen(Console):
    """A terminal, or whatever stdout is; a reader that goes away (`| head`) silences it and does not end the run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """Prints to the terminal, if it `shows`, and without colour to a log; the `runner` loggers go there as well."""

    def __init__(self, log: Path, level: str, shows: bool) -> None:
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self._file = Console(file=self._log, width=PLAIN_WIDTH, no_color=True, soft_wrap=True)
        shown = Screen(soft_wrap=True, highlight=False)
        self.interactive = shown.is_terminal and shows
        self._shown = shown if self.interactive else Screen(file=sys.stdout, width=PLAIN_WIDTH, soft_wrap=True)
        self._shown.quiet = not shows
        self._progress: Progress | None = None
        self._last_line = 0.0
        self._seconds_left = 0.0
        self._handler = _ToTerminal(self)
        self._logger = logging.getLogger("runner")
        self._logger.addHandler(self._handler)
        self._logger.setLevel(level)
        self._logger.propagate = False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logger.removeHandler(self._handler)
        self._log.close()

    def say(self, text: str, style: str | None = None) -> None:
        """One line of plain text."""
        self._shown.print(escape(text), style=style)
        self._file.print(escape(text))

    def log_only(self, text: str) -> None:
        self._log.write(text.rstrip("\n") + "\n")

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
    ) -> None:
        """`right` names the columns that hold numbers."""
        print_table(self._shown, title, columns, rows, right)
        print_table(self._file, title, columns, rows, right)

    @contextmanager
    def progress(self, start: int, total: int) -> Iterator[None]:
        """A bar over optimizer steps while the block runs; `advance` moves it."""
        if not self.interactive:
            yield
            return
        columns = (
            TextColumn("step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10 if self._shown.width < WIDE else None),
            TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        )
        with Progress(*columns, console=self._shown) as self._progress:
            self._progress.add_task("train", total=total, completed=start, metrics="", left="")
            yield
        self._progress = None

    def advance(self, step: int, seconds_left: float) -> None:
        """Optimizer step `step` is done."""
        self._seconds_left = seconds_left
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, left=f"{clock(seconds_left)} left")

    def show_metrics(self, line: Mapping[str, Any], total: int) -> None:
        """A line of training: on the bar, or as a line of its own where there is no bar."""
        text, step = line_of(line), line["step"]
        if self._progress is not None:
            fits = text if self._shown.width >= WIDE else text.split("  ")[0]
            self._progress.update(self._progress.task_ids[0], metrics=fits)
        plain = f"step {step}/{total}  {text}" + (f"  {clock(self._seconds_left)} left" if step < total else "")
        self.log_only(plain)
        now = time.monotonic()
        if not self.interactive and (now - self._last_line >= SECONDS_BETWEEN_LINES or step == total):
            self._shown.print(escape(plain))
            self._last_line = now

    def samples(self, predictions: Sequence[Prediction]) -> None:
        self.table(*sample_table(predictions))


class _ToTerminal(logging.Handler):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.terminal.say(prefix + record.getMessage(), "yellow" if record.levelno >= logging.WARNING else None)
        if record.exc_info:
            self.terminal.log_only(logging.Formatter().formatException(record.exc_info))


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    frame = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", title_style="bold", box=frame, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    console.print()


def sample_table(predictions: Sequence[Prediction]) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Title, columns, rows, and the columns with numbers: of questions and answers, or of classes."""
    classes = all(one.probabilities for one in predictions)
    rows = []
    for one in predictions:
        row = [one.id, shortened(one.prompt), shortened(one.answer), shortened(one.truth or ""), mark(one)]
        share = [f"{next(iter(one.probabilities.values())):.2f}"] if classes and one.probabilities else []
        rows.append([*row[:3], *share, *row[3:]])
    if classes:
        return "Held-out rows", ["id", "seen", "answer", "probability", "truth", ""], rows, ["probability"]
    return "Held-out questions", ["id", "question", "answer", "truth", ""], rows, []


def listed(metrics: Mapping[str, float]) -> str:
    """`val/loss 0.0192  val/exact_match 0.9750`"""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def line_of(metrics: Mapping[str, Any]) -> str:
    """`loss 0.123  lr 2.0e-03  1,234 samples/s  5,678 tokens/s`"""
    pieces = [f"loss {metrics['loss']:.4f}", f"lr {metrics['lr']:.1e}"]
    pieces += [f"{metrics[key]:,.0f} {key[:-6]}/s" for key in ("samples_per_s", "tokens_per_s") if metrics[key]]
    return "  ".join(pieces)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def shortened(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def mark(prediction: Prediction) -> str:
    """Right or wrong; of numbers in one unit, how far they are off on average."""
    if prediction.truth is None:
        return ""
    if prediction.numbers and prediction.due:
        off = [abs(prediction.numbers[name] - due) for name, due in prediction.due.items()]
        there = [float(one) for one in off[0] if one == one]  # a missing one is NaN
        return f"off by {sum(there) / len(there):.4g}" if len(off) == 1 and there else ""
    return "right" if prediction.answer == prediction.truth.strip() else "wrong"
