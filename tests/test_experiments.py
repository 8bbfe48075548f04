"""Each experiment's parameters from the architecture alone: no network, weights, tokenizer, aligner or data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.config import CONF, compose
from runner.protocols import Mistake
from runner.show import show

Counts = tuple[int, int]
"""Parameters that train, and those that are frozen."""
QUESTIONS: dict[str, Counts] = {"llm": (0, 4_435_182_688), "lora": (5_570_560, 0)}
TABLES: dict[str, dict[str, Counts]] = {
    "quick": {"encoder.image": (101_440, 0), "projector.image": (8_320, 0), "llm": (140_160, 0)},
    "series_chat": {
        "encoder.series": (0, 18_887_872),
        "projector.series": (1_263_360, 0),
        "llm": (0, 494_032_768),
        "lora": (8_798_208, 0),
    },
    "maths_chat": QUESTIONS,
    "maths_chat_quick": QUESTIONS,
    "trimodal_align": {
        "model": (1, 0),
        "encoder.image": (826_240, 0),
        "encoder.audio": (116_544, 0),
        "encoder.text": (0, 22_713_216),
        "projector.image": (328_704, 0),
        "projector.audio": (295_936, 0),
        "projector.text": (459_776, 0),
    },
    "trimodal_instruct": {
        "encoder.image": (0, 826_240),
        "encoder.audio": (0, 116_544),
        "projector": (8_394_240, 0),
        "llm": (0, 494_032_768),
        "lora": (2_162_688, 0),
    },
}
BY_ROWS = {"vision_classify"}
"""Those whose shapes depend on the rows: on how many classes they have."""
ENCODERS = ["encoder/image=patch", "encoder/series=series_patch"]


def table(*words: str) -> dict[str, Counts]:
    shown = show(compose("show", [*words, "show.part=parameters"]))
    return {name: (counts["trainable"], counts["frozen"]) for name, counts in shown.items()}


def test_no_experiment_is_forgotten() -> None:
    assert {file.stem for file in (CONF / "experiment").glob("*.yaml")} == {*TABLES, *BY_ROWS}


@pytest.mark.parametrize("name", TABLES)
def test_an_experiment_is_shown_from_its_architecture_alone(
    name: str, no_network: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert table(f"experiment={name}") == TABLES[name]
    assert no_network == []
    printed = capfd.readouterr()
    assert printed.out.startswith("Parameters") and "eos_token_id" not in printed.err


def test_the_integers_of_trimodal_instruct() -> None:
    """Qwen2.5-0.5B; LoRA of rank 16 on q, k, v and o of 24 layers; 512 -> 2,048 -> 4 x 896 for both modalities."""
    shown = table("experiment=trimodal_instruct")
    assert shown["llm"] == (0, 494_032_768)
    assert shown["lora"] == (2_162_688, 0)
    assert shown["projector"] == (512 * 2048 + 2048 + 2048 * 3584 + 3584, 0) == (8_394_240, 0)
    assert sum(trainable for trainable, _ in shown.values()) == 10_556_928


def test_the_classes_of_an_experiment_are_its_rows(tmp_path: Path, no_network: list[Any]) -> None:
    for k in range(3):
        (tmp_path / f"pictures/class {k}").mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (8, 8), (k, n, 0)).save(tmp_path / f"pictures/class {k}/{n}.png")
    assert table("experiment=vision_classify", "data.path=pictures") == {
        "encoder.image": (826_240, 0),
        "fusion": (384, 0),
        "head": (128 * 3 + 3, 0),
    }
    assert no_network == []


@pytest.mark.parametrize("model", ["classify", "regress"])
def test_an_objective_that_goes_by_rows_asks_for_them(model: str) -> None:
    words = [f"model={model}", "data=jsonl", *ENCODERS, "show.part=parameters"]
    with pytest.raises(Mistake, match=r"^data\.path needs a value\. Set data\.path=VALUE\.$"):
        compose("show", words)


def test_rows_are_asked_for_where_they_are_shown() -> None:
    with pytest.raises(Mistake, match=r"^data\.path needs a value\. Set data\.path=VALUE\.$"):
        compose("show", ["experiment=trimodal_align", "show.part=rows"])


@pytest.mark.parametrize("argument", ["rows", "margin"])
def test_the_constructor_of_an_objective_of_ones_own_says_whether_it_goes_by_rows(
    tmp_path: Path, argument: str
) -> None:
    """It is read, not imported."""
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/nearest.py").write_text(
        f"raise RuntimeError('imported')\nclass Nearest:\n    def __init__(self, encoders, {argument}): ...\n"
    )
    given = "" if argument == "rows" else f"\n  {argument}: 1"
    yaml = "# @package _global_\n# The nearest row.\ndefaults:\n  - /encoder/image: patch\n  - _self_\nmodel:\n"
    (tmp_path / "mine/model/nearest.yaml").write_text(f"{yaml}  _target_: nearest.Nearest{given}\n")
    words = ["model=nearest", "data=jsonl", "show.part=parameters"]
    if argument == "rows":
        with pytest.raises(Mistake, match=r"^data\.path needs a value"):
            compose("show", words, tmp_path / "mine")
    else:
        assert compose("show", words, tmp_path / "mine").choices["model"] == "nearest"
