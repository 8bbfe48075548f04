"""Objectives that answer in text: rows become tokens of a language model, encoders and projectors feed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from runner import config, settings
from runner.alignment import Alignment, aligned_encoders, memory_of, told
from runner.config import Composed
from runner.data.chat import ChatFormat, asks, prompt_of
from runner.data.collate import Collate
from runner.data.length import LengthPolicy, check_answers_fit
from runner.data.rows import check_modalities, with_text
from runner.models.attention import set_attention
from runner.models.freeze import keep_frozen
from runner.models.head_check import check_head
from runner.models.initialization import seeded
from runner.models.language_model import LanguageModel
from runner.models.llm import LanguageModelSource, check_fits
from runner.models.packing import check_packing
from runner.models.recomputing import recompute_layers
from runner.offers import check_offers
from runner.protocols import Encoder, Example, InputFusion, Mistake, Objective, Projector, Row
from runner.seats import Learner, build_encoders, build_projectors, check_asks, held_out, named, read_splits, seat
from runner.trial import check_gives

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACEMENTS = ("front", "placeholder")


@dataclass(frozen=True)
class Frame:
    """The parts that must be there before rows can be read: they say what becomes of a row."""

    source: LanguageModelSource
    encoders: Mapping[str, Encoder]
    widths: Mapping[str, int]
    """What projectors are given, by modality."""
    fusion: InputFusion | None
    data: settings.Data
    alignment: Alignment | None = None
    """Where the encoders are those of an earlier run."""

    @cached_property
    def chat(self) -> ChatFormat:
        placement = self.fusion.placement if self.fusion else "front"
        return ChatFormat(self.source.tokenizer(), self.modalities, placement, self.data.learn, self.data.system)

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    @property
    def takes(self) -> int | None:
        return self.source.max_length()

    def example(self, row: Row) -> Example:
        """With the model's chat template, tokenised."""
        check_modalities([row], self.modalities)
        return self.chat.example(with_text(row, self.chat.placeholders) if "text" in self.modalities else row)

    def fitting(self, given: settings.Data) -> LengthPolicy:
        takes = self.takes
        if given.max_length and takes and given.max_length > takes:
            raise Mistake(
                f"data.max_length={given.max_length}: the language model takes {takes} tokens. Set at most that."
            )
        return LengthPolicy(given.max_length or takes, given.max_prompt_length, given.over_length, self.chat)

    def reads(self) -> dict[str, Any]:
        return {"modalities": self.modalities, "takes": self.takes, "chat": self.chat.fingerprint()}

    def prompts(self, examples: Iterable[Example]) -> list[Example]:
        return [prompt_of(example) for example in examples if asks(example)]

    def collate(self) -> Collate:
        preprocess = {name: encoder.preprocess for name, encoder in self.encoders.items()}
        return Collate(preprocess, self.chat.tokenizer.pad_token_id, self.data.packing)


def build_learner(composed: Composed, predict_rows: int | None, memory: Mapping[str, Any] | None) -> Learner:
    """Raises `Mistake` for whatever config and rows have wrong. `memory`: of the checkpoint that is gone on from."""
    frame = build_frame(composed, memory)
    splits = read_splits(composed, frame)
    prompts = frame.prompts(held_out(splits)[:predict_rows])
    check_answers_fit(prompts, composed.tree["model"].get("max_new_tokens"), frame.takes)
    collate = frame.collate()
    llm = build_llm(composed, frame.source)
    attach_fusion(composed, frame.fusion, llm)
    projectors = build_projectors(composed, frame.widths, llm.width)
    check_gives(frame.encoders, projectors, frame.fusion, llm, collate, splits["train"].examples)
    objective = build_objective(composed, frame, llm, projectors, frame.chat)
    kept = {**getattr(objective, "memory", dict)(), **memory_of(frame.alignment)}
    notes = told(frame.alignment)
    return Learner(objective, splits, prompts, collate, kept, notes)


def build_trained(composed: Composed, frame: Frame, memory: Mapping[str, Any]) -> Objective:
    """Without rows."""
    llm = build_llm(composed, frame.source)
    attach_fusion(composed, frame.fusion, llm)
    return build_objective(
        composed, frame, llm, build_projectors(composed, frame.widths, llm.width), frame.chat, memory
    )


def skeleton(composed: Composed) -> Objective:
    """Shapes without weights, tokenizer or rows, and without the run that the encoders may be of."""
    frame = bare_frame(composed)
    llm = LanguageModel(adapt(composed, frame.source, frame.source.skeleton()), {})
    attach_fusion(composed, frame.fusion, llm)
    return build_objective(composed, frame, llm, build_projectors(composed, frame.widths, llm.width), None)


