"""What a thousand and a million rows cost: `python -m benchmarks.data_scale [FOLDER]`, a process for each size.

Rows of about 170 tokens are read out of JSONL and written once, then opened again in a process of its own, read at
random, and laid in an order by length. Tokens are bytes here: a tokenizer does not know how many rows there are. Memory
is what is the process's own (RssAnon), without pages of files.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ROWS_READ = 20_000
WORDS = 24
"""Of a row's two texts together: about 170 bytes."""


def write_rows(file: Path, count: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4096)]
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(8, 2 * WORDS - 8)))
            record = {"id": f"row-{number}", "messages": [{"role": "user", "content": text}]}
            record["messages"] += [{"role": "assistant", "content": text[: len(text) // 2]}]
            stream.write(json.dumps(record) + "\n")


def own_memory() -> float:
    """MB"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Bytes:
    """A row's text as its bytes, the answer learnt; nothing is too long."""

    def example(self, row: Any) -> Any:
        from runner.protocols import IGNORED, Example

        asked, answer = (np.frombuffer(one.content.encode(), np.uint8).astype(np.int32) for one in row.messages)
        labels = np.concatenate([np.full(len(asked), IGNORED, np.int32), answer])
        return Example(row.id, np.concatenate([asked, answer]), labels, (), row)

    def fitting(self, given: Any) -> Any:
        from runner.labelling import AnyLength

        return AnyLength()

    def reads(self) -> Mapping[str, Any]:
        return {"bytes": 1}


def measure(file: Path, cache: Path) -> dict[str, float]:
    """Opens, and writes first where that was not done."""
    from runner.config import compose, section
    from runner.data.intake import take_in
    from runner.data.jsonl import Jsonl
    from runner.data.order import Order
    from runner.settings import Data

    words = ["model=chat", "experiment=null", "data=jsonl", f"data.path={file}", f"data.cache={cache}"]
    given = section(compose("train", [*words, "train.max_steps=1"]).tree["data"], Data)
    source, reader = Jsonl(str(file), None, {}, [], None), Bytes()
    before = own_memory()
    began = time.perf_counter()
    split = take_in("train", source.read([])["train"], reader, given, source.fingerprint(), False)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    examples = split.examples
    opened = own_memory() - before
    places = random.Random(1).choices(range(len(examples)), k=ROWS_READ)
    began = time.perf_counter()
    tokens = sum(len(examples[place].input_ids) for place in places)
    row = (time.perf_counter() - began) / ROWS_READ
    began = time.perf_counter()
    order = Order(len(examples), 8, 0, "grouped", examples.lengths)  # type: ignore[attr-defined]
    order.of_step(0)
    plan = time.perf_counter() - began
    order.of_step(order.steps_per_epoch)  # two epochs are held where one ends and the next begins
    return {
        "rows": len(examples),
        "tokens": tokens / ROWS_READ,
        "seconds": seconds,
        "opened": opened,
        "row": row * 1e6,
        "plan": plan,
        "memory": own_memory() - before,
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/data_scale")
    folder.mkdir(parents=True, exist_ok=True)
    print("| rows | write, s | its own memory then, MB | open, s | MB | a row, µs | the order, s | MB with it all |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        file = folder / f"{size}.jsonl"
        if not file.is_file():
            write_rows(file, size)
        command = [sys.executable, "-m", "benchmarks.data_scale", str(file), str(folder / "cache"), "measure"]
        first, again = (json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2))
        figures = [f"{first['seconds']:.1f}", f"{first['opened']:.0f}"]
        figures += [
            f"{again['seconds']:.3f}",
            f"{again['opened']:.1f}",
            f"{again['row']:.1f}",
            f"{again['plan']:.2f}",
            f"{again['memory']:.1f}",
        ]
        print(f"| {size:,} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[-1] == "measure":
        print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main()
