"""Small text encoders with tokenizers of their own, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.?!,"


def letter_tokenizer(special: dict[str, str], first: str | None, last: str, **options: Any) -> Any:
    """A token a letter, between the special tokens `first` and `last`; ids as in `special`, then the letters'."""
    tokens = [*special.values(), *LETTERS]
    backend = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}" if first else f"$A {last}",
        special_tokens=[(token, tokens.index(token)) for token in (first, last) if token],
    )
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **special, **options)


BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def bert_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    tf.BertForMaskedLM(tf.BertConfig(**SHAPE, vocab_size=80, max_position_embeddings=64)).save_pretrained(folder)
    letter_tokenizer(BERT, "[CLS]", "[SEP]").save_pretrained(folder)
    return folder
