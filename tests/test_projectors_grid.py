"""Projectors on a picture's grid: which neighbours they join, what they do not see, and what they refuse by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_projectors import rows
from torch import Tensor
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

import runner
from runner.cli import main
from runner.encoders.image import Patch
from runner.projectors.grid import CAbstractor, Ldp, PixelShuffle, shuffled
from runner.projectors.layers import Linear, Mlp, ResidualMlp
from runner.protocols import Mistake, Tokens

__all__ = ["rows"]  # the fixture

E, D = 6, 10
Grid = tuple[int, int]
PROJECTORS: dict[str, tuple[Callable[[], Any], Callable[[Grid], Grid]]] = {
    "pixel_shuffle": (lambda: PixelShuffle(E, D, factor=2, hidden_size=7), lambda grid: (grid[0] // 2, grid[1] // 2)),
    "c_abstractor": (lambda: CAbstractor(E, D, side=2, blocks=2, hidden_size=8), lambda grid: (2, 2)),
    "ldp": (lambda: Ldp(E, D), lambda grid: (math.ceil(grid[0] / 2), math.ceil(grid[1] / 2))),
}
"""A projector, and the grid that it makes of one."""


def on(grid: Grid, first: int, items: int = 3) -> Tokens:
    """Tokens of pictures, `first` of them of no place in it."""
    count = first + math.prod(grid)
    return Tokens(torch.randn(items, count, E), torch.ones(items, count, dtype=torch.bool), grid)


@pytest.mark.parametrize("name", PROJECTORS)
@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 3), columns=st.integers(1, 3), odd=st.booleans(), first=st.integers(0, 5))
def test_an_item_gives_in_a_batch_what_it_gives_alone(
    name: str, rows: int, columns: int, odd: bool, first: int
) -> None:
    """Whatever stands in its class and register tokens, in the padding and in the other items."""
    torch.manual_seed(0)
    build, left = PROJECTORS[name]
    grid = (2 * rows + (odd and name != "pixel_shuffle"), 2 * columns)
    projector, tokens = build().eval(), on(grid, first)
    mask = tokens.mask.clone()
    mask[1] = False
    given = projector(Tokens(torch.where(mask.unsqueeze(2), tokens.features, 99.0), mask, grid))
    assert given.grid == left(grid) and given.features.shape == (3, math.prod(left(grid)), D)
    assert given.mask.all(1).tolist() == given.mask.any(1).tolist() == [True, False, True]
    assert torch.isfinite(given.features).all()
    for k in (0, 2):
        alone = projector(Tokens(tokens.features[k : k + 1, first:], mask[k : k + 1, first:], grid))
        torch.testing.assert_close(given.features[k], alone.features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PROJECTORS)
def test_each_tensor_learns_and_places_differ(name: str) -> None:
    torch.manual_seed(0)
    projector = PROJECTORS[name][0]()
    tokens = projector(on((4, 6), first=1))
    (tokens.features * torch.randn_like(tokens.features)).sum().backward()
    assert all(one.grad.abs().sum() > 0 for one in projector.parameters())
    assert (tokens.features[:, 0] - tokens.features[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(("side", "factor"), [(2, 2), (4, 2), (6, 3), (3, 1), (4, 4)])
def test_pixels_are_shuffled_as_idefics3_does(side: int, factor: int) -> None:
    tokens = torch.randn(2, side * side, E)
    wanted = Idefics3Connector.pixel_shuffle(cast(Any, None), tokens, factor)
    assert torch.equal(shuffled(tokens.unflatten(1, (side, side)), factor), wanted)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 3), columns=st.integers(1, 3), factor=st.integers(1, 3))
def test_a_shuffled_token_is_its_square_read_in_order(rows: int, columns: int, factor: int) -> None:
    seen = torch.randn(1, rows * factor, columns * factor, E)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    inside = [(row, column) for row in range(factor) for column in range(factor)]
    for token, (row, column) in zip(shuffled(seen, factor)[0], places, strict=True):
        parts: list[Tensor] = [seen[0, row * factor + i, column * factor + j] for i, j in inside]
        assert torch.equal(token, torch.cat(parts))


def test_a_token_of_an_ldp_sees_its_neighbourhood_and_channels_of_the_whole() -> None:
    """Without the gates that look at the whole item, a far corner does not reach it."""
    torch.manual_seed(0)
    projector = Ldp(E, D).double()
    for block in (projector.block, projector.halves):
        block[3] = torch.nn.Identity()
    features = torch.randn(1, 64, E, dtype=torch.float64, requires_grad=True)
    given = projector(Tokens(features, torch.ones(1, 64, dtype=torch.bool), (8, 8))).features
    one = given[0, 5] @ torch.randn(D, dtype=torch.float64)  # row 1, column 1 of 4 x 4: around row 2, column 2
    (gradient,) = torch.autograd.grad(one, features)
    reached = gradient[0].abs().sum(1).unflatten(0, (8, 8)) > 0
    assert reached.nonzero().tolist() == [[row, column] for row in range(5) for column in range(5)]


def test_what_maps_token_by_token_keeps_the_grid() -> None:
    for projector in (Linear(E, D), Mlp(E, D, None), ResidualMlp(E, D, blocks=1, hidden_size=None, dropout=0.0)):
        assert projector(on((2, 3), first=1)).grid == (2, 3)


def test_patches_lie_on_a_grid_in_reading_order() -> None:
    """Without attention a changed square of the picture changes its own token alone."""
    encoder = Patch(12, 1, 4, 8, layers=1, heads=2, dropout=0.0, initializer_range=0.1, position_range=0.7).eval()
    (layer,) = encoder.layers.layers
    torch.nn.init.zeros_(layer.self_attn.out_proj.weight)
    pixels = torch.zeros(1, 1, 12, 12)
    before = encoder(pixels)
    assert before.grid == (3, 3)
    pixels[:, :, 4:8, 8:] = 1.0
    changed = (encoder(pixels).features - before.features).abs().amax((0, 2)) > 1e-4
    assert changed.nonzero().flatten().tolist() == [1 * 3 + 2]


def test_a_grid_that_does_not_fit_is_told() -> None:
    with pytest.raises(Mistake, match=r"projector.factor=2 does not divide the grid of 4 x 5 tokens. Set one that"):
        PROJECTORS["pixel_shuffle"][0]()(on((4, 5), first=0))
    with pytest.raises(Mistake, match="projector=c_abstractor needs the tokens of a picture in rows and columns"):
        PROJECTORS["c_abstractor"][0]()(Tokens(torch.randn(1, 4, E), torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(Mistake, match=r"projector.side=2 is more than the grid of 4 x 1 tokens has. Set at most 1."):
        PROJECTORS["c_abstractor"][0]()(on((4, 1), first=0))


SMALL = [
    "data=jsonl", "encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1",
    "encoder.image.heads=2", "tracker=none", "train.max_steps=2", "train.batch_size=4",
]  # fmt: skip
INSTRUCT = [
    "model=instruct", "llm.hidden_size=16", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2",
]  # fmt: skip
SERIES = ["encoder/series=series_patch", "encoder.series.layers=1", "encoder.series.heads=2"]
SERIES += ["encoder.series.hidden_size=8"]


@pytest.mark.parametrize(
    "name", ["ldp", *(pytest.param(name, marks=pytest.mark.zoo) for name in PROJECTORS if name != "ldp")]
)
def test_a_projector_trains_through_the_command_line(name: str, rows: Path, tmp_path: Path) -> None:
    words = [*SMALL, *INSTRUCT, f"data.path={rows}", "data.extra=[series]", f"projector={name}"]
    summary = runner.train([*words, f"hydra.run.dir={tmp_path}/run"])
    assert summary["parameters"]["by_component"]["projector.image"]["trainable"] > 0


ALIGN = ["model=align", "model.width=8"]
NO_GRID = "needs the tokens of a picture in rows and columns, and these lie on no such grid. The encoders patch, and"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*INSTRUCT, *SERIES, "projector=pixel_shuffle"], f"(of encoder.series): projector=pixel_shuffle {NO_GRID}"),
        ([*ALIGN, *SERIES, "projector=ldp"], f"(of encoder.series): projector=ldp {NO_GRID}"),
        (
            [*INSTRUCT, "data.extra=[series]", "projector=pixel_shuffle", "projector.factor=3"],
            "(of encoder.image): projector.factor=3 does not divide the grid of 4 x 4 tokens.",
        ),
    ],
)
def test_a_refusal_names_the_encoder_before_training(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    run = tmp_path / "run"
    assert main(["train", *SMALL, *words, f"data.path={rows}", f"hydra.run.dir={run}"]) == 2
    err = capsys.readouterr().err
    assert f"projector {said}" in err and "Traceback" not in err
    assert not (run / "config.yaml").exists() and not (run / "checkpoints").exists()
