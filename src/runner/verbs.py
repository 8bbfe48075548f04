"""The verbs of the command line, and the exit codes of all of them."""

from __future__ import annotations

VERBS = {
    "train": "runner.processes:train",
    "prepare": "runner.prepare:prepare",
    "show": "runner.show:show",
    "evaluate": "runner.evaluate_run:evaluate_run",
    "generate": "runner.generate:generate",
}
"""Verb: its function. One with a run folder is called with (Composed, Path), the others with (Composed)."""
WITH_RUN_FOLDER = ("train",)
DEFAULT_VERB = "train"

DONE, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
