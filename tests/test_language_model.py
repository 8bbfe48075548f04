"""The head at labelled positions gives each family's own loss; a family whose loss is another is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.freeze import keep_frozen
from runner.models.head_check import check_head
from runner.models.language_model import LanguageModel
from runner.models.llm import Pretrained
from runner.models.lora import Lora
from runner.protocols import IGNORED, Decoding, Fault, Mistake

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # large enough for soft caps and scales to matter
}
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=3.0, attn_logit_softcapping=2.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, final_logit_softcapping=3.0)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0, embedding_multiplier=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.5)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_at_labelled_positions_is_the_families_own(family: str) -> None:
    model = model_of(family)
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 97, (3, 20), generator=generator)
    labels = input_ids.clone()
    labels[torch.rand(3, 20, generator=generator) < 0.6] = IGNORED
    labels[0, :] = IGNORED  # a row with nothing to learn
    labels[1, 0] = input_ids[1, 0]  # a label that nothing predicts
    mask = torch.ones_like(input_ids)
    mask[2, 15:] = 0
    labels[2, 15:] = IGNORED

    own = model(input_ids=input_ids, attention_mask=mask, labels=labels)
    own.loss.backward()
    own_gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    count = int((labels[:, 1:] != IGNORED).sum())
    loss = LanguageModel(model, {}).loss_sum(labels, input_ids=input_ids, attention_mask=mask) / count
    loss.backward()

    assert abs(float(loss) - float(own.loss)) <= 1e-5
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, own_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_at_build_passes_the_family(family: str) -> None:
    check_head(LanguageModel(model_of(family), {"model.safetensors": "hash"}))


def test_embeddings_in_give_the_same_loss_as_ids() -> None:
    llm = LanguageModel(model_of("gemma3"), {})  # scales its embeddings
    input_ids = torch.arange(3, 23).unsqueeze(0)
    by_id = llm.loss_sum(input_ids, input_ids=input_ids)
    by_embedding = llm.loss_sum(input_ids, inputs_embeds=llm.embed(input_ids))
    assert abs(float(by_id) - float(by_embedding)) <= 1e-5


class TwiceQwen2(Qwen2ForCausalLM):
    def forward(self, *arguments, **named):  # type: ignore[no-untyped-def]
        output = super().forward(*arguments, **named)
        output.loss = None if output.loss is None else 2 * output.loss
        return output


def test_a_family_with_another_loss_is_refused_by_name() -> None:
    torch.manual_seed(0)
    with pytest.raises(Fault, match="TwiceQwen2"):
        check_head(LanguageModel(TwiceQwen2(Qwen2Config(**SHAPE)), {"model.safetensors": "hash"}))


def test_a_model_that_looks_ahead_is_refused_by_name() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(Mistake, match="in BertLMHeadModel a token sees those that come after it"):
        check_head(LanguageModel(BertLMHeadModel(config), {"model.safetensors": "hash"}))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", b"", "no causal language model could be read (Error while deserializing header"),
        ("model.safetensors", b"\xff" * 1000, "no causal language model could be read (Error while deserializing"),
        ("model.safetensors", None, "no causal language model could be read (Error while deserializing"),
        ("config.json", b"{", "config.json' is not a valid JSON file"),
        ("config.json", b'{"model_type": "mobilenet_v1"}', "a mobilenet_v1 model is no causal language model"),
        ("config.json", b'{"model_type": "vit", "hidden_size": 32}', "no causal language model could be read"),
        ("tokenizer.json", b"{", "no tokenizer could be read"),
        ("tokenizer_config.json", b"[]", "no tokenizer could be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_told(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    model_of("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    place = tmp_path / file
    place.write_bytes(place.read_bytes()[:5000] if content is None else content)
    source = Pretrained(str(tmp_path), "float32", True, None, None, False)
    with pytest.raises(Mistake) as raised:
        source.tokenizer(), source.width(), source.load()
    assert str(raised.value).startswith(f"llm.path={tmp_path}: ")
    assert said in str(raised.value)


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    model = model_of("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(Mistake, match="model.layers.0.mlp.up_proj.weight holds NaN or infinity"):
        Pretrained(str(tmp_path), "float32", True, None, None, False).load()


def test_greedy_answers_in_a_batch_are_those_one_by_one() -> None:
    llm = LanguageModel(model_of("llama"), {})
    rows = [torch.arange(3, 3 + length) for length in (4, 9, 13)]
    alone = [
        llm.generate(
            Decoding(12), [5], 0, input_ids=row.unsqueeze(0), attention_mask=torch.ones(1, len(row), dtype=torch.long)
        )[0]
        for row in rows
    ]
    width = max(map(len, rows))
    input_ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    assert llm.generate(Decoding(12), [5], 0, input_ids=input_ids, attention_mask=mask) == alone
    embeddings = llm.embed(input_ids)
    assert llm.generate(Decoding(12), [5], 0, inputs_embeds=embeddings, attention_mask=mask) == alone


def test_answers_are_greedy_whatever_the_folder_says(tmp_path: Path) -> None:
    model = model_of("llama")
    prompt = {"input_ids": torch.arange(3, 9).unsqueeze(0), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    greedy = LanguageModel(model, {}).generate(Decoding(12), [], 0, **prompt)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = None
    model.save_pretrained(tmp_path)
    again = LanguageModel(Pretrained(str(tmp_path), "float32", True, None, None, False).load().eval(), {})
    assert again.generate(Decoding(12), [], 0, **prompt) == greedy


class Frozen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
        self.head = torch.nn.Linear(4, 4)


def test_what_is_frozen_stays_in_evaluation_mode() -> None:
    model = Frozen()
    model.part.requires_grad_(False)
    keep_frozen(model)
    model.train()
    assert model.head.training and not any(module.training for module in model.part.modules())
    before = model.part[1].running_mean.clone()
    x = torch.randn(8, 4)
    assert torch.equal(model.part(x), model.part(x)) and torch.equal(model.part[1].running_mean, before)


def lora(
    targets: str | list[str],
    init: str | None = None,
    r: int = 4,
    dropout: float = 0.0,
    rs: bool = False,
    do: bool = False,
) -> Lora:
    return Lora(r=r, alpha=8, dropout=dropout, target_modules=targets, use_rslora=rs, use_dora=do, init=init)


def test_lora_trains_adapters_alone_and_changes_nothing_at_first() -> None:
    model = model_of("qwen2")
    input_ids = torch.arange(3, 23).unsqueeze(0)
    before = model(input_ids).logits
    adapted = lora(["q_proj", "v_proj"]).apply(model)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        name for name, _ in adapted.named_parameters() if "lora_" in name
    }
    torch.testing.assert_close(adapted(input_ids).logits, before)


def test_a_lora_target_that_matches_nothing_is_told_with_the_nearest_name() -> None:
    with pytest.raises(Mistake, match="lora.target_modules: q_porj matches no module .* did you mean q_proj"):
        lora(["q_porj", "v_proj"]).apply(model_of("qwen2"))


def test_a_lora_target_that_cannot_be_adapted_is_told() -> None:
    with pytest.raises(Mistake, match="self_attn matches only Qwen2Attention, which LoRA cannot adapt"):
        lora(["self_attn"]).apply(model_of("qwen2"))


def test_lora_starts_from_a_saved_adapter(tmp_path) -> None:  # type: ignore[no-untyped-def]
    adapted = lora(["q_proj"]).apply(model_of("qwen2"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    adapted.save_pretrained(tmp_path)
    again = lora(["q_proj"], init=str(tmp_path), dropout=0.25).apply(model_of("qwen2"))
    saved = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert saved
    for name, parameter in again.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, saved[name])
            assert parameter.requires_grad
    assert {module.p for module in again.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    with pytest.raises(Mistake, match="r=4, the config 8. Set lora.r=4"):
        lora(["q_proj"], init=str(tmp_path), r=8).apply(model_of("qwen2"))


@pytest.mark.parametrize(("rs", "do"), [(True, False), (False, True), (True, True)])
def test_rslora_and_dora_are_pefts(rs: bool, do: bool) -> None:
    adapted = lora(["q_proj"], rs=rs, do=do).apply(model_of("qwen2"))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == (8 / 4**0.5 if rs else 8 / 4)
    magnitudes = [one for name, one in adapted.named_parameters() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == (2 if do else 0) and all(one.requires_grad for one in magnitudes)
    if do:  # the norm of each output's weights, at first
        torch.testing.assert_close(magnitudes[0], layer.base_layer.weight.norm(dim=1))


def test_an_adapter_to_start_from_is_of_the_same_variant(tmp_path: Path) -> None:
    lora(["q_proj"], do=True).apply(model_of("qwen2")).save_pretrained(tmp_path)
    again = lora(["q_proj"], init=str(tmp_path), do=True).apply(model_of("qwen2"))
    assert any("lora_magnitude_vector" in name for name, one in again.named_parameters() if one.requires_grad)
    with pytest.raises(Mistake, match="use_dora=true, the config false. Set lora.use_dora=true"):
        lora(["q_proj"], init=str(tmp_path)).apply(model_of("qwen2"))
    with pytest.raises(Mistake, match="use_rslora=false, the config true. Set lora.use_rslora=false"):
        lora(["q_proj"], init=str(tmp_path), rs=True, do=True).apply(model_of("qwen2"))
    lora(["q_proj"], rs=True).apply(model_of("qwen2")).save_pretrained(tmp_path / "rs")
    scaled = lora(["q_proj"], init=str(tmp_path / "rs"), rs=True).apply(model_of("qwen2"))
    assert scaled.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 4.0


def test_an_answer_names_its_label_and_no_other() -> None:
    from runner.models.instruct import Instruct
    from runner.protocols import Prediction

    answers = {
        "It is a cat; a CAT meows.": ("cat", True), "It is a dog.": ("cat", False), "A cat or a dog.": ("dog", False),
        "Concatenate.": ("cat", False), "dog": ("dog", True), "": ("bird", False),
    }  # fmt: skip
    rows = [Prediction(str(k), "", said, said, label=label) for k, (said, (label, _)) in enumerate(answers.items())]
    counting = Instruct.__new__(Instruct)
    for names, expected in ((("exact_match", "label_named"), 2 / 6), (("exact_match",), None)):
        object.__setattr__(counting, "metric_names", names)
        found = Instruct.metrics(counting, rows)
        assert found["exact_match"] == 1.0 and found.get("label_named") == expected
