"""Composition: quoting, groups taken away, plugins from a folder, secrets, and what a node may build."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runner import config
from runner import settings as runner_settings
from runner.protocols import Mistake
from runner.quoting import quote

ENCODER = """
from typing import Annotated
from annotated_types import Ge
from torch import nn

class MeanColour(nn.Module):
    def __init__(self, dim: Annotated[int, Ge(1)], scale: float = 1.0) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def my_conf(tmp_path: Path) -> Path:
    return write(
        tmp_path / "my_conf",
        {
            "my_encoder.py": ENCODER,
            "encoder/image/mean_colour.yaml": "_target_: my_encoder.MeanColour\ndim: 3\n",
            "encoder/ecg/mine.yaml": "_target_: my_encoder.MeanColour\ndim: 5\n",
            "experiment/mine.yaml": "# @package _global_\nname: mine\ntrain: {max_steps: 7}\noptimizer: {lr: 0.5}\n",
        },
    )


def compose(*overrides: str, config_dir: Path | None = None, verb: str = "train") -> config.Composed:
    return config.compose(verb, ["tracker=none", *overrides], config_dir)


def arrives(override: str) -> Any:
    """What a config holds after Hydra and OmegaConf have read the override."""
    parsed = OverridesParser.create().parse_override(override)
    held = OmegaConf.create({})
    OmegaConf.update(held, parsed.key_or_group, parsed.value(), force_add=True)
    return OmegaConf.select(held, parsed.key_or_group)


TEXTS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30) | st.text(
    alphabet="""ab "'\\${}()[],=:~+-?\n\té""", max_size=12
)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_free_text_arrives_as_typed(text: str) -> None:
    assume(text not in ("null", "???"))
    assume(not (len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] and text.strip()[0] in "\"'"))
    several = re.fullmatch(r"\[.*\]|\{\s*\w+:.*\}", text, re.DOTALL)
    for key in ("name",) if several else ("name", "data.path"):
        assert arrives(quote(f"{key}={text}", sweeping=False)) == text


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_text_in_hydra_quotes_is_left_to_hydra(text: str) -> None:
    quoted = quote(f"name={text}", sweeping=False)
    assert quote(quoted, sweeping=False) == quoted or text == "null"


def test_what_is_quoted_and_what_not() -> None:
    assert quote("name=a, b", True) == 'name="a, b"'
    assert quote("+prompt=Bài toán: 2+2=?", False) == '+prompt="Bài toán: 2+2=?"'
    assert quote("resume=null", False) == "resume=null"
    assert quote("train.max_steps=1,2", True) == "train.max_steps=1,2"
    assert quote('name=choice("a, b",c)', True) == 'name=choice("a, b",c)'
    assert arrives(quote("name=choice(a,b)", False)) == "choice(a,b)"
    for files in ("[a b.csv, c=(1).csv]", "{north: a.csv, south: 'b c.csv'}"):
        found = OmegaConf.to_container(arrives(quote(f"data.path={files}", False)))
        assert found in (["a b.csv", "c=(1).csv"], {"north": "a.csv", "south": "b c.csv"})
    assert quote("hydra.run.dir=out/lr=0.1,x/${now:%H}", False) == 'hydra.run.dir="out/lr=0.1,x/${now:%H}"'


def test_a_path_with_hydra_signs_is_composed(tmp_path: Path) -> None:
    path = tmp_path / "lr=0.1,bs=2" / "Dữ liệu (1).jsonl"
    path.parent.mkdir()
    path.write_text("")
    composed = compose("data=jsonl", f"data.path={path}", "name=it's ${5}, ok", "train.epochs=1")
    assert composed.tree["data"]["path"] == str(path)
    assert composed.tree["name"] == "it's ${5}, ok"


def test_home_is_expanded_in_a_config_that_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the processes of a run and the verbs that use one do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").touch()
    first = compose("data=jsonl", "data.path=~/rows.jsonl", "train.epochs=1")
    again = config.composed_again(first.saved, first.choices, ())
    assert again.tree == first.tree and again.tree["data"]["path"] == str(tmp_path / "rows.jsonl")


