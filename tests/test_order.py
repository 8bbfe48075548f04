"""The order of rows: every row once an epoch, the same for any split of a step, any process and any start."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from runner.data.dealing import Dealer, ExampleSet, Key, MicroBatchSampler
from runner.data.order import Order, shared_out
from runner.protocols import IGNORED, Example, Row

Kind = Literal["shuffled", "grouped", "file"]
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31 - 1)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["shuffled", "grouped", "file"])


def lengths_of(n: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(1, 60, n).astype(np.int32)


def order_of(n: int, batch_size: int, seed: int, kind: Kind) -> Order:
    return Order(n, batch_size, seed, kind, lengths_of(n, seed))


@given(n=sizes, batch_size=sizes, seed=seeds, epoch=st.integers(0, 5), kind=kinds)
def test_every_row_once_an_epoch(n: int, batch_size: int, seed: int, epoch: int, kind: Kind) -> None:
    order = order_of(n, batch_size, seed, kind)
    steps = order.steps_per_epoch
    taken = [order.of_step(epoch * steps + k) for k in range(steps)]
    assert {at for at, _ in taken} == {epoch}
    rows = [row for _, step in taken for row in step.tolist()]
    assert sorted(rows) == list(range(n))
    assert [len(step) for _, step in taken[:-1]] == [batch_size] * (steps - 1)
    assert len(taken[-1][1]) == (n % batch_size or batch_size)
    if kind == "file":
        assert rows == list(range(n))


@given(n=st.integers(30, 200), batch_size=st.integers(4, 8), seed=seeds, epoch=st.integers(0, 3))
def test_grouped_steps_are_of_one_length(n: int, batch_size: int, seed: int, epoch: int) -> None:
    """Fewer rows than are grouped together: cut into steps, the sorted rows leave no step reaching into another."""
    order, lengths = order_of(n, batch_size, seed, "grouped"), lengths_of(n, seed)
    whole = n // batch_size
    steps = [lengths[order.of_step(epoch * order.steps_per_epoch + k)[1]] for k in range(whole)]
    assert max(steps[0]) == max(max(step) for step in steps), "the longest row comes first"
    spans = sorted((int(min(step)), int(max(step))) for step in steps)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    seed=seeds,
    kind=st.sampled_from(["shuffled", "file"]),
)
def test_a_mixture_is_exact(sizes: list[int], weights: list[float], seed: int, kind: Kind) -> None:
    """Over an epoch each source has its share to the row, anywhere in it to two rows; and none of its rows comes again
    before all have come."""
    shares = tuple(zip(sizes, weights, strict=False))
    n, borders = sum(sizes), np.cumsum([0, *sizes])
    order = Order(n, 7, seed, kind, None, shares)
    counts = shared_out(n, [weight for _, weight in shares])
    exact = np.array([weight for _, weight in shares]) / sum(weight for _, weight in shares)
    assert sum(counts) == n and np.all(np.abs(counts - exact * n) < 1)
    epochs = [order.of_epoch(epoch) for epoch in range(4)]
    for rows in epochs:
        source = np.searchsorted(borders, rows, side="right") - 1
        assert np.bincount(source, minlength=len(sizes)).tolist() == counts
        so_far = (source[:, None] == np.arange(len(sizes))).cumsum(axis=0)
        assert np.all(np.abs(so_far - np.outer(np.arange(1, n + 1), counts) / n) < 2)
    for number, size in enumerate(sizes):
        drawn = [row for rows in epochs for row in rows.tolist() if borders[number] <= row < borders[number + 1]]
        for start in range(0, len(drawn) - size + 1, size):
            assert len(set(drawn[start : start + size])) == size


def dealer(rows: int = 1, tokens: int | None = None, packing: bool = False, processes: int = 1, n: int = 60) -> Dealer:
    return Dealer(rows, tokens, packing, processes, lengths_of(n, n))


@given(
    rows=st.lists(st.integers(0, 59), min_size=1, max_size=50, unique=True),
    m=st.integers(1, 9),
    budget=st.none() | st.integers(60, 400),
    packing=st.booleans(),
)
def test_processes_share_a_step(rows: list[int], m: int, budget: int | None, packing: bool) -> None:
    """Any number of processes computes the same micro-batches, in the same order where they go by rows."""
    one = dealer(m, budget, packing)
    whole = [part.rows for dealt in one.deal(rows) for part in dealt]
    for processes in (1, 2, 4):
        dealt = dealer(m, budget, packing, processes).deal(rows)
        assert {len(some) for some in dealt} == {processes}, "every process has as many"
        parts = [part for some in dealt for part in some]
        assert [part.rows for part in parts if part.weight] == whole
        assert all(part.rows == (rows[0],) for part in parts if not part.weight)
    assert sorted(row for part in whole for row in part) == sorted(rows)
    if budget is None:
        assert [row for part in whole for row in part] == rows and max(map(len, whole)) <= m
        return
    for part in whole:
        some = one.lengths[list(part)]
        assert (some.sum() if packing else len(some) * some.max()) <= budget


@given(
    n=sizes,
    batch_size=sizes,
    m=st.integers(1, 9),
    budget=st.none() | st.integers(60, 200),
    processes=st.sampled_from([1, 2, 4]),
    seed=seeds,
    kind=kinds,
    start=st.integers(0, 12),
)
def test_a_later_start_is_the_tail_of_the_whole(
    n: int, batch_size: int, m: int, budget: int | None, processes: int, seed: int, kind: Kind, start: int
) -> None:
    order, dealing = order_of(n, batch_size, seed, kind), Dealer(m, budget, False, processes, lengths_of(n, seed))

    def sampled(first: int, rank: int) -> list[list[Key]]:
        return list(MicroBatchSampler(first, 12, order, dealing, rank))

    before = sum(len(dealing.deal(order.of_step(k)[1].tolist())) for k in range(start))
    for rank in range(processes):
        assert sampled(start, rank) == sampled(0, rank)[before:]


def test_the_shuffled_order_never_changes() -> None:
    # A checkpoint of last year resumes in this order: these numbers are a promise.
    def first(step: int, seed: int) -> list[int]:
        return Order(10, 10, seed, "shuffled").of_step(step)[1].tolist()

    assert first(0, 0) == [8, 5, 1, 7, 6, 4, 9, 0, 3, 2]
    assert first(1, 0) != first(0, 0) != first(0, 1)


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    order_of(100, 10, 5, "grouped").of_step(3)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def examples(n: int) -> list[Example]:
    return [
        Example(str(k), np.array([1, 2], np.int32), np.array([IGNORED, 2], np.int32), (), Row(str(k), ""))
        for k in range(n)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_yields_the_rows(workers: int) -> None:
    dealing = Dealer(2, None, False, 2, np.full(5, 2, dtype=np.int32))
    sampler = MicroBatchSampler(0, 2, Order(5, 4, 0, "file"), dealing, rank=1)
    loader = DataLoader(ExampleSet(examples(5)), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    batches = list(loader)
    assert [[example.id for example in batch] for batch in batches] == [["2", "3"], ["4"]]
    assert [bool((batch[0].labels != IGNORED).any()) for batch in batches] == [True, False], "rank 1 has no row left"
