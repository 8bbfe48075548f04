"""Encoders of time series: what they give for a series alone they give in any batch; MOMENT is momentfm's."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import runner
from runner.data.collate import stack
from runner.encoders.series_moment import Moment
from runner.encoders.series_patch import SeriesPatch
from runner.encoders.series_pretrained import PretrainedSeries
from runner.models.freeze import keep_frozen
from runner.protocols import Encoder, Mistake, Tokens
from tests.moment_reference import GOLDEN, KINDS, inputs, run_package, weights_by_formula, write_checkpoint

GOLDEN_FIGURES = json.loads(GOLDEN.read_text())
NAN = float("nan")


def waves(channels: int, steps: int, seed: int = 0) -> list[list[float | None]]:
    numbers = np.random.RandomState(seed).randn(channels, steps).cumsum(axis=1) * 3 + 10
    return numbers.astype(np.float32).tolist()


def encode(encoder: Any, series: Sequence[Any]) -> Tokens:
    return encoder(**stack("series", [encoder.preprocess(one) for one in series]))


def checkpoint(folder: Path, kind: str = "gated", **more: torch.Tensor) -> Path:
    shapes = {name: torch.Size(shape) for name, shape in GOLDEN_FIGURES[kind]["shapes"].items()}
    return write_checkpoint(folder, kind, weights_by_formula(shapes) | more)


def moment(folder: Path, **given: Any) -> Moment:
    arguments = {"architecture": None, "trainable": False, "channels": None, "reduction": "mean"}
    return Moment(str(folder), **(arguments | {"over_length": "error", "dropout": 0.0} | given))


def series_patch(**given: Any) -> SeriesPatch:
    arguments = {"channels": 2, "patch_length": 8, "stride": 5, "hidden_size": 16, "layers": 2, "heads": 2}
    return SeriesPatch(**(arguments | {"dropout": 0.0, "initializer_range": 0.2, "position_range": 0.7} | given))


def pretrained(folder: Path, family: str, trainable: bool = False, reduction: Any = "mean", **config: Any) -> Any:
    from transformers import PatchTSMixerConfig, PatchTSMixerModel, PatchTSTConfig, PatchTSTForPretraining

    shape: dict[str, Any] = {"num_input_channels": 2, "context_length": 50, "patch_length": 8, "patch_stride": 4}
    if family == "patchtst":
        shape |= {"num_hidden_layers": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "do_mask_input": True}
        model: Any = PatchTSTForPretraining(PatchTSTConfig(**(shape | config)))
    else:
        model = PatchTSMixerModel(PatchTSMixerConfig(**(shape | {"d_model": 16, "num_layers": 2} | config)))
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.05)
    model.save_pretrained(folder)
    return PretrainedSeries(str(folder), trainable, reduction, "error")


def golden_series() -> list[list[list[float]]]:
    """The golden inputs as rows have them: the short one without its padding, the gap as missing values."""
    values, mask = inputs()
    values = torch.where(mask.bool().unsqueeze(1), values, NAN)
    return [values[0].tolist(), values[1].tolist(), values[2, :, -21:].tolist()]


def held_against_momentfm(encoder: Moment, figures: dict[str, Any]) -> None:
    theirs = torch.tensor(figures["features"])  # [3, C, P, E]
    with torch.no_grad():
        for n, one in enumerate(golden_series()):
            tokens = encode(encoder, [one])
            shown = tokens.features[0][tokens.mask[0]]
            whole = inputs()[1][n].unfold(0, 8, 8).all(dim=-1)
            assert tokens.mask.sum() == whole.sum()
            torch.testing.assert_close(shown, theirs[n].mean(dim=0)[whole], atol=1e-5, rtol=1e-5)
            pooled = torch.tensor(figures["pooled"][n])
            torch.testing.assert_close(shown.mean(dim=0), pooled, atol=1e-5, rtol=1e-5)
        tokens = encode(encoder, golden_series())
    pooled = (tokens.features * tokens.mask.unsqueeze(-1)).sum(dim=1) / tokens.mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(pooled, torch.tensor(figures["pooled"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_moment_gives_the_figures_of_momentfm(tmp_path: Path, kind: str) -> None:
    held_against_momentfm(moment(checkpoint(tmp_path, kind)), GOLDEN_FIGURES[kind])


def test_moment_puts_channels_in_a_row_as_momentfm_does(tmp_path: Path) -> None:
    encoder = moment(checkpoint(tmp_path), reduction="concat", channels=2)
    with torch.no_grad():
        tokens = encode(encoder, golden_series()[:1])
    theirs = torch.tensor(GOLDEN_FIGURES["gated"]["features"])[:1].permute(0, 2, 3, 1).reshape(1, 8, -1)
    assert encoder.width == 16
    torch.testing.assert_close(tokens.features, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_moment_is_the_package_momentfm(tmp_path: Path, kind: str) -> None:
    package = os.environ.get("RUNNER_TEST_MOMENTFM")
    if not package:
        pytest.skip("set RUNNER_TEST_MOMENTFM to a folder with the unpacked wheel of momentfm 0.1.4")
    held_against_momentfm(moment(checkpoint(tmp_path, kind)), run_package(Path(package), kind))


def test_moment_reads_the_published_layout_and_refuses_another(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, **{"head.linear.weight": torch.zeros(8, 8), "head.linear.bias": torch.zeros(8)})
    encoder = moment(folder)
    weights = load_file(folder / "model.safetensors")
    own = encoder.state_dict()
    for name in own.keys() & weights.keys():
        assert torch.equal(own[name], weights[name])
    assert own.keys() - weights.keys() == {"patch_embedding.position_embedding.pe"}
    assert list(encoder.files) == ["model.safetensors"] and len(encoder.files["model.safetensors"]) == 64
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    for wrong, said in (
        ({k: v for k, v in weights.items() if k != name}, f"lacks 1 of the model's tensors \\({name}\\)"),
        (weights | {"encoder.block.2.q": torch.zeros(1)}, r"has 1 that it does not know \(encoder.block.2.q\)"),
        (weights | {name: torch.zeros(8, 4)}, rf"has {name} of shape \[8, 4\], not \[8, 8\]"),
    ):
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(Mistake, match=said):
            moment(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Mistake, match="not a whole safetensors file"):
        moment(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Mistake, match="no model.safetensors could be read"):
        moment(folder)
    with torch.device("meta"):
        assert moment(folder).patch_embedding.mask_embedding.device.type == "meta"
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(Mistake, match="config.json is not MOMENT's"):
        moment(folder)


def test_moment_overlaps_where_the_config_says(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"patch_stride_len": 4}))
    encoder = moment(folder)
    tokens = encode(encoder, [waves(1, 64), waves(1, 21)])
    assert tokens.mask.sum(dim=1).tolist() == [15, 4]
    assert encode(encoder, [waves(1, 20)]).mask.tolist() == [[True] * 4]


ENCODERS = ("moment", "moment concat", "series_patch", "series_patch any", "patchtst", "patchtst concat")


def encoder_of(name: str, folder: Path) -> Any:
    if name.startswith("moment"):
        more = {"reduction": "concat", "channels": 2} if "concat" in name else {}
        return moment(checkpoint(folder), **more)
    if name.startswith("patchtst"):
        return pretrained(folder, "patchtst", reduction="concat" if "concat" in name else "mean").eval()
    torch.manual_seed(0)
    return series_patch(channels=None if "any" in name else 2).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_series_has_the_same_features_alone_and_in_a_batch(tmp_path: Path, name: str) -> None:
    """Of other lengths, with missing values, with a channel that is missing whole."""
    encoder = encoder_of(name, tmp_path)
    assert isinstance(encoder, Encoder) and pickle.loads(pickle.dumps(encoder.preprocess)) == encoder.preprocess
    gap, empty = waves(2, 44, 3), waves(2, 33, 4)
    gap[0][17] = gap[1][30] = None
    empty[1] = [None] * 33
    series = [waves(2, 50, 1), waves(2, 9, 2), gap, empty]
    if name == "series_patch any":
        series.append(waves(5, 20, 5))
    with torch.no_grad():
        batch = encode(encoder, series)
        assert batch.features.shape[-1] == encoder.width and batch.mask.dtype == torch.bool
        assert batch.features.isfinite().all()
        for n, one in enumerate(series):
            alone = encode(encoder, [one])
            assert alone.mask.sum() == batch.mask[n].sum() > 0
            torch.testing.assert_close(
                batch.features[n][batch.mask[n]], alone.features[0][alone.mask[0]], atol=1e-5, rtol=1e-5
            )
    assert not batch.features[~batch.mask].any(), "a padded token is 0"


@pytest.mark.parametrize("name", ENCODERS)
def test_missing_values_are_never_seen(tmp_path: Path, name: str) -> None:
    """Whatever stands where no value is, features are the same, and no gradient goes there."""
    encoder = encoder_of(name, tmp_path)
    series = waves(2, 50, 1)
    series[0][20] = None
    given = stack("series", [encoder.preprocess(series), encoder.preprocess(waves(2, 12))])
    given["values"].requires_grad_(True)
    first = encoder(**given)
    first.features.square().sum().backward()
    gradient = given["values"].grad
    assert gradient is not None and gradient.isfinite().all() and not gradient[~given["valid"]].any()
    for other in (1e6, -3.0, NAN):
        second = encoder(**{**given, "values": torch.where(given["valid"], given["values"], other)})
        assert torch.equal(first.features, second.features) and torch.equal(first.mask, second.mask)
    series[0][20] = NAN
    again = encoder(**stack("series", [encoder.preprocess(np.array(series)), encoder.preprocess(waves(2, 12))]))
    assert torch.equal(first.features, again.features), "NaN is as good as None"
    series[0][21] = NAN
    fewer = encoder(**stack("series", [encoder.preprocess(series), encoder.preprocess(waves(2, 12))]))
    assert not torch.equal(first.features, fewer.features), "a value that is there is seen"


@pytest.mark.parametrize("name", ENCODERS)
def test_frozen_stays_and_trained_moves(tmp_path: Path, name: str) -> None:
    encoder = encoder_of(name, tmp_path)
    trains = name.startswith("series_patch")
    if name == "moment":
        encoder, trains = moment(tmp_path, trainable=True, dropout=0.1), True
    whole = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(encoder.width, 1)})
    keep_frozen(whole)
    whole.train()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in whole.parameters() if one.requires_grad], lr=0.1)
    whole["head"](encode(encoder, [waves(2, 50), waves(2, 20)]).features).square().mean().backward()
    optimizer.step()
    moved = [key for key, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[key])]
    assert bool(moved) == trains
    assert any(one.requires_grad for one in encoder.parameters()) == trains


@pytest.mark.parametrize("reduction", ["mean", "concat"])
@pytest.mark.parametrize("family", ["patchtst", "patchtsmixer"])
def test_whole_windows_have_the_hidden_states_of_transformers(tmp_path: Path, family: str, reduction: str) -> None:
    encoder = pretrained(tmp_path, family, reduction=reduction)
    series = torch.tensor([waves(2, 50, n) for n in range(3)])
    with torch.no_grad():
        theirs = encoder.model(past_values=series.transpose(1, 2)).last_hidden_state  # [N, C, P, E]
        tokens = encode(encoder.eval(), series.tolist())
    assert tokens.mask.all() and tokens.mask.shape == (3, 11)
    expected = theirs.mean(dim=1) if reduction == "mean" else theirs.permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(tokens.features, expected, atol=1e-5, rtol=1e-5)


def test_a_token_for_the_whole_and_batch_statistics_stay_out_of_it(tmp_path: Path) -> None:
    encoder = pretrained(tmp_path, "patchtst", trainable=True, use_cls_token=True)
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    assert encode(encoder, [waves(2, 50), waves(2, 20)]).features.shape == (2, 11, 16)
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in encoder.named_buffers())


def test_a_mixer_takes_whole_windows_only(tmp_path: Path) -> None:
    mixer = pretrained(tmp_path, "patchtsmixer")
    gap = waves(2, 50)
    gap[1][3] = None
    for series, said in ((waves(2, 49), "49 steps and 0 missing"), (gap, "50 steps and 1 missing")):
        with pytest.raises(Mistake, match=said):
            mixer.preprocess(series)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(Mistake, match="lacks 1 of the model's tensors"):
        PretrainedSeries(str(tmp_path), False, "mean", "error")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(Mistake, match="a gpt2 is none of patchtst, patchtsmixer"):
        PretrainedSeries(str(tmp_path), False, "mean", "error")


def test_series_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    patch = series_patch().preprocess
    for series, said in (
        ([], "must have a channel and a step"),
        ([[], []], "must have a channel and a step"),
        ([[1.0, 2.0], [1.0]], "not a list of channels, each an equally long list"),
        ([[1.0, 2.0]], "has 1 channels, and the encoder takes 2"),
        ([[None, None], [None, None]], "has no number"),
    ):
        with pytest.raises(Mistake, match=said):
            patch(series)
    encoder = moment(checkpoint(tmp_path))
    with pytest.raises(Mistake, match="no stretch of 8 steps.* has 7 steps, 7 of them"):
        encoder.preprocess(waves(1, 7))
    with pytest.raises(Mistake, match="has 65 steps, and the encoder takes 64"):
        encoder.preprocess(waves(1, 65))
    kept = moment(tmp_path, over_length="keep_last")
    torch.testing.assert_close(
        encode(kept, [waves(1, 70)]).features, encode(encoder, [[waves(1, 70)[0][-64:]]]).features
    )


@pytest.mark.parametrize("steps, count", [(1, 1), (8, 1), (9, 2), (13, 2), (14, 3), (18, 3)])
def test_patches_cover_every_step(steps: int, count: int) -> None:
    given = series_patch().preprocess(waves(2, steps))
    assert given["patches"].shape == (count,) and given["values"].shape == (2, 8 + 5 * (count - 1))
    assert given["valid"].sum() == 2 * steps


def test_series_patch_keeps_the_amplitude_and_the_channel() -> None:
    torch.manual_seed(0)
    encoder = series_patch()
    one = np.asarray(waves(2, 24), dtype=np.float32)
    for other in (one * 3, one + 5, one[::-1], np.stack([one[0], one[1] * 2])):
        difference = encode(encoder, [one]).features - encode(encoder, [other.copy()]).features
        assert difference.abs().max() > 1e-2
    free = series_patch(channels=None)
    assert encode(free, [waves(3, 24)]).mask.shape == (1, 3 * 5)
    with pytest.raises(Mistake, match="steps between patches would be seen by none"):
        series_patch(stride=9)
    with pytest.raises(Mistake, match="hidden_size=15 must be even"):
        series_patch(hidden_size=15)


@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_gives_finite_features(tmp_path: Path, name: str) -> None:
    encoder = encoder_of(name, tmp_path)
    empty = waves(2, 33)
    empty[0] = [None] * 33
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encode(encoder, [waves(2, 50), empty])
    tokens.features.float().square().sum().backward() if tokens.features.requires_grad else None
    assert tokens.features.isfinite().all()


def test_series_answer_questions_through_the_command_line(tmp_path: Path) -> None:
    """Inline rows of unequal length and one file; the amplitude alone tells loud from quiet."""
    np.save(tmp_path / "loud.npy", np.sin(np.arange(20)) * 9)
    rows = []
    for k in range(64):
        loud = k % 3 == 0
        series: Any = [[(9 if loud else 1) * float(np.sin(t + k)) for t in range(8 + k % 9)]]
        series[0][5] = None
        answer = {"role": "assistant", "content": "loud" if loud else "quiet"}
        messages = [{"role": "user", "content": "<series> Loud?"}, answer]
        rows.append({"series": "loud.npy" if k == 0 else series, "messages": messages})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = runner.train(
        [
            "model=instruct", "encoder/series=series_patch", "encoder/image=null", "fusion=interleave", "data=jsonl",
            "data.path=rows.jsonl", "data.val_path=rows.jsonl", "train.max_steps=30", "train.batch_size=16",
            "optimizer.lr=2e-3", "schedule.warmup_steps=5", "tracker=none", "encoder.series.hidden_size=16",
            "encoder.series.heads=2", "encoder.series.channels=1", "evaluation.predict_rows=32",
            "model.max_new_tokens=8",
        ]
    )  # fmt: skip
    assert summary["last"]["val/exact_match"] > 0.9
    assert set(summary["parameters"]["by_component"]) == {"encoder.series", "projector.series", "llm"}


def test_a_frozen_moment_trains_its_projector_and_has_its_files_in_the_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "moment")
    row = {
        "series": waves(2, 30),
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    summary = runner.train(
        [
            "model=instruct", "encoder/series=moment", f"encoder.series.path={folder}", "encoder/image=null",
            "data=jsonl", "data.path=rows.jsonl", "train.max_steps=2", "train.batch_size=1", "tracker=none",
            "schedule.warmup_steps=0", "llm.hidden_size=16", "llm.intermediate_size=16", "llm.layers=1", "llm.heads=2",
        ]
    )  # fmt: skip
    assert summary["parameters"]["by_component"]["encoder.series"]["trainable"] == 0
    written = "".join(file.read_text() for file in Path(summary["checkpoint"]).glob("*.json"))
    assert moment(folder).files["model.safetensors"] in written
