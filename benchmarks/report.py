"""What was measured, as JSON with everything and as tables for docs/BENCHMARKS.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.figures import Bar, Spread, loss_difference, median, overhead, speed_ratio

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PACKAGES = ("multimodal-runner", "torch", "transformers", "peft", "accelerate", "datasets", "trl")
NAMES = {
    "hand": "by hand",
    "hand_labelled": "by hand, labelled positions",
    "accelerate": "Accelerate, by hand",
    "trainer": "transformers.Trainer",
    "trl": "trl.SFTTrainer",
    "runner": "**runner**",
}
COLUMNS = (
    "loop",
    "tokens/s",
    "x Trainer",
    "x by hand",
    "step, ms",
    "ms over by hand",
    "CPU, ms",
    "first batch, s",
    "first step, s",
    "memory, MB",
    "checkpoint, kB",
    "loss off Trainer's",
)


def machine() -> dict[str, Any]:
    """Nothing that names the machine or a path on it."""
    versions = {package: version_of(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "versions": {package: version for package, version in versions.items() if version},
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_json(file: Path, results: Mapping[str, Any], bars: Sequence[Bar]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {**results, "bars": [asdict(bar) for bar in bars]}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def section(results: Mapping[str, Any], bars: Sequence[Bar]) -> str:
    """Markdown without its markers."""
    where = results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    lines = [f"{where['cpu_count']} CPU cores, Python {where['python']}, {versions}.", ""]
    lines += bar_table(bars)
    for name, variant in results["variants"].items():
        lines += ["", introduction(name, variant), "", *figure_table(variant)]
    for peer in results["skipped"]:
        lines += ["", f"{NAMES[peer]} was not measured: it is not installed."]
    return "\n".join([*lines, "", "```", results["command"], "```"])


def bar_table(bars: Sequence[Bar]) -> list[str]:
    rows = [(bar.what, bar.wanted, bar.found, "reached" if bar.reached else "**missed**") for bar in bars]
    return table(("bar", "wanted", "found", "result"), rows)


def introduction(name: str, variant: Mapping[str, Any]) -> str:
    recipe, threads, rounds = variant["recipe"], variant["threads"], len(variant["rounds"])
    parameters = recipe["parameters"]
    return (
        f"`{name}`: {parameters['total']:,} parameters, {parameters['trainable']:,} of them LoRA's; "
        f"{recipe['batch_size']} x {recipe['tokens_a_row']:.0f} tokens a step, fp32, {counted(threads, 'thread')}. "
        f"{counted(rounds, 'round')} of {variant['steps']} steps, the first {variant['warm_up']} not counted."
    )


def figure_table(variant: Mapping[str, Any]) -> list[str]:
    return table(COLUMNS, [figure_row(variant, peer) for peer in variant["checks"]])


def figure_row(variant: Mapping[str, Any], peer: str) -> tuple[str, ...]:
    """Medians over the rounds; ratios as least / median / most."""
    rounds, checks = variant["rounds"], variant["checks"]
    checkpoint = checks[peer]["checkpoint_bytes"]
    return (
        NAMES[peer],
        f"{median(rounds, peer, 'tokens_per_s'):,.0f}",
        spelled(speed_ratio(rounds, peer, "trainer")),
        spelled(speed_ratio(rounds, peer, "hand")),
        f"{median(rounds, peer, 'step_ms'):,.2f}",
        spelled(overhead(rounds, peer, "hand")),
        f"{median(rounds, peer, 'cpu_ms'):,.2f}",
        f"{median(rounds, peer, 'first_batch_s'):.1f}",
        f"{median(rounds, peer, 'first_step_s'):.1f}",
        f"{median(rounds, peer, 'peak_rss_bytes') / 1e6:,.0f}",
        f"{checkpoint / 1e3:,.0f}" if checkpoint else "none",
        f"{loss_difference(checks, peer, 'trainer'):.1e}",
    )


def spelled(figure: Spread) -> str:
    return " / ".join(f"{value:.2f}" for value in (figure.least, figure.median, figure.most))


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def write_section(docs: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the two markers of a file; the rest of it stays."""
    before, begun, rest = docs.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise SystemExit(f"{docs} has no {begin} with {end} after it; write both where the tables are to stand.")
    docs.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
