"""Learn a row's class: encoders' tokens are pooled and fused to a vector, and a linear head scores the classes.

Shapes: B rows, K classes, H the fusion's width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner.models.custom_loss import check_loss, check_values
from runner.models.pooling import pooled
from runner.protocols import Batch, Encoder, Mistake, PooledFusion, Prediction, Row, Step, Term


class Classify(nn.Module):
    """The classes are the labels of the rows that are trained on, in order.

    class_weights: `balanced` counts a row by n / (K * rows of its class). loss: null for cross-entropy, else a module
    that takes scores [B, K] and classes int64 [B] to a value for each row, unreduced [B].
    """

    metric_names = ("accuracy", "macro_f1")
    splits_exactly = True

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        fusion: PooledFusion,
        rows: Sequence[Row] | None,
        memory: Mapping[str, Any] | None,
        class_weights: Literal["none", "balanced"],
        label_smoothing: Annotated[float, Ge(0), Lt(1)],
        loss: Any,
    ) -> None:
        super().__init__()
        known = memory if memory is not None else classes_of(rows or (), class_weights)
        self.classes: list[str | int] = list(known["classes"])
        self.weights: list[float] = list(known["weights"])
        self.index = {label: k for k, label in enumerate(self.classes)}
        self.encoder = nn.ModuleDict(cast(Mapping[str, nn.Module], encoders))
        self.fusion = fusion
        self.head = nn.Linear(fusion.width, len(self.classes))
        check_loss(loss)
        self.loss = loss if loss is not None else nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction="none")

    def memory(self) -> dict[str, Any]:
        """The classes in the order of their scores, and how much a row of each counts."""
        return {"classes": self.classes, "weights": self.weights}

    def check_row(self, row: Row) -> None:
        """Raises `Mistake` for a row whose class was not among those that are trained on."""
        if label_of(row) not in self.index:
            known = ", ".join(map(repr, self.classes[:10]))
            raise Mistake(
                f"{row.where} (id {row.id}) has the label {row.label!r}, and no row to train on has: {known}."
            )

    def counts(self, batch: Batch) -> dict[str, float]:
        """The rows, or their classes' weights."""
        return {"loss": sum(self._weights_of(batch))}

    def forward(self, batch: Batch) -> Step:
        scores = self._scores(batch)
        classes = torch.tensor([self.index[label_of(row)] for row in batch.rows])
        values = self.loss(scores.float(), classes.to(scores.device, non_blocking=True))
        check_values(values, classes.shape, "rows")
        weights = torch.tensor(self._weights_of(batch)).to(scores.device, non_blocking=True)
        return Step({"loss": Term((values * weights).sum())})

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        shares = self._scores(batch).float().softmax(dim=1)
        return [
            Prediction(
                id=row.id,
                prompt=", ".join(
                    f"{name} {len(items)}" if len(items) > 1 else name for name, items in row.items.items()
                ),
                answer=str(self.classes[order[0]]),
                truth=str(row.label) if row.label is not None else None,
                items=row.items,
                probabilities={str(self.classes[k]): share[k] for k in order},
            )
            for row, share, order in zip(
                batch.rows, shares.tolist(), shares.argsort(dim=1, descending=True, stable=True).tolist(), strict=True
            )
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Accuracy, and the mean of the classes' F1 over those that occur."""
        if not predictions:
            return {}
        from sklearn.metrics import f1_score

        truths, answers = [str(one.truth) for one in predictions], [one.answer for one in predictions]
        return {
            "accuracy": sum(a == b for a, b in zip(truths, answers, strict=True)) / len(truths),
            "macro_f1": float(f1_score(truths, answers, average="macro", zero_division=0.0)),
        }

    def details(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """The confusion matrix: a row for each true class, a column for each answer."""
        names = [str(label) for label in self.classes]
        seen = Counter((one.truth, one.answer) for one in predictions)
        return {"classes": names, "confusion": [[seen[truth, answer] for answer in names] for truth in names]}

    def _scores(self, batch: Batch) -> Tensor:
        vectors, present = pooled(self.encoder, batch, self.head.weight.device)
        return cast(Tensor, self.head(self.fusion(vectors, present)))

    def _weights_of(self, batch: Batch) -> list[float]:
        return [
            weight * self.weights[self.index[label_of(row)]]
            for weight, row in zip(batch.weights, batch.rows, strict=True)
        ]


def classes_of(rows: Sequence[Row], class_weights: str) -> dict[str, Any]:
    counts = Counter(label_of(row) for row in rows)
    if len({type(label) for label in counts}) > 1:
        raise Mistake("The rows' labels are numbers and texts side by side. Write all of them as one or the other.")
    classes = sorted(counts)
    if len(classes) < 2:
        raise Mistake(f"Every row to train on has the label {classes[0]!r}: there is nothing to tell apart.")
    share = len(rows) / len(classes)
    weights = [share / counts[label] if class_weights == "balanced" else 1.0 for label in classes]
    return {"classes": classes, "weights": weights}


def label_of(row: Row) -> str | int:
    if isinstance(row.label, bool) or not isinstance(row.label, str | int):
        said = "no label" if row.label is None else f"the label {row.label!r}"
        raise Mistake(f"{row.where} (id {row.id}) has {said}; a class is a text or a whole number. Give it one.")
    return row.label
