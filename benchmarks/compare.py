"""Run all peers in turn on each fixture and write down how they compare: `make bench`.

`--rounds 1 --steps 8 --trial` is a quick look that leaves docs/BENCHMARKS.md as it is.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import bars
from benchmarks.fixture import VARIANTS
from benchmarks.processes import ROOT, build_fixture, is_installed, run_peer
from benchmarks.report import machine, section, write_json, write_section

PEERS = ("hand", "hand_labelled", "accelerate", "trainer", "trl", "runner")
CHECKED_STEPS = 20
DOCS = ROOT / "docs" / "BENCHMARKS.md"


def main(words: Sequence[str] | None = None) -> None:
    given = read_options(words)
    peers = [peer for peer in PEERS if is_installed(peer)]
    results: dict[str, Any] = {"command": command(given), "machine": machine(), "variants": {}}
    results["skipped"] = [peer for peer in PEERS if peer not in peers]
    for peer in results["skipped"]:
        print(f"{peer} is not installed, so it is left out.")
    for name in given.variants:
        fixture = given.out / name
        build_fixture(name, fixture)
        results["variants"][name] = measure(fixture, peers, given.rounds, given.threads, given.steps)
    judged = bars(results["variants"])
    write_json(given.out / "results.json", results, judged)
    text = section(results, judged)
    (given.out / "section.md").write_text(text + "\n", encoding="utf-8")
    if not given.trial:
        write_section(DOCS, text)
    print(f"\n{text}\n\nEverything that was measured: {given.out / 'results.json'}")


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Compare training loops.")
    parser.add_argument("variants", nargs="*", type=variant, metavar="VARIANT", help="tiny or empty (default: both)")
    parser.add_argument("--rounds", type=positive, default=3, help="every peer runs once in each (default 3)")
    parser.add_argument("--threads", type=positive, help="of each process (default: the variant's, tiny 2 and empty 1)")
    parser.add_argument("--steps", type=positive, help="of a timed run, a quarter of them warm-up")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="for JSON and fixtures (build/bench)")
    parser.add_argument("--trial", action="store_true", help="leave docs/BENCHMARKS.md as it is")
    given = parser.parse_args(words)
    given.variants = given.variants or list(VARIANTS)
    return given


def variant(text: str) -> str:
    if text not in VARIANTS:  # said here: argparse cannot take choices where nothing may be given as well
        raise argparse.ArgumentTypeError(f"there is no variant {text}, only {' and '.join(VARIANTS)}.")
    return text


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0.")
    return int(text)


def command(given: argparse.Namespace) -> str:
    """What makes the same measurement anew; where it writes to is left out."""
    words = [] if given.variants == list(VARIANTS) else list(given.variants)
    words += [f"--rounds {given.rounds}"] if given.rounds != 3 else []
    words += [f"--threads {given.threads}"] if given.threads else []
    words += [f"--steps {given.steps}"] if given.steps else []
    return f'make bench ARGS="{" ".join(words)}"' if words else "make bench"


def measure(fixture: Path, peers: Sequence[str], rounds: int, threads: int | None, steps: int | None) -> dict[str, Any]:
    """A run of each peer that checks, then rounds of timed ones; each record is what one process measured."""
    recipe = json.loads((fixture / "recipe.json").read_text(encoding="utf-8"))
    threads = threads or recipe["threads"]
    warm_up = max(1, steps // 4) if steps else recipe["warm_up"]
    steps = max(steps or recipe["steps"], warm_up + 2)
    measured: dict[str, Any] = {"recipe": recipe, "threads": threads, "steps": steps, "warm_up": warm_up}
    measured["checks"] = run_round(fixture, peers, threads, min(steps, CHECKED_STEPS), 1, check=True)
    measured["load_before"], measured["rounds"] = [], []  # load: processes that wanted a core in the last minute
    for number in range(rounds):
        measured["load_before"].append(os.getloadavg()[0])
        order = peers if number % 2 == 0 else peers[::-1]  # what warms the machine up or down meets all alike
        measured["rounds"].append(run_round(fixture, order, threads, steps, warm_up, check=False))
    return measured


def run_round(
    fixture: Path, peers: Sequence[str], threads: int, steps: int, warm_up: int, check: bool
) -> dict[str, dict[str, Any]]:
    records = {}
    for peer in peers:
        record = run_peer(peer, fixture, threads, steps, warm_up, check)
        what = "checked" if check else f"{record['tokens_per_s']:,.0f} tokens/s, {record['step_ms']:,.2f} ms a step"
        print(f"{fixture.name}: {peer}: {what}", flush=True)
        records[peer] = record
    return records


if __name__ == "__main__":
    main()
