"""Learning numbers: a row's label, or the horizon after its series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
import yaml
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from test_exactness import lines_of, pictures, train_lines

import runner
from runner.cli import main
from runner.config import CONF
from runner.data.csv_series import CsvSeries
from runner.models.regress import Regress
from runner.protocols import Mistake, Prediction, Row

__all__ = ["pictures"]
LOOKBACK, HORIZON, ROWS = 12, 3, 90
SMALL = [
    "model=regress", "tracker=none", "encoder/series=series_patch", "encoder.series.patch_length=4",
    "encoder.series.stride=4", "encoder.series.hidden_size=8", "encoder.series.layers=1", "encoder.series.heads=2",
    "optimizer.lr=3e-3", "schedule=constant",
]  # fmt: skip


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two waves of differing height around 20 and 300, every tenth value of the second missing."""
    steps = np.arange(ROWS)
    noise = np.random.RandomState(0).randn(2, ROWS) * 0.1
    warm, far = 20 + 3 * np.sin(steps / 3) + noise[0], 300 + 40 * np.cos(steps / 5) + 10 * noise[1]
    cells = [f"{a:.4f},{'' if k % 10 == 3 else f'{b:.4f}'}" for k, (a, b) in enumerate(zip(warm, far, strict=True))]
    file = tmp_path_factory.mktemp("waves") / "waves.csv"
    file.write_text("\n".join(["warm,far", *cells]) + "\n")
    return file


def data(file: Path, *more: str) -> list[str]:
    shape = [f"data.lookback={LOOKBACK}", f"data.horizon={HORIZON}", "data.time=null", "data.missing=keep"]
    return ["data=csv_series", f"data.path={file}", *shape, *more]


def rows_of(file: Path, **changed: Any) -> dict[str, list[Row]]:
    given = yaml.safe_load((CONF / "data" / "csv_series.yaml").read_text())
    given |= {"path": str(file), "time": None, "lookback": LOOKBACK, "horizon": HORIZON, "missing": "keep"}
    given |= {"borders": [0.6, 0.8, 1.0], **changed}
    return CsvSeries(**{name: value for name, value in given.items() if name != "_target_"}).read(["series"])


class Unseeing(torch.nn.Module):
    """A fusion of nothing: a vector of zeros for each of so many rows."""

    width = 4

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, vectors: Any, present: Any) -> torch.Tensor:
        return torch.zeros(self.rows, self.width)


def objective(rows: Sequence[Row], skip: str = "none", fusion: Unseeing | None = None) -> Regress:
    return Regress({}, fusion or Unseeing(), rows, memory=None, skip=skip, loss=None)  # type: ignore[arg-type]


@pytest.mark.zoo
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("skip", ["none", "linear"])
def test_a_step_may_be_split(waves: Path, tmp_path: Path, apart: bool, skip: str) -> None:
    """One process, and two with micro-batches of one row: the same curve, and the same figures at the end."""
    shape = [f"data.apart={str(apart).lower()}", "data.stride=2", f"model.skip={skip}"]
    words = [*SMALL, *data(waves, *shape), "train.max_steps=5", "train.batch_size=4", "train.log_ids=true"]
    words += [f"encoder.series.channels={1 if apart else 2}"]
    assert ranks.train(tmp_path / "whole", words) == [0]
    assert ranks.train(tmp_path / "split", [*words, "train.micro_batch_size=1"], 2) == [0, 0]
    one, two = train_lines(tmp_path / "whole"), train_lines(tmp_path / "split")
    assert [line["ids"] for line in one] == [line["ids"] for line in two] and len(one) == 5
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    held_out, again = (lines_of(tmp_path / name)[-1] for name in ("whole", "split"))
    for name in ("loss", "mse", "mae"):
        assert abs(held_out[name] - again[name]) <= 2e-6
    assert held_out["mse"] == pytest.approx(held_out["loss"], abs=1e-6), "missing numbers count for nothing in both"


