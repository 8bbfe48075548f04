"""Windows of a long multichannel series in CSV files: a lookback goes in, the horizon after it is due, or a label.

Windows, borders and scaling are those of Zhou et al., "Informer", 2021 (ETT), and what came after it.
Shapes: R steps of the series, C channels, K target channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from runner.data.clock import Reading, check_zone
from runner.data.csv_files import Columns, files_of
from runner.data.gaps import filled, opened, whole_stretches
from runner.data.joining import gathered, offset_of, together
from runner.data.labels import Labels, labels_of
from runner.data.scaling import Scaled, chosen, scaled
from runner.data.series_files import Table, read_table
from runner.data.steps import Steps, say, steps_of
from runner.data.windows import SPLITS, cut, ends_of, numbers_before, pieces_of, starts_of, stride_of, within
from runner.protocols import Horizon, Message, Mistake, Row


class CsvSeries:
    """`path`: a file, a folder of them, a list, or files by the names that they are to be called by.

    `borders` are where train, val and test end: rows, shares of the rows, or the first time that belongs no more.
    """

    def __init__(
        self,
        path: str | list[str] | dict[str, str],
        time: str | None,
        time_format: str | None,
        time_unit: Literal["s", "ms", "us", "ns"] | None,
        timezone: str | None,
        ambiguous: Literal["error", "earlier", "later", "order"],
        unsorted: Literal["error", "sort"],
        duplicates: Literal["error", "first", "last", "mean"],
        join: Literal["inner", "outer"],
        tolerance: str | float | None,
        resample: str | None,
        how: Literal["mean", "sum", "min", "max", "median", "first", "last"],
        gaps: Literal["error", "missing", "split", "ignore"],
        fill: Literal["missing", "ffill", "linear"],
        fill_limit: Annotated[int, Ge(1)] | None,
        channels: list[str] | None,
        targets: list[str] | None,
        label: str | None,
        label_from: Literal["last", "most"],
        lookback: Annotated[int, Ge(1)],
        horizon: Annotated[int, Ge(0)],
        stride: Annotated[int, Ge(1)] | None,
        overlap: Annotated[int, Ge(0)] | Annotated[float, Gt(0), Lt(1)] | None,
        last: Literal["drop", "pad"],
        borders: list[int] | list[float] | list[str],
        reach_back: bool,
        scaling: Literal["z_score", "none"],
        apart: bool,
        missing: Literal["error", "keep"],
        prompt: str | None,
    ) -> None:
        if not 1 <= len(borders) <= len(SPLITS):
            raise Mistake(f"data.borders={borders} must hold one to three ends: of train, val and test.")
        if channels == [] or targets == []:
            raise Mistake(f"data.{'channels' if channels == [] else 'targets'} is empty; name columns, or null.")
        check_agreement(resample, gaps, fill, fill_limit, tolerance)
        check_aim(horizon, targets, label, fill, scaling)
        check_zone(timezone)
        self.path = path
        self.reading = Reading(time, time_format, time_unit, timezone, ambiguous, unsorted, duplicates)
        self.join, self.tolerance = join, tolerance
        self.resample, self.how = resample, how
        self.gaps, self.fill, self.fill_limit = gaps, fill, fill_limit
        self.channels, self.targets = channels, targets
        self.label, self.label_from = label, label_from
        self.lookback, self.horizon = lookback, horizon
        self.stride = stride_of(lookback, stride, overlap)
        self.pad = last == "pad"
        self.borders = borders
        self.reach_back = reach_back and horizon > 0  # without one, such a window would be one of train's
        self.scaling = scaling
        self.apart = apart
        self.missing = missing
        self.prompt = prompt

    def read(self, modalities: Sequence[str]) -> dict[str, list[Row]]:
        files = files_of(self.path)
        try:
            return self.splits({name: read_table(file, header=True) for name, file in files.items()})
        except Mistake as mistake:
            raise Mistake(f"data.path={self.path}: {mistake}") from mistake

    def splits(self, tables: dict[str, Table]) -> dict[str, list[Row]]:
        if self.reading.time is None and (len(tables) > 1 or self.resample is not None):
            raise Mistake("data.time=null: files are joined, and steps made even, by their times. Name their column.")
        columns = Columns(tables, self.reading.time, self.label)
        channels = columns.named("channels", self.channels)
        targets = columns.named("targets", self.targets) if self.targets else channels
        if self.apart and targets != channels:
            raise Mistake("data.apart=true forecasts each channel from itself alone: data.targets must be null.")
        names = list(dict.fromkeys([*channels, *targets]))
        steps = self.steps(tables, columns, names)
        stretches = [range(len(steps))]
        if self.resample is None:
            steps, stretches = opened(steps, self.gaps)
        ends = ends_of(self.borders, steps, self.reading)
        steps = filled(steps, self.fill, self.fill_limit, pieces_of(ends, len(steps)))
        if self.resample is not None:
            stretches = whole_stretches(steps, self.gaps)
        order = [steps.names.index(name) for name in names]
        whole = scaled(steps.name, names, steps.values[order], ends[0], self.scaling)
        inputs, dues = chosen(whole, channels), chosen(whole, targets)
        labels = labels_of(steps.labels) if steps.labels is not None else None
        splits = {}
        for split, first, end in zip(SPLITS, [0, *ends], ends, strict=False):
            start = max(0, first - self.lookback) if self.reach_back else first
            splits[split] = self.rows(steps, split, within(range(start, end), stretches), inputs, dues, labels)
        return splits

    def steps(self, tables: dict[str, Table], columns: Columns, names: Sequence[str]) -> Steps:
        """All files' channels on one clock."""
        parts = []
        for file, table in tables.items():
            own = [name for name in names if columns.places[name][0] == file]
            label = self.label if columns.label_file == file else None
            if own or label:
                inside = [columns.places[name][1] for name in own]
                complete = self.missing == "error"
                parts.append(steps_of(table, inside, own, label, self.reading, complete))
        if self.resample is not None:
            return gathered(parts, self.resample, self.how, self.join)
        return parts[0] if len(parts) == 1 else together(parts, self.join, self.tolerance)

    def rows(
        self, steps: Steps, split: str, spans: Sequence[range], inputs: Scaled, dues: Scaled, labels: Labels | None
    ) -> list[Row]:
        """The windows of the spans. Their arrays are views: they take no memory of their own."""
        length = self.lookback + self.horizon
        starts = [(start, span.stop) for span in spans for start in starts_of(span, length, self.stride, self.pad)]
        if not starts:
            most = max(map(len, spans), default=0)
            one = "" if len(spans) < 2 else f" between two gaps (the longest of {len(spans):,} stretches)"
            raise Mistake(
                f"the {split} split has {most:,} rows to take windows from{one}, fewer than data.lookback + "
                f"data.horizon = {length}. Move data.borders, take shorter windows, or fill them up with missing "
                "values (data.last=pad)."
            )
        before = numbers_before(inputs.values, together=not self.apart)
        after = numbers_before(dues.values, together=True)
        rows, unlabelled = [], 0
        for start, end in starts:
            due, stop = min(start + self.lookback, end), min(start + length, end)
            if not (before[:, due] > before[:, start]).all():
                continue
            if self.horizon and not (after[:, stop] > after[:, due]).any():
                continue
            label = labels.of(start, due, self.label_from) if labels is not None else None
            if labels is not None and label is None:
                unlabelled += 1
                continue
            lookback = cut(inputs.values, start, start + self.lookback, end)
            horizon = None
            if self.horizon:
                values = cut(dues.values, start + self.lookback, start + length, end)
                horizon = Horizon(values, inputs.channels, dues.channels)
            rows.append(
                Row(
                    id=f"{self.stem()}-{start:06d}",
                    where=steps.place(start, due - 1),
                    messages=tuple(self.messages(label)),
                    items={"series": tuple(lookback[:, None]) if self.apart else (lookback,)},
                    label=label,
                    horizon=horizon,
                )
            )
        lookback_only = "the lookback of a channel" if self.apart else "their lookback"
        past = f"{lookback_only} or their horizon" if self.horizon else lookback_only
        if not rows:
            what = "a number in its lookback and in its horizon" if self.horizon else "a number in its lookback"
            raise Mistake(f"the {split} split has no window with {what}{' and a label' if unlabelled else ''}.")
        if empty := len(starts) - len(rows) - unlabelled:
            say(
                f"{steps.name}: {empty:,} of {len(starts):,} windows of the {split} split are left out: {past} holds "
                "no number at all."
            )
        if unlabelled:
            say(
                f"{steps.name}: {unlabelled:,} of {len(starts):,} windows of the {split} split have no label: left out."
            )
        return rows

    def stem(self) -> str:
        return Path(self.path).stem if isinstance(self.path, str) else "series"

    def messages(self, label: str | int | float | None) -> Iterator[Message]:
        if self.prompt is not None:
            yield Message("user", self.prompt)
            if label is not None:
                yield Message("assistant", str(label))


