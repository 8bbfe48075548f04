"""Examples cut to a length. A token is there or not; an item goes with its place, whole; nothing is tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from runner.data.chat import Encoded
from runner.protocols import IGNORED, Example

Limit = int | None
"""Tokens; None: as many as there are."""


def prompt_length(example: Example) -> int:
    """Tokens before the first that is learnt."""
    learnt = example.labels != IGNORED
    return int(learnt.argmax()) if learnt.any() else len(learnt)


def without_user_text(encoded: Encoded, max_length: Limit, max_prompt_length: Limit) -> Example | None:
    """Without so many of the first tokens of its user texts that it is within both limits; None where the users'
    tokens are too few. Answers, the template's tokens and items stay."""
    kept = within_prompt(encoded, max_prompt_length, "front")
    if kept is None:
        return None
    over = int(kept.sum()) - (max_length or len(kept))
    users = np.flatnonzero(kept & encoded.asked)
    if over > len(users):
        return None
    kept[users[: max(0, over)]] = False
    return part(encoded, kept, 0, len(kept))


def within_prompt(encoded: Encoded, limit: Limit, side: Literal["front", "end"]) -> np.ndarray | None:
    """bool [L]: without so many of the user's tokens before the first learnt one, the first or the last of them, that
    the prompt has `limit` tokens; None where they are too few."""
    prompt = prompt_length(encoded.example)
    kept = np.ones(len(encoded.example.labels), dtype=bool)
    over = max(0, prompt - limit) if limit else 0
    users = np.flatnonzero(encoded.asked[:prompt])
    if over > len(users):
        return None
    kept[users[:over] if side == "front" else users[len(users) - over :]] = False
    return kept


def cut_at_end(encoded: Encoded, max_length: Limit, max_prompt_length: Limit) -> Example | None:
    """Its first `max_length` tokens, after its prompt's user texts lost their last tokens to `max_prompt_length`; None
    where the users' tokens are too few for that."""
    kept = within_prompt(encoded, max_prompt_length, "end")
    if kept is None:
        return None
    there = np.flatnonzero(kept)
    stop = int(there[max_length]) if max_length and len(there) > max_length else len(kept)
    return part(encoded, kept, 0, stop)


def pieces(encoded: Encoded, max_length: Limit, max_prompt_length: Limit) -> list[Example]:
    """All of it, one after another, each with at most `max_length` tokens wherever something is learnt in it."""
    learnt = encoded.example.labels != IGNORED
    cuts = piece_cuts(learnt, encoded.borders, max_length, max_prompt_length)
    everything = np.ones(len(learnt), dtype=bool)
    return [part(encoded, everything, start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]


def piece_cuts(learnt: np.ndarray, borders: Sequence[int], max_length: Limit, max_prompt_length: Limit) -> list[int]:
    """Where pieces start and end, from 0 to L. `learnt` bool [L]; `borders` are tokens with which a turn begins.

    A piece goes on as far as it may, back to the last border if one lies behind the first that is learnt in it. What
    comes before that is its prompt: at most `max_prompt_length` tokens, and where the answer does not fit behind it as
    many as it leaves, half of the piece at least. Tokens before that, with nothing to learn, are a piece of their own.
    """
    total = len(learnt)
    longest = max_length or total
    places = np.flatnonzero(learnt)
    cuts = [0]
    while cuts[-1] < total:
        start = cuts[-1]
        later = places[places > start]  # the first token of a piece is never learnt: nothing comes before it
        if not len(later):
            cuts.append(total)  # nothing to learn: however long it is, it is no example
            continue
        first = int(later[0])
        behind = np.flatnonzero(~learnt[first:])
        answer = int(behind[0]) if len(behind) else total - first
        room = min(max_prompt_length or total, max(longest - answer, longest // 2))
        if first - start > room:
            at = first - room
            cuts.append(min((one for one in borders if at <= one < first), default=at))
            continue
        stop = min(start + longest, total)
        if stop < total:
            stop = max((one for one in borders if first < one <= stop), default=stop)
        cuts.append(stop)
    return cuts


def part(encoded: Encoded, kept: np.ndarray, start: int, stop: int) -> Example:
    """The tokens from `start` to `stop` that are `kept`, bool [L], with the items whose places lie there.

    Its row has these items alone, and the messages from the first that it reaches into to the last whose answer is
    learnt, with their whole texts.
    """
    whole, total = encoded.example, len(kept)
    kept = kept.copy()
    kept[:start] = kept[stop:] = False
    labels = whole.labels[kept]
    labels[:1] = IGNORED
    stays = [start <= place < stop or place == stop == total for _, _, place in whole.places]
    lost = {(modality, item) for (modality, item, _), there in zip(whole.places, stays, strict=True) if not there}
    items: dict[str, tuple[Any, ...]] = {}
    ranks: dict[tuple[str, int], int] = {}
    for modality, some in whole.row.items.items():
        left = [item for item in range(len(some)) if (modality, item) not in lost]
        items[modality] = tuple(some[item] for item in left)
        ranks |= {(modality, item): rank for rank, item in enumerate(left)}
    position = np.concatenate([[0], kept.cumsum()])
    places = tuple(
        (modality, ranks[modality, item], int(position[place]))
        for (modality, item, place), there in zip(whole.places, stays, strict=True)
        if there
    )
    row = replace(whole.row, items=items, messages=whole.row.messages[slice(*messages_of(encoded, start, stop))])
    return replace(whole, input_ids=whole.input_ids[kept], labels=labels, places=places, row=row)


def messages_of(encoded: Encoded, start: int, stop: int) -> tuple[int, int]:
    """The first message that the tokens from `start` to `stop` reach into, and the one after the last whose answer is
    learnt there; after the very last where they go to the end."""
    tokens, labels = encoded.messages, encoded.example.labels
    first = next((k for k, (begin, end) in enumerate(tokens) if end > start or begin >= start), len(tokens))
    if stop == len(labels):
        return first, len(tokens)
    learnt = np.flatnonzero(labels[:stop] != IGNORED)
    last = next((k for k, (begin, end) in enumerate(tokens) if len(learnt) and begin <= learnt[-1] < end), first - 1)
    return first, last + 1
