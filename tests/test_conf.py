"""Every YAML under conf/: it says what it does, it is composed and checked, and none can be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runner.combinations import available_device
from runner.config import CONF, Composed, compose
from runner.protocols import Mistake
from runner.verbs import VERBS

FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("*.yaml"))
PRIMARY = [file for file in FILES if len(file.parts) == 1]
OPTIONS = [file for file in FILES if len(file.parts) > 1]

NEEDS: dict[str, list[str]] = {
    "data/csv_series": ["data.path=rows.jsonl"],
    "data/folder": ["data.path=weights"],
    "data/csv": ["data.path=rows.jsonl"],
    "data/jsonl": ["data.path=rows.jsonl"],
    "data/parquet": ["data.path=rows.jsonl"],
    "data/qdrant": ["data.collection=rows"],
    "encoder/series/hf_series": ["encoder.series.path=weights"],
    "encoder/series/moment": ["encoder.series.path=weights"],
    "encoder/audio/hf_audio": ["encoder.audio.path=weights"],
    "encoder/image/hf_vision": ["encoder.image.path=weights"],
    "encoder/text/hf_text": ["encoder.text.path=weights"],
    "llm/pretrained": ["llm.path=weights"],
    "experiment/maths_chat": ["data.path=rows.jsonl"],
    "experiment/maths_chat_quick": ["data.path=rows.jsonl"],
    "experiment/series_chat": ["data.path=rows.jsonl"],
    "experiment/trimodal_align": ["data.path=rows.jsonl"],
    "experiment/trimodal_instruct": ["data.path=rows.jsonl"],
    "experiment/vision_classify": ["data.path=weights"],
    "evaluate": ["run=run"],
    "prepare": ["prepare.output=prepared"],
    "generate": ["run=run"],
}
"""What an option asks for (`???`): values with which it is whole."""

BESIDE = {"quantization/int8": ["llm=smollm2_135m", "lora=default"]}
BESIDE["quantization/nf4"] = BESIDE["quantization/int8"]
"""Other options without which an option is refused."""


@pytest.fixture
def files(working_folder: Path) -> None:
    """What NEEDS names; composition asks no more than that it exists."""
    (working_folder / "rows.jsonl").touch()
    (working_folder / "weights").mkdir()


def override_of(option: Path) -> str:
    return f"{option.parent.as_posix()}={option.stem}"


def composed_with(option: Path) -> Composed:
    steps = ["train.max_steps=1"] if option.parts[0] in ("data", "model") else []  # without the default experiment
    name = option.with_suffix("").as_posix()
    return compose("train", [override_of(option), *steps, *NEEDS.get(name, []), *BESIDE.get(name, [])])


def test_the_folder_is_found() -> None:
    assert {"train.yaml", "show.yaml"} <= {str(file) for file in PRIMARY}
    assert len(OPTIONS) > 20


@pytest.mark.parametrize("file", FILES, ids=str)
def test_each_file_says_what_it_does(file: Path) -> None:
    lines = (CONF / file).read_text(encoding="utf-8").splitlines()
    said = [line for line in lines[:3] if line.startswith("# ") and "@package" not in line]
    assert said and len(said[0]) > 10, "begin with a comment that says what choosing this file does"


@pytest.mark.parametrize("file", PRIMARY, ids=str)
def test_each_primary_config_is_whole(file: Path) -> None:
    assert file.stem in VERBS
    tree = compose(file.stem, NEEDS.get(file.stem, [])).tree
    own = yaml.safe_load((CONF / file).read_text(encoding="utf-8"))
    assert {key for key in own if key != "defaults"} <= tree.keys()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "option",
    [pytest.param(one, id=str(one), marks=[pytest.mark.zoo] if k % 2 else []) for k, one in enumerate(OPTIONS)],
)
def test_each_option_is_composed(option: Path) -> None:
    if option.stem in ("fp16", "tf32") and available_device() == "cpu":
        with pytest.raises(Mistake, match=rf"precision={option.stem} needs .*GPU"):
            composed_with(option)
        return
    composed = composed_with(option)
    group = option.parent.as_posix()
    assert composed.choices[group] == option.stem
    seat: object = composed.tree
    for name in option.parts[:-1]:
        seat = seat.get(name) if isinstance(seat, dict) else None
    if option.stem == "none":
        assert seat is None
    elif group != "experiment":
        assert isinstance(seat, dict)
        # A header puts a file elsewhere: a tracker under its own name, a global file where it says.
        own = yaml.safe_load((CONF / option).read_text(encoding="utf-8"))
        at_home = own.get(group, own) if "_global_" in (CONF / option).read_text(encoding="utf-8") else own
        node = seat.get(option.stem, seat)
        assert {key for key in at_home if key != "defaults"} <= node.keys()
        assert node.get("_target_") == at_home.get("_target_")


def test_each_missing_value_is_asked_for() -> None:
    asked = {}
    for option in OPTIONS:
        nodes = yaml.safe_load((CONF / option).read_text(encoding="utf-8"))
        asked[option.with_suffix("").as_posix()] = [key for key, value in nodes.items() if value == "???"]
    parts = {name for name in NEEDS if "/" in name and not name.startswith("experiment/")}
    assert {option for option, keys in asked.items() if keys} == parts
    for option, keys in asked.items():
        if keys:
            with pytest.raises(Mistake) as told:
                compose("train", [override_of(Path(f"{option}.yaml"))])
            for key in keys:
                assert f"{option.rpartition('/')[0].replace('/', '.')}.{key} needs a value" in str(told.value)
