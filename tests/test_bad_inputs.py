"""Every input of the corpus has its one answer: read, or refused in exact words, by row; no hang, no traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bad_inputs
import numpy as np
import pytest
from bad_inputs import ALL, Input
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.cli import main
from runner.config import Composed, compose
from runner.data.decode import check_item_file
from runner.data.jsonl import Jsonl
from runner.data.table import Csv
from runner.protocols import BadRow, Mistake, Row
from runner.show import show

INPUTS = list(bad_inputs.inputs())
ENCODERS = ["encoder/image=patch", "encoder/audio=spectrogram", "encoder/series=series_patch", "fusion=prefix"]
ENCODERS += [f"encoder.{name}.{one}" for name in ("image", "audio", "series") for one in ("layers=1", "hidden_size=8")]
THROUGH_THE_COMMAND = INPUTS[::29]
"""Some of all kinds, by the whole command line."""

pytestmark = pytest.mark.timeout(10)


def words(one: Input) -> list[str]:
    """Encoders are built where an input is an item's file, by far the most of the work."""
    model = ["model=instruct", *ENCODERS] if one.name.startswith(("picture", "sound", "series")) else ["model=chat"]
    return [*model, f"data={one.option}", "data.path=.", "show.rows=9", "data.max_bad_share=0.9"]


@pytest.fixture(scope="module")
def composed() -> Callable[[Input], Composed]:
    trees = {key: compose("show", list(key)) for key in {tuple(words(one)) for one in INPUTS}}
    return lambda one: trees[tuple(words(one))]


def shown(composed: Composed, one: Input, policy: str) -> list[str]:
    """Ids of the rows that are read."""
    data: dict[str, Any] = {**composed.tree["data"], "path": "train.jsonl", "on_bad_row": policy, **one.data}
    data["fields"] = {**composed.tree["data"]["fields"], **one.data.get("fields", {})}
    found: list[str] = show(replace(composed, tree={**composed.tree, "data": data}))["rows"]
    return found


WHOLE = {
    one.name: next((name, content) for name, content in one.files.items() if name != "train.jsonl")
    for one in INPUTS
    if one.said is None and one.name.startswith(("picture", "sound"))
} | {
    "series": ("b.npy", bad_inputs.array(np.arange(12.0).reshape(2, 6))),
    **{f"TIFF {one}": ("b.tiff", bad_inputs.picture(format="TIFF", compression=one)) for one in ("tiff_lzw", "jpeg")},
}
MODALITIES = {".wav": "audio", ".npy": "series"}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_item_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    name, content = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))]
    assert isinstance(content, bytes)
    start = data.draw(st.one_of(st.integers(0, min(120, len(content))), st.integers(0, len(content))))
    gone = data.draw(st.integers(0, 4))
    damaged = content[:start] + data.draw(st.binary(max_size=4)) + content[start + gone :]
    file = tmp_path / name
    file.write_bytes(damaged)
    with contextlib.suppress(Mistake):
        check_item_file(MODALITIES.get(file.suffix, "image"), file)


WORDS = st.sampled_from(
    [
        b'{"',
        b'"id"',
        b'"messages"',
        b":",
        b",",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"1",
        b"NaN",
        b"\n",
        b"\r",
        b"\\ud8",
        b"a",
    ]
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(WORDS, st.binary(max_size=3)), max_size=20), st.sampled_from(["jsonl", "csv"]))
def test_any_bytes_are_rows_or_bad_rows_or_refused(tmp_path: Path, words: list[bytes], option: str) -> None:
    file = tmp_path / f"a.{option}"
    file.write_bytes((b"id,messages\n" if option == "csv" else b"") + b"".join(words))
    source: Any = Jsonl(str(file), None, {}, [], None) if option == "jsonl" else Csv(str(file), None, ",", {}, [], None)
    with contextlib.suppress(Mistake):
        assert all(isinstance(row, Row | BadRow) for row in source.read([])["train"])


def test_the_corpus_is_large_and_its_inputs_have_names() -> None:
    assert len({one.name for one in INPUTS}) == len(INPUTS) >= 80
    assert sum(one.said is None for one in INPUTS) < len(INPUTS) / 4


@pytest.mark.parametrize("one", INPUTS, ids=lambda one: one.name)
def test_an_input_has_its_one_answer(
    one: Input, composed: Callable[[Input], Composed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_inputs.write(tmp_path, one.files)
    if one.said is None:
        assert tuple(shown(composed(one), one, "error")) == one.left
        return
    with pytest.raises(Mistake) as told:
        shown(composed(one), one, "error")
    assert one.said in str(told.value)
    assert len(str(told.value)) < 1000
    if INPUTS.index(one) % 3:
        return
    if one.left:
        assert tuple(shown(composed(one), one, "skip")) == one.left
    else:
        with pytest.raises(Mistake) as told:
            shown(composed(one), one, "skip")
        assert one.said in str(told.value)


@pytest.mark.parametrize("one", THROUGH_THE_COMMAND, ids=lambda one: one.name)
def test_the_command_says_the_same(one: Input, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad_inputs.write(tmp_path, one.files)
    given = {"path": "train.jsonl", **one.data}
    fields = [f"data.fields.{name}={key}" for name, key in given.pop("fields", {}).items()]
    settings = [f"data.{name}={'null' if value is None else value}" for name, value in given.items()]
    code = main(["show", *words(one), *settings, *fields])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    if one.said is None:
        assert code == 0 and all(f"(id {id})" in out for id in one.left or ALL)
    else:
        assert code == 2 and one.said in err
