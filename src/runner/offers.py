"""What a part must offer, and what objectives and row sources give, held against their protocols: one that is wrong
is refused by name. What encoders, projectors and fusions give is tried in `trial.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from runner.protocols import (
    Batch,
    Checkpointer,
    Fused,
    Mistake,
    Objective,
    Prediction,
    RowSource,
    Schedule,
    Step,
    Term,
    Tokens,
    Tracker,
)

NO_MODULES: tuple[type, ...] = (RowSource, Tracker, Checkpointer, Schedule)
"""Protocols of parts that hold no weights."""


def check_offers(part: Any, name: str, protocol: type) -> None:
    """Raises `Mistake` naming what a part lacks of its protocol."""
    own = {key: value for key, value in vars(protocol).items() if not key.startswith("_") or key == "__call__"}
    offered = [key for key, value in own.items() if callable(value) or isinstance(value, property)]
    lacks = [member for member in {**protocol.__annotations__, **dict.fromkeys(offered)} if not hasattr(part, member)]
    if protocol not in NO_MODULES and not isinstance(part, nn.Module):
        lacks.insert(0, "the base class torch.nn.Module")
    if lacks:
        raise Mistake(
            f"{name}: {type(part).__module__}.{type(part).__name__} lacks {', '.join(lacks)}. "
            f"See {protocol.__name__} in runner/protocols.py for what it must offer."
        )


def check_read(splits: Any) -> None:
    """Raises `Mistake` for what a row source gives beside rows by split that can be gone through several times."""
    right = isinstance(splits, Mapping) and all(
        isinstance(rows, Iterable) and not isinstance(rows, Iterator) for rows in splits.values()
    )
    if not right:
        raise Mistake(
            f"data: read gave {shown(splits)}; it must give a list of rows for each split by name, or what can be gone "
            "through several times as a list can."
        )
    if "train" not in splits:
        raise Mistake("data: there is no row to train on. Give another data.path.")


def check_counts(objective: Objective, batch: Batch) -> None:
    counts = objective.counts(batch)
    if not isinstance(counts, dict) or not counts or not all(isinstance(one, int | float) for one in counts.values()):
        raise Mistake(f"model: counts gave {shown(counts)}; it must give a number for each term of the loss by name.")
    parts = objective.modules() if isinstance(objective, nn.Module) else ()
    lacks = sorted({name for part in parts for name in getattr(part, "term_weights", ())} - set(counts))
    if lacks:
        raise Mistake(
            f"model: the projector has the term {lacks[0]} in its loss, and {type(objective).__name__} has no such "
            "term. Set projector.weight=0 or another projector, or take it up as model=instruct does."
        )


def check_step(step: Any, counts: Mapping[str, float]) -> None:
    """Raises `Mistake` for what an objective's forward must not give: the loop divides each term's sum by its count."""
    terms = step.terms if isinstance(step, Step) else None
    if not isinstance(terms, dict) or not all(
        isinstance(one, Term) and isinstance(one.sum, Tensor) and not one.sum.dim() for one in terms.values()
    ):
        raise Mistake(
            f"model: forward gave {shown(step)}; it must give runner.protocols.Step, each of its terms a Term whose "
            "sum is a scalar tensor."
        )
    if set(terms) != set(counts):
        raise Mistake(
            f"model: forward gave the terms {', '.join(terms)} and counts gave {', '.join(counts)}; they must have the "
            "same names."
        )


def check_predictions(predictions: Any, batch: Batch) -> None:
    right = isinstance(predictions, list) and all(isinstance(one, Prediction) for one in predictions)
    if not right or [one.id for one in predictions] != batch.ids:
        raise Mistake(
            f"model: predict gave {shown(predictions)} for {len(batch.ids)} rows; it must give a list with a "
            "runner.protocols.Prediction for each row of the batch, with its id and in its order."
        )


def check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict) or not all(isinstance(one, int | float) for one in metrics.values()):
        raise Mistake(f"model: metrics gave {shown(metrics)}; it must give numbers by name.")


def shown(value: Any) -> str:
    """A value's kind, and the shapes and types of the tensors in it."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Tokens | Fused):
        tensors = {name: one for name, one in vars(value).items() if name not in ("grid", "terms")}
        return f"{type(value).__name__}({', '.join(f'{name}={shown(one)}' for name, one in tensors.items())})"
    if isinstance(value, Step):
        return f"Step({shown(value.terms)})"
    if isinstance(value, Term):
        return f"Term({shown(value.sum)})"
    if isinstance(value, dict):
        return f"a dict ({', '.join(f'{name}: {shown(one)}' for name, one in value.items())})"
    return "None" if value is None else f"a {type(value).__name__}"
