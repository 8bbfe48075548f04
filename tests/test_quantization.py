"""Adapters on a language model in 8 or 4 bits (QLoRA), on a CPU: trained, checkpointed, resumed and used."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from chat_runs import PICTURES, SHORT, lines_of, losses, write_rows
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import runner
from runner import combinations
from runner.checkpoint import Local
from runner.cli import main
from runner.config import compose
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.freeze import keep_frozen
from runner.models.head_check import check_head
from runner.models.language_model import LanguageModel
from runner.models.llm import Pretrained
from runner.models.lora import Lora
from runner.models.quantization import Int8, Nf4, Quantization, each_position_alone, prepared
from runner.protocols import Mistake

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 264, "pad_token_id": 0, "initializer_range": 0.1}  # fmt: skip
OPTIONS: dict[str, Quantization] = {"int8": Int8(6.0), "nf4": Nf4(True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    for layer in model.model.layers:  # some inputs above LLM.int8()'s threshold, which it treats apart
        layer.input_layernorm.weight.data.fill_(2.0)
        layer.post_attention_layernorm.weight.data.fill_(2.0)
    model.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def load(folder: Path, option: str, dtype: Any = "float32") -> Any:
    return Pretrained(str(folder), dtype, False, None, None, False).load(OPTIONS[option])


def adapted(model: Any) -> Any:
    torch.manual_seed(0)
    return Lora(4, 8, 0.0, "all-linear", False, False, None).apply(model)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_layers_are_quantised_and_the_rest_is_frozen_in_float32(folder: Path, option: str, dtype: str) -> None:
    model = load(folder, option, dtype)
    kind = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}[option]
    quantised = {name for name, one in model.named_modules() if isinstance(one, kind)}
    assert len(quantised) == 14 and not any("lm_head" in name for name in quantised)
    for name, one in model.named_parameters():
        assert not one.requires_grad
        packed = name.removesuffix(".weight") in quantised
        assert one.dtype == ({"int8": torch.int8, "nf4": torch.uint8}[option] if packed else torch.float32), name
    if option == "nf4":
        assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested
        assert model.model.layers[0].mlp.up_proj.compute_dtype == getattr(torch, dtype)
        single = Pretrained(str(folder), "float32", False, None, None, False).load(Nf4(False))
        assert not single.model.layers[0].mlp.up_proj.weight.quant_state.nested


@pytest.mark.parametrize("option", OPTIONS)
def test_the_check_at_build_passes_quantised_models_with_no_more_tolerance(folder: Path, option: str) -> None:
    """Measured over three families, two widths and three scales of weights: the loss differs by 3e-7 at most, and
    logits of a position by nothing once LLM.int8() looks for outliers in each position alone (by 0.4 otherwise)."""
    llm = LanguageModel(adapted(load(folder, option)).eval(), {"model.safetensors": "hash"})
    check_head(llm)
    ids = (torch.arange(32) * 7 % 264).unsqueeze(0)
    other = torch.cat([ids[:, :16], ids[:, 16:].flip(1)], dim=1)
    with torch.no_grad():
        depends = (llm.model(ids).logits - llm.model(other).logits)[:, :16].abs().max()
        with each_position_alone(llm.model):
            alone = (llm.model(ids).logits - llm.model(other).logits)[:, :16].abs().max()
    assert alone == 0 and (depends > 1e-4) == (option == "int8")
    thresholds = {one.state.threshold for one in llm.model.modules() if isinstance(one, bitsandbytes.nn.Linear8bitLt)}
    assert thresholds == ({6.0} if option == "int8" else set())


class SeesAll(LlamaForCausalLM):
    """Its attention has no mask."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        length = named["input_ids"].shape[1]
        named["attention_mask"] = torch.zeros(1, 1, length, length)
        return super().forward(*arguments, **named)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_quantised_model_that_looks_ahead_is_refused(option: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    SeesAll(LlamaConfig(**SHAPE | {"initializer_range": 0.02})).save_pretrained(tmp_path)
    arguments = OPTIONS[option].arguments(torch.float32, LlamaConfig())
    model = SeesAll.from_pretrained(tmp_path, dtype=torch.float32, **arguments)
    assert model.is_quantized
    with pytest.raises(Mistake, match="in SeesAll a token sees those that come after it"):
        check_head(LanguageModel(prepared(model), {"model.safetensors": "hash"}))


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_that_are_not_finite_are_told(option: str, tmp_path: Path) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(Mistake, match="NaN or infinity"):
        check_head(LanguageModel(load(tmp_path, option), {"model.safetensors": "hash"}))


@pytest.mark.parametrize("option", OPTIONS)
def test_adapters_learn_the_same_after_an_evaluation(folder: Path, option: str) -> None:
    """Bitsandbytes has kernels without a gradient for evaluation on a CPU, and would keep to them."""
    model = adapted(load(folder, option))
    keep_frozen(model)
    llm = LanguageModel(model.train(), {})
    ids = (torch.arange(24) * 5 % 264).unsqueeze(0)

    def gradients() -> dict[str, torch.Tensor]:
        llm.zero_grad()
        llm.loss_sum(ids, input_ids=ids).backward()
        return {name: one.grad.clone() for name, one in llm.named_parameters() if one.requires_grad}

    before = gradients()
    assert all(bool(one.any()) for name, one in before.items() if "lora_B" in name)
    llm.eval()
    with torch.no_grad():
        evaluated = llm.loss_sum(ids, input_ids=ids)
    llm.train()
    with torch.no_grad():
        assert torch.equal(llm.loss_sum(ids, input_ids=ids), evaluated)
    after = gradients()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


def test_a_folder_that_is_quantised_already_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    load(folder, "nf4").save_pretrained(tmp_path)
    source = Pretrained(str(tmp_path), "float32", True, None, None, False)
    layer = source.load().model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit) and not layer.support_avx512bf16_for_cpu
    with pytest.raises(Mistake, match="is quantised already. Set quantization=none"):
        source.load(OPTIONS["int8"])


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them at once, before anything is built."""
    found = importlib.util.find_spec
    monkeypatch.setattr(combinations, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(Mistake) as told:
        compose("train", ["model=chat", "train.max_steps=1", "quantization=nf4"])
    assert "quantization: the weights of llm=tiny are drawn, so there is no file to quantise" in str(told.value)
    assert "quantization: weights that are quantised cannot train, and there is no adapter" in str(told.value)
    assert "pip install 'multimodal-runner[quantization]'" in str(told.value)


def weights_of(run: Path) -> str:
    last, _ = Local().newest(run)
    assert last is not None
    both = [(last / f"{name}.safetensors").read_bytes() for name in ("trainable", "optimizer")]
    return hashlib.sha256(b"".join(both)).hexdigest()


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("nf4", ["model=chat", "data.extra=[image]"]),
        pytest.param("int8", ["model=chat", "data.extra=[image]"], marks=pytest.mark.zoo),
        pytest.param("nf4", ["model=instruct", *PICTURES, "llm.gradient_checkpointing=true"], marks=pytest.mark.zoo),
        pytest.param("nf4", ["model=chat", "data.extra=[image]", "llm.dtype=bfloat16", "precision=bf16",
                             "lora.use_dora=true", "lora.use_rslora=true"], marks=pytest.mark.zoo),
    ],
)  # fmt: skip
def test_a_run_learns_keeps_its_adapter_resumes_exactly_and_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, more: list[str]
) -> None:
    data = write_rows(tmp_path / "data")
    words = [*SHORT, *more, f"data.path={data}", "llm=pretrained", f"llm.path={folder}", f"quantization={option}"]
    words += ["lora=default", "lora.r=4", "lora.dropout=0.1", "checkpoint.every=3", "train.eval_every=3"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    summary = runner.train([*words, "train.max_steps=8", f"hydra.run.dir={whole}"])
    assert losses(whole)[-1] < 0.7 * losses(whole)[0]
    assert re.search(r"^lora .*\n(  \w+_proj +2 modules .*\n){7}all ", (whole / "train.log").read_text(), re.MULTILINE)
    whole_size = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).num_parameters()
    assert summary["parameters"]["by_component"]["llm"] == {"trainable": 0, "frozen": whole_size}

    last, _ = Local().newest(whole)
    assert last is not None
    saved = Local().load(last).trainable
    adapters = {name for name in saved if name.startswith("llm.")}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if "lora.use_dora=true" in more else set())
    assert len(adapters) == 2 * len(layers) * len(kinds)
    assert {part for name in adapters for part in name.split(".") if part.startswith("lora_")} == kinds
    others = {"encoder", "projector"} if "model=instruct" in more else set()
    assert {name.split(".")[0] for name in saved} == {"llm", *others}

    runner.train([*words, "train.max_steps=4", f"hydra.run.dir={parted}"])
    runner.train([*words, "train.max_steps=8", f"hydra.run.dir={parted}", f"resume={parted}"])
    assert lines_of(parted)[-1] == lines_of(whole)[-1]
    assert weights_of(parted) == weights_of(whole)

    assert main(["evaluate", f"run={whole}", "at=last"]) == 0
    shown = capsys.readouterr().out
    assert f"{summary['last']['val/loss']:.4f}" in shown
    ask = ["generate", f"run={whole}", "prompt=Dark or light?"]
    assert main([*ask, *([f"image={data}/1.png"] if "model=instruct" in more else [])]) == 0
    shown_image = {"image": f"{data}/1.png"} if "model=instruct" in more else {}
    answer = runner.Predictor.from_run(whole)(prompt="Dark or light?", **shown_image)
    assert capsys.readouterr().out == f"{answer}\n"
