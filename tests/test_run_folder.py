"""A run's folder: what is taken back of metrics.jsonl, and files that cannot be read or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.run_folder import open_run, read_json, record_failure

LINE = '{"step": %d, "split": "train", "name": "é"}\n'


def test_metrics_keep_their_whole_right_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    kept = LINE % 1 + LINE % 2
    cut = (LINE % 2).encode()[:-4]
    assert cut.endswith(b"\xc3")  # inside a character
    with open_run(tmp_path, holds=True) as run:
        for rest in (cut, b'5\n{}\n[1]\nnull\n"text"\n{"step": "a", "split": "val"}\n', b"\n\n", (LINE % 3).encode()):
            file.write_bytes(kept.encode() + rest)
            run.begin("", None, goes_on=True, step=2, owes_evaluation=False)
            assert file.read_text(encoding="utf-8") == kept


@pytest.mark.parametrize("text", ["5", "null", "[[1, 2]]", "{", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_empty(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text, errors="surrogateescape")
    assert read_json(tmp_path / "status.json") == {}


def test_a_failure_that_cannot_be_recorded_is_no_second_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record_failure(tmp_path / "file" / "run", 1, "told on stderr")
    assert (tmp_path / "file").read_text() == ""
