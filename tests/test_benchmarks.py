"""The benchmark's loops train alike, and what they measure comes out as tables and JSON; no test is about speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import command, read_options, run_round
from benchmarks.figures import bars, speed_ratio
from benchmarks.fixture import VARIANTS, Lengths, build
from benchmarks.report import BEGIN, END, machine, section, write_json, write_section

MINIATURE = replace(
    VARIANTS["tiny"], vocabulary=128, hidden=32, layers=2, heads=2, key_value_heads=1, intermediate=64,
    rows=12, batch_size=4, question=Lengths(5, 0.5, 2, 20), answer=Lengths(6, 0.5, 2, 20),
)  # fmt: skip
STEPS = 4  # the last is the first of the second epoch
PEERS = ("hand", "trainer", "runner")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "miniature"
    build(MINIATURE, folder)
    return folder


@pytest.fixture(scope="module")
def results(fixture: Path) -> dict[str, Any]:
    """One round, whose runs check and are timed at once."""
    records = run_round(fixture, PEERS, threads=1, steps=STEPS, warm_up=1, check=True)
    recipe = json.loads((fixture / "recipe.json").read_text())
    variant = {"recipe": recipe, "threads": 1, "steps": STEPS, "warm_up": 1, "checks": records, "rounds": [records]}
    return {"command": "make bench", "machine": machine(), "skipped": ["trl"], "variants": {"tiny": variant}}


def made_up(tokens_per_s: float, step_ms: float, loss: float) -> dict[str, Any]:
    return {"tokens_per_s": tokens_per_s, "step_ms": step_ms, "losses": [loss]}


def test_a_fixture_is_the_same_each_time(fixture: Path, tmp_path: Path) -> None:
    build(MINIATURE, tmp_path / "again")
    files = sorted(file.relative_to(fixture) for file in fixture.rglob("*") if file.is_file())
    assert {"tokens.jsonl", "train.jsonl", "recipe.json"} <= {str(file) for file in files}
    assert [file for file in files if (fixture / file).read_bytes() != (tmp_path / "again" / file).read_bytes()] == []
    lengths = {len(json.loads(line)["input_ids"]) for line in (fixture / "tokens.jsonl").open()}
    assert len(lengths) > 4  # so that batches are padded


@pytest.mark.faults
def test_loops_have_the_losses_of_trainer(results: dict[str, Any]) -> None:
    records = results["variants"]["tiny"]["checks"]
    theirs = records["trainer"]["losses"]
    assert len(theirs) == STEPS and theirs[3] < theirs[0] - 1e-3  # of the same rows
    for peer in PEERS:
        assert max(abs(a - b) for a, b in zip(records[peer]["losses"], theirs, strict=True)) <= 1e-5
    assert 0 < records["runner"]["checkpoint_bytes"] < records["trainer"]["checkpoint_bytes"]


@pytest.mark.faults
def test_what_was_measured_makes_sense(results: dict[str, Any]) -> None:
    for record in results["variants"]["tiny"]["checks"].values():
        assert record["tokens_per_s"] > 0 and record["step_ms"] > 0 and record["cpu_ms"] > 0
        assert 0 < record["first_batch_s"] < record["first_step_s"] < 100
        assert 1e8 < record["peak_rss_bytes"] < 1e10


@pytest.mark.faults
def test_tables_and_json_come_out(results: dict[str, Any], tmp_path: Path) -> None:
    judged = bars(results["variants"])
    write_json(tmp_path / "out" / "results.json", results, judged)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [bar["reached"] for bar in written["bars"]] == [bar.reached for bar in judged]
    assert written["variants"]["tiny"]["checks"]["runner"]["losses"]

    docs = tmp_path / "docs.md"
    docs.write_text(f"# Before\n{BEGIN}\nold figures\n{END}\n## After\n")
    text = section(results, judged)
    for _ in range(2):
        write_section(docs, text)
        assert docs.read_text() == f"# Before\n{BEGIN}\n{text}\n{END}\n## After\n"
    assert "| **runner** |" in text and "trl.SFTTrainer was not measured" in text and "make bench" in text
    assert str(tmp_path.parent) not in text and str(Path.home()) not in text


def test_docs_without_markers_are_left_alone(tmp_path: Path) -> None:
    docs = tmp_path / "docs.md"
    docs.write_text("# Nothing to replace\n")
    with pytest.raises(SystemExit, match="has no <!-- bench:begin -->"):
        write_section(docs, "figures")
    assert docs.read_text() == "# Nothing to replace\n"


def test_ratios_are_of_one_round_and_bars_are_told_as_they_are() -> None:
    slow = {"trainer": made_up(100, 5.0, 1.0), "hand": made_up(110, 4.0, 1.0), "runner": made_up(150, 4.5, 1.0)}
    fast = {"trainer": made_up(200, 2.5, 1.0), "hand": made_up(220, 2.0, 1.0), "runner": made_up(260, 2.9, 1.0)}
    both = {"rounds": [slow, fast], "checks": {**slow, "runner": made_up(0, 0, 1.0 + 2e-5)}}
    ratio = speed_ratio(both["rounds"], "runner", "trainer")
    assert (ratio.least, ratio.median, ratio.most) == pytest.approx((1.3, 1.4, 1.5))
    speed, losses, overhead = bars({"tiny": both, "empty": both})
    assert (speed.found, speed.reached) == ("1.40 x", True)
    assert (losses.found, losses.reached) == ("2.0e-05", False)
    assert (overhead.found, overhead.reached) == ("0.70 ms", False)


def test_the_command_repeats_what_was_asked_for_without_a_path() -> None:
    assert command(read_options(["--out", "somewhere", "--trial"])) == "make bench"
    assert command(read_options(["tiny", "--steps", "8"])) == 'make bench ARGS="tiny --steps 8"'