def build_frame(composed: Composed, memory: Mapping[str, Any] | None) -> Frame:
    """`memory`: of a checkpoint whose weights will be put back; None where the model starts."""
    if composed.tree["model"].get("aligner") is None:
        return frame_of(composed, build_encoders(composed))
    encoders, alignment = aligned_encoders(composed, memory)
    return replace(frame_of(composed, encoders), alignment=alignment)


def bare_frame(composed: Composed) -> Frame:
    """What rows and shapes need, without what encoders take from another run."""
    model, frame = composed.tree["model"], frame_of(composed, build_encoders(composed))
    if model.get("aligner") is None:
        return frame
    for encoder in frame.encoders.values():
        cast(nn.Module, encoder).requires_grad_(False)
    return replace(frame, widths=dict.fromkeys(frame.encoders, model["aligner_width"]))


def frame_of(composed: Composed, encoders: Mapping[str, Encoder]) -> Frame:
    source: LanguageModelSource = seat(composed, "llm")
    widths = {name: encoder.width for name, encoder in encoders.items()}
    data = config.section(composed.tree["data"], settings.Data)
    return Frame(source, encoders, widths, build_fusion(composed, encoders, source.width()), data)


def build_llm(composed: Composed, source: LanguageModelSource) -> LanguageModel:
    """Load or make the language model, put LoRA on it, and check that the head at labelled positions is its own."""
    files = source.files()
    quantization = seat(composed, "quantization")
    with seeded(composed.tree["seed"], "llm"):
        model = source.load() if quantization is None else source.load(quantization)
    check_fits(model, source)
    llm = LanguageModel(adapt(composed, source, model), files)
    low = [name for name, one in llm.named_parameters() if one.requires_grad and one.dtype.itemsize < 4]
    if low:
        raise Mistake(
            f"llm.dtype: {len(low)} tensors that train are not float32 ({low[0]}). Set llm.dtype=float32, or use LoRA."
        )
    if files:
        check_head(llm)
    set_attention(llm.base, source.attention, packs(composed))
    if packs(composed):
        check_packing(llm)
    if source.gradient_checkpointing:
        recompute_layers(llm)
    return llm


def adapt(composed: Composed, source: LanguageModelSource, model: PreTrainedModel) -> PreTrainedModel:
    """Put LoRA on the language model, or freeze it where it is not to be trained."""
    adapter = seat(composed, "lora")
    if adapter is None:
        return model if source.trainable else model.requires_grad_(False)
    with seeded(composed.tree["seed"], "lora"):
        return adapter.apply(model)


def build_objective(
    composed: Composed,
    frame: Frame,
    llm: LanguageModel,
    projectors: Mapping[str, Projector],
    chat: ChatFormat | None,
    memory: Mapping[str, Any] | None = None,
) -> Objective:
    parts = {"llm": llm, "encoders": frame.encoders, "projectors": projectors, "fusion": frame.fusion}
    objective = seat(composed, "model", **parts, chat=chat, memory=memory)
    check_offers(objective, "model", Objective)
    if packs(composed) and not getattr(objective, "packs", False):
        raise Mistake(
            f"data.packing: {type(objective).__name__} learns from rows side by side only. Set data.packing=false."
        )
    keep_frozen(objective)
    return cast(Objective, objective)


def build_fusion(composed: Composed, encoders: Mapping[str, Encoder], llm_width: int) -> InputFusion | None:
    """None without an encoder. Raises `Mistake` when there is one and no fusion."""
    if not encoders:
        return None
    given = {"llm_width": llm_width, "modalities": list(encoders)}
    check_asks(composed, "fusion", given, "fusion=prefix, or another that puts items among a text or beside it")
    with seeded(composed.tree["seed"], "fusion"):
        fusion = seat(composed, "fusion", **given)
    if fusion is None:
        raise Mistake(
            f"encoder.{next(iter(encoders))} needs a fusion with the language model. Set fusion=prefix or another."
        )
    check_offers(fusion, "fusion", InputFusion)
    if fusion.placement not in PLACEMENTS:
        raise Mistake(f"fusion: placement is {fusion.placement!r}; it must be one of {', '.join(PLACEMENTS)}.")
    if packs(composed) and not getattr(fusion, "packs", not hasattr(fusion, "attach")):
        raise Mistake(
            f"data.packing: the fusion {type(fusion).__name__} works inside the language model, where it would show a "
            "packed row the items of others. Choose one at the input, by fusion=prefix for instance, or set "
            "data.packing=false."
        )
    return fusion


def packs(composed: Composed) -> bool:
    return bool(composed.tree["data"]["packing"])


def attach_fusion(composed: Composed, fusion: InputFusion | None, llm: LanguageModel) -> None:
    """Show the language model, with its LoRA, to a fusion that works inside it or needs its embeddings."""
    attach = getattr(fusion, "attach", None)
    if attach is not None:
        with seeded(composed.tree["seed"], "fusion.layers"), named("fusion", composed.tree["fusion"]):
            attach(llm)
