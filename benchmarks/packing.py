"""Tokens a second of the same rows padded side by side and packed: `python -m benchmarks.packing FOLDER`.

FOLDER holds GSM8K's train.jsonl. Each round takes other rows through forward and backward in every layout, one after
the other and in turns the first. Only text counts as tokens, padding does not; seconds are those of the processor, so
that what else the machine does counts for little: run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runner.build import build
from runner.config import compose
from runner.models.attention import BY_DOCUMENT, set_attention
from runner.protocols import Batch

BLOCKS = "packed, a mask of blocks"
LAYOUTS: Mapping[str, tuple[bool, str]] = {
    "padded": (False, "sdpa"),
    BLOCKS: (True, "sdpa"),
    "packed, a document at a time": (True, BY_DOCUMENT),
}
ROUNDS = {8: 9, 32: 5}


def seconds(objective: Any, batch: Batch, packing: bool, attention: str) -> float:
    set_attention(objective.llm.base, attention, packing)
    objective.zero_grad()
    start = time.process_time()
    objective(replace(batch, packed=packing)).terms["loss"].sum.backward()
    return time.process_time() - start


def measured(parts: Any, batch_size: int) -> dict[str, list[float]]:
    """Tokens a second by layout, a number a round; the first round warms up."""
    # Of 32 rows a mask of blocks is some 20,000 x 20,000.
    names = [name for name in LAYOUTS if batch_size == 8 or name != BLOCKS]
    found: dict[str, list[float]] = {name: [] for name in names}
    examples = parts.splits["train"].examples
    for turn in range(ROUNDS[batch_size] + 1):
        batch = parts.collate(examples[turn * batch_size : (turn + 1) * batch_size])
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = sum(batch.lengths) / seconds(parts.objective, batch, *LAYOUTS[name])
            found[name] += [rate] if turn else []
    return found


def main(folder: str) -> None:
    rows = [f"data.path={folder}/train.jsonl", "data.fields.user=question", "data.fields.assistant=answer"]
    words = ["model=chat", "data=jsonl", *rows, "llm.max_length=4096", "tracker=none", "train.max_steps=1"]
    words += ["data.packing=true"]
    parts = build(compose("train", words), None, tracks=False)
    print("| rows | layout | tokens/s | beside padded, of a round: median (lowest to highest) |\n|---|---|---|---|")
    for batch_size in ROUNDS:
        found = measured(parts, batch_size)
        for name, rates in found.items():
            ratios = [one / other for one, other in zip(rates, found["padded"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {batch_size} | {name} | {statistics.median(rates):,.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
