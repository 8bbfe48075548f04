"""Gemma 3n from the layout in which it is published: its text tower alone, with the embeddings of every layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_runs import PICTURES, SHORT, losses, write_rows
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

import runner
from runner.fusion.interleave import Interleave
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.head_check import check_head
from runner.models.language_model import LanguageModel
from runner.models.llm import Pretrained
from runner.models.lora import Lora
from runner.protocols import IGNORED, Batch, Decoding, Mistake, Stream, Tokens

SHAPE = {
    "vocab_size": 264,
    "vocab_size_per_layer_input": 259,  # as published, fewer than the vocabulary: the last ids have none of their own
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "max_position_embeddings": 256,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
OTHER_TOWERS = ("vision_tower.timm_model.conv_stem.conv.weight", "audio_tower.conformer.0.norm.weight",
                "embed_vision.embedding.weight", "embed_audio.soft_embedding_norm.weight")  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Gemma3nForCausalLM:
    torch.manual_seed(0)
    model = Gemma3nForCausalLM(Gemma3nTextConfig(**SHAPE)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            stds = {"embed_tokens_per_layer": 0.5, "embed_tokens": 0.1}  # for answers of many tokens
            torch.nn.init.normal_(parameter, std=stds.get(name.split(".")[1], 0.4))
        elif "correct_output_scale" in name:
            torch.nn.init.normal_(parameter)  # zeros at first, which shut the embeddings of the layers out
    return model


@pytest.fixture(scope="module")
def folder(reference: Gemma3nForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: the text tower below model.language_model, the head tied, other towers beside it, and keys and
    values also for the layers that share those of others."""
    place = tmp_path_factory.mktemp("gemma3n")
    tensors = {
        name.replace("model.", "model.language_model.", 1): one.clone()
        for name, one in reference.state_dict().items()
        if name != "lm_head.weight"
    }
    for layer in (2, 3):
        for name in ("k_proj", "v_proj"):
            tensors[f"model.language_model.layers.{layer}.self_attn.{name}.weight"] = torch.zeros(16, 32)
        tensors[f"model.language_model.layers.{layer}.self_attn.k_norm.weight"] = torch.ones(8)
    tensors |= {f"model.{name}": torch.full((3, 3), torch.nan) for name in OTHER_TOWERS}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "text_config": reference.config.to_dict() | {"dtype": "float32"},
        "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc"},
        "audio_config": {"model_type": "gemma3n_audio"},
        "tie_word_embeddings": True,
    }
    (place / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(place)
    return place


def source(folder: Path, checkpointing: bool = False) -> Pretrained:
    return Pretrained(str(folder), "float32", False, None, None, checkpointing)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LanguageModel:
    return LanguageModel(source(folder).load().eval(), {})


def test_the_text_tower_is_read_alone_and_whole(
    folder: Path, reference: Gemma3nForCausalLM, capfd: pytest.CaptureFixture[str]
) -> None:
    model = source(folder).load()
    assert type(model) is Gemma3nForCausalLM and source(folder).width() == 32 and source(folder).max_length() == 256
    theirs = reference.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(one, theirs[name]) for name, one in model.state_dict().items())
    assert "vision_tower" not in "".join(capfd.readouterr())
    check_head(LanguageModel(model, {"model.safetensors": "hash"}))
    with torch.device("meta"):
        assert source(folder).skeleton().num_parameters() == reference.num_parameters()


def test_the_tower_saved_alone_is_read_too(reference: Gemma3nForCausalLM, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    again = source(tmp_path).load().state_dict()
    assert all(torch.equal(one, again[name]) for name, one in reference.state_dict().items())


@pytest.mark.parametrize(
    ("gone", "there", "said"),
    [
        ("model.language_model.layers.1.laurel.linear_left.weight", None, "lacks 1 of the model's tensors"),
        (None, "model.language_model.layers.9.mlp.up_proj.weight", "1 tensors belong to no tower"),
    ],
)
def test_a_tensor_that_is_missing_or_of_no_tower_is_told(
    folder: Path, tmp_path: Path, gone: str | None, there: str | None, said: str
) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: one for name, one in tensors.items() if name != gone} | ({there: torch.zeros(2)} if there else {})
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Mistake, match=said) as told:
        source(tmp_path).load()
    assert str(gone or there).removeprefix("model.language_model.") in str(told.value)


IDS = torch.tensor([[7, 260, 70, 71, 200, 33, 12, 258, 90, 91, 5, 6, 17]])


def test_embeddings_in_give_what_ids_give(llm: LanguageModel, reference: Gemma3nForCausalLM) -> None:
    by_id = reference(input_ids=IDS).logits[0]
    everywhere, embeddings = torch.arange(IDS.shape[1]), llm.embed(IDS)
    assert (llm.logits_at(everywhere, inputs_embeds=embeddings, input_ids=IDS) - by_id).abs().max() <= 1e-6
    lost = reference(inputs_embeds=embeddings).logits[0]
    assert (lost - by_id).abs().max() > 0.1, "what is held against is that the layers' embeddings matter"
    with pytest.raises(Mistake, match="Gemma3nForCausalLM embeds tokens in every layer, so it needs the ids"):
        llm.logits_at(everywhere, inputs_embeds=embeddings)


