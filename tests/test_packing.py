"""Packing: rows as one sequence in which none sees another, with the loss and gradients that they have side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from chat_runs import PICTURES, SHORT, lines_of, losses, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoders_series import waves
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import runner
from runner.build import build
from runner.config import compose
from runner.evaluate_run import evaluate_run
from runner.models.attention import BY_DOCUMENT, DocumentMasks, attention_of, set_attention
from runner.models.language_model import LanguageModel
from runner.models.lora import Lora
from runner.models.packing import check_packing, packed
from runner.models.recomputing import recompute_layers
from runner.protocols import IGNORED, Mistake

# Positions end before the packed sequence does, and windows before the longest document.
SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24,
         "initializer_range": 0.1, "pad_token_id": 0}  # fmt: skip
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "head_dim": 8}
FAMILIES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **WINDOWS)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **WINDOWS)),
    "gemma3n": lambda: Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **SHAPE,
            **WINDOWS,
            vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            altup_num_inputs=2,
            num_kv_shared_layers=0,
            activation_sparsity_pattern=[0.0] * 2,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=24)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
}
ATTENTIONS = ("eager", "sdpa", BY_DOCUMENT)
WITHOUT_SDPA = ("gemma2",)
LENGTHS = (9, 20, 1, 14)


def language_model(family: str, attention: str | None, packing: bool = True) -> LanguageModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    set_attention(model, attention, packing)
    return LanguageModel(model, {})


def rows(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels and ids of documents of LENGTHS, padded."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, mask.shape, generator=chance)
    return ids.masked_fill(mask == 0, IGNORED), {"input_ids": ids * mask, "attention_mask": mask}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def hold_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and any(one.abs().max() > 0 for one in expected.values())
    largest = max(float(torch.linalg.vector_norm(one)) for one in expected.values())
    for name, one in expected.items():
        assert float(torch.linalg.vector_norm(found[name] - one)) <= 1e-6 * largest, name


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_document_sees_another_and_loss_and_gradients_are_those_side_by_side(family: str, attention: str) -> None:
    if family in WITHOUT_SDPA and attention != "eager":
        with pytest.raises(Mistake, match=f"llm.attention={attention}: Gemma2ForCausalLM does not have it.*=eager"):
            language_model(family, attention)
        return
    llm = language_model(family, attention)
    assert attention_of(llm.base) == attention
    labels, padded = rows()
    learnt, inputs = packed(labels, padded)
    positions = torch.arange(sum(LENGTHS))
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    with torch.no_grad():
        before = llm.logits_at(positions, **inputs)
        for document in range(len(LENGTHS)):
            other = torch.where(owner == document, inputs["input_ids"].roll(1) % 89 + 3, inputs["input_ids"])
            after = llm.logits_at(positions, **(inputs | {"input_ids": other}))
            assert torch.equal(after[owner != document], before[owner != document])
            assert not torch.equal(after[owner == document], before[owner == document])
    apart, together = llm.loss_sum(labels, **padded), llm.loss_sum(learnt, **inputs)
    assert float(together.detach()) == pytest.approx(float(apart.detach()), rel=1e-6)
    hold_gradients(gradients(llm, together), gradients(llm, apart))


def test_each_document_is_attended_to_alone_with_its_own_mask() -> None:
    llm = language_model("gemma3", None)
    assert attention_of(llm.base) == BY_DOCUMENT
    assert attention_of(language_model("gemma3", None, packing=False).base) == "sdpa"
    seen: list[Any] = []
    for layer in llm.layers:
        layer.register_forward_pre_hook(lambda _, given, named: seen.append(named["attention_mask"]), with_kwargs=True)
    labels, padded = rows()
    learnt, inputs = packed(labels, padded)
    with torch.no_grad():
        llm.loss_sum(learnt, **inputs)
        llm.loss_sum(labels, **padded)
    sliding, full, *side_by_side = seen
    assert isinstance(sliding, DocumentMasks) and isinstance(full, DocumentMasks)
    assert sliding.lengths == full.lengths == LENGTHS
    assert full.masks == (None,) * 4, "the plain causal kernel"
    shapes = [None if one is None else tuple(one.shape[2:]) for one in sliding.masks]
    assert shapes == [(9, 9), (20, 20), None, (14, 14)]
    assert all(isinstance(one, Tensor) and one.shape[0] == 4 for one in side_by_side), "a padded batch is as ever"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_layout_keeps_what_is_there_and_nothing_else(data: st.DataObject) -> None:
    """Also where padding stands between an item's tokens and the text."""
    width = data.draw(st.integers(1, 7))
    row = st.lists(st.booleans(), min_size=width, max_size=width).filter(any)
    mask = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=4))).long()
    values = torch.arange(mask.numel()).reshape(mask.shape)
    embeddings = values.unsqueeze(2).float() * torch.ones(2)
    given_inputs = {"input_ids": values, "inputs_embeds": embeddings, "attention_mask": mask, "position_ids": values}
    labels, inputs = packed(values, given_inputs)
    assert inputs.keys() == {"input_ids", "inputs_embeds", "position_ids"}
    there = [one[seen == 1] for one, seen in zip(values, mask, strict=True)]
    assert inputs["input_ids"].tolist() == [torch.cat(there).tolist()]
    assert torch.equal(inputs["inputs_embeds"][0, :, 0].long(), inputs["input_ids"][0])
    assert inputs["position_ids"].tolist() == [[k for one in there for k in range(len(one))]]
    assert labels.tolist() == [[IGNORED if k == 0 else int(one[k]) for one in there for k in range(len(one))]]


