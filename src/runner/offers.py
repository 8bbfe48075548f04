"""What a part must offer and give, held against its protocol once: a part that is wrong is refused by name.

Shapes: B rows, L text tokens, N items, T tokens an item, E an encoder's width, D the language model's, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from runner.data.collate import Collate
from runner.models.llm import LanguageModel
from runner.protocols import (
    IGNORED,
    Batch,
    Checkpointer,
    Encoder,
    Example,
    Fused,
    InputFusion,
    Message,
    Mistake,
    Objective,
    PooledFusion,
    Prediction,
    Projector,
    Row,
    RowSource,
    Schedule,
    Step,
    Stopped,
    Term,
    Tokens,
    Tracker,
)

RAISED = object()
NO_MODULES: tuple[type, ...] = (RowSource, Tracker, Checkpointer, Schedule)
"""Protocols of parts that hold no weights."""


def check_offers(part: Any, name: str, protocol: type) -> None:
    """Raises `Mistake` naming what a part lacks of its protocol."""
    own = {key: value for key, value in vars(protocol).items() if not key.startswith("_") or key == "__call__"}
    offered = [key for key, value in own.items() if callable(value) or isinstance(value, property)]
    lacks = [member for member in {**protocol.__annotations__, **dict.fromkeys(offered)} if not hasattr(part, member)]
    if protocol not in NO_MODULES and not isinstance(part, nn.Module):
        lacks.insert(0, "the base class torch.nn.Module")
    if lacks:
        raise Mistake(
            f"{name}: {type(part).__module__}.{type(part).__name__} lacks {', '.join(lacks)}. "
            f"See {protocol.__name__} in runner/protocols.py for what it must offer."
        )


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


def check_splits(splits: Any) -> None:
    """Raises `Mistake` for what a row source gives beside rows of named splits, each with an id of its own."""
    if not isinstance(splits, Mapping) or not all(isinstance(rows, Sequence) for rows in splits.values()):
        raise Mistake(f"data: read gave {shown(splits)}; it must give a list of rows for each split by name.")
    for split, rows in splits.items():
        seen: set[str] = set()
        for row in rows:
            wrong = fault_of_row(row)
            if wrong:
                raise Mistake(f"data: read gave a row of the {split} split {wrong}. See Row in runner/protocols.py.")
            if row.id in seen:
                raise Mistake(
                    f"{row.where}: another row of the {split} split has the id {row.id} too. Give each its own."
                )
            seen.add(row.id)


def fault_of_row(row: Any) -> str | None:
    if not isinstance(row, Row):
        return f"that is {shown(row)}; it must be a runner.protocols.Row"
    name: Any = row.id
    messages: Any = row.messages
    if not isinstance(name, str):
        return f"whose id is {name!r} ({row.where}); it must be a text"
    if not isinstance(messages, tuple) or not all(isinstance(one, Message) for one in messages):
        return f"whose messages are no tuple of Message ({row.where}, id {name})"
    loose = [modality for modality, items in row.items.items() if not isinstance(items, tuple)]
    return f"whose items of {loose[0]} are no tuple ({row.where}, id {name})" if loose else None


def check_counts(objective: Objective, batch: Batch) -> None:
    counts = objective.counts(batch)
    if not isinstance(counts, dict) or not counts or not all(isinstance(one, int | float) for one in counts.values()):
        raise Mistake(f"model: counts gave {shown(counts)}; it must give a number for each term of the loss by name.")
    parts = objective.modules() if isinstance(objective, nn.Module) else ()
    lacks = sorted({name for part in parts for name in getattr(part, "term_weights", ())} - set(counts))
    if lacks:
        raise Mistake(
            f"model: the projector has the term {lacks[0]} in its loss, and {type(objective).__name__} has no such "
            "term. Set projector.weight=0 or another projector, or take it up as model=instruct does."
        )


def check_step(step: Any, counts: Mapping[str, float]) -> None:
    """Raises `Mistake` for what an objective's forward must not give: the loop divides each term's sum by its count."""
    terms = step.terms if isinstance(step, Step) else None
    if not isinstance(terms, dict) or not all(
        isinstance(one, Term) and isinstance(one.sum, Tensor) and not one.sum.dim() for one in terms.values()
    ):
        raise Mistake(
            f"model: forward gave {shown(step)}; it must give runner.protocols.Step, each of its terms a Term whose "
            "sum is a scalar tensor."
        )
    if set(terms) != set(counts):
        raise Mistake(
            f"model: forward gave the terms {', '.join(terms)} and counts gave {', '.join(counts)}; they must have the "
            "same names."
        )


def check_predictions(predictions: Any, batch: Batch) -> None:
    right = isinstance(predictions, list) and all(isinstance(one, Prediction) for one in predictions)
    if not right or [one.id for one in predictions] != batch.ids:
        raise Mistake(
            f"model: predict gave {shown(predictions)} for {len(batch.ids)} rows; it must give a list with a "
            "runner.protocols.Prediction for each row of the batch, with its id and in its order."
        )


def check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict) or not all(isinstance(one, int | float) for one in metrics.values()):
        raise Mistake(f"model: metrics gave {shown(metrics)}; it must give numbers by name.")


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


def shown(value: Any) -> str:
    """A value's kind, and the shapes and types of the tensors in it."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Tokens | Fused):
        tensors = {name: one for name, one in vars(value).items() if name not in ("grid", "terms")}
        return f"{type(value).__name__}({', '.join(f'{name}={shown(one)}' for name, one in tensors.items())})"
    if isinstance(value, Step):
        return f"Step({shown(value.terms)})"
    if isinstance(value, Term):
        return f"Term({shown(value.sum)})"
    if isinstance(value, dict):
        return f"a dict ({', '.join(f'{name}: {shown(one)}' for name, one in value.items())})"
    return "None" if value is None else f"a {type(value).__name__}"
