"""Rows in flat arrays: what goes in comes out, in memory and from a folder; ids that were there before are found."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.data.flat import FlatExamples, FlatWriter
from runner.data.seen import BLOCK, Seen
from runner.protocols import IGNORED, Example, Message, Mistake, Row

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
items = st.one_of(
    texts.map(lambda name: Path("/data") / (name.replace("/", "").replace("\0", "") or "a")),
    texts,
    st.lists(st.lists(st.none() | st.floats(-1e30, 1e30) | st.integers(-9, 9), min_size=1, max_size=4), max_size=2),
)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = np.array(draw(st.lists(st.integers(0, 2**31 - 1), max_size=9)), dtype=np.int32)
    learnt = np.array(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), dtype=bool)
    held = draw(st.dictionaries(st.sampled_from(["image", "series", "ecg"]), st.lists(items, min_size=1, max_size=2)))
    places = [(name, item, draw(st.integers(0, len(ids)))) for name, some in held.items() for item in range(len(some))]
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), max_size=3))
    row = Row(
        id=draw(texts),
        where=draw(texts),
        messages=tuple(Message(role, draw(texts)) for role in roles),
        items={name: tuple(some) for name, some in held.items()},
        label=draw(st.none() | texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
        extra=draw(st.dictionaries(texts, st.none() | texts | st.lists(st.integers(), max_size=2), max_size=2)),
    )
    id = draw(st.just(row.id) | st.just(f"{row.id}#2"))
    return Example(id, ids, np.where(learnt, ids, np.int32(IGNORED)), tuple(places), row)


def same(one: Example, other: Example) -> bool:
    arrays = [(one.input_ids, other.input_ids), (one.labels, other.labels)]
    return (
        (one.id, one.places, one.row, one.weight) == (other.id, other.places, other.row, other.weight)
        and type(one.row.label) is type(other.row.label)
        and all(a.dtype == b.dtype == np.int32 and a.tolist() == b.tolist() for a, b in arrays)
    )


@given(rows=st.lists(examples(), max_size=5))
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> None:
    folder = tmp_path_factory.mktemp("flat")
    for writer in (FlatWriter(folder, holds_rows=False), FlatWriter(None, holds_rows=True)):
        for row in rows:
            writer.append(row)
        assert all(writer.row_at(k) == row.row for k, row in enumerate(rows))
        written = writer.close()
        for found in (written, pickle.loads(pickle.dumps(written))):
            assert len(found) == len(rows) and all(map(same, found, rows))
            assert found.lengths.tolist() == [len(row.input_ids) for row in rows]
            assert found[-1:] == [] or same(found[-1:][0], rows[-1])
    assert all(map(same, FlatExamples.open(folder), rows))


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    row = Row("a", "shelf 1", items={"image": (np.zeros(3),)})
    nothing = np.zeros(0, dtype=np.int32)
    with pytest.raises(Mistake, match=r"shelf 1 \(id a\) holds what JSON cannot"):
        FlatWriter(tmp_path, holds_rows=False).append(Example("a", nothing, nothing, (), row))


@pytest.mark.parametrize("count", [10, BLOCK, 3 * BLOCK + 5])
def test_an_id_is_found_again(count: int) -> None:
    seen = Seen()
    for k in range(count):
        seen.note(f"row-{k}", k)
    again = np.random.RandomState(0).randint(0, count, 50).tolist()
    assert [seen.find(f"row-{k}") for k in again] == again
    assert seen.find(f"row-{count}") is None
