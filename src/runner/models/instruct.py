"""Learn to answer in text: encoders and projectors feed a causal language model; the assistant's turns are learnt.

Without an encoder it is plain chat fine-tuning. Shapes: B rows, L text tokens, N items, T tokens an item, E an
encoder's width, D the language model's width, M merged tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from runner.models.language_model import LanguageModel
from runner.models.packing import packed
from runner.models.projected import check_names, projected, projector_counts, projector_terms
from runner.protocols import (
    IGNORED,
    Batch,
    Decoding,
    Encoder,
    Fused,
    InputFusion,
    Prediction,
    Projector,
    Step,
    Term,
    Tokens,
)


class Instruct(nn.Module):
    """aligner: the run of model=align whose encoders and projectors come first, frozen; aligner_width: of its space.
    Both say how the encoders that come in here are made. label_named: whether answers are also held against the rows'
    labels, in whatever words they name them."""

    splits_exactly = True
    packs = True

    def __init__(
        self,
        llm: LanguageModel,
        encoders: Mapping[str, Encoder],
        projectors: Mapping[str, Projector],
        fusion: InputFusion | None,
        chat: Any,
        max_new_tokens: Annotated[int, Ge(1)],
        aligner: str | None,
        aligner_width: Annotated[int, Ge(1)],
        label_named: bool,
    ) -> None:
        super().__init__()
        self.metric_names = ("exact_match", "label_named") if label_named else ("exact_match",)
        check_names(projectors, ("loss",))
        self.encoder = nn.ModuleDict(cast(Mapping[str, nn.Module], encoders))
        self.projector = nn.ModuleDict(cast(Mapping[str, nn.Module], projectors))
        self.fusion = fusion
        self.llm = llm
        self.chat = chat
        self.decoding = Decoding(max_new_tokens)

    def counts(self, batch: Batch) -> dict[str, float]:
        """The labelled tokens; and of each part of the loss of the projectors' own, the items."""
        labelled = float((batch.labels[:, 1:] != IGNORED).sum())
        return {"loss": labelled} | projector_counts(self.projector, batch)

    def forward(self, batch: Batch) -> Step:
        labels, inputs, streams = self.reads(batch)
        loss = self.llm.loss_sum(labels, **{name: self._move(one) for name, one in inputs.items()})
        return Step({"loss": Term(loss)} | projector_terms(self.projector, streams, batch, self._device))

    def reads(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Mapping[str, Tokens]]:
        """What the language model learns a batch from: labels [B, M] and the inputs of `LanguageModel.loss_sum`, [1, S]
        where the batch is packed; and the items' tokens that went into the fusion."""
        streams: Mapping[str, Tokens] = {}
        if self.fusion is None:
            labels = batch.labels
            lengths = torch.tensor(batch.lengths).unsqueeze(1)
            mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
            inputs = {"input_ids": batch.input_ids, "attention_mask": mask}
        else:
            streams = self._streams(batch)
            fused = self._fuse(batch, streams, "right")
            labels = fused.labels
            inputs = {
                "input_ids": fused.input_ids,
                "inputs_embeds": fused.embeddings,
                "attention_mask": fused.attention_mask,
                "position_ids": fused.position_ids,
            }
        if batch.packed:
            labels, inputs = packed(labels, inputs)
        return labels, inputs, streams

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers to a batch of prompts, by `decoding`."""
        if self.fusion is None:
            inputs = {
                name: self._move(tensor)
                for name, tensor in left_padded(batch, self.chat.tokenizer.pad_token_id).items()
            }
        else:
            fused = self._fuse(batch, self._streams(batch), "left")
            inputs = {
                "input_ids": self._move(fused.input_ids),
                "inputs_embeds": fused.embeddings,
                "attention_mask": fused.attention_mask,
            }
        ends, pad_id = self.chat.end_of_turn_ids, self.chat.tokenizer.pad_token_id
        answers = self.llm.generate(self.decoding, ends, pad_id, **inputs)
        return [
            Prediction(
                id=row.id,
                prompt=next((message.content for message in reversed(row.messages) if message.role == "user"), ""),
                answer=self.chat.tokenizer.decode(answer, skip_special_tokens=True).strip(),
                truth=self.chat.truth(row),
                items=row.items,
                label=None if row.label is None else str(row.label),
            )
            for row, answer in zip(batch.rows, answers, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The share of answers that are the row's own, and of rows with a label the share of answers that name it and
        no other row's, in whatever words."""
        shares = {"exact_match": [one.answer == str(one.truth).strip() for one in predictions if one.truth is not None]}
        if "label_named" in self.metric_names:
            labelled = [one for one in predictions if one.label is not None]
            labels = {str(one.label) for one in labelled}
            named = [{label for label in labels if names(one.answer, label)} for one in labelled]
            shares["label_named"] = [found == {one.label} for found, one in zip(named, labelled, strict=True)]
        return {name: sum(right) / len(right) for name, right in shares.items() if right}

    def _streams(self, batch: Batch) -> dict[str, Tokens]:
        return projected(self.encoder, self.projector, batch, self._device)

    def _fuse(self, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]) -> Fused:
        assert self.fusion is not None
        return self.fusion(self.llm.embed(self._move(batch.input_ids)), batch, streams, side)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    @property
    def _device(self) -> torch.device:
        return self.llm.embedding.weight.device


def names(answer: str, label: str) -> bool:
    """Whether a label stands in an answer as a word, or words, of its own, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", answer, re.IGNORECASE) is not None


class Chat(Instruct):
    """A language model alone."""

    def __init__(self, llm: LanguageModel, chat: Any, max_new_tokens: Annotated[int, Ge(1)]) -> None:
        super().__init__(llm, {}, {}, None, chat, max_new_tokens, aligner=None, aligner_width=1, label_named=False)


def left_padded(batch: Batch, pad_id: int) -> dict[str, Tensor]:
    """The text of a batch with its padding moved to the left, as generation wants it."""
    input_ids = torch.full_like(batch.input_ids, pad_id)
    attention_mask = torch.zeros_like(batch.input_ids)
    for row, length in enumerate(batch.lengths):
        if length:
            input_ids[row, -length:] = batch.input_ids[row, :length]
            attention_mask[row, -length:] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
