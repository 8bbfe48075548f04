"""Learn to answer in text: encoders and projectors feed a causal language model; the assistant's turns are learnt.

Without an encoder it is plain chat fine-tuning. Shapes: B rows, L text tokens, N items, T tokens an item, E an
encoder's width, D the language model's width, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from runner.models.llm import LanguageModel
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
    metric_names = ("exact_match",)
    splits_exactly = True

    def __init__(
        self,
        llm: LanguageModel,
        encoders: Mapping[str, Encoder],
        projectors: Mapping[str, Projector],
        fusion: InputFusion | None,
        chat: Any,
        max_new_tokens: Annotated[int, Ge(1)],
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(cast(Mapping[str, nn.Module], encoders))
        self.projector = nn.ModuleDict(cast(Mapping[str, nn.Module], projectors))
        self.fusion = fusion
        self.llm = llm
        self.chat = chat
        self.decoding = Decoding(max_new_tokens)

    def counts(self, batch: Batch) -> dict[str, float]:
        """The labelled tokens."""
        return {"loss": float((batch.labels[:, 1:] != IGNORED).sum())}

    def forward(self, batch: Batch) -> Step:
        if self.fusion is None:
            lengths = torch.tensor(batch.lengths).unsqueeze(1)
            mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
            loss = self.llm.loss_sum(
                batch.labels, input_ids=self._move(batch.input_ids), attention_mask=self._move(mask)
            )
        else:
            fused = self._fuse(batch, "right")
            loss = self.llm.loss_sum(
                fused.labels,
                input_ids=self._move(fused.input_ids),
                inputs_embeds=fused.embeddings,
                attention_mask=fused.attention_mask,
                position_ids=fused.position_ids,
            )
        return Step({"loss": Term(loss)})

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers to a batch of prompts, by `decoding`."""
        if self.fusion is None:
            inputs = {
                name: self._move(tensor)
                for name, tensor in left_padded(batch, self.chat.tokenizer.pad_token_id).items()
            }
        else:
            fused = self._fuse(batch, "left")
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
            )
            for row, answer in zip(batch.rows, answers, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        known = [prediction for prediction in predictions if prediction.truth is not None]
        if not known:
            return {}
        return {"exact_match": sum(one.answer == str(one.truth).strip() for one in known) / len(known)}

    def _fuse(self, batch: Batch, side: Literal["left", "right"]) -> Fused:
        streams: dict[str, Tokens] = {}
        for name, stream in batch.streams.items():
            tokens = self.encoder[name](**{key: self._move(tensor) for key, tensor in stream.inputs.items()})
            streams[name] = self.projector[name](tokens)
        assert self.fusion is not None
        return self.fusion(self.llm.embed(self._move(batch.input_ids)), batch, streams, side)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.llm.embedding.weight.device, non_blocking=True)


def left_padded(batch: Batch, pad_id: int) -> dict[str, Tensor]:
    """The text of a batch with its padding moved to the left, as generation wants it."""
    input_ids = torch.full_like(batch.input_ids, pad_id)
    attention_mask = torch.zeros_like(batch.input_ids)
    for row, length in enumerate(batch.lengths):
        if length:
            input_ids[row, -length:] = batch.input_ids[row, :length]
            attention_mask[row, -length:] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
