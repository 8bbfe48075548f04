"""Any row over length: what is left is within the limits, in order, and all that is lost is counted."""

from __future__ import annotations

from typing import Literal

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.data.chat import asks, prompt_of
from runner.data.cutting import piece_cuts, pieces, prompt_length
from runner.data.length import LengthPolicy
from runner.protocols import IGNORED, Row
from tests.test_length import FAMILIES, chat, row

CUTTING = ("truncate_prompt", "truncate", "split")

contents = st.lists(st.sampled_from(["a", "ü", "word ", "<image>", "\n\n", "猫😀"]), max_size=6).map("".join)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    turns = draw(st.lists(contents, min_size=2, max_size=6))
    turns = [text if k % 2 == 0 else text.replace("<image>", "") for k, text in enumerate(turns)]
    system = draw(st.none() | st.just("Be kind."))
    return row(*turns, system=system, images=sum(text.count("<image>") for text in turns))


@given(
    whole=rows(),
    family=st.sampled_from(list(FAMILIES)),
    learn=st.sampled_from(["all", "last"]),
    policy=st.sampled_from(CUTTING),
    max_length=st.none() | st.integers(1, 60),
    max_prompt_length=st.none() | st.integers(1, 40),
)
def test_what_is_left_is_within_the_limits_and_all_that_is_lost_is_counted(
    whole: Row,
    family: str,
    learn: Literal["all", "last"],
    policy: str,
    max_length: int | None,
    max_prompt_length: int | None,
) -> None:
    format = chat(family, learn)
    example = format.example(whole)
    lengths = LengthPolicy(max_length, max_prompt_length, policy, format)
    left, report = lengths.fit(example), lengths.report()
    assume(not lengths.stubborn.count)
    for one in left:
        assert len(one.input_ids) <= (max_length or len(example.input_ids))
        assert prompt_length(one) <= (max_prompt_length or len(example.input_ids))
        learnt = one.labels != IGNORED
        assert learnt.any() and not learnt[0] and (one.labels[learnt] == one.input_ids[learnt]).all()
        assert one.input_ids.dtype == one.labels.dtype == np.int32
        # Each item once, in order, at a place in the text.
        assert [(name, item) for name, item, _ in one.places] == [
            ("image", item) for item in range(len(one.row.items["image"]))
        ]
        places = [place for *_, place in one.places]
        assert places == sorted(places) and all(0 <= place <= len(one.input_ids) for place in places)
        if asks(one):
            prompt = prompt_of(one)
            assert one.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
    items = [item for one in left for item in one.row.items["image"]]
    expected = list(whole.items["image"])
    assert [item for item in expected if item in items] == items, "in the row's order, none twice"
    assert report.items_lost == len(expected) - len(items)
    tokens = sum(len(one.input_ids) for one in left)
    learnt = sum(int((one.labels != IGNORED).sum()) for one in left)
    assert learnt == int((example.labels != IGNORED).sum()) - report.answer_tokens_lost
    assert report.prompt_tokens_lost >= 0 and report.kept == len(left)
    if policy != "split":
        assert tokens == len(example.input_ids) - report.prompt_tokens_lost - report.answer_tokens_lost
    if policy == "truncate_prompt":
        assert report.items_lost == report.answer_tokens_lost == 0
    assert report.over == report.dropped + report.truncated + report.split
    assert report.unended == sum(one.labels[one.labels != IGNORED][-1] != format.end_of_turn for one in left)


@given(
    whole=rows(),
    family=st.sampled_from(list(FAMILIES)),
    max_length=st.none() | st.integers(1, 60),
    max_prompt_length=st.none() | st.integers(1, 40),
)
def test_pieces_one_after_another_are_the_whole(
    whole: Row, family: str, max_length: int | None, max_prompt_length: int | None
) -> None:
    encoded = chat(family).encode(whole)
    some = pieces(encoded, max_length, max_prompt_length)
    assert np.concatenate([one.input_ids for one in some]).tolist() == encoded.example.input_ids.tolist()
    assert [item for one in some for item in one.row.items["image"]] == list(whole.items["image"])
    start, places = 0, []
    for one in some:
        stop = start + len(one.input_ids)
        assert one.labels[0] == IGNORED
        assert one.labels[1:].tolist() == encoded.example.labels[start + 1 : stop].tolist()
        places += [start + place for *_, place in one.places]
        start = stop
    assert places == [place for *_, place in encoded.example.places]


@given(
    runs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=5),
    max_length=st.integers(2, 40),
    max_prompt_length=st.none() | st.integers(1, 20),
)
def test_cuts_fall_on_borders_where_they_can(
    runs: list[tuple[int, int]], max_length: int, max_prompt_length: int | None
) -> None:
    # Every turn a prompt and an answer; a border lies where a turn begins.
    learnt = np.concatenate([np.repeat([False, True], run) for run in runs])
    borders = np.cumsum([sum(run) for run in runs])[:-1].tolist()
    cuts = piece_cuts(learnt, borders, max_length, max_prompt_length)
    assert cuts[0] == 0 and cuts[-1] == len(learnt) and cuts == sorted(set(cuts))
    if all(sum(run) <= max_length and run[0] <= (max_prompt_length or run[0]) for run in runs):
        assert set(cuts) <= {0, *borders, len(learnt)}, "turns that fit stay whole"
    for start, stop in zip(cuts, cuts[1:], strict=False):
        first = start + 1 + int(learnt[start + 1 : stop].argmax()) if learnt[start + 1 : stop].any() else None
        if first is not None:
            assert stop - start <= max_length and first - start <= (max_prompt_length or max_length)
            whole = min(border for border in [*borders, len(learnt)] if border > first) - first
            if whole <= max_length // 2:
                assert stop >= first + whole, "an answer that fits behind half a piece of prompt is not cut"