def test_the_default_experiment_is_left_out_for_a_model_or_data_of_ones_own() -> None:
    """It says how long and how fast its own model learns its own data."""
    assert compose().choices["experiment"] == "quick" and compose("precision=bf16").tree["train"]["max_steps"] == 450
    for own in ("model=chat", "data=digits"):
        with pytest.raises(Mistake, match="train.max_steps and train.epochs are both null"):
            compose(own)
        composed = compose(own, "train.epochs=2")
        assert "experiment" not in composed.choices and composed.tree["optimizer"]["lr"] == 2e-4
    assert compose("model=instruct", "experiment=quick").tree["train"]["max_steps"] == 450


def test_the_last_of_two_wins() -> None:
    composed = compose("precision=bf16", "precision=fp32", "seed=1", "seed=2")
    assert composed.choices["precision"] == "fp32"
    assert composed.tree["seed"] == 2


@pytest.mark.parametrize("override", ["encoder/image=null", "~encoder/image"])
def test_a_seat_is_taken_away(override: str) -> None:
    assert not (compose(override).tree.get("encoder") or {}).get("image")


def test_null_where_nothing_is_set_changes_nothing() -> None:
    assert compose("~experiment", "train.max_steps=5").tree["train"]["max_steps"] == 5
    composed = compose("experiment=null", "train.max_steps=5", "model=chat", "encoder/image=null")
    assert "experiment" not in composed.choices
    assert composed.choices["model"] == "chat"


def test_a_plus_on_what_is_there_is_no_mistake() -> None:
    composed = compose("+encoder/image=patch", "+train.max_steps=3")
    assert composed.tree["train"]["max_steps"] == 3


def test_parts_from_a_folder(my_conf: Path) -> None:
    composed = compose("encoder/image=mean_colour", "+encoder/ecg=mine", "encoder.image.scale=2", config_dir=my_conf)
    assert composed.tree["encoder"]["image"] == {"_target_": "my_encoder.MeanColour", "dim": 3, "scale": 2}
    assert composed.plugin_folders == (my_conf.resolve(),)
    built = config.build(composed.tree["encoder"]["ecg"], composed.plugin_folders, llm_width=8)
    assert (built.dim, built.scale) == (5, 1.0)
    assert pickle.loads(pickle.dumps(built)).dim == 5
    assert sys.path[-1] == str(my_conf.resolve())


def test_an_experiment_from_a_folder(my_conf: Path) -> None:
    tree = compose("experiment=mine", config_dir=my_conf).tree
    assert (tree["name"], tree["train"]["max_steps"], tree["optimizer"]["lr"]) == ("mine", 7, 0.5)


def test_a_primary_config_from_a_folder(my_conf: Path) -> None:
    write(my_conf, {"whole.yaml": "defaults: [train, override precision: bf16, _self_]\nname: whole\n"})
    composed = config.compose("train", [], my_conf, "whole")
    assert (composed.tree["name"], composed.choices["precision"]) == ("whole", "bf16")


def test_a_plugin_is_not_built_without_its_folder() -> None:
    with pytest.raises(Mistake, match="my_encoder.MeanColour may not be built"):
        config.build({"_target_": "my_encoder.MeanColour", "dim": 3})


def test_a_yaml_cannot_name_a_plugin_folder(my_conf: Path, tmp_path: Path) -> None:
    primary = f"defaults: [train, _self_]\nhydra: {{searchpath: ['file://{my_conf}']}}\n"
    other = write(tmp_path / "other", {"whole.yaml": primary})
    with pytest.raises(Mistake, match="may not be built"):
        config.compose("train", ["encoder/image=mean_colour"], other, "whole")


def test_a_plugin_file_cannot_take_an_installed_name(my_conf: Path) -> None:
    write(my_conf, {"json.py": ENCODER, "encoder/image/json.yaml": "_target_: json.MeanColour\ndim: 1\n"})
    with pytest.raises(Mistake, match="Rename the file"):
        compose("encoder/image=json", config_dir=my_conf)


