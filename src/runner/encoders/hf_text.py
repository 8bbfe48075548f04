"""Any text encoder of transformers, with the tokenizer of its folder.

Shapes: N texts, T tokens, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from runner import pretrained
from runner.encoders.loaded import LoadedEncoder
from runner.protocols import Mistake, Tokens

NO_LIMIT = 1_000_000
"""Tokenizers that know of no limit say 1e30."""


@dataclass(frozen=True)
class FolderPreprocess:
    """A text to `input_ids` int64 [T], with the special tokens that the model was trained on."""

    tokenizer: Any
    """None where shapes alone are built, and no text is read."""
    max_length: int | None
    over_length: Literal["error", "truncate"]

    def __call__(self, text: str) -> dict[str, Tensor]:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if self.max_length is not None and len(ids) > self.max_length:
            if self.over_length == "error":
                raise Mistake(
                    f"it has {len(ids)} tokens, more than the {self.max_length} that encoder.text takes; shorten it, "
                    "or keep the beginning of such texts (encoder.text.over_length=truncate)."
                )
            ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        if not ids:
            raise Mistake("it gives no token; leave the field out or write null.")
        return {"input_ids": torch.tensor(ids, dtype=torch.long, device="cpu")}


class HfText(LoadedEncoder):
    """A text encoder of transformers: BERT's kind, the encoder of T5's kind, the text tower of CLIP's."""

    option = "encoder/text=hf_text"

    def __init__(
        self,
        path: str,
        architecture: Mapping[str, Any] | None,
        trainable: bool,
        dtype: Literal["float32", "bfloat16", "float16"],
        pool: Literal["none", "mean", "cls"],
        max_length: Annotated[int, Ge(2)] | None,
        over_length: Literal["error", "truncate"],
    ) -> None:
        tokenizer = None if architecture is not None and pretrained.shapes_alone() else read_tokenizer(path)
        self.first_is_class = tokenizer is None or begins_with_class(tokenizer)
        example = torch.zeros(1, 1, dtype=torch.long)
        if tokenizer is not None:
            example = FolderPreprocess(tokenizer, None, "error")("An example.")["input_ids"].unsqueeze(0)
        super().__init__("text", path, trainable, dtype, pool, {"input_ids": example}, architecture)
        if tokenizer is not None:
            self.check_embeds(tokenizer)
        longest = longest_text(self.model, tokenizer)
        if longest is not None and max_length is not None and max_length > longest:
            raise Mistake(f"encoder.text.max_length={max_length}: the model takes {longest} tokens. Lower it.")
        self.preprocess = FolderPreprocess(tokenizer, max_length or longest, over_length)
        self.pad_id = getattr(tokenizer, "pad_token_id", None) or 0

    def check_embeds(self, tokenizer: Any) -> None:
        """Raises `Mistake` for a tokenizer with ids that the model does not embed."""
        embedding = self.model.get_input_embeddings()
        rows = embedding.num_embeddings if embedding is not None else len(tokenizer)
        if len(tokenizer) > rows:
            raise Mistake(
                f"encoder.text.path={self.path}: the tokenizer has {len(tokenizer)} tokens and the model's embedding "
                f"only {rows}. They do not belong together; take both from one folder."
            )

    def has_class_token(self) -> bool:
        return self.first_is_class

    def forward(self, input_ids: Tensor, input_ids_lengths: Tensor | None = None) -> Tokens:
        """input_ids int64 [N, T] -> [N, T, E]; T is 1 with `pool`"""
        if input_ids_lengths is None:
            return self.pooled(self.run(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)), None)
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < input_ids_lengths.unsqueeze(1)
        # RoBERTa's kind counts positions by the padding's own id, which batches do not know.
        input_ids = input_ids.masked_fill(~mask, self.pad_id)
        return self.pooled(self.run(input_ids=input_ids, attention_mask=mask.long()), mask)


def read_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return pretrained.read("encoder.text.path", path, "a tokenizer", AutoTokenizer.from_pretrained)


def begins_with_class(tokenizer: Any) -> bool:
    """Whether a text's first token is the class token."""
    first = int(FolderPreprocess(tokenizer, None, "error")("a")["input_ids"][0])
    return tokenizer.cls_token_id is not None and first == tokenizer.cls_token_id


def longest_text(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model takes, by its positions and its tokenizer, if there is one; None where neither says so."""
    limit = NO_LIMIT if tokenizer is None else tokenizer.model_max_length
    limits = [int(limit)] if limit < NO_LIMIT else []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "position_embedding"):
            rows = getattr(module, "num_embeddings", None)
            if rows is not None:  # RoBERTa's kind counts from after the padding's id
                limits.append(rows if module.padding_idx is None else rows - module.padding_idx - 1)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        limits.append(int(positions))
    return min(limits, default=None)