def check_agreement(
    resample: str | None,
    gaps: str,
    fill: str,
    fill_limit: int | None,
    tolerance: str | float | None,
) -> None:
    """Raises `Mistake` for options of the clock that take each other's meaning away."""
    if resample is not None:
        offset_of(resample)
        if gaps == "ignore":
            raise Mistake(
                "data.gaps=ignore takes lines as steps, and data.resample makes steps of its own. Leave out one."
            )
        if tolerance is not None:
            raise Mistake("data.tolerance joins lines, and data.resample makes steps of its own. Leave out one.")
    elif fill != "missing" and gaps != "missing":
        raise Mistake(
            f"data.fill={fill} fills steps without a line, and there will be none. Set data.gaps=missing, or "
            "data.resample."
        )
    if fill_limit is not None and fill == "missing":
        raise Mistake(f"data.fill_limit={fill_limit}: nothing is filled. Set data.fill, or data.fill_limit=null.")


def check_aim(horizon: int, targets: list[str] | None, label: str | None, fill: str, scaling: str) -> None:
    """Raises `Mistake` for options that do not go with what is due."""
    if horizon:
        if fill == "linear":
            raise Mistake(
                "data.fill=linear looks at the next value, which in a forecast is among what is due. Set "
                "data.fill=ffill."
            )
        if label is not None:
            raise Mistake(
                f"data.label={label} and data.horizon={horizon}: a window has one or the other. Set data.horizon=0."
            )
        return
    if targets is not None:
        raise Mistake("data.targets are due after the lookback, and data.horizon=0. Set data.targets=null.")
    if scaling != "none":
        raise Mistake(
            f"data.scaling={scaling}: without a horizon a run keeps no scale, so a series that it is given later would "
            "come unscaled. Set data.scaling=none; encoders normalise each series by itself."
        )
