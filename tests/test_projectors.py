"""Projectors: what an item gives alone it gives in a batch, each tensor learns, and what they promise of counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_exactness import lines_of
from torch import nn

import runner
from runner.cli import main
from runner.models.align import Align
from runner.models.projected import projector_counts, projector_terms
from runner.offers import check_counts
from runner.projectors.layers import Linear, Mlp, ResidualMlp
from runner.projectors.mixture import Mixture, balance
from runner.projectors.pooling import AveragePool, FrameStack, SoftTokens
from runner.projectors.queries import Perceiver, QFormer
from runner.protocols import Batch, Mistake, Row, Stream, Tokens

E, D = 6, 10
QUERIES: dict[str, Any] = {"tokens": 3, "hidden_size": 8, "layers": 2, "heads": 2, "dropout": 0.0}
MIXTURE: dict[str, Any] = {"experts": 3, "active": 2, "hidden_size": None, "weight": 0.5, "shared": False}
PROJECTORS: dict[str, tuple[Callable[[], Any], Callable[[int], int]]] = {
    "linear": (lambda: Linear(E, D), lambda count: count),
    "mlp": (lambda: Mlp(E, D, None), lambda count: count),
    "residual_mlp": (lambda: ResidualMlp(E, D, blocks=2, hidden_size=None, dropout=0.0), lambda count: count),
    "soft_tokens": (lambda: SoftTokens(E, D, tokens=3, hidden_size=7, shared=False), lambda count: 3),
    "average_pool": (lambda: AveragePool(E, D, tokens=2, hidden_size=None), lambda count: -(-count // 2)),
    "frame_stack": (lambda: FrameStack(E, D, frames=2, hidden_size=None), lambda count: -(-count // 2)),
    "perceiver": (lambda: Perceiver(E, D, **QUERIES), lambda count: 3),
    "qformer": (lambda: QFormer(E, D, **QUERIES), lambda count: 3),
    "mixture": (lambda: Mixture(E, D, **MIXTURE), lambda count: count),
}
"""A projector, and how many tokens it makes of a number of them."""


@pytest.mark.parametrize("name", PROJECTORS)
def test_an_item_gives_in_a_batch_what_it_gives_alone(name: str) -> None:
    """Whatever stands in the padding; the mask says how many tokens are left."""
    torch.manual_seed(0)
    build, left = PROJECTORS[name]
    projector = build().eval()
    lengths = [5, 1, 4]
    features = torch.randn(3, 5, E)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    given = projector(Tokens(torch.where(mask.unsqueeze(2), features, torch.full_like(features, 99.0)), mask))
    assert given.features.shape[2] == D and given.mask.dtype == torch.bool
    for k, length in enumerate(lengths):
        alone = projector(Tokens(features[k : k + 1, :length], torch.ones(1, length, dtype=torch.bool)))
        assert int(given.mask[k].sum()) == alone.features.shape[1] == left(length) and alone.mask.all()
        torch.testing.assert_close(given.features[k, : left(length)], alone.features[0], rtol=1e-4, atol=1e-5)
    nothing = projector(Tokens(torch.zeros(1, 5, E), torch.zeros(1, 5, dtype=torch.bool)))
    assert not nothing.mask.any() and torch.isfinite(nothing.features).all()


@pytest.mark.parametrize("name", PROJECTORS)
def test_each_tensor_learns_and_tokens_differ(name: str) -> None:
    torch.manual_seed(0)
    projector = PROJECTORS[name][0]()
    for _ in range(2):  # a residual block's first layer learns once its last one is not zero any more
        tokens = projector(Tokens(torch.randn(4, 6, E), torch.ones(4, 6, dtype=torch.bool)))
        projector.zero_grad()
        (tokens.features * torch.randn_like(tokens.features)).sum().backward()
        with torch.no_grad():
            for one in projector.parameters():
                one -= 0.1 * one.grad
    assert all(one.grad.abs().sum() > 0 for one in projector.parameters())
    # Queries that start equal would stay equal.
    assert (tokens.features[:, 0] - tokens.features[:, 1]).abs().max() > 1e-3


def test_a_residual_projector_starts_as_the_linear_one() -> None:
    projector = ResidualMlp(E, D, blocks=3, hidden_size=4, dropout=0.0)
    tokens = Tokens(torch.randn(2, 3, E), torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(projector(tokens).features, projector.projection(tokens.features))


def test_soft_tokens_have_the_parameters_of_their_widths() -> None:
    """512 -> 2048 -> 4 tokens of 896."""
    with torch.device("meta"):
        projector = SoftTokens(512, 896, tokens=4, hidden_size=2048, shared=True)
    assert sum(one.numel() for one in projector.parameters()) == 8_394_240


def test_heads_must_divide() -> None:
    with pytest.raises(Mistake, match="projector.heads=3 does not divide the queries' width, 8"):
        QFormer(E, D, **QUERIES | {"heads": 3})


def test_a_mixture_of_all_its_experts_is_the_dense_one() -> None:
    mixture = Mixture(E, D, **MIXTURE | {"active": 3})
    tokens = Tokens(torch.randn(2, 5, E), torch.ones(2, 5, dtype=torch.bool), (1, 4))
    shares = torch.softmax(tokens.features @ mixture.router.weight.T, dim=-1)
    dense = sum(shares[..., k : k + 1] * expert(tokens.features) for k, expert in enumerate(mixture.experts))
    given = mixture(tokens)
    torch.testing.assert_close(given.features, dense)
    torch.testing.assert_close(given.terms["balance"], torch.ones(2))
    assert given.grid == (1, 4)


def test_a_token_takes_its_best_experts_alone() -> None:
    mixture = Mixture(E, D, **MIXTURE | {"weight": 0.0})
    tokens = Tokens(torch.randn(2, 5, E), torch.ones(2, 5, dtype=torch.bool))
    shares = torch.softmax(tokens.features @ mixture.router.weight.T, dim=-1)
    given = mixture(tokens)
    assert given.terms == mixture.term_weights == {}
    for item, t in ((item, t) for item in range(2) for t in range(5)):
        best = shares[item, t].argsort(descending=True)[:2].tolist()
        whole = sum(shares[item, t, k] for k in best)
        wanted = sum(shares[item, t, k] / whole * mixture.experts[k](tokens.features[item, t]) for k in best)
        torch.testing.assert_close(given.features[item, t], wanted)
    with pytest.raises(Mistake, match="projector.active=4 is more than there are, projector.experts=3"):
        Mixture(E, D, **MIXTURE | {"active": 4})


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), active=st.integers(2, 4), seed=st.integers(0, 99))
def test_balance_is_what_a_loop_counts(lengths: list[int], active: int, seed: int) -> None:
    """Of each item; 0 of padding alone, and at most K / active, where always the same experts are used."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.randn(len(lengths), 5, 4, generator=generator).mul(3).softmax(-1)
    chosen = torch.zeros_like(shares).scatter(-1, shares.topk(active).indices, 1.0)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    for k, (length, value) in enumerate(zip(lengths, balance(shares, chosen, mask).tolist(), strict=True)):
        uses, means = [0.0] * 4, [0.0] * 4
        for t in range(length):
            for expert in shares[k, t].argsort(descending=True)[:active].tolist():
                uses[expert] += 1 / (active * length)
            for expert in range(4):
                means[expert] += shares[k, t, expert].item() / length
        assert value == pytest.approx(4 * sum(a * b for a, b in zip(uses, means, strict=True)), abs=1e-5)
        assert value <= 4 / active + 1e-5


