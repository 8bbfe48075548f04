"""Bringing encoders into one space: losses held against other implementations, processes that see each other's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from test_exactness import lines_of, train_lines
from torch import nn
from transformers.models.altclip.modeling_altclip import image_text_contrastive_loss as clip_loss

import runner
from runner.cli import main
from runner.models.align import Align
from runner.models.retrieval import retrieval
from runner.projectors.layers import Linear
from runner.protocols import Batch, Mistake, Row, Stream, Tokens

SMALL = [
    "model=align", "model.width=8", "tracker=none", "data=jsonl", "encoder/image=patch", "encoder.image.hidden_size=16",
    "encoder.image.layers=1", "encoder.image.heads=2", "encoder/series=series_patch", "encoder.series.channels=1",
    "encoder.series.patch_length=8", "encoder.series.stride=8", "encoder.series.hidden_size=8",
    "encoder.series.layers=1", "encoder.series.heads=2", "train.batch_size=8", "train.log_ids=true",
    "optimizer.lr=3e-3", "schedule=constant",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows to train on and 9 to evaluate: a scan, and the same scan's lines as a series. Rows 4 to 7, one process's
    share of the first step in the file's order, have no picture, and every sixth has no series."""
    folder = tmp_path_factory.mktemp("digits")
    scans = load_digits()
    rows = []
    for k in range(29):
        Image.fromarray((scans.images[k] * 15.9).astype("uint8")).save(folder / f"{k}.png")
        row = {"id": f"row-{k}", "label": int(scans.target[k]), "image": None if 4 <= k < 8 else f"{k}.png"}
        rows.append(row | {"series": None if k % 6 == 1 and k != 7 else [scans.data[k].tolist()]})
    for split, some in (("train", rows[:20]), ("val", rows[20:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.mark.zoo
@pytest.mark.parametrize("loss", ["infonce", pytest.param("sigmoid", marks=pytest.mark.zoo)])
@pytest.mark.parametrize("class_aware", ["true", pytest.param("false", marks=pytest.mark.zoo)])
def test_processes_see_each_others_rows(digits: Path, tmp_path: Path, loss: str, class_aware: str) -> None:
    """Two processes and one: the same losses, although one has rows without a picture, fewer rows, or none."""
    words = [*SMALL, f"data.path={digits}", "data.order=file", f"model.loss={loss}", f"model.class_aware={class_aware}"]
    words += ["train.max_steps=6", "evaluation.batch_size=4", "checkpoint.monitor=val/loss", "checkpoint.mode=min"]
    assert ranks.train(tmp_path / "one", words) == [0]
    assert ranks.train(tmp_path / "two", [*words, "evaluation.batch_size=2"], 2) == [0, 0]
    one, two = train_lines(tmp_path / "one"), train_lines(tmp_path / "two")
    assert [line["ids"] for line in one] == [line["ids"] for line in two] and len(one[2]["ids"]) == 4
    for a, b in zip(one, two, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 5e-6 and abs(a["grad_norm"] - b["grad_norm"]) <= 5e-5
    held_out, again = (lines_of(tmp_path / name)[-1] for name in ("one", "two"))
    assert held_out["recall_at_1"] == again["recall_at_1"] and abs(held_out["loss"] - again["loss"]) <= 5e-6


def test_pairs_are_found(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that were learnt find each other; evaluate says so again, and Predictor gives the vectors."""
    run = tmp_path / "run"
    words = [*SMALL, f"data.path={digits}/train.jsonl", f"data.val_path={digits}/train.jsonl", "train.batch_size=20"]
    assert main(["train", *words, "train.max_steps=200", "optimizer.lr=1e-2", f"hydra.run.dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last"]["val/recall_at_1"] == 1 and summary["last"]["val/median_rank"] == 1
    assert set(summary["retrieval"]) == {"image_to_series", "series_to_image"}
    assert summary["parameters"]["by_component"]["model"] == {"trainable": 1, "frozen": 0}
    assert sum(one["trainable"] for one in summary["parameters"]["by_component"].values()) == sum(
        one["trainable"] + one["frozen"] for one in summary["parameters"]["by_component"].values()
    )
    assert main(["evaluate", f"run={run}"]) == 0
    assert "val/recall_at_1 1.0000" in capsys.readouterr().out
    row = json.loads((digits / "train.jsonl").read_text().splitlines()[0])
    predictor = runner.Predictor.from_run(run)
    vectors = predictor(image=digits / row["image"], series=row["series"])
    assert isinstance(vectors, Mapping)
    assert np.linalg.norm(vectors["image"]) == pytest.approx(1, abs=1e-5)
    assert vectors["image"] @ vectors["series"] > 0.5
    assert predictor(image=digits / row["image"])["image"] == pytest.approx(vectors["image"], abs=1e-5)


class Table(nn.Module):
    """An encoder whose tokens are its input."""

    width = 6

    def forward(self, vector: torch.Tensor) -> Tokens:
        return Tokens(vector.unsqueeze(1), torch.ones(len(vector), 1, dtype=torch.bool))


def objective(loss: str, class_aware: bool, modalities: str = "ab") -> Align:
    torch.manual_seed(0)
    encoders: Any = {name: Table() for name in modalities}
    projectors: Any = {name: Linear(6, 5) for name in modalities}
    return Align(encoders, projectors, 5, loss, class_aware, temperature=0.2, bias=-1.0)  # type: ignore[arg-type]


def batch_of(there: Mapping[str, list[int]], labels: list[str], weights: list[float] | None = None) -> Batch:
    """`there`: the rows that have each modality."""
    generator = torch.Generator().manual_seed(1)
    count = len(labels)
    vectors = {name: torch.randn(count, 6, generator=generator) for name in there}
    rows = [
        Row(f"row-{k}", f"a:{k}", items={name: (k,) for name, some in there.items() if k in some}, label=labels[k])
        for k in range(count)
    ]
    streams = {
        name: Stream({"vector": vectors[name][some]}, [(k, 0, 0) for k in some]) for name, some in there.items() if some
    }
    nothing = torch.zeros(count, 0, dtype=torch.long)
    return Batch([row.id for row in rows], nothing, nothing, [0] * count, streams, rows, weights or [1.0] * count)


def unit_vectors(model: Align, batch: Batch) -> dict[str, torch.Tensor]:
    found = {}
    for name in model.modalities:
        projected = model.projector[name](model.encoder[name](**batch.streams[name].inputs)).features[:, 0]
        found[name] = projected / projected.norm(dim=1, keepdim=True)
    return found


def test_the_softmax_loss_is_transformers_own() -> None:
    model, batch = objective("infonce", class_aware=False), batch_of({"a": [*range(7)], "b": [*range(7)]}, ["x"] * 7)
    vectors = unit_vectors(model, batch)
    expected = clip_loss(model.scale.exp() * vectors["a"] @ vectors["b"].T)
    found = model(batch).terms["a_b"].sum / model.counts(batch)["a_b"]
    torch.testing.assert_close(found, expected)
    for mine, other in zip(
        *(torch.autograd.grad(one, [*model.parameters()]) for one in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_the_sigmoid_loss_is_the_papers() -> None:
    """Algorithm 1 of Zhai et al., 2023."""
    model, batch = objective("sigmoid", class_aware=False), batch_of({"a": [*range(7)], "b": [*range(7)]}, ["x"] * 7)
    vectors = unit_vectors(model, batch)
    assert model.bias is not None
    logits = model.scale.exp() * vectors["a"] @ vectors["b"].T + model.bias
    expected = -nn.functional.logsigmoid((2 * torch.eye(7) - 1) * logits).sum() / 7
    torch.testing.assert_close(model(batch).terms["a_b"].sum / model.counts(batch)["a_b"], expected)


def test_rows_of_a_class_belong_together() -> None:
    labels = ["cat", "dog", "cat", "cat", "bird"]
    batch = batch_of({"a": [*range(5)], "b": [*range(5)]}, labels)
    model = objective("infonce", class_aware=True)
    vectors = unit_vectors(model, batch)
    total = torch.zeros(())
    for one, other in (("a", "b"), ("b", "a")):
        for k in range(5):
            shares = (model.scale.exp() * vectors[one][k] @ vectors[other].T).log_softmax(0)
            total = total - torch.stack([shares[j] for j in range(5) if labels[j] == labels[k]]).mean() / 2
    torch.testing.assert_close(model(batch).terms["a_b"].sum, total)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_a_row_counts_for_the_pairs_that_it_has(loss: str) -> None:
    """Others, and rows without weight, are as if they were not there."""
    model = objective(loss, class_aware=False, modalities="abc")
    batch = batch_of({"a": [0, 1, 2, 3, 5], "b": [1, 2, 3, 4, 5], "c": []}, ["x"] * 6, [1, 1, 1, 1, 1, 0])
    assert model.counts(batch) == {"a_b": 3, "a_c": 0, "b_c": 0}
    terms = model(batch).terms
    assert list(terms) == ["a_b", "a_c", "b_c"] and {one.weight for one in terms.values()} == {1 / 3}
    assert terms["a_c"].sum.item() == terms["b_c"].sum.item() == 0
    less = batch_of({"a": [0, 1, 2, 3, 5], "b": [1, 2, 3, 4, 5], "c": []}, ["x"] * 6)
    small = Batch(
        less.ids[1:4], less.input_ids[1:4], less.labels[1:4], [0] * 3,
        {
            "a": Stream({"vector": less.streams["a"].inputs["vector"][1:4]}, [(k, 0, 0) for k in range(3)]),
            "b": Stream({"vector": less.streams["b"].inputs["vector"][0:3]}, [(k, 0, 0) for k in range(3)]),
        },
        less.rows[1:4], [1.0] * 3,
    )  # fmt: skip
    torch.testing.assert_close(terms["a_b"].sum, model(small).terms["a_b"].sum)
    sum(one.sum for one in terms.values()).backward()  # type: ignore[union-attr]
    assert all(one.grad is None or torch.isfinite(one.grad).all() for one in model.parameters())


@settings(deadline=None, max_examples=50)
@given(classes=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 99), coarse=st.booleans())
def test_retrieval_is_what_sorting_finds(classes: list[int], seed: int, coarse: bool) -> None:
    """The first hit of the candidates in falling order, where of equal ones a hit comes last."""
    generator = np.random.RandomState(seed)
    queries, candidates = generator.randn(2, len(classes), 4)
    if coarse:
        queries, candidates = queries.round(), candidates.round()
    ranks_ = []
    for query, wanted in zip(queries, classes, strict=True):
        order = sorted(zip(candidates @ query, classes, strict=True), key=lambda one: (-one[0], one[1] == wanted))
        found = [one == wanted for _, one in order]
        # Hits before the first one do not exist, so its place counts what is no hit before it.
        ranks_.append(1 + found.index(True))
    found_ = retrieval(queries, candidates, classes)
    assert found_.median_rank == pytest.approx(np.median(ranks_))
    assert found_.recall_at_1 == pytest.approx(np.mean([one <= 1 for one in ranks_]))
    assert found_.recall_at_5 == pytest.approx(np.mean([one <= 5 for one in ranks_]))


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    same = np.ones((8, 3))
    assert retrieval(same, same, range(8)) == (0, 0, 8)
    assert retrieval(same * np.nan, same * np.nan, range(8)) == (0, 0, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.micro_batch_size=4"], "Align compares a step's rows with each other, and 2 micro-batches would not"),
        (["train.batch_size=1"], "train.batch_size=1: Align compares a step's rows with each other"),
        (["model.temperature=0.005"], "model.temperature: 0.005 is wrong; it must be a number, at least 0.01"),
        (["projector=null"], "encoder.image has no projector. Set projector=mlp or projector/image=mlp."),
        (["fusion=pooled_concat"], "fusion: model=align has no such seat"),
        (["model.class_aware=true", "data.fields.label=_none"], "_none"),
        (["checkpoint.monitor=val/accuracy"], "val/recall_at_5"),
    ],
)
def test_a_mistake_is_told(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    common = [f"data.path={digits}", "train.max_steps=2", f"hydra.run.dir={tmp_path}/run"]
    assert main(["train", *SMALL, *common, *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err


def test_what_cannot_be_aligned_is_told() -> None:
    with pytest.raises(Mistake, match="model=align brings encoders together, and there is 1"):
        objective("infonce", class_aware=False, modalities="a")
    rows = [Row("x", "a:1", items={"a": (1,)}), Row("y", "a:2", items={"a": (1,), "b": (2,)})]
    with pytest.raises(Mistake, match="The val split has no two rows with both of a and b, so there is nothing"):
        objective("infonce", class_aware=False).check_rows("val", rows)
    with pytest.raises(Mistake, match=r"a:1 \(id x\) has no label, which model.class_aware=true goes by"):
        objective("infonce", class_aware=True).check_row(Row("x", "a:1"))


def test_a_temperature_at_its_limit_is_learnt_on() -> None:
    model, batch = objective("infonce", class_aware=False), batch_of({"a": [*range(7)], "b": [*range(7)]}, ["x"] * 7)
    with torch.no_grad():
        model.scale.fill_(9.0)
    model(batch).terms["a_b"].sum.backward()
    assert model.scale.exp().item() == pytest.approx(100) and model.scale.grad is not None and model.scale.grad != 0
