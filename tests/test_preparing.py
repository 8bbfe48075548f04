"""What `runner prepare` goes by: shares, groups, strata and times, and what is the same, held against plain ways."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_rows import TEXTS, worded

from runner.prepare import sorted_out
from runner.preparing.content import Reader, folded
from runner.preparing.duplicates import jaccard, near_questions, near_texts, shingles
from runner.preparing.fields import moment_of
from runner.preparing.quality import distribution
from runner.preparing.splitting import asked_sizes, drawn_splits, groups_of, splits_by_time
from runner.protocols import Message, Mistake, Row
from runner.settings import Prepare

QUICK = settings(max_examples=40, deadline=None)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[str], list[list[int]]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=25))
    count = sum(sizes)
    rows = draw(st.permutations(range(count)))
    ends = np.cumsum([0, *sizes]).tolist()
    return [f"row-{k}" for k in range(count)], [sorted(rows[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


SHARES = st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)).map(lambda two: {"test": two[0], "val": two[1]})


@QUICK
@given(grouped(), SHARES, st.integers(0, 5))
def test_each_row_is_drawn_once_groups_stay_whole_and_sizes_are_within_one_group(
    rows: tuple[list[str], list[list[int]]], shares: dict[str, float], seed: int
) -> None:
    ids, groups = rows
    placed = drawn_splits(groups, ids, shares, seed, None)
    assert sorted(row for some in placed.values() for row in some) == list(range(len(ids)))
    where = {row: split for split, some in placed.items() for row in some}
    assert all(len({where[row] for row in group}) == 1 for group in groups)
    assert placed["train"]
    largest = max(map(len, groups))
    for split, size in asked_sizes(len(ids), shares).items():
        assert abs(len(placed[split]) - size) <= largest


@QUICK
@given(grouped(), SHARES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_split(
    rows: tuple[list[str], list[list[int]]], shares: dict[str, float], random: Any
) -> None:
    ids, groups = rows
    order = random.sample(range(len(ids)), len(ids))
    place = {row: position for position, row in enumerate(order)}
    strata = [id[-1] for id in ids]
    one = drawn_splits(groups, ids, shares, 3, strata)
    moved = [[place[row] for row in group] for group in groups]
    other = drawn_splits(moved, [ids[row] for row in order], shares, 3, [strata[row] for row in order])
    assert {split: {ids[row] for row in some} for split, some in one.items()} == {
        split: {ids[order[row]] for row in some} for split, some in other.items()
    }


@QUICK
@given(st.lists(st.sampled_from("aaaaaabbbc"), min_size=30, max_size=200), SHARES)
def test_strata_have_the_same_share_in_every_split(strata: list[str], shares: dict[str, float]) -> None:
    ids = [f"row-{k}" for k in range(len(strata))]
    placed = drawn_splits([[row] for row in range(len(ids))], ids, shares, 0, strata)
    for split, size in asked_sizes(len(ids), shares).items():
        assert len(placed[split]) == size
        for kind, count in Counter(strata).items():
            have = sum(strata[row] == kind for row in placed[split])
            if count >= 20:  # a rare one must leave its last row to train
                assert abs(have - size * count / len(ids)) < 2


def test_another_seed_draws_other_rows() -> None:
    ids = [f"row-{k}" for k in range(100)]
    rows = [[k] for k in range(100)]
    one, other = (drawn_splits(rows, ids, {"test": 0.2}, seed, None)["test"] for seed in (0, 1))
    assert one != other and len(one) == len(other) == 20


@QUICK
@given(grouped(), SHARES, st.randoms(use_true_random=False))
def test_no_row_of_an_earlier_split_is_newer_than_where_a_later_one_begins(
    rows: tuple[list[str], list[list[int]]], shares: dict[str, float], random: Any
) -> None:
    ids, groups = rows
    times = [random.randrange(50) for _ in ids]
    placed = splits_by_time(groups, ids, times, shares)
    assert sorted(row for some in placed.values() for row in some) == list(range(len(ids)))
    newest = {row: max(times[other] for other in group) for group in groups for row in group}
    for earlier, later in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not placed[earlier] or max(newest[row] for row in placed[earlier]) <= min(
            (newest[row] for row in placed[later]), default=50
        )
    for split, size in asked_sizes(len(ids), shares).items():
        if len(groups) > 2:
            assert abs(len(placed[split]) - size) <= max(map(len, groups)) or split == "val"


@QUICK
@given(st.integers(1, 30), st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=4), max_size=12))
def test_groups_are_the_connected_components(count: int, together: list[list[int]]) -> None:
    sets = [[row % count for row in some] for some in together]
    found = {frozenset(group) for group in groups_of(count, sets)}
    expected = [{row} for row in range(count)]
    for some in sets:  # the plain way: merge whatever touches
        touched = [group for group in expected if group & set(some)]
        expected = [group for group in expected if group not in touched] + [set().union(*touched)]
    assert found == {frozenset(group) for group in expected}


@QUICK
@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.integers(0, 60), st.text("abc ", max_size=6)), max_size=12))
def test_near_duplicates_are_those_of_comparing_all_pairs(edits: list[tuple[str, int, str]]) -> None:
    texts = sorted({text[:at] + put + text[at:] for text, at, put in edits})
    found = {(earlier, later): alike for later, earlier, alike in near_texts(texts, 0.7)}
    for pair in combinations(range(len(texts)), 2):
        alike = jaccard(shingles(texts[pair[0]]), shingles(texts[pair[1]]))
        if alike >= 0.85:  # a pair this far above the threshold is missed once in 1e9 times
            assert pair in found
        if pair in found:
            assert found[pair] == alike >= 0.7


@QUICK
@given(st.text("aZỞởßİ\u0301\u031b\u3000 \n가ﬁ"))
def test_texts_are_compared_whatever_their_unicode_form_case_and_spaces(text: str) -> None:
    assert folded(unicodedata.normalize("NFD", text)) == folded(text)
    assert folded(f"  {text}\n") == folded(text)
    assert folded(text.upper()) == folded(text.upper().casefold())


def test_times_are_numbers_or_dates() -> None:
    dates = ["2024-02-29", "2024-03-01T00:00:00", "2024-03-01T02:00:00+01:00", "2024-03-01T12:00:00Z"]
    moments = [moment_of(date) for date in dates]
    assert moments == sorted(moments) and None not in moments  # type: ignore[type-var]
    assert moment_of(3) == 3.0 and moment_of("soon") is None and moment_of(True) is None


def test_percentiles_are_values_that_are_there() -> None:
    found = distribution([5, 1, 4, 2, 3])
    assert found == {"min": 1, "p5": 1, "p50": 3, "p95": 5, "max": 5, "mean": 3.0, "total": 15}


ASKED = dict(
    output="out", overwrite=False, items="copy", splits="drawn", val_share=0.2, test_share=0.2, split_seed=0,
    stratify_by=None, group_by=None, time_by=None, duplicates="drop", near_duplicates=0.8, compare="question",
    context=[], shared_items="together", leaks="report", languages=False,
)  # fmt: skip


@QUICK
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from(["", "!", " ", "?!"]), st.sampled_from("xy"), st.integers(0, 9)),
        min_size=12,
        max_size=40,
    ),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from([None, "family"]),
)
def test_no_split_shares_an_id_a_question_or_a_near_duplicate(
    asked: list[tuple[int, str, str, int]], duplicates: str, group_by: str | None
) -> None:
    words = [worded(k) for k in range(12)]
    rows = [
        Row(f"row-{k}", f"raw:{k}", (Message("user", words[text] + tail), Message("assistant", answer)), extra={
            "family": family
        })
        for k, (text, tail, answer, family) in enumerate(asked)
    ]  # fmt: skip
    reader = Reader("question", (), None, None)
    contents = [reader.read(row) for row in rows]
    near = near_questions(contents, 0.8)
    wanted = Prepare(**ASKED | {"duplicates": duplicates, "group_by": group_by})  # type: ignore[arg-type]
    try:
        splits, drops, leaks = sorted_out({"train": contents}, near, wanted)
    except Mistake as mistake:
        assert "groups that stay together" in str(mistake)  # too few to split
        return
    placed = [one.row.id for some in splits.values() for one in some]
    assert sorted([*placed, *(drop.content.row.id for drop in drops)]) == sorted(row.id for row in rows)
    assert not leaks and (duplicates == "drop" or not drops)
    for one, other in combinations(splits, 2):
        for first in splits[one]:
            for second in splits[other]:
                assert jaccard(shingles(first.question), shingles(second.question)) < 0.8
                assert group_by is None or first.row.extra["family"] != second.row.extra["family"]
    staying = {one.row.id: one for some in splits.values() for one in some}
    for drop in drops:  # what stays says the same
        assert jaccard(shingles(drop.content.question), shingles(staying[drop.same_as].question)) >= 0.8
        assert drop.content.answer_key == staying[drop.same_as].answer_key
