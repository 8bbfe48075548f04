"""What a model is worth on held-out rows: its loss over every labelled token, and metrics of what it predicts.

Every row counts once, whatever the batch size and the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from runner.data.collate import Collate
from runner.data.order import without_weight
from runner.offers import check_metrics, check_predictions
from runner.protocols import Example, Objective, Prediction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from runner.peers import Peers


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
    peers: Peers,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics by name (`loss`, `exact_match`) and the predictions in the order of `prompts`.

    `check_stop` is called between batches, by all processes as often; what it raises ends the evaluation.
    """
    with evaluation_mode(objective), accelerator.autocast():  # type: ignore[arg-type]
        metrics = losses(objective, examples, collate, batch_size, peers, check_stop)
        said: list[Prediction] = []
        for batch in rounds(prompts, batch_size, peers):
            check_stop()
            asked = collate(batch)
            predicted = objective.predict(asked)
            check_predictions(predicted, asked)
            said += predicted if batch[0].weight else []
    by_id = {one.id: one for part in peers.gather(said) for one in part}
    predictions = [by_id[prompt.id] for prompt in prompts]
    of_predictions = objective.metrics(predictions)
    check_metrics(of_predictions)
    return metrics | of_predictions, predictions


def losses(
    objective: Objective,
    examples: Sequence[Example],
    collate: Collate,
    batch_size: int,
    peers: Peers,
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """Each term's mean over its whole count, and `loss`, their weighted sum where there are several."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    weights: dict[str, float] = {}
    for chunk in rounds(examples, batch_size, peers):
        check_stop()
        batch = collate(chunk)
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0.0) + count
        for name, term in objective(batch).terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.sum)
            weights[name] = term.weight
    gathered = peers.gather((sums, counts))
    sums = {name: sum(part[name] for part, _ in gathered) for name in sums}
    counts = {name: sum(part[name] for _, part in gathered) for name in counts}
    means = {name: sums[name] / counts[name] for name in sums if counts[name]}
    if means and "loss" not in means:
        means["loss"] = sum(weights[name] * mean for name, mean in means.items())
    return means


def rounds(examples: Sequence[Example], batch_size: int, peers: Peers) -> Iterator[Sequence[Example]]:
    """This process's batches. All processes get as many, as each must make the same calls: one that has no row left
    gets a row without weight."""
    for start in range(0, len(examples), batch_size * peers.processes):
        first = start + peers.rank * batch_size
        yield examples[first : first + batch_size] or [without_weight(examples[0])]
