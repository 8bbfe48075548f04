"""Schedules equal transformers' own, step by step."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from runner.schedule import Constant, Cosine, Linear


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_equal_to_transformers(kind: str, warmup: int) -> None:
    total = 30
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, total),
    }[kind]()
    ours = {"constant": Constant(warmup), "linear": Linear(warmup), "cosine": Cosine(warmup, 0.0)}[kind]
    for step in range(total):
        assert ours(step, total) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_a_cosine_ends_at_its_final_ratio() -> None:
    assert Cosine(0, 0.1)(100, 100) == pytest.approx(0.1)
