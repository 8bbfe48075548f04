"""The parts tried on the first rows, before anything trains: what each gives, held against what was promised.

Shapes: B rows, L text tokens, N items, T tokens an item, E an encoder's width, D the language model's, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from runner.data.collate import Collate
from runner.models.language_model import LanguageModel
from runner.offers import shown
from runner.protocols import (
    IGNORED,
    Batch,
    Encoder,
    Example,
    Fused,
    InputFusion,
    Mistake,
    PooledFusion,
    Projector,
    Stopped,
    Tokens,
)

RAISED = object()


@torch.no_grad()
def check_gives(
    encoders: Mapping[str, Encoder],
    projectors: Mapping[str, Projector],
    fusion: InputFusion | None,
    llm: LanguageModel,
    collate: Collate,
    examples: Sequence[Example],
) -> None:
    """Send the first row with an item of each modality through the parts. Raises `Mistake` for what is not as promised.

    A part that raises here is let be: it may need the device or the number type that training will give it.
    """
    if fusion is None:
        return
    for example in first_with_each(encoders, examples):
        batch = checked_batch(collate, example)
        streams = {}
        for name, tokens in encoded(encoders, batch).items():
            streams[name] = RAISED if tokens is RAISED else projected(name, projectors[name], tokens, llm.width)
            if streams[name] is RAISED:
                return
        fused = called(fusion, llm.embed(batch.input_ids.to(llm.embedding.weight.device)), batch, streams, "right")
        if fused is not RAISED:
            check_fused(fused, batch, llm.width)


@torch.no_grad()
def check_pools(
    encoders: Mapping[str, Encoder],
    projectors: Mapping[str, Projector],
    width: int,
    fusion: PooledFusion | None,
    collate: Collate,
    examples: Sequence[Example],
) -> None:
    """The same for an objective without a language model, and perhaps without projectors, which give `width`, or a
    fusion."""
    for example in first_with_each(encoders, examples):
        streams = encoded(encoders, checked_batch(collate, example))
        if RAISED in streams.values():
            return
        for name, projector in projectors.items():
            if name in streams:
                projected(name, projector, streams[name], width)
        if fusion is None:
            continue
        vectors = {name: torch.zeros(1, encoder.width) for name, encoder in encoders.items()}
        vectors |= {name: tokens.mean().mean(0, keepdim=True) for name, tokens in streams.items()}
        given = called(fusion, vectors, {name: torch.tensor([name in streams]) for name in encoders})
        right = isinstance(given, Tensor) and given.is_floating_point() and given.shape == (1, fusion.width)
        if given is not RAISED and not right:
            raise Mistake(f"fusion gave {shown(given)}; it must give floating-point numbers [1, {fusion.width}].")


def first_with_each(modalities: Iterable[str], examples: Sequence[Example]) -> Iterator[Example]:
    """For each modality the first row that has an item of it."""
    for modality in modalities:
        yield from islice((one for one in examples if any(name == modality for name, _, _ in one.places)), 1)


def checked_batch(collate: Collate, example: Example) -> Batch:
    for name, item, _ in example.places:
        given = collate.item(name, example, item)
        if not isinstance(given, dict) or not given or not all(isinstance(one, Tensor) for one in given.values()):
            raise Mistake(f"encoder.{name}: its preprocess gave {shown(given)}; it must give a dict of tensors.")
    return collate([example])


def encoded(encoders: Mapping[str, Encoder], batch: Batch) -> dict[str, Any]:
    """`Tokens` by modality, or RAISED."""
    streams = {}
    for name, stream in batch.streams.items():
        streams[name] = called(encoders[name], **stream.inputs)
        if streams[name] is not RAISED:
            check_tokens(f"encoder.{name}", streams[name], len(stream.places), encoders[name].width)
    return streams


def projected(name: str, projector: Projector, tokens: Tokens, width: int) -> Any:
    """What a modality's projector gives, of `width`; RAISED if it raises. Its mistakes are told with the modality."""
    part = f"projector (of encoder.{name})"
    try:
        given = called(projector, tokens)
    except Mistake as error:
        raise Mistake(f"{part}: {error}") from error
    if given is not RAISED:
        check_tokens(part, given, len(tokens.features), width)
        check_terms(part, given.terms, getattr(projector, "term_weights", {}), len(tokens.features))
    return given