def test_an_item_has_the_id_0_in_every_layer(llm: LanguageModel, reference: Gemma3nForCausalLM) -> None:
    """As in the family's own model of several towers, where an item's tokens lie outside the layers' table."""
    text = llm.embed(IDS)
    labels = IDS.clone()
    batch = Batch(["a"], IDS, labels, [IDS.shape[1]], {"image": Stream({}, [(0, 4, 0)])}, [], [1.0])
    item = Tokens(torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)), torch.ones(1, 3, dtype=torch.bool))
    fused = Interleave()(text, batch, {"image": item}, "right")
    assert fused.input_ids.tolist() == [[*IDS[0, :4].tolist(), *[IGNORED] * 3, *IDS[0, 4:].tolist()]]
    ids = torch.where(fused.input_ids == IGNORED, 0, fused.input_ids)
    own = reference(inputs_embeds=fused.embeddings, per_layer_inputs=reference.model.get_per_layer_inputs(ids)).logits[
        0
    ]
    everywhere = torch.arange(ids.shape[1])
    ours = llm.logits_at(everywhere, inputs_embeds=fused.embeddings, input_ids=fused.input_ids)
    assert (ours - own).abs().max() <= 1e-6


def padded(llm: LanguageModel, rows: list[Tensor], kind: str) -> dict[str, Tensor]:
    """Prompts as generation takes them, padded on the left: by ids, or by embeddings with the ids beside them."""
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    if kind == "ids":
        return {"input_ids": ids, "attention_mask": mask}
    beside = torch.where(mask == 1, ids, IGNORED)
    return {"inputs_embeds": llm.embed(ids), "input_ids": beside, "attention_mask": mask}


def test_greedy_answers_are_the_same_in_every_way(llm: LanguageModel) -> None:
    rows = [IDS[0, :length] for length in (4, 9, 13)]
    expected = [llm.generate(Decoding(7), [], 0, **padded(llm, [row], "ids"))[0] for row in rows]
    assert len({tuple(answer) for answer in expected}) == 3 and len(set(sum(expected, []))) > 9
    for kind in ("ids", "embeddings"):
        for use_cache in (True, False):
            decoding = Decoding(7, use_cache=use_cache)
            alone = [llm.generate(decoding, [], 0, **padded(llm, [row], kind))[0] for row in rows]
            assert alone == expected, (kind, use_cache)
            assert llm.generate(decoding, [], 0, **padded(llm, rows, kind)) == expected, (kind, use_cache)


def test_lora_sits_on_every_layer_that_is_called(folder: Path) -> None:
    lora = Lora(r=2, alpha=4, dropout=0.0, target_modules="all-linear", use_rslora=False, use_dora=False, init=None)
    llm = LanguageModel(lora.apply(source(folder).load()).train(), {})
    assert "altup_projections.0" in llm.model.peft_config["default"].target_modules
    llm.loss_sum(IDS, inputs_embeds=llm.embed(IDS), input_ids=IDS).backward()
    without = [n for n, one in llm.named_parameters() if "lora_B" in n and (one.grad is None or not one.grad.any())]
    # The last layer corrects predictions that nothing reads.
    assert [name for name in without if ".layers.3." not in name] == []


LORA = ["lora=default", "lora.r=4"]


@pytest.mark.parametrize(
    "more",
    [
        ["model=instruct", *PICTURES, *LORA, "llm.gradient_checkpointing=true"],
        pytest.param(["model=instruct", *PICTURES, "fusion=interleave", "llm.trainable=false"], marks=pytest.mark.zoo),
        pytest.param(["model=chat", *LORA, "data.extra=[image]"], marks=pytest.mark.zoo),
        pytest.param(["model=chat", *LORA, "data.extra=[image]", "quantization=nf4"], marks=pytest.mark.zoo),
        pytest.param(["model=chat", *LORA, "data.extra=[image]", "quantization=int8"], marks=pytest.mark.zoo),
    ],
    ids=lambda words: "-".join(word.partition("=")[2] for word in words if "extra" not in word),
)
def test_it_trains_by_the_command_line(folder: Path, tmp_path: Path, more: list[str]) -> None:
    words = [*SHORT, f"data.path={write_rows(tmp_path / 'data')}", "llm=pretrained", f"llm.path={folder}"]
    words += [*more, "train.max_steps=8", f"hydra.run.dir={tmp_path}/run"]
    summary = runner.train(words)
    # A projector alone finds less to change than adapters in the model do.
    assert losses(tmp_path / "run")[-1] < (0.6 if "lora=default" in more else 0.95) * losses(tmp_path / "run")[0]
    assert summary["parameters"]["by_component"]["llm"]["trainable"] == 0
