"""Learn numbers: a row's label, or the horizon that is due after its series; encoders' tokens are pooled and fused.

Shapes: B rows, K targets, H steps of the horizon (1 for a label), S steps of the lookback, F the fusion's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from runner.models.custom_loss import check_loss, check_values
from runner.models.pooling import pooled
from runner.protocols import Batch, Channels, Encoder, Horizon, Mistake, PooledFusion, Prediction, Row, Step, Term

LABEL = "label"
LARGEST = 3.4e38
"""What float32 holds."""
EPSILON = 1e-5
"""Added to a lookback's standard deviation, so that a constant one can be divided by it."""


class Regress(nn.Module):
    """The loss is over scaled numbers: a label by mean and deviation of the training rows, a horizon by its source.

    Metrics of labels are in the label's unit; those of horizons are over the scaled numbers, as forecasting papers do.
    skip: where a forecast starts, to which what encoders say is added, in units of the lookback's deviation. `linear`
    is one map [S] -> [H] of the lookback, normalised by its own mean and deviation, that all targets share; with any
    start but `none` the head is zero at first. Of a source that gives channels apart (data.apart), each is forecast
    from its own vector by one head [F] -> [H]. loss: null for squared error, else a module that takes numbers
    [B, K, H] and what is due [B, K, H] to a value for each, unreduced.
    """

    splits_exactly = True

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        fusion: PooledFusion,
        rows: Sequence[Row] | None,
        memory: Mapping[str, Any] | None,
        skip: Literal["none", "mean", "last", "linear"],
        loss: Any,
    ) -> None:
        super().__init__()
        self.known = memory if memory is not None else aim_of(rows or ())
        self.targets = channels_of(self.known["targets"])
        self.scaling = channels_of(self.known["inputs"]) if self.known["inputs"] else None
        self.columns = self.scaling.names if self.scaling else None
        self.metric_names = ("mse", "mae") if self.scaling else ("mse", "mae", "r2")
        self.skip = skip
        self.sources = sources_of(self.targets, self.scaling) if skip != "none" else []
        self.apart: bool = self.known["apart"]
        steps = self.known["horizon"]
        self.encoder = nn.ModuleDict(cast(Mapping[str, nn.Module], encoders))
        self.fusion = fusion
        self.linear = nn.Linear(self.known["lookback"], steps) if skip == "linear" else None
        self.head = nn.Linear(fusion.width, steps if self.apart else len(self.targets.names) * steps)
        if skip != "none":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        check_loss(loss)
        self.loss = loss if loss is not None else nn.MSELoss(reduction="none")

    def memory(self) -> dict[str, Any]:
        """Names, means and deviations of targets and of the series that go in, and how many steps each has."""
        return dict(self.known)

    def check_row(self, row: Row) -> None:
        """Raises `Mistake` for a row without the numbers that are to be learnt, or with others."""
        known = self.known
        if known["inputs"] is None:
            number_of(row)
            return
        if row.horizon is None:
            raise Mistake(
                f"{row.where} (id {row.id}) has no horizon, and the rows to train on have one. Use one source."
            )
        shape, wanted = row.horizon.values.shape, (len(self.targets.names), known["horizon"])
        if row.horizon.inputs.names != self.columns:
            raise Mistake(
                f"{row.where} (id {row.id}) has the channels {', '.join(row.horizon.inputs.names)}, and the run reads "
                f"{', '.join(self.columns or ())}. Name them in this order (data.channels)."
            )
        if row.horizon.targets.names != self.targets.names or shape != wanted:
            raise Mistake(
                f"{row.where} (id {row.id}) has {shape[1]} steps of {', '.join(row.horizon.targets.names)} to come, "
                f"and the run has {wanted[1]} of {', '.join(self.targets.names)}."
            )
        self._lookback_of(row)

    def prepare(self, row: Row) -> Row:
        """A row that is not the run's own, scaled as the run's are: one of another source, or with series in their own
        units. Raises `Mistake` for series that the run cannot read."""
        if self.scaling is None:
            return row
        given, horizon = None, row.horizon
        if horizon is not None:
            self.check_row(row)
            given = horizon.inputs
            if same(given, self.scaling) and same(horizon.targets, self.targets):
                return row
            own = horizon.values * horizon.targets.scale[:, None] + horizon.targets.mean[:, None]
            values = (own - self.targets.mean[:, None]) / self.targets.scale[:, None]
            horizon = Horizon(values.astype(np.float32), self.scaling, self.targets)
        items = {**row.items, "series": self._rescaled_series(row, given)}
        prepared = replace(row, items=items, horizon=horizon)
        self._lookback_of(prepared)
        return prepared

    def _rescaled_series(self, row: Row, given: Channels | None) -> tuple[np.ndarray, ...]:
        """`given`: how its numbers are scaled; None: in their own units."""
        assert self.scaling is not None
        mean, scale = self.scaling.mean[:, None], self.scaling.scale[:, None]
        items = [as_numbers(item, row) for item in row.items.get("series", ())]
        if given is not None and self.apart:
            items = [np.concatenate(items)]
        for item in items:
            if item.ndim != 2 or len(item) != len(mean):
                raise Mistake(
                    f"{row.where}: the series has the shape {list(item.shape)}; this run reads "
                    f"{', '.join(self.scaling.names)} over time, [{len(mean)}, steps]."
                )
        own = [item if given is None else item * given.scale[:, None] + given.mean[:, None] for item in items]
        scaled = [(item - mean) / scale for item in own]
        for before, after in zip(items, scaled, strict=True):
            if (np.isfinite(before) & ~(np.abs(after) <= LARGEST)).any():
                raise Mistake(f"{row.where}: the series has numbers that are out of all proportion to the run's.")
        return tuple(one[None] if self.apart else one for item in scaled for one in parted(item, self.apart))

    def counts(self, batch: Batch) -> dict[str, float]:
        """The numbers that are due."""
        there = [float(np.isfinite(self._due_of(row)).sum()) for row in batch.rows]
        return {"loss": sum(weight * count for weight, count in zip(batch.weights, there, strict=True))}

    def forward(self, batch: Batch) -> Step:
        said = self._said(batch)
        due = torch.from_numpy(np.stack([self._due_of(row) for row in batch.rows]))
        weights = torch.isfinite(due) * torch.tensor(batch.weights)[:, None, None]
        # What is missing counts for nothing, so it is to be what was said: any loss is defined there.
        due = due.to(said.device, non_blocking=True)
        values = self.loss(said, torch.where(torch.isfinite(due), due, said.detach()))
        check_values(values, due.shape, "numbers")
        return Step({"loss": Term((values * weights.to(said.device, non_blocking=True)).sum())})

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        said = self._own_units(self._said(batch).double().cpu().numpy())
        return [self._prediction(row, numbers) for row, numbers in zip(batch.rows, said, strict=True)]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Over all numbers that are due; r2, the part of the labels' variance that is explained, of labels alone."""
        both = [
            (one.numbers[name], one.due[name]) for one in predictions if one.numbers and one.due for name in one.due
        ]
        if not both:
            return {}
        said, due = (np.stack(some).reshape(-1, *self._shape) for some in zip(*both, strict=True))
        units = 1.0 if self.scaling is None else self.targets.scale[:, None]
        errors = ((said - due) / units)[np.isfinite(due)]
        metrics = {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors)))}
        if self.scaling is None and np.var(due) > 0:
            metrics["r2"] = 1 - metrics["mse"] / float(np.var(due))
        return metrics

    @property
    def _shape(self) -> tuple[int, int]:
        """K, H"""
        return len(self.targets.names), self.known["horizon"]

    def _said(self, batch: Batch) -> Tensor:
        """float32 [B, K, H], scaled"""
        each = ("series", self._shape[0]) if self.apart else None
        vectors, present = pooled(self.encoder, batch, self.head.weight.device, each)
        said = self.head(self.fusion(vectors, present)).float().reshape(len(batch.rows), *self._shape)
        if self.skip == "none":
            return cast(Tensor, said)
        lookback = torch.from_numpy(np.stack([self._lookback_of(row) for row in batch.rows])).to(said.device)
        there = torch.isfinite(lookback)
        steps = there.sum(2, keepdim=True)
        filled = lookback.nan_to_num()
        mean = filled.sum(2, keepdim=True) / steps.clamp(min=1)
        apart = torch.where(there, filled - mean, 0.0)
        deviation = (apart.square().sum(2, keepdim=True) / steps.clamp(min=1) + EPSILON).sqrt()
        if self.skip == "last":
            last = (there * torch.arange(lookback.shape[2], device=said.device)).argmax(2, keepdim=True)
            start = torch.where(steps > 0, filled.gather(2, last), 0.0)
        else:
            start = mean if self.linear is None else mean + deviation * self.linear(apart / deviation).float()
        return start + deviation * said

    def _lookback_of(self, row: Row) -> np.ndarray:
        """float32 [K, S] of the targets' own past, where the forecast starts from it."""
        if self.scaling is None:
            return np.zeros((0, 0), np.float32)
        series = self._series_of(row)
        if series.shape[1] != self.known["lookback"]:
            raise Mistake(
                f"{row.where} (id {row.id}) has {series.shape[1]} steps, and the run was made for "
                f"{self.known['lookback']} (data.lookback)."
            )
        return series[self.sources]  # none of them where nothing starts from it

    def _series_of(self, row: Row) -> np.ndarray:
        """float32 [C, S]"""
        items = row.items.get("series", ())
        wanted = len(self.known["inputs"]["names"]) if self.apart else 1
        if len(items) != wanted:
            raise Mistake(f"{row.where} (id {row.id}) has {len(items)} series, and the run was made for {wanted}.")
        return np.concatenate([np.asarray(item, dtype=np.float32) for item in items])

    def _due_of(self, row: Row) -> np.ndarray:
        """float32 [K, H], scaled"""
        if row.horizon is not None:
            return row.horizon.values
        return np.array([[(number_of(row) - self.targets.mean[0]) / self.targets.scale[0]]], dtype=np.float32)

    def _own_units(self, scaled: np.ndarray) -> np.ndarray:
        return scaled * self.targets.scale[:, None] + self.targets.mean[:, None]

    def _prediction(self, row: Row, numbers: np.ndarray) -> Prediction:
        names, due = self.targets.names, None
        if row.horizon is not None:
            due = self._own_units(row.horizon.values.astype(np.float64))
        elif row.label is not None and self.scaling is None:
            due = np.array([[number_of(row)]])
        return Prediction(
            id=row.id,
            prompt=row.messages[-1].content if row.messages else ", ".join(row.items),
            answer=written(names, numbers),
            truth=written(names, due) if due is not None else None,
            items=row.items,
            numbers=dict(zip(names, numbers, strict=True)),
            due=dict(zip(names, due, strict=True)) if due is not None else None,
        )


