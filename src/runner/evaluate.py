"""What a model is worth on held-out rows: its loss over every labelled token, and metrics of what it predicts.

Every row counts once, whatever the batch size and the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import nn

from runner.data.collate import Collate
from runner.protocols import Example, Objective, Prediction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator


@contextmanager
def evaluation_mode(objective: nn.Module) -> Iterator[None]:
    training = objective.training
    objective.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        objective.train(training)


def evaluate(
    objective: Objective,
    examples: Sequence[Example],
    prompts: Sequence[Example],
    collate: Collate,
    batch_size: int,
    accelerator: Accelerator,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics by name (`loss`, `exact_match`) and the predictions in the order of `prompts`.

    `check_stop` is called between batches; what it raises ends the evaluation.
    """
    with evaluation_mode(objective), accelerator.autocast():  # type: ignore[arg-type]
        metrics = losses(objective, examples, collate, batch_size, accelerator, check_stop)
        said: list[Prediction] = []
        for batch in batches(share(prompts, accelerator), batch_size):
            check_stop()
            said += objective.predict(collate(batch))
    by_id = {one.id: one for one in gather_object(said)}
    predictions = [by_id[prompt.id] for prompt in prompts]
    return metrics | objective.metrics(predictions), predictions


def losses(
    objective: Objective,
    examples: Sequence[Example],
    collate: Collate,
    batch_size: int,
    accelerator: Accelerator,
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """Each term's mean over its whole count, and `loss`, their weighted sum where there are several."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    weights: dict[str, float] = {}
    for chunk in batches(share(examples, accelerator), batch_size):
        check_stop()
        batch = collate(chunk)
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0.0) + count
        for name, term in objective(batch).terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.sum)
            weights[name] = term.weight
    if accelerator.num_processes > 1:
        gathered = gather_object([(sums, counts, weights)])
        sums = {name: sum(part[0].get(name, 0.0) for part in gathered) for part in gathered for name in part[0]}
        counts = {name: sum(part[1].get(name, 0.0) for part in gathered) for part in gathered for name in part[1]}
        weights = {name: weight for part in gathered for name, weight in part[2].items()}
    means = {name: sums[name] / max(counts[name], 1.0) for name in sums}
    if means and "loss" not in means:
        means["loss"] = sum(weights[name] * mean for name, mean in means.items())
    return means


def share(examples: Sequence[Example], accelerator: Accelerator) -> Sequence[Example]:
    return examples[accelerator.process_index :: accelerator.num_processes]


def batches(examples: Sequence[Example], batch_size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), batch_size):
        yield examples[start : start + batch_size]
