"""Every encoder with every objective that fits it: two steps of a tiny run, then each tensor held against its start.

What trains must have moved, and what is frozen must be what it was, bit for bit.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import test_encoders_audio
import test_encoders_image
import test_encoders_series
import test_encoders_text
import torch
from torch import Tensor, nn

import runner
from runner import training
from runner.build import Parts

pytestmark = pytest.mark.zoo
SMALL = ["hidden_size=16", "layers=1", "heads=2", "dropout=0"]
FROM_SCRATCH = {
    "patch": ("image", SMALL),
    "spectrogram": ("audio", SMALL),
    "series_patch": ("series", [*SMALL, "channels=2"]),
}
LOADED: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    **{
        f"hf_vision {family}": ("image", "hf_vision", lambda folder, f=family: test_encoders_image.saved(folder, f))
        for family in test_encoders_image.MODELS
    },
    **{
        f"hf_audio {family}": ("audio", "hf_audio", lambda folder, f=family: test_encoders_audio.saved(folder, f))
        for family in test_encoders_audio.MODELS
    },
    **{
        f"hf_text {family}": ("text", "hf_text", lambda folder, f=family: test_encoders_text.saved(folder, f))
        for family in ("bert", *test_encoders_text.MODELS)
    },
    "moment": ("series", "moment", test_encoders_series.checkpoint),
    "hf_series patchtst": ("series", "hf_series", lambda folder: pretrained_series(folder, "patchtst")),
    "hf_series patchtsmixer": ("series", "hf_series", lambda folder: pretrained_series(folder, "patchtsmixer")),
}
OBJECTIVES = ("instruct", "classify", "regress", "align")
NEVER_USED = (
    "fusion.normalized.absent.",
    "fusion.projected.normalized.absent.",
    "encoder.series.patch_embedding.mask_embedding",
)
"""What stands for a modality that a row lacks, and for a patch of missing values: these rows lack nothing."""


def pretrained_series(folder: Path, family: str) -> Path:
    test_encoders_series.pretrained(folder, family, context_length=64)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows with a picture, a sound, a text and a series each."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for k in range(6):
        test_encoders_image.picture(k).save(folder / f"{k}.png")
        with wave.open(str(folder / f"{k}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            sound = np.sin(np.arange(8_000 + 500 * k) * (0.1 + 0.02 * k)) + 0.1 * np.random.RandomState(k).randn(
                8_000 + 500 * k
            )
            file.writeframes((sound * 9_000).astype("<i2").tobytes())
        turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": str(k)}]
        row = {"id": str(k), "messages": turns, "label": k % 3, "image": f"{k}.png", "audio": f"{k}.wav"}
        row |= {"text": f"It is {k} of six.", "series": test_encoders_series.waves(2, 64, seed=k)}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def words_of(modality: str, option: str, settings: list[str], objective: str) -> list[str]:
    words = [f"model={objective}", f"encoder/{modality}={option}"]
    words += [f"encoder.{modality}.{one}" for one in settings]
    seen = {modality}
    if objective == "instruct" and modality != "image":
        words.append("encoder/image=null")
    if objective == "align":
        partner = "series" if modality != "series" else "image"
        name = "series_patch" if partner == "series" else "patch"
        words += [f"encoder/{partner}={name}", *(f"encoder.{partner}.{one}" for one in FROM_SCRATCH[name][1])]
        words.append("model.width=8")
        seen.add(partner)
    unseen = [name for name in ("image", "audio", "text", "series") if name not in seen]
    return [*words, f"data.extra=[{','.join(unseen)}]"]


def two_steps(
    words: list[str], rows: Path, run: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 2
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained objective, and its parameters and buffers as they were before."""
    seen: list[Parts] = []
    before: dict[str, Tensor] = {}
    build = training.build

    def watched(*arguments: Any, **named: Any) -> Parts:
        parts = build(*arguments, **named)
        before.update({name: one.clone() for name, one in tensors_of(cast(nn.Module, parts.objective)).items()})
        seen.append(parts)
        return parts

    monkeypatch.setattr(training, "build", watched)
    common = [
        "data=jsonl",
        f"data.path={rows}/train.jsonl",
        "tracker=none",
        f"train.max_steps={steps}",
        "train.batch_size=6",
    ]
    common += ["optimizer.lr=1e-2", "optimizer.weight_decay=0.1", "schedule=constant", f"hydra.run.dir={run}"]
    runner.train([*words, *common])
    return cast(nn.Module, seen[0].objective), before


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in (*model.named_parameters(), *model.named_buffers())}


def hold_against_the_start(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The parts that trained."""
    trains = {name for name, one in model.named_parameters() if one.requires_grad}
    after = tensors_of(model)
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert not moved - trains, f"frozen, and moved: {sorted(moved - trains)[:5]}"
    still = {name for name in trains - moved if not name.startswith(NEVER_USED)}
    assert not still, f"trains, and did not move: {sorted(still)[:5]}"
    return {".".join(name.split(".")[:2]) for name in trains}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("encoder", FROM_SCRATCH)
def test_an_encoder_from_scratch_trains(
    encoder: str, objective: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, settings = FROM_SCRATCH[encoder]
    words = words_of(modality, encoder, settings, objective)
    assert f"encoder.{modality}" in hold_against_the_start(*two_steps(words, rows, tmp_path / "run", monkeypatch))


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("encoder", LOADED)
def test_a_loaded_encoder_trains_or_stays(
    encoder: str, objective: str, trainable: bool, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, option, save = LOADED[encoder]
    settings = [f"path={save(tmp_path)}", f"trainable={str(trainable).lower()}"]
    words = words_of(modality, option, settings, objective)
    trained = hold_against_the_start(*two_steps(words, rows, tmp_path / "run", monkeypatch))
    assert (f"encoder.{modality}" in trained) == trainable