@pytest.mark.parametrize("apart", [False, True])
def test_a_forecast_comes_back_in_the_files_own_units(
    waves: Path, tmp_path: Path, apart: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """What evaluate says of a test window is what generate and Predictor say of the same steps of the raw file."""
    run = tmp_path / "run"
    words = [*SMALL, *data(waves, f"data.apart={str(apart).lower()}"), "model.skip=linear", "train.max_steps=40"]
    summary = runner.train([*words, "train.batch_size=16", f"hydra.run.dir={run}"])
    assert summary["last"]["val/mse"] < 0.5, "the waves' variance is 1"
    assert main(["evaluate", f"run={run}", "evaluate.split=test"]) == 0
    first = json.loads((run / "evaluations" / "test.jsonl").read_text().splitlines()[0])
    start = int(first["id"].rpartition("-")[2])
    raw = waves.read_text().splitlines()
    window = tmp_path / "window.csv"
    window.write_text("\n".join(raw[start + 1 : start + 1 + LOOKBACK]) + "\n")
    predictor = runner.Predictor.from_run(run)
    lines = [[float(cell) if cell else None for cell in line.split(",")] for line in window.read_text().splitlines()]
    for series in (window, [list(channel) for channel in zip(*lines, strict=True)]):
        said = predictor(series=series)
        for name, numbers in first["numbers"].items():
            np.testing.assert_allclose(said[name], numbers, rtol=1e-5)
    assert 10 < said["warm"].mean() < 30 and 200 < said["far"].mean() < 400
    capsys.readouterr()
    assert main(["generate", f"run={run}", f"series={window}"]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    np.testing.assert_allclose([float(one) for one in printed["far"].split()], first["numbers"]["far"], rtol=1e-5)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": "a", "series": "window.csv"}) + "\n")
    assert main(["generate", f"run={run}", f"input={questions}", f"output={tmp_path}/answers.jsonl"]) == 0
    answer = json.loads((tmp_path / "answers.jsonl").read_text())["answer"]
    np.testing.assert_allclose(answer["warm"], first["numbers"]["warm"], rtol=1e-5)
    assert main(["generate", f"run={run}", "series=[[1,2,3]]"]) == 2
    assert "this run reads warm, far over time, [2, steps]" in capsys.readouterr().err


@pytest.mark.parametrize("apart", [False, True])
def test_where_a_forecast_starts(waves: Path, apart: bool) -> None:
    """Before anything is learnt: the lookback's mean, its last value, or a line from it, in numpy."""
    rows = rows_of(waves, apart=apart)["val"][:4]
    for skip in ("mean", "last", "linear"):
        torch.manual_seed(0)
        model = objective(rows, skip, Unseeing(8 if apart else 4))
        batch = type("Batch", (), {"ids": [row.id for row in rows], "rows": rows, "streams": {}})()
        said = model.predict(batch)
        for row, one in zip(rows, said, strict=True):
            items = row.items["series"]
            past = np.concatenate(items) if apart else items[0]
            for channel, name in zip(past.astype(np.float64), ("warm", "far"), strict=True):
                there = np.isfinite(channel)
                mean = channel[there].mean()
                deviation = np.sqrt(channel[there].var() + 1e-5)
                scaled = {"mean": np.full(HORIZON, mean), "last": np.full(HORIZON, channel[there][-1])}
                if model.linear is not None:
                    weight, bias = (one.detach().double().numpy() for one in (model.linear.weight, model.linear.bias))
                    normal = np.where(there, (channel - mean) / deviation, 0)
                    scaled["linear"] = mean + deviation * (weight @ normal + bias)
                k = model.targets.names.index(name)
                own = scaled[skip] * model.targets.scale[k] + model.targets.mean[k]
                np.testing.assert_allclose(one.numbers[name], own, rtol=1e-5)  # type: ignore[index]


def test_another_file_is_forecast_in_its_own_units(waves: Path, tmp_path: Path) -> None:
    """Whatever its own train rows are like, and in whatever order its columns stand with a header that names them."""
    run = tmp_path / "run"
    words = [*SMALL, *data(waves), "model.skip=last", "train.max_steps=1", "optimizer.lr=1e-12", "train.batch_size=16"]
    runner.train([*words, f"hydra.run.dir={run}"])
    cells = [line.split(",") for line in waves.read_text().splitlines()[1:]]
    numbers = np.array([[float(cell) if cell else np.nan for cell in row] for row in cells])
    other = numbers * [5.0, 1 / 7] + [100.0, 9.0]
    written = [",".join("" if np.isnan(one) else f"{one:.5f}" for one in row) for row in other]
    (tmp_path / "other.csv").write_text("\n".join(["warm,far", *written]) + "\n")
    assert main(["evaluate", f"run={run}", f"data.path={tmp_path}/other.csv", "data.missing=keep"]) == 0
    last = 0
    for line in (run / "evaluations" / "val.jsonl").read_text().splitlines():
        said = json.loads(line)
        end = int(said["id"].rpartition("-")[2]) + LOOKBACK - 1
        for k, name in enumerate(("warm", "far")):
            known = other[:, k][: end + 1]
            last = known[np.isfinite(known)][-1]
            np.testing.assert_allclose(said["numbers"][name], [last] * HORIZON, rtol=1e-4)
    window = [
        f"2020-01-0{1 + k % 9},{b:.4f},{a:.4f}" for k, (a, b) in enumerate(np.nan_to_num(numbers[:LOOKBACK], nan=7.0))
    ]
    (tmp_path / "turned.csv").write_text("\n".join(["day,far,warm", *window]) + "\n")
    answer = runner.Predictor.from_run(run)(series=tmp_path / "turned.csv")
    np.testing.assert_allclose(answer["warm"], [numbers[LOOKBACK - 1, 0]] * HORIZON, rtol=1e-4)
    (tmp_path / "lacks.csv").write_text("day,warm\n" + "\n".join(line.rpartition(",")[0] for line in window) + "\n")
    predictor = runner.Predictor.from_run(run)
    for series, said_ in (
        (tmp_path / "lacks.csv", "lacks.csv:1 has no column `far`"),
        (np.full((2, LOOKBACK), 1e39), "out of all proportion"),
        ([[1.0] * 5] * 2, "has 5 steps, and the run was made for 12"),
        ({"a": 1}, "is no array of numbers"),
    ):
        with pytest.raises(Mistake, match=said_):
            predictor(series=series)
    (tmp_path / "swapped.csv").write_text("\n".join(["far,warm", *written]) + "\n")
    assert main(["evaluate", f"run={run}", f"data.path={tmp_path}/swapped.csv", "data.missing=keep"]) == 2


def test_a_label_is_learnt_from_a_picture(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        rows = [json.loads(line) for line in (pictures / f"{split}.jsonl").read_text().splitlines()]
        kept = [row | {"label": 100.5 + int(row.pop("messages")[1]["content"][0])} for row in rows if row["image"]]
        (pictures / f"numbers-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    words = ["model=regress", "encoder/image=patch", "data=jsonl", f"data.path={pictures}/numbers-train.jsonl"]
    words += [f"data.val_path={pictures}/numbers-val.jsonl", "train.max_steps=2", "tracker=none"]
    words += ["model.loss._target_=torch.nn.HuberLoss", "+model.loss.reduction=none"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path}/run"]) == 0
    printed = capsys.readouterr().out
    assert "off by" in printed and "wrong" not in printed
    picture = next((pictures / "pictures").iterdir() if (pictures / "pictures").is_dir() else pictures.rglob("*.png"))
    answer = runner.Predictor.from_run(tmp_path / "run")(image=picture)
    assert isinstance(answer, float) and 95 < answer < 115


def row(label: Any, number: int = 1) -> Row:
    return Row(f"row-{number}", f"train.jsonl:{number}", label=label)


def test_metrics_are_those_of_scikit_learn() -> None:
    truth, said = np.random.RandomState(0).randn(2, 50) * 3 + 7
    model = objective([row(label) for label in truth.tolist()])
    predictions = [
        Prediction(str(k), "", "", "", numbers={"label": np.array([a])}, due={"label": np.array([b])})
        for k, (a, b) in enumerate(zip(said, truth, strict=True))
    ]
    metrics = model.metrics(predictions)
    assert metrics["mse"] == pytest.approx(mean_squared_error(truth, said))
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, said))
    assert metrics["r2"] == pytest.approx(r2_score(truth, said))
    assert model.metrics([]) == {}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            [1.0, None],
            r"train.jsonl:2 \(id row-2\) has no label; model=regress learns a number that float32 holds, or a",
        ),
        ([1.0, "two"], "has the label 'two'"),
        ([True, 1], "has the label True"),
        ([1.0, 10**400], "learns a number that float32 holds"),
        ([0.1] * 20, "Every row to train on has the label 0.1"),
        ([2, 2.0], "Every row to train on has the label 2: there is nothing to learn"),
    ],
)
def test_labels_that_are_no_numbers_are_told(labels: list[Any], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        objective([row(label, number) for number, label in enumerate(labels, start=1)])


def test_a_forecast_that_has_nowhere_to_start_is_told(waves: Path) -> None:
    with pytest.raises(Mistake, match="model.skip goes with a horizon"):
        objective([row(1.0), row(2.0)], "linear")
    with pytest.raises(Mistake, match="starts from a target's own past, and far is not among data.channels"):
        objective(rows_of(waves, channels=["warm"], targets=["far"])["train"], "last")
    with pytest.raises(Mistake, match="data.apart=true forecasts each channel from itself alone"):
        rows_of(waves, apart=True, channels=["warm"], targets=["far"])
    with pytest.raises(Mistake, match="model.loss='mse' is no loss"):
        Regress({}, Unseeing(), [row(1.0), row(2.0)], memory=None, skip="none", loss="mse")  # type: ignore[arg-type]
    rows = rows_of(waves)["train"]
    with pytest.raises(Mistake, match="has no horizon"):
        objective(rows).check_row(row(1.0))
    with pytest.raises(Mistake, match="has 2 steps of warm, far to come, and the run has 3 of warm, far"):
        objective(rows).check_row(rows_of(waves, horizon=2)["train"][0])
    with pytest.raises(Mistake, match="has 5 steps, and the run was made for 12"):
        objective(rows, "last").check_row(rows_of(waves, lookback=5)["train"][0])
    with pytest.raises(Mistake, match="has the channels far, warm, and the run reads warm, far"):
        objective(rows).check_row(rows_of(waves, channels=["far", "warm"])["train"][0])


class Relative(torch.nn.Module):
    """A loss that is not defined where nothing is due."""

    def forward(self, said: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
        return (said - due).abs() / due.abs()


def test_a_missing_number_counts_for_nothing_in_any_loss(waves: Path) -> None:
    rows = [one for one in rows_of(waves)["train"] if one.horizon and np.isnan(one.horizon.values).any()][:4]
    model = Regress({}, Unseeing(4), rows, memory=None, skip="last", loss=Relative())  # type: ignore[arg-type]
    batch: Any = type(
        "Batch", (), {"ids": [one.id for one in rows], "rows": rows, "streams": {}, "weights": [1.0] * 4}
    )()
    loss = model(batch).terms["loss"].sum
    loss.backward()
    assert torch.isfinite(loss) and all(
        torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None
    )
