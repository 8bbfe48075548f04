"""Published language models by name: their architecture without a file, and held against the file when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from runner.cli import main
from runner.config import CONF, compose
from runner.models.architecture import check_agrees, of_path
from runner.models.llm import Pretrained
from runner.protocols import Mistake
from runner.show import show

PARAMETERS = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "llama3_2_1b": 1_235_814_400,
    "smollm2_135m": 134_515_008,
    "gemma3n_e2b": 4_435_182_688,
}
WIDTHS = {"qwen2_5_0_5b": 896, "qwen2_5_1_5b": 1536, "llama3_2_1b": 2048, "smollm2_135m": 576, "gemma3n_e2b": 2048}


def preset(name: str) -> Pretrained:
    node = yaml.safe_load((CONF / f"llm/{name}.yaml").read_text(encoding="utf-8"))
    assert node.pop("_target_") == "runner.models.llm.Pretrained"
    return Pretrained(**node)


def test_every_preset_is_held_against_its_published_number() -> None:
    assert {file.stem for file in (CONF / "llm").glob("*.yaml")} == {*PARAMETERS, "tiny", "pretrained"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name: str, no_network: list[Any]) -> None:
    source = preset(name)
    with torch.device("meta"):
        model = source.skeleton()
    assert model.num_parameters() == PARAMETERS[name]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert source.width() == WIDTHS[name] == model.get_input_embeddings().weight.shape[1]
    assert source.max_length() == model.config.max_position_embeddings and not source.trainable
    assert no_network == []


def test_gemma3n_has_the_embeddings_of_a_larger_model() -> None:
    """What else is published with it: keys and values of the ten layers that use those of others, and other towers."""
    with torch.device("meta"):
        model = preset("gemma3n_e2b").skeleton().model
    assert model.embed_tokens.weight.numel() + model.embed_tokens_per_layer.weight.numel() == 2_550_661_120
    assert [layer.self_attn.is_kv_shared_layer for layer in model.layers] == [False] * 20 + [True] * 10
    assert [layer.mlp.activation_sparsity for layer in model.layers] == [0.95] * 10 + [0.0] * 20


def test_a_preset_is_shown_without_network_tokenizer_or_data(
    no_network: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=chat", "llm=qwen2_5_0_5b", "lora=default", "show.part=parameters"]
    shown = show(compose("show", words))
    assert shown == {
        "llm": {"trainable": 0, "frozen": 494_032_768},
        "lora": {"trainable": 8_798_208, "frozen": 0},
    }
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["q_proj"] == ["24", "modules", "688,128", "0"]
    names = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert sum(int(rows[name][2].replace(",", "")) for name in names) == 8_798_208
    assert main(["show", *words, "lora.target_modules=[q_proj,layers.3.self_attn.v_proj]"]) == 0
    out = capsys.readouterr().out.split()
    assert out[out.index("layers.3.self_attn.v_proj") :][1:4] == ["1", "module", "16,384"]
    assert no_network == []


SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(Qwen2Config(**SHAPE)).save_pretrained(place)
    return place


def source(folder: Path, **changed: Any) -> Pretrained:
    return Pretrained(str(folder), "float32", False, {"model_type": "qwen2", **SHAPE, **changed}, None, False)


def test_weights_of_the_same_architecture_are_read(folder: Path) -> None:
    assert source(folder).load().num_parameters() == Qwen2ForCausalLM(Qwen2Config(**SHAPE)).num_parameters()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_hidden_layers": 3}, "llm.architecture.num_hidden_layers is 3 and the config of llm.path={path} says 2"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "llm.architecture.rope_parameters is "),
        ({"model_type": "llama"}, "llm.architecture.model_type is llama and the config of llm.path={path} says qwen2"),
    ],
)
def test_another_architecture_is_told_with_key_values_and_way_out(folder: Path, changed: Any, said: str) -> None:
    with pytest.raises(Mistake) as told:
        source(folder, **changed).load()
    assert str(told.value).startswith(said.format(path=folder))
    assert f"Set llm=pretrained llm.path={folder}" in str(told.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hiden_size": 32}, "llm.architecture.hiden_size: a qwen2 config has no such field; did you mean hidden_size"),
        ({"model_type": "qwem2"}, "llm.architecture: "),
        ({"hidden_size": "wide"}, "llm.architecture: "),
    ],
)
def test_fields_that_are_no_architecture_are_told(changed: Any, said: str) -> None:
    with pytest.raises(Mistake) as told:
        source(Path("nowhere"), **changed).width()
    assert str(told.value).startswith(said), str(told.value)


QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "max_position_embeddings": 32768, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "use_sliding_window": False, "vocab_size": 151936}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
         "rms_norm_eps": 1e-05, "mlp_bias": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}  # fmt: skip
PUBLISHED = {
    "qwen2_5_0_5b": QWEN | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
                            "num_hidden_layers": 24, "max_window_layers": 21},
    "qwen2_5_1_5b": QWEN | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
                            "num_hidden_layers": 28, "max_window_layers": 21},
    "llama3_2_1b": LLAMA | {
        "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_theta": 500000.0,
        "vocab_size": 128256, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3"}},
    "smollm2_135m": LLAMA | {
        "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "vocab_size": 49152},
    "gemma3n_e2b": {
        "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "hidden_size": 2048,
        "audio_config": {"model_type": "gemma3n_audio"}, "vision_config": {"model_type": "gemma3n_vision"},
        "text_config": {
            "model_type": "gemma3n_text", "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
            "altup_active_idx": 0, "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_num_inputs": 4,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2048, "hidden_size_per_layer_input": 256, "intermediate_size": [8192] * 30,
            "laurel_rank": 64, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
            "max_position_embeddings": 32768, "num_attention_heads": 8, "num_hidden_layers": 30,
            "num_key_value_heads": 2, "num_kv_shared_layers": 10, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
            "torch_dtype": "bfloat16", "vocab_size": 262400, "vocab_size_per_layer_input": 262144}},
}  # fmt: skip
"""What decides the shapes in the published config.json, in the words that it was published in."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_agrees_with_the_published_config(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    fields = preset(name).architecture
    assert fields is not None
    check_agrees(str(tmp_path), of_path(str(tmp_path)), fields)
    with torch.device("meta"):
        model = Pretrained(str(tmp_path), "float32", False, None, None, False).skeleton()
    assert model.num_parameters() == PARAMETERS[name]
