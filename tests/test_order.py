"""The order of rows: every row once an epoch, the same for any split of a step, any process and any start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from runner.data.order import ExampleSet, Key, MicroBatchSampler, Order, deal, rows_of_step, steps_per_epoch
from runner.protocols import IGNORED, Example, Row

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31 - 1)
orders = st.sampled_from(["shuffled", "file"])


@given(n=sizes, batch_size=sizes, seed=seeds, epoch=st.integers(0, 5), order=orders)
def test_every_row_once_an_epoch(n: int, batch_size: int, seed: int, epoch: int, order: Order) -> None:
    steps = steps_per_epoch(n, batch_size)
    taken = [rows_of_step(epoch * steps + k, n, batch_size, seed, order) for k in range(steps)]
    assert {at for at, _ in taken} == {epoch}
    rows = [row for _, step in taken for row in step]
    assert sorted(rows) == list(range(n))
    assert [len(step) for _, step in taken[:-1]] == [batch_size] * (steps - 1)
    assert len(taken[-1][1]) == (n % batch_size or batch_size)
    if order == "file":
        assert rows == list(range(n))


@given(rows=st.lists(st.integers(), min_size=1, max_size=50), m=st.integers(1, 9), processes=st.integers(1, 5))
def test_ranks_share_a_step(rows: list[int], m: int, processes: int) -> None:
    dealt = [deal(rows, m, processes, rank) for rank in range(processes)]
    assert len({len(micro_batches) for micro_batches in dealt}) == 1
    together = [row for parts in zip(*dealt, strict=True) for part in parts if part.weight for row in part.rows]
    assert together == rows
    for micro_batches in dealt:
        for micro_batch in micro_batches:
            assert 1 <= len(micro_batch.rows) <= m
            assert micro_batch.weight or micro_batch.rows == (rows[0],)


@given(
    n=sizes,
    batch_size=sizes,
    m=st.integers(1, 9),
    processes=st.integers(1, 4),
    seed=seeds,
    order=orders,
    start=st.integers(0, 12),
)
def test_a_later_start_is_the_tail_of_the_whole(
    n: int, batch_size: int, m: int, processes: int, seed: int, order: Order, start: int
) -> None:
    def sampled(first: int, rank: int) -> list[list[Key]]:
        return list(MicroBatchSampler(first, 12, n, batch_size, m, processes, rank, seed, order))

    step_lengths = [len(deal(rows_of_step(k, n, batch_size, seed, order)[1], m, processes, 0)) for k in range(start)]
    for rank in range(processes):
        assert sampled(start, rank) == sampled(0, rank)[sum(step_lengths) :]


def test_the_shuffled_order_never_changes() -> None:
    # A checkpoint of last year resumes in this order: these numbers are a promise.
    assert rows_of_step(0, 10, 10, 0, "shuffled") == (0, [8, 5, 1, 7, 6, 4, 9, 0, 3, 2])
    assert rows_of_step(1, 10, 10, 0, "shuffled")[1] != rows_of_step(0, 10, 10, 0, "shuffled")[1]
    assert rows_of_step(0, 10, 10, 1, "shuffled")[1] != rows_of_step(0, 10, 10, 0, "shuffled")[1]


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    rows_of_step(3, 100, 10, 5, "shuffled")
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def examples(n: int) -> list[Example]:
    return [
        Example(str(k), np.array([1, 2], np.int32), np.array([IGNORED, 2], np.int32), (), Row(str(k), ""))
        for k in range(n)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_yields_the_rows(workers: int) -> None:
    sampler = MicroBatchSampler(0, 2, 5, 4, 2, 2, 1, 0, "file")
    loader = DataLoader(ExampleSet(examples(5)), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    batches = list(loader)
    assert [[example.id for example in batch] for batch in batches] == [["2", "3"], ["4"]]
    assert [bool((batch[0].labels != IGNORED).any()) for batch in batches] == [True, False], "rank 1 has no row left"
