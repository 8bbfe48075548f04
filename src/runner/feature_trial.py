"""Whether an encoder's features may be kept: it must not train, and nothing before or in it may be random.

Shapes: N items of a batch, T tokens of an item, E width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.data.kept_features import ItemTokens
from runner.model_parts import ModelPart
from runner.protocols import Tokens

Inputs = Mapping[str, Tensor]
Encode = Callable[[Sequence[Inputs]], Tokens]
WAITING = 16
"""Batches of items of other shapes that are held in memory until theirs is full."""


@dataclass(frozen=True)
class Trial:
    """What an encoder did with the first items."""

    item_bytes: int
    """Of an item's features, about."""
    random: str | None
    """Why its features cannot be kept."""
    unlike: str | None
    """Why a run that keeps them may differ in the last bits from one that does not."""


def why_not(encoder: nn.Module, parts: Sequence[ModelPart], start: int, steps: int) -> str | None:
    """What in an encoder forbids to keep its features, in a run that stands at step `start` and ends after `steps`."""
    if not any(True for _ in encoder.parameters()):
        return "it has no weights that could be frozen"
    if getattr(getattr(encoder, "preprocess", None), "is_random", False):
        return "its preprocess says of itself that it is random"
    owner = {id(one): part for part in parts for one in part.parameters}
    for key, one in encoder.named_parameters():
        part = owner.get(id(one))
        if part is None and one.requires_grad:
            return f"it trains ({key})"
        if part is not None and not stays_frozen(part, start, steps):
            return f"it trains (train.parts.{part.name}: {span(part)})"
    return None


def stays_frozen(part: ModelPart, start: int, steps: int) -> bool:
    """In all steps that are left."""
    until = part.given.until_step
    return part.given.from_step >= steps or (until is not None and start >= until)


def span(part: ModelPart) -> str:
    end = f" until step {part.given.until_step}" if part.given.until_step else ""
    return f"from step {part.given.from_step}{end}"


def tried(load: Callable[[], Iterable[Inputs]], encode: Encode, batch_size: int, device: torch.device) -> Trial:
    """`load` gives the first items anew each time it is called, at most `batch_size`; `encode` is the encoder."""
    before = generators(device)
    items = list(load())
    if not same(items, list(load())) or generators(device) != before:
        return Trial(0, "its preprocess is random", None)
    batch = filled(items, batch_size)
    once = encode(batch)
    if generators(device) != before:
        return Trial(0, "it draws random numbers, also in evaluation mode", None)
    twice = encode(batch)
    if not (alike(once.features, twice.features) and alike(once.mask, twice.mask)):
        return Trial(0, "it does not give the same tokens for the same items twice", None)
    kept = encoded_alone(items, encode, batch_size)
    counts = {1, 2, batch_size // 2, batch_size - 1, len(items), 2 * batch_size}
    largest = max(apart(kept, encode(filled(items[:count], count))) for count in counts if count)
    other = bool(largest) or not (once.features.is_contiguous() or by_channel(once.features))
    item_bytes = sum(one.features.nbytes + one.mask.nbytes for one in kept) // len(kept)
    return Trial(item_bytes, None, unlike(largest) if other else None)


def unlike(largest: float) -> str:
    return (
        f"its features depend in the last bits (by up to {largest:.1g}) on how many items go through it together, on "
        "their padding or on how they lie in memory, so a run that keeps them may differ from one that does not by "
        "rounding."
    )


def apart(kept: Sequence[ItemTokens], tokens: Tokens) -> float:
    """The largest difference between tokens that count, of the items that both have."""
    both = range(min(len(kept), len(tokens.features)))
    found = [tokens.features[k][tokens.mask[k]].cpu() for k in both]
    wanted = [kept[k].features[kept[k].mask] for k in both]
    if any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return float("inf")
    differences = [(a.double() - b.double()).abs() for a, b in zip(found, wanted, strict=True)]
    return max((float(one.max()) for one in differences if one.numel()), default=0.0)


def encoded_alone(items: Iterable[Inputs], encode: Encode, batch_size: int) -> list[ItemTokens]:
    """Each item's tokens, encoded beside items of the same shapes, so that none of them is padded.

    Where all have the same shapes the last batch is filled up, since bits depend on how many there are in one.
    """
    waiting: dict[tuple[Any, ...], list[tuple[int, Inputs]]] = {}
    done: dict[int, ItemTokens] = {}

    def run(some: list[tuple[int, Inputs]]) -> None:
        given = [inputs for _, inputs in some]
        tokens = encode(filled(given, batch_size) if len(waiting) == 1 else given)
        features, mask = tokens.features.cpu(), tokens.mask.cpu()
        turned = by_channel(tokens.features)
        done.update({k: ItemTokens(features[n], mask[n], tokens.grid, turned) for n, (k, _) in enumerate(some)})
        some.clear()

    for k, inputs in enumerate(items):
        own = waiting.setdefault(tuple((name, tuple(one.shape)) for name, one in inputs.items()), [])
        own.append((k, inputs))
        if len(own) == batch_size:
            run(own)
        elif sum(map(len, waiting.values())) > WAITING * batch_size:
            run(max(waiting.values(), key=len))
    for left in waiting.values():
        if left:
            run(left)
    return [done[k] for k in range(len(done))]


def by_channel(features: Tensor) -> bool:
    """Of [N, T, E]: whether each channel's T numbers lie side by side."""
    count, width = features.shape[1:]
    return count > 1 and width > 1 and features.stride()[1:] == (1, count)


def filled(items: Sequence[Inputs], count: int) -> list[Inputs]:
    """As many as `count`, the first ones again."""
    return [items[k % len(items)] for k in range(max(count, len(items)))]


def same(some: Sequence[Inputs], others: Sequence[Inputs]) -> bool:
    return all(
        one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
        for one, other in zip(some, others, strict=True)
    )


def alike(one: Tensor, other: Tensor) -> bool:
    """To the bit, also where a number is missing (NaN)."""
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)))


def generators(device: torch.device) -> tuple[Any, ...]:
    """Where all global random generators stand."""
    own = [torch.get_rng_state()]
    if device.type in ("cuda", "mps"):
        own.append(getattr(torch, device.type).get_rng_state())
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest, *(one.numpy().tobytes() for one in own)
