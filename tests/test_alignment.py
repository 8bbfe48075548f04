"""Phase 2 on phase 1: encoders and aligner are phase 1's to the last bit, frozen, and the new run's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_encoders_image
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from test_exactness import train_lines

import runner
from runner.cli import main
from runner.predictor import Predictor
from runner.protocols import Mistake

IMAGE = [
    "encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2",
]  # fmt: skip
SERIES = [
    "encoder/series=series_patch", "encoder.series.channels=1", "encoder.series.patch_length=8",
    "encoder.series.stride=8", "encoder.series.hidden_size=16", "encoder.series.layers=1", "encoder.series.heads=2",
]  # fmt: skip
ENCODERS = [*IMAGE, *SERIES]
COMMON = ["data=jsonl", "tracker=none", "train.batch_size=8", "schedule=constant"]
PHASE_1 = [*COMMON, "model=align", "model.width=12", "train.max_steps=6", "optimizer.lr=3e-3"]
PHASE_2 = [
    *COMMON, "model=instruct", "projector=soft_tokens_shared", "projector.hidden_size=24", "model.aligner_width=12",
    "train.max_steps=6", "optimizer.lr=2e-3", "train.log_ids=true", "model.max_new_tokens=8", "data.extra=[label]",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of a digit, its lines as a series, and a question; some rows lack one or the other."""
    folder = tmp_path_factory.mktemp("rows")
    scans = load_digits()
    lines = []
    for k in range(28):
        Image.fromarray((scans.images[k] * 15.9).astype("uint8")).save(folder / f"{k}.png")
        turns = [{"role": "user", "content": "Which digit?"}, {"role": "assistant", "content": str(scans.target[k])}]
        row = {"id": str(k), "messages": turns, "label": int(scans.target[k])}
        row["image"] = None if k % 7 == 3 else f"{k}.png"
        row["series"] = None if k % 7 == 5 else [scans.data[k].tolist()]
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[:20]))
    (folder / "val.jsonl").write_text("".join(lines[20:]))
    return folder


def phase_1(rows: Path, run: Path, encoders: list[str], *words: str) -> Path:
    runner.train([*PHASE_1, *encoders, f"data.path={rows}", "data.extra=[messages]", *words, f"hydra.run.dir={run}"])
    return run


@pytest.fixture(scope="module")
def aligned(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phase_1(rows, tmp_path_factory.mktemp("runs") / "phase-1", ENCODERS)


def weights(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "trainable.safetensors")


def hold(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], modalities: tuple[str, ...]) -> None:
    """Phase 2's checkpoint has phase 1's encoders and projectors, every tensor of them, as they were."""
    moved = {}
    for name, tensor in before.items():
        part, modality, *rest = [*name.split("."), ""][:2] + name.split(".")[2:]
        if modality in modalities:
            inner = "encoder" if part == "encoder" else "aligner"
            moved[".".join(["encoder", modality, inner, *rest])] = tensor
    assert moved and moved.keys() == {name for name in after if name.startswith("encoder.")}
    assert all(torch.equal(after[name], tensor) for name, tensor in moved.items())


