"""Rows that are read as they are needed, mixed sources, and loaders that die: in runs of the smallest model."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train import CHAT, assert_same_weights, few_rows, lines_of, run

from runner.cli import main
from runner.config import compose, section
from runner.data.collate import Collate
from runner.data.dealing import Dealer
from runner.data.stream import START, Cursor, Stream, StreamedSteps
from runner.labelling import AnyLength
from runner.protocols import IGNORED, BadRow, Example, Fault, Mistake, Row
from runner.settings import Data

NONE = np.zeros(0, dtype=np.int32)


@cache
def defaults() -> Data:
    return section(compose("train", ["experiment=null", "train.max_steps=1"]).tree["data"], Data)


class Reader:
    """A row of as many tokens as its label says."""

    def example(self, row: Row) -> Example:
        ids = np.arange(int(row.label or 1), dtype=np.int32)
        return Example(row.id, ids, np.where(ids > 0, ids, np.int32(IGNORED)), (), row)

    def fitting(self, given: Data) -> AnyLength:
        return AnyLength()

    def reads(self) -> dict[str, Any]:
        return {}


def stream_of(count: int, seed: int = 0, bad: tuple[int, ...] = (), **changed: Any) -> Stream:
    rows: list[Row | BadRow] = [
        BadRow(f"shelf {k}", "is no row.") if k in bad else Row(f"row-{k}", f"shelf {k}", label=1 + k % 7)
        for k in range(count)
    ]
    return Stream("train", rows, Reader(), replace(defaults(), **changed), seed)


@given(
    count=st.integers(1, 40),
    buffer=st.integers(1, 12),
    order=st.sampled_from(["shuffled", "file"]),
    taken=st.integers(0, 60),
)
def test_a_stream_goes_on_from_any_cursor(
    count: int, buffer: int, order: Literal["shuffled", "file"], taken: int
) -> None:
    stream = stream_of(count, buffer=buffer, order=order)
    whole = list(islice(stream.examples(START), taken + 50))
    ids = [example.id for example, _ in whole]
    cursor = whole[taken - 1][1] if taken else START
    assert [example.id for example, _ in islice(stream.examples(Cursor(*list(cursor))), 50)] == ids[taken:]
    for start in range(0, len(ids) - count + 1, count):
        assert sorted(ids[start : start + count]) == sorted(f"row-{k}" for k in range(count)), "each once a pass"
    if order == "file":
        assert ids[:count] == [f"row-{k}" for k in range(count)]
    else:
        places = [int(name.removeprefix("row-")) for name in ids[:count]]
        assert all(abs(place - k) < buffer for k, place in enumerate(places)), "no row leaves its block"


@given(batch_size=st.integers(1, 9), micro=st.integers(1, 4), budget=st.none() | st.integers(7, 30))
def test_processes_share_a_stream(batch_size: int, micro: int, budget: int | None) -> None:
    """1, 2 and 4 processes see the same rows in the same order; each micro-batch belongs to one of them."""
    together = []
    for processes in (1, 2, 4):
        dealer = Dealer(micro, budget, False, processes, np.zeros(0, dtype=np.int32))
        steps = [
            list(islice(StreamedSteps(stream_of(23, buffer=5), START, batch_size, dealer, rank, Collate({}, 0)), 4))
            for rank in range(processes)
        ]
        for of_ranks in zip(*steps, strict=True):
            assert len({tuple(one.ids) for one in of_ranks}) == len({one.cursor for one in of_ranks}) == 1
            dealt = [batch for one in of_ranks for batch in one.micro_batches if batch.weights[0]]
            assert sorted(row for batch in dealt for row in batch.ids) == sorted(of_ranks[0].ids)
        together.append([one.ids for one in steps[0]])
    assert together[0] == together[1] == together[2]


def test_bad_rows_of_a_stream() -> None:
    with pytest.raises(Mistake, match="shelf 3: is no row"):
        list(islice(stream_of(20, bad=(3,), buffer=5).examples(START), 20))
    left = islice(stream_of(20, bad=(3,), buffer=5, on_bad_row="skip").examples(START), 19)
    assert sorted(example.id for example, _ in left) == sorted(f"row-{k}" for k in range(20) if k != 3)
    with pytest.raises(Mistake, match="no row that can be used"):
        next(stream_of(2, bad=(0, 1), on_bad_row="skip").examples(START))
    many = stream_of(1200, bad=tuple(range(0, 1200, 50)), buffer=100, on_bad_row="skip")
    with pytest.raises(
        Mistake, match=r"2\d rows of 1,0\d\d cannot be used, 2.\d\d%, which is more than data.max_bad_share"
    ):
        list(islice(many.examples(START), 1170))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_run_goes_on_exactly(tmp_path: Path, workers: int) -> None:
    words = [*few_rows(tmp_path / "rows.jsonl", 21), "data.streaming=true", "data.buffer=8", "train.log_ids=true"]
    words += [f"data.workers={workers}", "train.eval_every=null", "checkpoint.every=2"]
    run(tmp_path / "whole", *words, base=CHAT)
    run(tmp_path / "parts", *words, "train.max_steps=3", "schedule=constant", base=CHAT)
    run(tmp_path / "parts", *words, "resume=auto", "schedule=constant", base=CHAT)
    run(tmp_path / "constant", *words, "schedule=constant", base=CHAT)
    ids = [line["ids"] for line in lines_of(tmp_path / "constant")]
    assert [line["ids"] for line in lines_of(tmp_path / "parts")] == ids
    assert [line["ids"] for line in lines_of(tmp_path / "whole")] == ids
    assert_same_weights(tmp_path / "constant", tmp_path / "parts")
    assert len({row for step in ids for row in step}) == 21, "48 rows go twice round the 21"
    told = json.loads((tmp_path / "constant" / "summary.json").read_text())["data"]["train"]
    assert told["total"] >= 48 and told["skipped"] == 0, "rows that were read, not those of the first block"
    if workers == 0:
        assert main(["evaluate", f"run={tmp_path}/constant", "evaluate.split=train"]) == 0
        assert json.loads((tmp_path / "constant" / "evaluations" / "train.json").read_text())["rows"] == 21


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.max_steps=null", "train.epochs=2"], "nobody knows how many rows an epoch has"),
        (["data.order=grouped"], "cannot be grouped by length"),
        (["data.workers=2"], "a stream is read by one worker at most"),
        (["model=classify", "encoder/image=patch"], "goes by all its rows"),
        (["data.cache_features=true"], "have no features yet"),
    ],
)
def test_what_cannot_go_with_a_stream_is_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=null", "train.max_steps=1", "data.streaming=true", *words]) == 2
    told = capsys.readouterr().err
    assert "data.streaming=true" in told or "data.workers=2" in told
    assert said in told and "Traceback" not in told


def mixture(tmp_path: Path, weights: str) -> list[str]:
    words = ["data=mixture", f"data.weights={weights}"]
    for name, count in (("many", 18), ("few", 4)):
        (tmp_path / name).mkdir(exist_ok=True)
        few_rows(tmp_path / name / "train.jsonl", count)
        few_rows(tmp_path / name / "val.jsonl", 2)
        words += [f"+data@data.sources.{name}=jsonl", f"data.sources.{name}.path={tmp_path / name}"]
    return [*words, "model=chat", "checkpoint.monitor=val/loss", "checkpoint.mode=min", "train.log_ids=true"]


def test_a_mixed_run_is_exact_and_goes_on_exactly(tmp_path: Path) -> None:
    words = [*mixture(tmp_path, "{many: 1, few: 1}"), "schedule=constant"]
    run(tmp_path / "whole", *words, base=CHAT)
    run(tmp_path / "parts", *words, "train.max_steps=3", base=CHAT)
    run(tmp_path / "parts", *words, "resume=auto", base=CHAT)
    ids = [line["ids"] for line in lines_of(tmp_path / "whole")]
    assert [line["ids"] for line in lines_of(tmp_path / "parts")] == ids
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    few = [sum(row.startswith("few/") for row in step) for step in ids]
    assert sum(few) == len([row for step in ids for row in step]) // 2 and max(few) - min(few) <= 2
    assert sorted(lines_of(tmp_path / "whole", "val")[0]) and len(ids) == 6


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("{many: 1}", "data.weights.few is missing or not above 0"),
        ("{many: 1, few: 0}", "data.weights.few is missing or not above 0"),
        ("{many: 1, fe: 1}", "data.weights.fe: there is no such source; did you mean few?"),
    ],
)
def test_a_mixture_without_sense_is_named(tmp_path: Path, weights: str, said: str) -> None:
    with pytest.raises(Mistake) as told:
        run(tmp_path / "run", *mixture(tmp_path, weights), base=CHAT)
    assert said in str(told.value)


def die(path: Path) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: Path) -> Any:
    time.sleep(60)


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("deed", "said"),
    [(die, r"worker \(pid\(s\) \d+\) exited unexpectedly"), (hang, "gave nothing for data.worker_timeout")],
)
def test_a_worker_that_dies_or_hangs_names_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: Callable[[Path], Any], said: str
) -> None:
    """Rows were read before, so that the picture is first decoded in a worker."""
    words = [*few_rows(tmp_path / "rows.jsonl", 8), "model=instruct", "train.eval_every=null", "data.order=file"]
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    lines[5]["image"] = "a.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(tmp_path / "whole", *words, "train.max_steps=1")

    parent = os.getpid()
    from runner.data import decode

    whole = decode.read_picture
    monkeypatch.setattr(decode, "read_picture", lambda path: whole(path) if os.getpid() == parent else deed(path))
    with pytest.raises(Fault, match=said) as told:
        run(tmp_path / "run", *words, "data.workers=1", "data.worker_timeout=3")
    assert "It was at rows.jsonl:6 (id row-5), `image` item 1." in str(told.value)
