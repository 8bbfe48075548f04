"""Fusion inside the language model: at first as if it were not there, and never reading an item before its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from runner.build import skeleton
from runner.config import compose
from runner.fusion.inside import CrossAttention, Film, Inside
from runner.fusion.token_mixture import TokenMixture
from runner.inventory import components_of
from runner.models.language_model import LanguageModel
from runner.models.llm import Tiny
from runner.models.lora import Lora
from runner.models.recomputing import recompute_layers
from runner.protocols import IGNORED, Batch, Mistake, Stream, Tokens

WIDTH, TOKENS = 16, 3


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(Tiny(WIDTH, 32, 4, 2, 1, 64, 0.2, None, False).load(None).eval(), {})


def batch_of() -> tuple[Batch, dict[str, Tokens]]:
    """Three rows: an image before token 1 and a sound before token 4; a sound before token 0; nothing."""
    torch.manual_seed(1)
    lengths = [7, 4, 5]
    input_ids = torch.randint(3, 90, (3, 7))
    labels = torch.full_like(input_ids, IGNORED)
    places = {"image": [(0, 1, 0)], "audio": [(0, 4, 1), (1, 0, 0)]}
    streams = {
        name: Tokens(torch.randn(len(some), TOKENS, WIDTH), torch.ones(len(some), TOKENS, dtype=torch.bool))
        for name, some in places.items()
    }
    streams["audio"].mask[1, -1] = False
    batch = Batch(list("abc"), input_ids, labels, lengths, {k: Stream({}, v) for k, v in places.items()}, [], [1.0] * 3)
    return batch, streams


def opened(fusion: Inside) -> None:
    """Gates open and weights random, as after training."""
    torch.manual_seed(2)
    for name, parameter in fusion.named_parameters():
        if "gate" in name or "scale_and_shift" in name:
            nn.init.normal_(parameter, std=0.5)


def build(kind: str, llm: LanguageModel, every: int = 1) -> Inside:
    torch.manual_seed(3)
    fusion: Inside
    if kind == "film":
        fusion = Film(WIDTH, ["image", "audio"], every, None)
    else:
        fusion = CrossAttention(WIDTH, ["image", "audio"], every, 2, None, 0.0)
    fusion.attach(llm)
    return fusion.eval()


def logits(llm: LanguageModel, fusion: Inside, batch: Batch, streams: dict[str, Tokens]) -> Tensor:
    fused = fusion(llm.embed(batch.input_ids), batch, streams, "right")
    given = {"attention_mask": fused.attention_mask, "position_ids": fused.position_ids, "use_cache": False}
    out: Tensor = llm.model(inputs_embeds=fused.embeddings, **given).logits
    return out


def without_fusion(llm: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The language model's own logits, and where the text is no padding."""
    mask = (torch.arange(7) < torch.tensor(batch.lengths).unsqueeze(1)).long()
    return llm.model(inputs_embeds=llm.embed(batch.input_ids), attention_mask=mask).logits, mask


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_at_first_the_logits_are_the_language_models_own_to_the_last_bit(kind: str) -> None:
    llm = language_model()
    batch, streams = batch_of()
    alone, mask = without_fusion(llm, batch)
    fusion = build(kind, llm)
    assert torch.equal(logits(llm, fusion, batch, streams)[mask == 1], alone[mask == 1])
    opened(fusion)
    changed = (logits(llm, fusion, batch, streams) != alone).any(2)
    assert changed[0].tolist() == [False] + [True] * 6, "a token reads the items before it, and no later ones"
    assert changed[1, :4].all() and not changed[2, :5].any(), "a row without an item is the language model's alone"


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_a_token_reads_the_items_before_it_alone(kind: str) -> None:
    llm = language_model()
    batch, streams = batch_of()
    fusion = build(kind, llm, every=2)
    assert len(fusion.layers) == 2
    opened(fusion)
    with torch.no_grad():
        before = logits(llm, fusion, batch, streams)
        later = streams["audio"].features.clone()
        later[0] += 1.0
        after = logits(llm, fusion, batch, {**streams, "audio": Tokens(later, streams["audio"].mask)})
        changed = (after != before).any(2)
        assert changed[0].tolist() == [False] * 4 + [True] * 3 and not changed[1:].any()
        padded = streams["audio"].features.clone()
        padded[1, -1] += 1.0
        assert torch.equal(
            logits(llm, fusion, batch, {**streams, "audio": Tokens(padded, streams["audio"].mask)}), before
        )


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_what_goes_on_from_the_cache_reads_all_items(kind: str) -> None:
    llm = language_model()
    batch, streams = batch_of()
    fusion = build(kind, llm)
    opened(fusion)
    with torch.no_grad():
        fused = fusion(llm.embed(batch.input_ids), batch, streams, "left")
        given = {"inputs_embeds": fused.embeddings, "attention_mask": fused.attention_mask}
        given["position_ids"] = fused.position_ids
        first = llm.model(**given, use_cache=True)
        token = torch.tensor([[5], [6], [7]])
        mask = torch.cat([fused.attention_mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        positions = fused.position_ids[:, -1:] + 1
        cached = llm.model(
            input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=first.past_key_values
        ).logits[:, -1]
        fusion(llm.embed(batch.input_ids), batch, streams, "left")  # nothing kept
        whole = llm.model(
            inputs_embeds=torch.cat([fused.embeddings, llm.embed(token)], dim=1),
            attention_mask=mask,
            position_ids=torch.cat([fused.position_ids, positions], dim=1),
        ).logits[:, -1]
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)


def test_lora_adapts_the_same_layers_with_it_and_without() -> None:
    words = ["lora=default", "lora.target_modules=all-linear", "encoder/audio=spectrogram"]
    counts = {
        fusion: next(
            one
            for one in components_of(skeleton(compose("show", [*words, f"fusion={fusion}", "show.part=parameters"])))
            if one.name == "lora"
        )
        for fusion in ("prefix", "cross_attention", "film")
    }
    assert counts["prefix"] == counts["cross_attention"] == counts["film"]
    assert counts["prefix"].trainable > 0


def test_layers_that_are_too_few_or_of_another_shape_are_refused() -> None:
    llm = language_model()
    with pytest.raises(Mistake, match=r"fusion.every=5: the language model has 4 layers"):
        Film(WIDTH, ["image"], 5, None).attach(llm)
    fusion = build("film", llm)
    batch, streams = batch_of()
    fusion(llm.embed(batch.input_ids), batch, streams, "right")
    with pytest.raises(Mistake, match="nothing can work inside them. Choose a fusion at the input"):
        llm.layers[0](torch.zeros(2, 3, 7, WIDTH))


def test_a_mixture_of_tokens_lies_among_the_embeddings() -> None:
    llm = language_model()
    batch, streams = batch_of()
    fusion = TokenMixture(WIDTH, 1000.0)
    fusion.attach(llm)
    nn.init.ones_(fusion.norm.weight)
    words = llm.embedding.weight.detach()
    wanted = torch.tensor([[11, 12, 13]])
    mixed = fusion.mixture(10 * words[wanted] - (10 * words[wanted]).mean(2, keepdim=True))
    centred = nn.functional.layer_norm(words[wanted], (WIDTH,))
    nearest = (nn.functional.normalize(centred, dim=2) @ nn.functional.normalize(words, dim=1).T).argmax(2)
    torch.testing.assert_close(mixed, words[nearest], rtol=0.2, atol=0.05)
    soft = TokenMixture(WIDTH, 0.001)
    soft.attach(llm)
    torch.testing.assert_close(soft.mixture(streams["image"].features)[0, 0], words.mean(0), rtol=1e-2, atol=1e-3)
    assert not [name for name, _ in fusion.named_parameters() if "embedding" in name]


def gradients(kind: str, recomputes: bool) -> tuple[dict[str, Tensor], list[int]]:
    """Of the fusion, of LoRA and of the items, and how often each of the fusion's layers was called."""
    llm = language_model()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        llm = LanguageModel(Lora(2, 4, 0.0, "all-linear", False, False, None).apply(llm.model), {})
    if recomputes:
        recompute_layers(llm)
    fusion = build(kind, llm)
    opened(fusion)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    batch, streams = batch_of()
    for one in streams.values():
        one.features.requires_grad_()
    calls = [0] * len(fusion.layers)
    for k, layer in enumerate(fusion.layers):
        layer.register_forward_pre_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    logits(llm, fusion.train(), batch, streams).float().logsumexp(2).sum().backward()
    found = {name: one.grad for part in (fusion, llm) for name, one in part.named_parameters() if one.requires_grad}
    return found | {name: one.features.grad for name, one in streams.items()}, calls


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_layers_that_are_computed_again_give_the_same_gradients(kind: str) -> None:
    kept, once = gradients(kind, recomputes=False)
    again, twice = gradients(kind, recomputes=True)
    assert once == [1] * 4 and twice == [2] * 4
    assert kept.keys() == again.keys() and len(kept) > 30
    for name, one in kept.items():
        assert one is not None and one.abs().max() > 0, name
        torch.testing.assert_close(again[name], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_a_batch_without_items_is_the_language_models_alone_whatever_came_before(kind: str) -> None:
    llm = language_model()
    batch, streams = batch_of()
    alone, mask = without_fusion(llm, batch)
    fusion = build(kind, llm)
    opened(fusion)
    assert not torch.equal(logits(llm, fusion, batch, streams)[mask == 1], alone[mask == 1])
    assert torch.equal(logits(llm, fusion, replace(batch, streams={}), {})[mask == 1], alone[mask == 1])


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_the_side_of_the_padding_changes_nothing(kind: str) -> None:
    llm = language_model()
    batch, streams = batch_of()
    fusion = build(kind, llm)
    opened(fusion)
    with torch.no_grad():
        right = logits(llm, fusion, batch, streams)
        fused = fusion(llm.embed(batch.input_ids), batch, streams, "left")
        given = {"attention_mask": fused.attention_mask, "position_ids": fused.position_ids, "use_cache": False}
        left = llm.model(inputs_embeds=fused.embeddings, **given).logits
    for row, length in enumerate(batch.lengths):
        torch.testing.assert_close(left[row, -length:], right[row, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cross_attention", "film"])
def test_no_token_reads_what_is_padding_of_an_item(kind: str) -> None:
    """Neither in the text nor after it."""
    llm = language_model()
    batch, streams = batch_of()
    fusion = build(kind, llm)
    opened(fusion)
    padded = streams["audio"].features.clone()
    padded[1, -1] += 5.0
    found = []
    for features in (streams["audio"].features, padded):
        fusion(llm.embed(batch.input_ids), batch, {**streams, "audio": Tokens(features, streams["audio"].mask)}, "left")
        with torch.no_grad():
            text = torch.arange(27).reshape(3, 9) % 7 + 3  # two tokens more than the text was
            found.append(llm.model(inputs_embeds=llm.embed(text), use_cache=False).logits)
    assert torch.equal(*found)


def test_a_mixture_has_the_length_of_words_where_embeddings_are_scaled() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = {"vocab_size": 97, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma3TextConfig(**shape, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)
    llm = LanguageModel(Gemma3ForCausalLM(config).eval(), {})
    fusion = TokenMixture(WIDTH, 1e4)
    fusion.attach(llm)
    wanted = torch.tensor([[11, 12]])
    with torch.no_grad():
        mixed = fusion.mixture(llm.embedding.weight[wanted] * 100)
        words = llm.embed(torch.arange(97))
    assert min((words - one).norm(dim=1).min() for one in mixed[0]) < 1e-3 * words.norm(dim=1).mean()