def batch_of(weights: list[float], places: dict[str, list[int]]) -> Batch:
    """`places`: the row of each modality's items."""
    nothing = torch.zeros(len(weights), 0, dtype=torch.long)
    streams = {name: Stream({}, [(row, 0, 0) for row in rows]) for name, rows in places.items()}
    rows = [Row(str(k), "a:1") for k in range(len(weights))]
    return Batch([row.id for row in rows], nothing, nothing, [0] * len(weights), streams, rows, weights)


def test_terms_of_projectors_are_sums_over_the_items_whose_rows_count() -> None:
    batch = batch_of([1.0, 0.0, 1.0], {"image": [0, 1, 1, 2]})
    values = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    streams = {"image": Tokens(torch.zeros(4, 1, D), torch.ones(4, 1, dtype=torch.bool), terms={"balance": values})}
    alike = nn.ModuleDict({"image": Mixture(E, D, **MIXTURE), "audio": Mixture(E, D, **MIXTURE), "text": Linear(E, D)})
    assert (
        projector_counts(alike, batch) == projector_counts(alike, batch_of([1.0], {"audio": [0, 0]})) == {"balance": 2}
    )
    term = projector_terms(alike, streams, batch, torch.device("cpu"))["balance"]
    assert (term.sum.item(), term.weight) == (1001.0, 0.5) and term.sum.requires_grad  # by the sounds' projector
    unlike = nn.ModuleDict({**alike, "audio": Mixture(E, D, **MIXTURE | {"weight": 0.25})})
    term = projector_terms(unlike, streams, batch, torch.device("cpu"))["balance"]
    assert (term.sum.item(), term.weight) == (500.5, 1.0)
    assert (
        projector_counts(nn.ModuleDict(), batch)
        == projector_terms(nn.ModuleDict(), {}, batch, torch.device("cpu"))
        == {}
    )


