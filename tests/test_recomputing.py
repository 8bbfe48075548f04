"""Gradient checkpointing: each decoder layer and its hooks run again in the backward pass, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_runs import PICTURES, SHORT, lines_of, write_rows
from torch import Tensor, nn
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer

import runner
from runner.models.freeze import keep_frozen
from runner.models.llm import LanguageModel
from runner.models.lora import Lora
from runner.models.recomputing import recompute_layers
from runner.protocols import Decoding, Mistake

SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.2}  # fmt: skip
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, attention_dropout=0.3)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=4, n_head=4)),  # with dropout
    "gemma3n": lambda: Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **SHAPE,
            vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
            head_dim=8,
            laurel_rank=4,
            altup_num_inputs=2,
            num_kv_shared_layers=2,
            activation_sparsity_pattern=[0.0] * 4,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    ),
}
IDS = (torch.arange(40) * 7 % 90 + 3).reshape(2, 20)


class Task(nn.Module):
    """A language model behind a projector, whose vectors come before the text's."""

    def __init__(self, family: str, adapter: bool, recomputes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = FAMILIES[family]()
        if adapter:
            lora = Lora(4, 8, 0.2, "all-linear", False, False, None)
            self.llm = LanguageModel(lora.apply(model), {})
        else:
            self.llm = LanguageModel(model.requires_grad_(False), {})
        self.projector = nn.Linear(8, 32)
        if recomputes:
            recompute_layers(self.llm)
        self.calls: Counter[str] = Counter()
        for name, layer in self.llm.named_modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.register_forward_pre_hook(self.counted(name))
        keep_frozen(self)
        self.train()

    def counted(self, name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.calls[name] += 1

        return hook

    def loss(self) -> Tensor:
        torch.manual_seed(1)
        items = self.projector(torch.linspace(-1, 1, 48).reshape(2, 3, 8))
        ids = torch.cat([torch.full((2, 3), -100), IDS], dim=1)
        embeddings = torch.cat([items, self.llm.embed(IDS)], dim=1)
        return self.llm.loss_sum(ids, inputs_embeds=embeddings, input_ids=ids)

    def gradients(self) -> dict[str, Tensor]:
        loss = self.loss()
        self.forwards = dict(self.calls)
        loss.backward()
        found = {name: one.grad for name, one in self.named_parameters() if one.grad is not None}
        return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_their_hooks_run_twice_and_gradients_are_the_same(family: str, adapter: bool) -> None:
    plain, task = Task(family, adapter, False), Task(family, adapter, True)
    expected, found = plain.gradients(), task.gradients()
    assert len(task.calls) == 4 and set(task.forwards.values()) == {1}
    assert set(plain.calls.values()) == {1} and set(task.calls.values()) == {2}
    assert found.keys() == expected.keys() and "projector.weight" in found
    assert any("lora_" in name for name in found) == adapter
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "frozen"])
def test_dropout_of_a_frozen_model_stays_off_and_that_of_adapters_on(adapter: bool) -> None:
    task = Task("gpt2", adapter, True)
    before = float(task.loss())
    for layer in task.llm.modules():
        if isinstance(layer, nn.Dropout) and layer.p == 0.1:
            layer.p = 0.9  # the family's own, of modules without parameters
    if not adapter:
        assert float(task.loss()) == before
    task.eval()
    evaluated = float(task.loss())
    assert (evaluated == before) == (not adapter)


def test_an_evaluation_is_unaffected() -> None:
    plain, task = Task("qwen2", True, False).eval(), Task("qwen2", True, True).eval()
    prompt = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        assert torch.equal(task.loss(), plain.loss())
    assert set(task.calls.values()) == {1}
    for use_cache in (True, False):
        decoding = Decoding(6, use_cache=use_cache)
        assert task.llm.generate(decoding, [], 0, **prompt) == plain.llm.generate(decoding, [], 0, **prompt)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(task: Task) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task.loss()
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(Task("qwen2", False, True)) < 0.5 * kept(Task("qwen2", False, False))


def test_a_family_that_cannot_is_told() -> None:
    config = OpenAIGPTConfig(vocab_size=97, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    with pytest.raises(Mistake, match="cannot compute the layers of OpenAIGPTLMHeadModel again. Set it to false"):
        recompute_layers(LanguageModel(OpenAIGPTLMHeadModel(config), {}))


@pytest.mark.parametrize(
    "more",
    [["lora=default", "lora.r=2", "lora.dropout=0.2"], pytest.param([], marks=pytest.mark.zoo)],
    ids=["lora", "whole"],
)
def test_a_run_has_the_same_curve(tmp_path: Path, more: list[str]) -> None:
    data = write_rows(tmp_path / "data")
    words = [*SHORT, *PICTURES, *more, "model=instruct", f"data.path={data}", "train.max_steps=3", "train.eval_every=2"]
    words += ["llm.hidden_size=32", "llm.intermediate_size=64", "encoder.image.dropout=0.1"]
    for recomputes in ("false", "true"):
        runner.train([*words, f"llm.gradient_checkpointing={recomputes}", f"hydra.run.dir={tmp_path / recomputes}"])
    assert lines_of(tmp_path / "true") == lines_of(tmp_path / "false")
