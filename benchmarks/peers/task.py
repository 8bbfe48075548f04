"""What a peer is told on its command line, and how it answers."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.stopwatch import Stopwatch


@dataclass(frozen=True)
class Task:
    """A run on a fixture. A run that checks writes down each step's loss and saves a checkpoint; no figure counts it
    for speed."""

    fixture: Path
    work: Path
    """An empty folder for whatever the peer writes."""
    steps: int
    warm_up: int
    check: bool
    stopwatch: Stopwatch
    recipe: dict[str, Any]

    def row_numbers(self) -> list[list[int]]:
        """[steps][B] the rows of each step, in the file's order, again from the first after the last."""
        size, rows = self.recipe["batch_size"], self.recipe["rows"]
        return [[k % rows for k in range(step * size, (step + 1) * size)] for step in range(self.steps)]

    def read_rows(self) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` [L] of each row."""
        return [json.loads(line) for line in (self.fixture / "tokens.jsonl").open(encoding="utf-8")]

    def answer(self, losses: list[float] | None = None, checkpoint: Path | None = None) -> None:
        """Print what was measured. `losses` [steps] and the checkpoint's folder are those of a run that checks."""
        lengths = [len(row["input_ids"]) for row in self.read_rows()]
        tokens = [sum(lengths[number] for number in numbers) for numbers in self.row_numbers()]
        record = self.stopwatch.record(tokens, self.warm_up)
        if self.check:
            record["losses"] = losses
            record["checkpoint_bytes"] = bytes_in(checkpoint) if checkpoint else None
        print("\n" + json.dumps(record), flush=True)


def read_task(peer: str) -> Task:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{peer}")
    parser.add_argument("fixture", type=Path, help="a folder that benchmarks.fixture built")
    parser.add_argument("work", type=Path, help="an empty folder")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--started", type=float, default=time.time())
    given = parser.parse_args()
    recipe = json.loads((given.fixture / "recipe.json").read_text(encoding="utf-8"))
    stopwatch = Stopwatch(given.started)
    return Task(given.fixture, given.work, given.steps, given.warm_up, given.check, stopwatch, recipe)


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