def test_a_projectors_term_must_not_have_the_name_of_another() -> None:
    mixture = Mixture(E, D, **MIXTURE)
    mixture.term_weights = {"image_audio": 0.5}
    encoders: Any = {"image": nn.Identity(), "audio": nn.Identity()}
    projectors: Any = {"image": Linear(E, D), "audio": mixture}
    with pytest.raises(Mistake, match=r"projector \(of encoder.audio\): its term_weights name image_audio, which is a"):
        Align(encoders, projectors, D, "infonce", class_aware=False, temperature=0.1, bias=0.0)


def test_an_objective_must_take_up_a_projectors_term() -> None:
    class Deaf(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.projector = nn.ModuleDict({"image": Mixture(E, D, **MIXTURE | {"weight": weight})})

        def counts(self, batch: Batch) -> dict[str, float]:
            return {"loss": 1.0}

    check_counts(cast(Any, Deaf(0.0)), batch_of([1.0], {}))
    with pytest.raises(Mistake, match="the projector has the term balance in its loss, and Deaf has no such term. Set"):
        check_counts(cast(Any, Deaf(0.5)), batch_of([1.0], {}))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    Image.new("L", (8, 8), 90).save(folder / "a.png")
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "a"}]
    lines = [{"messages": turns, "image": "a.png", "series": [[float(k), 2.0, 1.0, 0.0] * 4]} for k in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


SMALL = [
    "model=instruct", "data=jsonl", "encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1",
    "encoder.image.heads=2", "encoder/series=series_patch", "encoder.series.layers=1", "encoder.series.heads=2",
    "llm.hidden_size=16", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2", "tracker=none",
    "train.max_steps=2", "train.batch_size=4",
]  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize("name", PROJECTORS)
def test_a_projector_trains_through_the_command_line(name: str, rows: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"data.path={rows}", "encoder.series.hidden_size=8", f"projector={name}"]
    if name in ("perceiver", "qformer"):
        words += ["projector.tokens=2", "projector.layers=1", "projector.heads=2"]
    summary = runner.train([*words, f"hydra.run.dir={tmp_path}/run"])
    parts = summary["parameters"]["by_component"]
    assert parts["projector.image"]["trainable"] > 0 and parts["projector.series"]["trainable"] > 0


def test_one_projector_for_all_modalities(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, f"data.path={rows}", "projector=soft_tokens", "projector.shared=true", "projector.hidden_size=5"]
    assert main(["train", *words, "encoder.series.hidden_size=8", f"hydra.run.dir={tmp_path}/a"]) == 2
    told = "encoder.image gives tokens of width 16 and encoder.series of 8. Set it to false"
    assert told in capsys.readouterr().err
    run = tmp_path / "run"
    summary = runner.train([*words, "encoder.series.hidden_size=16", f"hydra.run.dir={run}"])
    parts = summary["parameters"]["by_component"]
    assert parts["projector"]["trainable"] == 16 * 5 + 5 + 5 * 4 * 16 + 4 * 16
    assert summary["parameters"]["total"] == sum(one["trainable"] + one["frozen"] for one in parts.values())
    answer = runner.Predictor.from_run(run)(prompt="Which?", image=rows / "a.png", series=[[1.0, 2.0, 3.0, 4.0] * 4])
    assert isinstance(answer, str)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run of rows, the first half without a series and the rest without a picture."""
    folder = tmp_path_factory.mktemp("mixed")
    generator = np.random.RandomState(0)
    lines = []
    for k in range(8):
        Image.fromarray(generator.randint(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{k}.png")
        pictures = {"items": [f"{k}.png", "0.png"][: k + 1]}
        item = {"image": pictures} if k < 4 else {"series": [generator.randn(16).tolist()]}
        turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "abcd"[k % 4] * (k % 3 + 1)}]
        lines.append({"messages": turns, "label": k, **item})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[2:7]))
    return [
        *SMALL, f"data.path={folder}", "encoder.series.hidden_size=16", "encoder.series.channels=1", "data.order=file",
        "train.batch_size=8", "train.log_every=1", "projector=mixture", "projector.shared=true",
        "projector.weight=0.5", "evaluation.predict_rows=0", "checkpoint.monitor=val/balance", "checkpoint.mode=min",
    ]  # fmt: skip


def test_a_balance_is_a_term_that_does_not_depend_on_the_split(mixed: list[str], tmp_path: Path) -> None:
    """Micro-batches of two rows lack one modality or the other."""
    one, two, without = (tmp_path / name for name in ("one", "two", "without"))
    summary = runner.train([*mixed, f"hydra.run.dir={one}"])
    runner.train([*mixed, "train.micro_batch_size=2", f"hydra.run.dir={two}"])
    off = ["projector.weight=0", "checkpoint.monitor=val/loss"]
    runner.train([*mixed, *off, "train.max_steps=1", f"hydra.run.dir={without}"])
    lines, split = lines_of(one), lines_of(two)
    assert [(line["split"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("val", 2)]
    for a, b in zip(lines, split, strict=True):
        assert a.keys() == b.keys() and 1 <= a["balance"] <= 2
        assert all(a[key] == pytest.approx(b[key], rel=1e-5) for key in {"loss", "balance", "grad_norm"} & a.keys())
    assert summary["last"]["val/balance"] == lines[2]["balance"]
    bare = lines_of(without)[0]
    assert "balance" not in bare and bare["loss"] == lines[0]["loss"]  # the text's alone
    assert abs(bare["grad_norm"] - lines[0]["grad_norm"]) > 1e-4


@pytest.mark.zoo
def test_a_balance_is_that_of_all_processes(mixed: list[str], tmp_path: Path) -> None:
    """The first has pictures alone and the other series."""
    assert ranks.train(tmp_path / "one", mixed) == [0]
    assert ranks.train(tmp_path / "two", [*mixed, "evaluation.batch_size=2"], 2) == [0, 0]
    for a, b in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        assert all(a[key] == pytest.approx(b[key], rel=1e-5) for key in {"loss", "balance", "grad_norm"} & a.keys())


def test_aligned_projectors_have_their_terms(rows: Path, tmp_path: Path) -> None:
    words = [one for one in SMALL if not one.startswith("llm.")]
    words += ["model=align", "model.width=8", f"data.path={rows}", "projector=mixture", "projector.weight=0.5"]
    runner.train([*words, "encoder.series.hidden_size=8", "train.log_every=1", f"hydra.run.dir={tmp_path}/run"])
    for line in lines_of(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["image_series"] + 0.5 * line["balance"], rel=1e-6)
        assert 1 <= line["balance"] <= 2


@pytest.mark.parametrize("name", ["gated", "perceiver"])
def test_a_fusion_with_weights_trains_and_answers_in_a_batch_as_alone(name: str, rows: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"data.path={rows}", "encoder.series.hidden_size=8", f"fusion={name}"]
    words += ["fusion.tokens=3", "fusion.heads=2", "fusion.layers=1"] if name == "perceiver" else []
    summary = runner.train([*words, "train.max_steps=4", "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path}/run"])
    assert summary["parameters"]["by_component"]["fusion"]["trainable"] > 0
    predictor = runner.Predictor.from_run(tmp_path / "run", overrides=["max_new_tokens=5"])
    asked: list[dict[str, Any]] = [
        {"prompt": "Which?", "image": rows / "a.png"},
        {"prompt": "Which one of them is it?", "series": [[1.0, 2.0, 3.0, 4.0] * 4]},
        {"prompt": "And?", "image": rows / "a.png", "series": [[1.0, 2.0, 3.0, 4.0] * 4]},
        {"prompt": "None at all?"},
    ]
    together = predictor(asked)
    assert together == [predictor(**one) for one in asked]
    without_cache = runner.Predictor.from_run(tmp_path / "run", overrides=["max_new_tokens=5", "use_cache=false"])
    assert without_cache(asked) == together