def test_phase_2_has_what_phase_1_learnt_and_needs_it_no_more(
    rows: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run = tmp_path / "phase-1", tmp_path / "run"
    shutil.copytree(aligned, copy)
    words = [*PHASE_2, *ENCODERS, f"data.path={rows}", f"model.aligner={tmp_path}/phase-*"]
    summary = runner.train([*words, f"hydra.run.dir={run}"])
    said = capsys.readouterr().out
    assert f"Aligner: image and series as {copy} brought them together by step 6, frozen." in " ".join(said.split())
    by_component = summary["parameters"]["by_component"]
    assert by_component["encoder.image"]["trainable"] == by_component["encoder.series"]["trainable"] == 0
    assert by_component["projector"]["trainable"] > 0
    hold(weights(aligned), weights(run), ("image", "series"))
    trained = load_file(run / "checkpoints/step-00000006/trainable.safetensors")
    assert any(name.startswith("projector.") for name in trained)

    stopped = tmp_path / "stopped"
    runner.train([*words, "train.max_steps=3", "checkpoint.every=3", f"hydra.run.dir={stopped}"])
    shutil.rmtree(copy)
    runner.train([*words, "resume=auto", f"hydra.run.dir={stopped}"])
    assert weights(stopped).keys() == weights(run).keys()
    assert all(torch.equal(one, weights(run)[name]) for name, one in weights(stopped).items())
    assert [line["loss"] for line in train_lines(stopped)] == [line["loss"] for line in train_lines(run)]

    answers = [Predictor.from_run(one)(prompt="Which digit?", image=str(rows / "21.png")) for one in (run, stopped)]
    assert answers[0] == answers[1]
    assert main(["evaluate", f"run={run}", "evaluation.predict_rows=4"]) == 0


def test_the_aligner_gives_tokens_that_point_where_phase_1_had_them(rows: Path, aligned: Path, tmp_path: Path) -> None:
    from runner.alignment import aligned_encoders
    from runner.build import kind_of
    from runner.config import compose
    from runner.trained import open_trained

    words = [*PHASE_2, *ENCODERS, f"data.path={rows}", f"model.aligner={aligned}"]
    encoders, _ = aligned_encoders(compose("train", words), None)
    run = open_trained(compose("evaluate", [f"run={aligned}"]).tree, ())
    objective = run.load()
    splits = {"val": [row for row in read(run) if row.items]}
    batch = run.frame.collate()([run.frame.example(row) for row in splits["val"]])
    predictions = objective.predict(batch)
    for name, encoder in encoders.items():
        with torch.no_grad():
            mean = encoder(**batch.streams[name].inputs).mean()
        torch.testing.assert_close(mean.norm(dim=1), torch.full([len(mean)], 12**0.5))
        theirs = [one.numbers[name] for one in predictions if one.numbers and name in one.numbers]
        ours = torch.nn.functional.normalize(mean, dim=1)
        torch.testing.assert_close(ours, torch.from_numpy(np.stack(theirs)).float(), rtol=1e-4, atol=1e-5)
    assert kind_of(run.composed).__name__ == "runner.labelling"


def read(run: object) -> list[object]:
    from runner.seats import read_splits

    split = read_splits(run.composed, run.frame)["val"]  # type: ignore[attr-defined]
    return [one.row for one in split.examples]


@pytest.mark.zoo
def test_an_encoder_that_phase_1_trained_is_not_its_files(rows: Path, tmp_path: Path) -> None:
    folder = test_encoders_image.saved(tmp_path / "vit", "vit")
    vision = [*SERIES, "encoder/image=hf_vision", f"encoder.image.path={folder}"]
    first = phase_1(rows, tmp_path / "phase-1", vision, "encoder.image.trainable=true", "optimizer.lr=1e-2")
    run = tmp_path / "run"
    second = [*PHASE_2, *vision, f"data.path={rows}", f"model.aligner={first}", f"hydra.run.dir={run}"]
    runner.train(second)
    before = {name: one for name, one in weights(first).items() if name.startswith("encoder.image.")}
    after = weights(run)
    files = load_file(folder / "model.safetensors")
    assert before and not any(torch.equal(one, files.get(name[20:], one * 0 + 1)) for name, one in before.items())
    for name, one in before.items():
        assert torch.equal(after[name.replace("encoder.image.", "encoder.image.encoder.")], one)


def test_a_projector_that_phase_1_shared_is_found(rows: Path, tmp_path: Path) -> None:
    shared = ["projector=soft_tokens_shared", "projector.tokens=2", "projector.hidden_size=8"]
    first = phase_1(rows, tmp_path / "phase-1", ENCODERS, *shared)
    run = tmp_path / "run"
    words = [*PHASE_2, *SERIES, "encoder/image=null", "data.extra=[label,image]", f"data.path={rows}"]
    runner.train([*words, f"model.aligner={first}", f"hydra.run.dir={run}"])
    after = weights(run)
    for name, one in weights(first).items():
        if name.startswith("projector."):
            assert torch.equal(after[name.replace("projector.image.", "encoder.series.aligner.")], one)


MISTAKES = {
    "model.aligner=NOWHERE/*": "there is no trained run",
    "model.aligner=RUNS/*": "matches 2 runs. Give the one that is meant:\n  RUNS/other\n  RUNS/phase-1",
    "model.aligner=ROWS": "has no config.yaml",
    "model.aligner=CLASSIFIER": "brings no encoders together. Give a run of model=align.",
    "model.aligner=RUNS/phase-1 model.aligner_width=13": "has a space of 12 numbers. Set model.aligner_width=12.",
    "model.aligner=RUNS/phase-1 encoder.image.layers=2": "encoder.image.layers is 2 here and 1 in RUNS/phase-1",
    "model.aligner=RUNS/phase-1 encoder/audio=spectrogram": "RUNS/phase-1 brought image, series together",
    "model.aligner=BROKEN": "MISSING",
}


@pytest.fixture(scope="module")
def places(rows: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    runs = tmp_path_factory.mktemp("several")
    for name in ("phase-1", "other"):
        shutil.copytree(aligned, runs / name)
    broken = tmp_path_factory.mktemp("broken") / "run"
    shutil.copytree(aligned, broken)
    file = broken / "checkpoints/step-00000006/trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    classifier = tmp_path_factory.mktemp("classifier") / "run"
    words = [*COMMON, *ENCODERS, "model=classify", f"data.path={rows}", "data.extra=[messages]", "train.max_steps=1"]
    runner.train([*words, f"hydra.run.dir={classifier}"])
    return {
        "RUNS": str(runs), "NOWHERE": str(runs / "no"), "ROWS": str(rows), "CLASSIFIER": str(classifier),
        "BROKEN": str(broken),
    }  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_an_aligner_that_is_wrong_missing_or_ambiguous_is_refused(
    words: str, rows: Path, places: dict[str, str], tmp_path: Path
) -> None:
    expected = MISTAKES[words].replace("MISSING", "trainable.safetensors has")
    for name, place in places.items():
        words, expected = words.replace(name, place), expected.replace(name, place)
    with pytest.raises(Mistake) as told:
        runner.train([*PHASE_2, *ENCODERS, f"data.path={rows}", *words.split(), f"hydra.run.dir={tmp_path}/run"])
    assert expected in str(told.value)


def test_an_aligner_without_an_encoder_is_refused(rows: Path, aligned: Path, tmp_path: Path) -> None:
    words = [*PHASE_2, "encoder/image=null", f"data.path={rows}", "data.extra=[label,image,series]"]
    with pytest.raises(Mistake, match="model.aligner: there is no encoder that it could be for"):
        runner.train([*words, f"model.aligner={aligned}", f"hydra.run.dir={tmp_path}/run"])


def test_another_aligner_is_refused_by_force_too(rows: Path, places: dict[str, str], tmp_path: Path) -> None:
    words = [*PHASE_2, *ENCODERS, f"data.path={rows}", f"hydra.run.dir={tmp_path}/run"]
    runner.train([*words, f"model.aligner={places['RUNS']}/phase-1", "train.max_steps=3", "checkpoint.every=3"])
    with pytest.raises(Mistake, match="model.aligner: .*phase-1 -> .*other"):
        runner.train([*words, f"model.aligner={places['RUNS']}/other", "resume=auto", "force_resume=true"])


def test_other_weight_files_than_phase_1_had_are_refused(rows: Path, tmp_path: Path) -> None:
    folder = test_encoders_image.saved(tmp_path / "vit", "vit")
    vision = [*SERIES, "encoder/image=hf_vision", f"encoder.image.path={folder}"]
    first = phase_1(rows, tmp_path / "phase-1", vision)
    file = folder / "model.safetensors"
    changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    words = [*PHASE_2, *vision, f"data.path={rows}", f"model.aligner={first}", f"hydra.run.dir={tmp_path}/run"]
    with pytest.raises(Mistake, match="the weight files of encoder.image are not those"):
        runner.train(words)


def test_a_mixture_of_experts_may_be_an_aligner_beside_a_projector_of_one_modality(rows: Path, tmp_path: Path) -> None:
    projectors = ["projector=mixture", "projector.shared=true", "projector/series=linear"]
    first = phase_1(rows, tmp_path / "phase-1", ENCODERS, *projectors)
    status = json.loads((first / "status.json").read_text())
    (first / "status.json").write_text(json.dumps({**status, "state": "running"}))
    run = tmp_path / "run"
    runner.train([*PHASE_2, *ENCODERS, f"data.path={rows}", f"model.aligner={first}", f"hydra.run.dir={run}"])
    hold(weights(first), weights(run), ("image", "series"))
    assert "That run is not finished: it is running." in (run / "train.log").read_text().replace("\n", " ")