def aim_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows have to be learnt: JSON. Raises `Mistake` where it is nothing, or the same for all."""
    horizon = rows[0].horizon
    if horizon is not None:
        series = rows[0].items["series"]
        if len(series) > 1 and horizon.inputs.names != horizon.targets.names:
            raise Mistake("data.apart forecasts each channel from itself alone: data.targets must be null.")
        return {
            "targets": json_of(horizon.targets),
            "inputs": json_of(horizon.inputs),
            "apart": len(series) > 1,
            "lookback": int(np.shape(series[0])[1]),
            "horizon": int(horizon.values.shape[1]),
        }
    labels = np.array([number_of(row) for row in rows])
    if labels.max() == labels.min():
        raise Mistake(f"Every row to train on has the label {labels[0]:g}: there is nothing to learn.")
    target = {"names": [LABEL], "mean": [float(labels.mean())], "scale": [float(labels.std())]}
    return {"targets": target, "inputs": None, "apart": False, "lookback": None, "horizon": 1}


def number_of(row: Row) -> float:
    number = row.label
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= LARGEST:
        said = "no label" if number is None else f"the label {repr(number)[:40]}"
        raise Mistake(
            f"{row.where} (id {row.id}) has {said}; model=regress learns a number that float32 holds, or a horizon "
            "(data=csv_series). Give it one, or learn classes (model=classify)."
        )
    return float(number)


def as_numbers(item: Any, row: Row) -> np.ndarray:
    try:
        return np.asarray(item, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Mistake(f"{row.where}: the series is no array of numbers, [channels, steps].") from error


def parted(item: np.ndarray, apart: bool) -> tuple[np.ndarray, ...]:
    """float32 [C, S], or each channel of it, [S]."""
    return tuple(item.astype(np.float32)) if apart else (item.astype(np.float32),)


def same(one: Channels, other: Channels) -> bool:
    return bool(np.array_equal(one.mean, other.mean) and np.array_equal(one.scale, other.scale))


def sources_of(targets: Channels, inputs: Channels | None) -> list[int]:
    """For each target, which channel of the series is its own past."""
    if inputs is None:
        raise Mistake("model.skip goes with a horizon (data=csv_series); these rows have a label. Set model.skip=none.")
    unseen = [name for name in targets.names if name not in inputs.names]
    if unseen:
        raise Mistake(
            f"model.skip starts from a target's own past, and {', '.join(unseen)} is not among data.channels. Add it "
            "there, or set model.skip=none."
        )
    return [inputs.names.index(name) for name in targets.names]


def written(names: Sequence[str], numbers: np.ndarray) -> str:
    """A label as a number; of a horizon the first steps of the first target."""
    if numbers.shape == (1, 1):
        return f"{numbers[0, 0]:.6g}"
    steps = " ".join(f"{one:.4g}" for one in numbers[0, :4])
    of_all = f" of {len(names)} targets" if len(names) > 1 else ""
    return f"{names[0]}: {steps} ... ({numbers.shape[1]} steps{of_all})"


def json_of(channels: Channels) -> dict[str, Any]:
    return {"names": list(channels.names), "mean": channels.mean.tolist(), "scale": channels.scale.tolist()}


def channels_of(known: Mapping[str, Any]) -> Channels:
    return Channels(tuple(known["names"]), np.array(known["mean"]), np.array(known["scale"]))