def test_adapters_and_layers_that_are_computed_again_are_the_same_packed() -> None:
    torch.manual_seed(0)
    model = FAMILIES["qwen2"]()
    llm = LanguageModel(Lora(4, 8, 0.0, "all-linear", False, False, None).apply(model), {})
    set_attention(llm.base, None, True)
    for name, one in llm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(one, std=0.1)
    labels, padded = rows()
    expected = gradients(llm, llm.loss_sum(labels, **padded))
    recompute_layers(llm)
    learnt, inputs = packed(labels, padded)
    hold_gradients(gradients(llm, llm.loss_sum(learnt, **inputs)), expected)


REFUSED: Mapping[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "mamba": (
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4)
        ),
        r"MambaForCausalLM with llm.attention=\w+ does not keep packed rows apart",
    ),
    "convolution": (
        lambda: Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])),
        "Lfm2ForCausalLM with llm.attention=sdpa_by_document does not keep packed rows apart",
    ),
    "masks of its own": (
        lambda: OPTForCausalLM(
            OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
                      word_embed_proj_dim=32, max_position_embeddings=64)
        ),
        "OPTForCausalLM with llm.attention=sdpa_by_document does not keep packed rows apart",
    ),
    "experts, who read all their tokens in one product": (
        lambda: MixtralForCausalLM(MixtralConfig(**SHAPE)),
        "MixtralForCausalLM with llm.attention=sdpa_by_document does not keep packed rows apart",
    ),
    "attention of its own": (
        lambda: FalconForCausalLM(
            FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        ),
        "llm.attention=sdpa_by_document: FalconForCausalLM does not have it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_in_which_a_row_sees_another_is_refused_by_name(kind: str) -> None:
    make, sentence = REFUSED[kind]
    torch.manual_seed(0)
    model = make()
    with pytest.raises(Mistake, match=sentence):
        set_attention(model, None, True)
        check_packing(LanguageModel(model, {}))
    assert model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_keep_rows_apart_pass(family: str) -> None:
    llm = language_model(family, None)
    assert attention_of(llm.base) == ("eager" if family in WITHOUT_SDPA else BY_DOCUMENT)
    check_packing(llm)


def test_flash_attention_that_is_not_here_is_told() -> None:
    with pytest.raises(Mistake, match=r"flash_attention_2 needs an NVIDIA GPU .* flash-attn.*llm.attention=null"):
        language_model("qwen2", "flash_attention_2")


def with_series(folder: Path) -> Path:
    """Rows of chat_runs with a series each, of unequal lengths, so that an item's last tokens are padding."""
    file = write_rows(folder) / "train.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for k, line in enumerate(lines):
        line["series"] = waves(2, 40 + 24 * (k % 3), seed=k)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


SERIES = ["encoder/series=series_patch", *(f"encoder.series.{one}" for one in ("hidden_size=16", "layers=1", "heads=2",
          "dropout=0", "channels=2"))]  # fmt: skip
FUSED = {
    "interleave": ["fusion=interleave", *SERIES],
    "perceiver": ["fusion=perceiver", "fusion.heads=2", *SERIES],
    "prefix": ["fusion=prefix", *SERIES],
    "gated": ["fusion=gated", *SERIES],
    "token_mixture": ["fusion=token_mixture", "lora=default", *SERIES],
    "chat": ["model=chat", "data.extra=[image,series]"],
}


@pytest.mark.parametrize("name", FUSED)
def test_an_objective_has_the_same_loss_and_gradients_packed(name: str, tmp_path: Path) -> None:
    data = with_series(tmp_path / "data") / "train.jsonl"
    pictures = [] if name == "chat" else PICTURES
    words = [*SHORT, *pictures, *FUSED[name], f"data.path={data}", "train.max_steps=1", "data.packing=true"]
    parts = build(compose("train", words), None, tracks=False)
    objective = cast(nn.Module, parts.objective).eval()
    batch = parts.collate(parts.splits["train"].examples[:5])
    assert batch.packed
    sizes: list[tuple[int, ...]] = []
    layer = cast(Any, objective).llm.layers[0]
    layer.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[:2])))
    found = {}
    for packing in (True, False):
        step = objective(replace(batch, packed=packing))
        loss = step.terms["loss"].sum
        found[packing] = float(loss.detach()), gradients(objective, loss)
    (rows_packed, tokens), (rows_apart, longest) = sizes
    assert (rows_packed, rows_apart) == (1, 5) and tokens < 5 * longest, "padding of text and of items is left out"
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    hold_gradients(found[True][1], found[False][1])


