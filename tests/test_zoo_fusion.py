"""Every projector with every fusion and every objective that they belong to: a tiny run, then each tensor held against
its start. What does not belong together is refused by name before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_zoo import FROM_SCRATCH, SMALL, hold_against_the_start, rows, two_steps

from runner.cli import main
from runner.config import CONF

pytestmark = pytest.mark.zoo
__all__ = ["rows"]  # the fixture

PROJECTORS = sorted(file.stem for file in (CONF / "projector").glob("*.yaml"))
POOLED = sorted(file.stem for file in (CONF / "fusion").glob("pooled_*.yaml"))
FUSIONS = sorted({file.stem for file in (CONF / "fusion").glob("*.yaml")} - set(POOLED))
ON_A_GRID = ("pixel_shuffle", "c_abstractor", "ldp")
START_SHUT = ("cross_attention", "film")
"""What lies before their gates trains from the second step on, and what lies before a zero there from the third."""
IMAGE = [f"encoder.image.{one}" for one in SMALL]
SERIES = ["encoder/series=series_patch", *(f"encoder.series.{one}" for one in FROM_SCRATCH["series_patch"][1])]
TINY = ["llm.hidden_size=16", "llm.intermediate_size=16", "llm.layers=1", "llm.heads=2", "llm.key_value_heads=1"]


def encoders_for(projector: str) -> list[str]:
    """A picture, and beside it a series, which has no grid."""
    series = [*SERIES, "projector/series=mlp"] if projector in ON_A_GRID else SERIES
    return ["encoder/image=patch", *IMAGE, *series, f"projector={projector}", *smaller(projector)]


def smaller(projector: str) -> list[str]:
    settings = {
        "perceiver": ["heads=2"], "qformer": ["heads=2"], "soft_tokens_shared": ["hidden_size=16"],
        "c_abstractor": ["side=2"], "mixture": ["active=4"],  # an expert that no token takes would stand still
    }  # fmt: skip
    return [f"projector.{one}" for one in settings.get(projector, [])]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_projector_and_a_fusion_train_with_lora(
    projector: str, fusion: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=instruct", f"fusion={fusion}", *encoders_for(projector), *TINY, "lora=default", "lora.r=2"]
    words += ["data.extra=[audio,text,label]", "model.max_new_tokens=2"]
    words += ["fusion.heads=2"] if fusion in ("perceiver", "cross_attention") else []
    steps = 4 if fusion in START_SHUT else 2
    trained = hold_against_the_start(*two_steps(words, rows, tmp_path / "run", monkeypatch, steps))
    parts = {name.split(".")[0] for name in trained}
    assert parts == {"encoder", "projector", "llm"} | ({"fusion"} if fusion not in ("prefix", "interleave") else set())


@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_projector_trains_in_an_alignment(
    projector: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=align", "model.width=8", *encoders_for(projector), "data.extra=[audio,text,messages]"]
    trained = hold_against_the_start(*two_steps(words, rows, tmp_path / "run", monkeypatch))
    assert {name.split(".")[0] for name in trained} == {"encoder", "projector", "scale"}


@pytest.mark.parametrize("objective", ["classify", "regress"])
@pytest.mark.parametrize("fusion", POOLED)
def test_a_pooled_fusion_trains(
    fusion: str, objective: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model={objective}", f"fusion={fusion}", "encoder/image=patch", *IMAGE, *SERIES]
    words += ["data.extra=[audio,text,messages]"]
    trained = hold_against_the_start(*two_steps(words, rows, tmp_path / "run", monkeypatch))
    assert {name.split(".")[0] for name in trained} == {"encoder", "fusion", "head"}


def pooled_is_told(fusion: str) -> str:
    if fusion in ("prefix", "interleave"):  # which ask for nothing
        return "See PooledFusion in runner/protocols.py"
    return "which it is not given here. Set fusion=pooled_concat"


REFUSED = {
    **{
        f"model=instruct fusion={fusion}": "asks for widths, which it is not given here. Set fusion=prefix"
        for fusion in POOLED
    },
    **{
        f"model={objective} fusion={fusion} encoder/image=patch": pooled_is_told(fusion)
        for objective in ("classify", "regress")
        for fusion in FUSIONS
    },
    **{
        f"model={objective} projector={projector} encoder/image=patch": f"projector: model={objective} has no such seat"
        for objective in ("classify", "regress", "chat")
        for projector in PROJECTORS
    },
    **{
        f"model={objective} fusion={fusion} encoder/image=patch": f"fusion: model={objective} has no such seat"
        for objective in ("align", "chat")
        for fusion in (*FUSIONS, *POOLED)
    },
    **{
        f"model=instruct encoder/image=null {' '.join(SERIES)} projector={projector} {' '.join(smaller(projector))} "
        "data.extra=[image,audio,text,label]": "projector (of encoder.series): "
        for projector in ON_A_GRID
    },
    **{
        f"model=align encoder/image=patch {' '.join([*IMAGE, *SERIES])} projector={projector} "
        f"{' '.join(smaller(projector))} model.width=8 data.extra=[messages,audio,text]": "(of encoder.series): "
        for projector in ON_A_GRID
    },
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_belong_together_is_refused_by_name(
    words: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [] if "data.extra" in words else ["data.extra=[label,audio,text,series]"]
    common = ["data=jsonl", f"data.path={rows}/train.jsonl", "tracker=none", "train.max_steps=1", *extra]
    assert main(["train", *words.split(), *common, f"hydra.run.dir={tmp_path}/run"]) == 2
    told = capsys.readouterr().err
    assert REFUSED[words] in told, told
