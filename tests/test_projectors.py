"""Projectors: what an item gives alone it gives in a batch, each tensor learns, and what they promise of counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import runner
from runner.cli import main
from runner.projectors.layers import Linear, Mlp, ResidualMlp
from runner.projectors.pooling import AveragePool, FrameStack, SoftTokens
from runner.projectors.queries import Perceiver, QFormer
from runner.protocols import Mistake, Tokens

E, D = 6, 10
QUERIES: dict[str, Any] = {"tokens": 3, "hidden_size": 8, "layers": 2, "heads": 2, "dropout": 0.0}
PROJECTORS: dict[str, tuple[Callable[[], Any], Callable[[int], int]]] = {
    "linear": (lambda: Linear(E, D), lambda count: count),
    "mlp": (lambda: Mlp(E, D, None), lambda count: count),
    "residual_mlp": (lambda: ResidualMlp(E, D, blocks=2, hidden_size=None, dropout=0.0), lambda count: count),
    "soft_tokens": (lambda: SoftTokens(E, D, tokens=3, hidden_size=7, shared=False), lambda count: 3),
    "average_pool": (lambda: AveragePool(E, D, tokens=2, hidden_size=None), lambda count: -(-count // 2)),
    "frame_stack": (lambda: FrameStack(E, D, frames=2, hidden_size=None), lambda count: -(-count // 2)),
    "perceiver": (lambda: Perceiver(E, D, **QUERIES), lambda count: 3),
    "qformer": (lambda: QFormer(E, D, **QUERIES), lambda count: 3),
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