@pytest.mark.parametrize(
    "more", [["model=instruct", "fusion=interleave", *PICTURES], ["model=chat"]], ids=["pictures", "chat"]
)
def test_a_run_has_the_same_curve_and_answers(more: list[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data")
    words = [*SHORT, *more, "data=jsonl", f"data.path={data}", "train.max_steps=5", "train.micro_batch_size=2"]
    words += ["optimizer.lr=1e-3", *(["data.extra=[image]"] if more == ["model=chat"] else [])]
    for packing in ("true", "false"):
        runner.train([*words, f"data.packing={packing}", f"hydra.run.dir={tmp_path / packing}"])
    for one, other in zip(lines_of(tmp_path / "true"), lines_of(tmp_path / "false"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one.get("exact_match") == other.get("exact_match")
        assert one.get("grad_norm", 0.0) == pytest.approx(other.get("grad_norm", 0.0), rel=1e-5)
    again = evaluate_run(
        compose("evaluate", [f"run={tmp_path}/true", f"data.path={data}", "at=last", "llm.attention=eager"])
    )
    assert again["metrics"]["val/loss"] == pytest.approx(lines_of(tmp_path / "false")[-1]["loss"], rel=1e-6)
    padded = losses(tmp_path / "false")
    runner.train([*words, "data.packing=true", "train.max_steps=6", f"resume={tmp_path}/false"])
    assert losses(tmp_path / "false")[:-1] == padded, "it goes on, packed"


@pytest.mark.zoo
@pytest.mark.parametrize("fusion", ["prefix", "interleave", "gated", "perceiver", "token_mixture"])
def test_twenty_steps_have_the_same_curve(fusion: str, tmp_path: Path) -> None:
    words = ["tracker=none", f"fusion={fusion}", "train.max_steps=20", "train.log_every=1", "evaluation.predict_rows=0"]
    words += ["checkpoint.monitor=val/loss", "checkpoint.mode=min"]
    for packing in ("true", "false"):
        runner.train([*words, f"data.packing={packing}", f"hydra.run.dir={tmp_path / packing}"])
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fusion=cross_attention"], "data.packing: the fusion CrossAttention works inside the language model"),
        (["fusion=film"], "data.packing: the fusion Film works inside the language model"),
        (["model=classify"], "data.packing: model=classify has no language model"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(words: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=sentence):
        build(compose("train", ["tracker=none", *words, "train.max_steps=1", "data.packing=true"]), None, tracks=False)


PLUGINS = """
from dataclasses import replace

from runner.fusion.prefix import Prefix
from runner.models.instruct import Instruct

class SideBySide(Instruct):
    packs = False

class FromOne(Prefix):
    def forward(self, *given):
        fused = super().forward(*given)
        return replace(fused, position_ids=fused.position_ids + 1)

class Attached(Prefix):
    def attach(self, llm):
        pass
"""


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model._target_=late.SideBySide"], "data.packing: SideBySide learns from rows side by side only"),
        (["fusion=late", "fusion._target_=late.FromOne"], "fusion gave position_ids that do not count .* from 0"),
        (["fusion=late"], "data.packing: the fusion Attached works inside the language model"),
    ],
)
def test_parts_from_outside_that_cannot_be_packed_are_told(words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "conf" / "fusion").mkdir(parents=True)
    (tmp_path / "conf" / "late.py").write_text(PLUGINS)
    (tmp_path / "conf" / "fusion" / "late.yaml").write_text("_target_: late.Attached\n")
    words = ["tracker=none", *words, "train.max_steps=1", "data.packing=true"]
    with pytest.raises(Mistake, match=sentence):
        build(compose("train", words, tmp_path / "conf"), None, tracks=False)