def called(part: Any, *arguments: Any, **named: Any) -> Any:
    """What the part gives in evaluation mode; RAISED if it raises. Its modes and random numbers stay as they were."""
    modes = {module: module.training for module in part.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            for module in modes:
                module.training = False
            given = part(*arguments, **named)
    except (Mistake, Stopped):
        raise
    except Exception:
        return RAISED
    finally:
        for module, mode in modes.items():
            module.training = mode
    return given


def check_tokens(name: str, tokens: Any, count: int, width: int) -> None:
    expected = (
        f"it must give runner.protocols.Tokens with features [{count}, T, {width}], T at least 1, and a bool mask"
    )
    wrong = not isinstance(tokens, Tokens) or not isinstance(tokens.features, Tensor)
    wrong = wrong or not isinstance(tokens.mask, Tensor) or tokens.mask.dtype != torch.bool
    wrong = wrong or tokens.features.dim() != 3 or not tokens.features.is_floating_point()
    if (
        wrong
        or (tokens.features.shape[0], tokens.features.shape[2]) != (count, width)
        or not tokens.features.shape[1]
        or tokens.mask.shape != tokens.features.shape[:2]
    ):
        raise Mistake(f"{name} gave {shown(tokens)}; {expected} [{count}, T].")
    if tokens.grid is not None and not is_grid(tokens.grid, tokens.features.shape[1]):
        raise Mistake(
            f"{name} gave the grid {tokens.grid!r} for {tokens.features.shape[1]} tokens; it must give rows and "
            "columns, of no more tokens than there are, or None."
        )


def is_grid(grid: Any, count: int) -> bool:
    whole = isinstance(grid, tuple) and len(grid) == 2 and all(isinstance(one, int) and one > 0 for one in grid)
    return whole and grid[0] * grid[1] <= count


def check_terms(name: str, terms: Mapping[str, Any], weights: Mapping[str, float], count: int) -> None:
    """Raises `Mistake` for parts of a projector's loss that are not those whose weights it has, a value an item."""
    if set(terms) != set(weights):
        raise Mistake(
            f"{name} gave the terms {', '.join(terms) or 'none'} and its term_weights have "
            f"{', '.join(weights) or 'none'}; they must have the same names."
        )
    for key, one in terms.items():
        if not isinstance(one, Tensor) or not one.is_floating_point() or one.shape != (count,):
            raise Mistake(
                f"{name} gave {shown(one)} as its term {key}; it must give a number an item, float [{count}]."
            )


def check_fused(fused: Any, batch: Batch, width: int) -> None:
    rows = len(batch.ids)
    expected = (
        f"it must give runner.protocols.Fused with embeddings [{rows}, M, {width}], and attention_mask, position_ids, "
        f"labels and input_ids int64 [{rows}, M], labels and input_ids on the CPU"
    )
    if not isinstance(fused, Fused) or not all(isinstance(one, Tensor) for one in vars(fused).values()):
        raise Mistake(f"fusion gave {shown(fused)}; {expected}.")
    shape = fused.embeddings.shape
    numbers = (fused.attention_mask, fused.position_ids, fused.labels, fused.input_ids)
    if (
        len(shape) != 3
        or (shape[0], shape[2]) != (rows, width)
        or any(one.shape != shape[:2] or one.dtype != torch.int64 for one in numbers)
        or {fused.labels.device.type, fused.input_ids.device.type} != {"cpu"}
    ):
        raise Mistake(f"fusion gave {shown(fused)}; {expected}.")
    there = fused.attention_mask == 1
    if batch.packed and not torch.equal(fused.position_ids[there], (there.cumsum(1) - 1)[there]):
        raise Mistake(
            "fusion gave position_ids that do not count a row's tokens from 0, so its rows cannot be packed. Let it "
            "count so, or set data.packing=false."
        )
    kept, learnt = int((fused.labels != IGNORED).sum()), int((batch.labels != IGNORED).sum())
    if kept != learnt:
        raise Mistake(
            f"fusion labels {kept} positions of a row that has {learnt} tokens to learn; it must label those."
        )
    text = [ids[:length] for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
    if any(not torch.equal(own[own != IGNORED], ids) for own, ids in zip(fused.input_ids, text, strict=True)):
        raise Mistake(
            "fusion gave input_ids that are not the text's in its order; it must give those of the text, and IGNORED "
            "where an item or padding stands."
        )
