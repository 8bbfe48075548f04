"""Every input of the corpus has its one answer: read, or refused in exact words, by row; no hang, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bad_inputs
import pytest
from bad_inputs import ALL, Input

from runner.cli import main
from runner.config import Composed, compose
from runner.protocols import Mistake
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
