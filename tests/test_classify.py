"""Learning classes: any encoders, pooled and fused, without a language model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score
from test_exactness import lines_of, pictures, train_lines

import runner
from runner.cli import main
from runner.fusion import pooled
from runner.models.classify import Classify
from runner.protocols import Mistake, Prediction, Row

__all__ = ["pictures"]
SMALL = [
    "model=classify", "tracker=none", "encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1",
    "encoder.image.heads=2",
]  # fmt: skip


def test_the_digits_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=classify", "data=digits", "encoder/image=patch", "optimizer.lr=2e-3", "schedule.warmup_steps=20"]
    run = [*words, "train.max_steps=150", "train.batch_size=64", "tracker=none", f"hydra.run.dir={tmp_path}/run"]
    assert main(["train", *run]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["last"]["val/accuracy"] >= 0.93 and summary["last"]["val/macro_f1"] >= 0.93
    confusion = torch.tensor(summary["confusion"])
    assert confusion.shape == (10, 10) and int(confusion.sum()) == 360
    assert float(confusion.diagonal().sum() / 360) == pytest.approx(summary["last"]["val/accuracy"])
    assert summary["classes"] == sorted(summary["classes"])
    printed = capsys.readouterr().out
    assert "Data, train: 1,437 rows." in printed and "tokens/s" not in printed
    columns = r"Held-out rows\nid +seen +answer +probability +truth *\n"
    assert re.search(columns + r"digit-\d+ +image +\w+ +[01]\.\d\d ", printed)


@pytest.fixture(scope="module")
def seen_and_heard(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures' rows with a label, and a series for two of three; every fifth has no picture."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "pictures").symlink_to(pictures)
    for split in ("train", "val"):
        rows = [json.loads(line) for line in (pictures / f"{split}.jsonl").read_text().splitlines()]
        for k, row in enumerate(rows):
            row["label"] = "even" if int(row.pop("messages")[1]["content"][0]) % 2 == 0 else "odd"
            row["series"] = [[float(k), 1.0, 2.0, 0.5 * k]] if k % 3 or row["image"] is None else None
        (pictures / f"classes-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pictures


def two_encoders(folder: Path) -> list[str]:
    series = ["encoder/series=series_patch", "encoder.series.patch_length=2", "encoder.series.stride=2"]
    sizes = [
        "encoder.series.channels=1",
        "encoder.series.hidden_size=8",
        "encoder.series.layers=1",
        "encoder.series.heads=2",
    ]
    data = ["data=jsonl", f"data.path={folder}/classes-train.jsonl", f"data.val_path={folder}/classes-val.jsonl"]
    return [*SMALL, *series, *sizes, *data, "train.batch_size=8", "train.log_ids=true", "optimizer.lr=1e-3"]


@pytest.mark.zoo
@pytest.mark.parametrize(
    "fusion", ["concat", *(pytest.param(one, marks=pytest.mark.zoo) for one in ("gated", "bilinear", "attention"))]
)
def test_a_step_may_be_split_and_rows_may_lack_what_others_have(
    seen_and_heard: Path, tmp_path: Path, fusion: str
) -> None:
    """One process, and two whose micro-batches lack a modality here and there: the same curve, balanced classes too."""
    words = [
        *two_encoders(seen_and_heard),
        f"fusion=pooled_{fusion}",
        "train.max_steps=6",
        "model.class_weights=balanced",
    ]
    assert ranks.train(tmp_path / "whole", words) == [0]
    assert ranks.train(tmp_path / "split", [*words, "train.micro_batch_size=1"], 2) == [0, 0]
    one, two = train_lines(tmp_path / "whole"), train_lines(tmp_path / "split")
    assert [line["ids"] for line in one] == [line["ids"] for line in two] and len(one) == 6
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) <= 2e-6
    (held_out, again) = (lines_of(tmp_path / name)[-1] for name in ("whole", "split"))
    assert abs(held_out["loss"] - again["loss"]) <= 2e-6 and held_out["accuracy"] == again["accuracy"]


WIDTHS = {"image": 6, "audio": 4, "series": 3}
FUSIONS = {
    "concat": lambda: pooled.Concat(WIDTHS, modality_dropout=0.0, dropout=0.0),
    "gated": lambda: pooled.Gated(WIDTHS, hidden_size=8, modality_dropout=0.0, dropout=0.0),
    "bilinear": lambda: pooled.Bilinear(WIDTHS, hidden_size=8, modality_dropout=0.0, dropout=0.0),
    "attention": lambda: pooled.Attention(WIDTHS, hidden_size=8, heads=2, modality_dropout=0.0, dropout=0.0),
}


@pytest.mark.parametrize("name", FUSIONS)
@settings(deadline=None, max_examples=20)
@given(there=st.lists(st.tuples(*[st.booleans()] * 3).filter(any), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_what_a_row_lacks_is_not_seen(name: str, there: list[tuple[bool, ...]], seed: int) -> None:
    """Neither another row nor what stands where a row has nothing changes it."""
    torch.manual_seed(seed)
    fusion = FUSIONS[name]().eval()
    present = dict(zip(WIDTHS, torch.tensor(there).unbind(1), strict=True))
    vectors = {key: torch.randn(len(there), width) for key, width in WIDTHS.items()}
    fused = fusion(vectors, present)
    assert fused.shape == (len(there), fusion.width) and torch.isfinite(fused).all()
    other = {key: torch.where(present[key].unsqueeze(1), one, torch.randn_like(one)) for key, one in vectors.items()}
    assert torch.equal(fusion(other, present), fused)
    alone = fusion({key: one[:1] for key, one in vectors.items()}, {key: one[:1] for key, one in present.items()})
    assert torch.allclose(alone, fused[:1], atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0, 0.9), seed=st.integers(0, 99), training=st.booleans())
def test_a_row_may_be_made_to_lack_a_modality_but_never_all(share: float, seed: int, training: bool) -> None:
    torch.manual_seed(seed)
    there = torch.rand(3, 400) > 0.3
    there[0] |= ~there.any(0)
    present = dict(zip(WIDTHS, there, strict=True))
    left = torch.stack(list(pooled.ModalityDropout(share).train(training)(present).values()))
    assert left.any(0).all() and not (left & ~there).any()
    if not training or share == 0:
        assert torch.equal(left, there)
    rows = there.all(0)
    several = left[:, rows].float().mean().item()
    # A row that would lose all three keeps them.
    expected = 1 - share + share**3 if training else 1.0
    assert abs(several - expected) < 0.15


def row(label: Any, number: int = 1) -> Row:
    return Row(f"row-{number}", f"train.jsonl:{number}", label=label)


def objective(labels: Sequence[Any], **changes: Any) -> Classify:
    fusion = pooled.Concat({"image": 4}, modality_dropout=0.0, dropout=0.0)
    rows = [row(label, number) for number, label in enumerate(labels, start=1)]
    given = {"class_weights": "none", "label_smoothing": 0.0, "loss": None, "memory": None} | changes
    return Classify({}, fusion, rows, **given)


def test_metrics_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    truths, answers = torch.randint(0, 3, (2, 50)).tolist()
    model = objective([0, 1, 2])
    predictions = [Prediction(str(k), "", str(a), str(t)) for k, (a, t) in enumerate(zip(answers, truths, strict=True))]
    metrics = model.metrics(predictions)
    assert metrics["macro_f1"] == pytest.approx(f1_score(truths, answers, average="macro"))
    assert model.details(predictions)["confusion"] == confusion_matrix(truths, answers).tolist()
    assert model.metrics([]) == {}


def test_balanced_weights_make_classes_count_the_same() -> None:
    model = objective(["a", "a", "a", "b"], class_weights="balanced")
    assert model.weights == [pytest.approx(2 / 3), 2.0] and sum([model.weights[0]] * 3) == pytest.approx(
        model.weights[1]
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", None], r"train.jsonl:2 \(id row-2\) has no label; a class is a text or a whole number"),
        (["a", 1.5], "has the label 1.5"),
        (["a", True], "has the label True"),
        (["a", 1], "numbers and texts side by side"),
        (["a", "a"], "nothing to tell apart"),
    ],
)
def test_labels_that_are_no_classes_are_told(labels: list[Any], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        objective(labels)


def test_a_class_that_is_not_trained_on_is_told() -> None:
    with pytest.raises(Mistake, match="has the label 'c', and no row to train on has: 'a', 'b'"):
        objective(["a", "b"]).check_row(row("c"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["encoder/image=null"], "encoder.image.hidden_size: nothing of this name"),
        (["fusion=prefix"], "fusion: runner.fusion.prefix.Prefix lacks width"),
        (["llm=tiny"], "llm: model=classify has no such seat"),
        (["lora=default"], "lora: model=classify has no such seat"),
        (["model.loss._target_=torch.nn.CrossEntropyLoss"], "it must give a value for each of the 64 rows"),
        (["model.loss._target_=os.system"], "os.system may not be built from a config"),
        (["model.class_weights=some"], "model.class_weights"),
        (["checkpoint.monitor=val/exact_match"], "an evaluation gives val/accuracy, val/loss, val/macro_f1"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    common = ["data=digits", "train.max_steps=2", "train.batch_size=64", f"hydra.run.dir={tmp_path}/run"]
    assert main(["train", *SMALL, *common, *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err


def test_an_encoder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="No encoder: there is nothing to see a row with"):
        runner.train(
            ["model=classify", "data=digits", "train.max_steps=1", "tracker=none", f"hydra.run.dir={tmp_path}/run"]
        )


def test_a_loss_of_ones_own_trains(tmp_path: Path) -> None:
    loss = ["model.loss._target_=torch.nn.MultiMarginLoss", "+model.loss.reduction=none"]
    common = ["data=digits", "train.max_steps=3", "train.batch_size=64", f"hydra.run.dir={tmp_path}/run"]
    summary = runner.train([*SMALL, *common, *loss])
    assert 0 < summary["last"]["val/loss"] < 2


def test_rows_are_shown_with_their_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *SMALL, "data=digits", "train.max_steps=1", "show.rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "train: 1,437 rows." in printed and "⟦" in printed and "digit-0001" in printed
    assert main(["show", *SMALL, "data=digits", "train.max_steps=1", "show.part=parameters"]) == 0
    assert "head" in capsys.readouterr().out
