"""What a part must offer and give, held against its protocol once, at build: a part that is wrong is refused by name.

Shapes: B rows, L text tokens, N items, T tokens an item, E an encoder's width, D the language model's, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.data.collate import Collate
from runner.models.llm import LanguageModel
from runner.protocols import IGNORED, Batch, Encoder, Example, Fused, InputFusion, Mistake, Projector, Stopped, Tokens

RAISED = object()


def check_offers(part: Any, name: str, protocol: type) -> None:
    """Raises `Mistake` naming what a part lacks of its protocol."""
    methods = [key for key, value in vars(protocol).items() if callable(value) and not key.startswith("_")]
    lacks = [member for member in (*protocol.__annotations__, *methods) if not hasattr(part, member)]
    if not isinstance(part, nn.Module):
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
    for modality in encoders if fusion else ():
        has_item = (one for one in examples if any(name == modality for name, _, _ in one.places))
        example = next(has_item, None)
        if example is None:
            continue
        for name, item, _ in example.places:
            given = collate.item(name, example, item)
            if not isinstance(given, dict) or not given or not all(isinstance(one, Tensor) for one in given.values()):
                raise Mistake(f"encoder.{name}: its preprocess gave {shown(given)}; it must give a dict of tensors.")
        batch = collate([example])
        streams: dict[str, Tokens] = {}
        for name, stream in batch.streams.items():
            count = len(stream.places)
            tokens = called(encoders[name], **stream.inputs)
            if tokens is RAISED:
                return
            check_tokens(f"encoder.{name}", tokens, count, encoders[name].width)
            tokens = called(projectors[name], tokens)
            if tokens is RAISED:
                return
            check_tokens(f"projector (of encoder.{name})", tokens, count, llm.width)
            streams[name] = tokens
        fused = called(fusion, llm.embed(batch.input_ids.to(llm.embedding.weight.device)), batch, streams, "right")
        if fused is not RAISED:
            check_fused(fused, batch, llm.width)


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


def check_fused(fused: Any, batch: Batch, width: int) -> None:
    rows = len(batch.ids)
    expected = (
        f"it must give runner.protocols.Fused with embeddings [{rows}, M, {width}], and attention_mask, position_ids "
        f"and labels int64 [{rows}, M], labels on the CPU"
    )
    if not isinstance(fused, Fused) or not all(isinstance(one, Tensor) for one in vars(fused).values()):
        raise Mistake(f"fusion gave {shown(fused)}; {expected}.")
    shape = fused.embeddings.shape
    numbers = (fused.attention_mask, fused.position_ids, fused.labels)
    if (
        len(shape) != 3
        or (shape[0], shape[2]) != (rows, width)
        or any(one.shape != shape[:2] or one.dtype != torch.int64 for one in numbers)
        or fused.labels.device.type != "cpu"
    ):
        raise Mistake(f"fusion gave {shown(fused)}; {expected}.")
    kept, learnt = int((fused.labels != IGNORED).sum()), int((batch.labels != IGNORED).sum())
    if kept != learnt:
        raise Mistake(
            f"fusion labels {kept} positions of a row that has {learnt} tokens to learn; it must label those."
        )


def shown(value: Any) -> str:
    """A value's kind, and the shapes and types of the tensors in it."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Tokens | Fused):
        return f"{type(value).__name__}({', '.join(f'{name}={shown(one)}' for name, one in vars(value).items())})"
    if isinstance(value, dict):
        return f"a dict ({', '.join(f'{name}: {shown(one)}' for name, one in value.items())})"
    return "None" if value is None else f"a {type(value).__name__}"