def test_a_changed_plugin_folder_is_imported_anew(my_conf: Path, tmp_path: Path) -> None:
    node = {"_target_": "my_encoder.MeanColour", "dim": 3}
    other = write(
        tmp_path / "other",
        {
            "my_encoder.py": ENCODER.replace("self.dim, ", "self.other, self.dim = True, dim\n        ").replace(
                "= dim, scale", "= scale"
            )
        },
    )
    assert not hasattr(config.build(node, (my_conf,)), "other")
    assert config.build(node, (other,)).other


def test_nested_nodes_and_runtime_arguments(my_conf: Path) -> None:
    write(
        my_conf,
        {
            "my_projector.py": (
                "from torch import nn\n\nclass Mine(nn.Module):\n"
                "    def __init__(self, encoder_width: int, llm_width: int, activation: nn.Module, sizes: list[int]):\n"
                "        super().__init__()\n"
                "        self.all = (encoder_width, llm_width, activation, sizes)\n"
            ),
            "projector/mine.yaml": "_target_: my_projector.Mine\nsizes: [1]\nactivation: {_target_: torch.nn.ELU}\n",
        },
    )
    composed = compose("projector=mine", "+projector.activation.alpha=0.5", config_dir=my_conf)
    built = config.build(composed.tree["projector"], composed.plugin_folders, encoder_width=3, llm_width=4, seed=0)
    assert built.all[:2] == (3, 4)
    assert built.all[2].alpha == 0.5
    assert built.all[3] == [1]


def test_an_optimizer_of_torch(my_conf: Path) -> None:
    import torch

    write(my_conf, {"optimizer/sgd.yaml": "_target_: torch.optim.SGD\nlr: 0.1\n"})
    composed = compose(
        "experiment=null", "train.max_steps=1", "optimizer=sgd", "optimizer.momentum=0.9", config_dir=my_conf
    )
    built = config.build(composed.tree["optimizer"], parameters=[torch.nn.Parameter(torch.zeros(1))])
    assert built.param_groups[0]["momentum"] == 0.9


def test_shared_settings_and_own_arguments() -> None:
    node = compose().tree["data"]
    assert config.section(node, runner_settings.Data).over_length == "error"
    assert config.own_arguments(node, runner_settings.Data) == {
        "_target_": "runner.data.digits.Digits",
        "val_share": 0.2,
    }


def test_a_secret_is_resolved_but_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_API_KEY", "very-secret")
    composed = config.compose("train", ["tracker=comet"])
    assert composed.tree["tracker"]["comet"]["api_key"] == "very-secret"
    assert "very-secret" not in composed.saved
    assert "${oc.env:COMET_API_KEY,null}" in composed.saved


def test_what_is_saved_can_be_read_back() -> None:
    composed = compose("name=a: ${b}", "seed=3")
    saved = OmegaConf.create(composed.saved)
    assert OmegaConf.to_container(saved, resolve=True) == composed.tree
    assert "hydra" not in saved


def test_a_projector_for_one_modality(my_conf: Path) -> None:
    both = ("encoder/audio=spectrogram", "projector/audio=perceiver", "projector.audio.tokens=3")
    tree = compose("projector=linear", *both).tree["projector"]
    assert tree["_target_"].endswith("Linear") and "tokens" not in tree
    assert tree["audio"]["_target_"].endswith("Perceiver") and tree["audio"]["tokens"] == 3
    assert "audio" not in compose(both[0], "projector/audio=null").tree["projector"]
    for sign in ("", "+", "++"):
        assert compose(f"{sign}projector/image=linear").tree["projector"]["image"]["_target_"].endswith("Linear")


def test_an_experiment_may_give_one_modality_a_projector(tmp_path: Path) -> None:
    defaults = "[/projector@projector.audio: linear, override /encoder/audio: spectrogram]"
    text = f"# @package _global_\ndefaults: {defaults}\ntrain: {{max_steps: 3}}\n"
    folder = write(tmp_path, {"experiment/mine.yaml": text})
    assert compose("experiment=mine", config_dir=folder).tree["projector"]["audio"]["_target_"].endswith("Linear")
    other = compose("experiment=mine", "projector/audio=mlp", config_dir=folder)
    assert other.tree["projector"]["audio"]["_target_"].endswith("Mlp")
    assert "audio" not in compose("experiment=mine", "projector/audio=null", config_dir=folder).tree["projector"]
