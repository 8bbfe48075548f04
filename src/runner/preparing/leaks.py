"""What two splits share that should be in one alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from runner.preparing.content import Content
from runner.preparing.duplicates import Near
from runner.preparing.fields import value_of

KINDS = {
    "question": "the same question",
    "near": "nearly the same question",
    "item": "the same picture, sound or series",
    "group": "the same group",
}
"""A row is counted under the first of these that holds."""


Ties = Callable[[Content], Mapping[str, Sequence[Hashable]]]
"""By kind, what a row must not share with one of another split."""


@dataclass(frozen=True)
class Leak:
    """A row of a later split, and all rows of an earlier one that share something with it."""

    kind: str
    splits: tuple[str, str]
    """The earlier and the later one, in the order train, val, test."""
    earlier: tuple[Content, ...]
    later: Content


def find_leaks(splits: Mapping[str, Sequence[Content]], ties: Ties) -> Iterator[Leak]:
    for earlier, later in combinations(splits, 2):
        holders: dict[tuple[str, Hashable], list[Content]] = defaultdict(list)
        for one in splits[earlier]:
            for kind, keys in ties(one).items():
                for key in keys if kind != "near" else ():
                    holders[kind, key].append(one)
        for one in splits[later]:
            found = {
                kind: [other for key in keys for other in holders.get((what_of(kind), key), ())]
                for kind, keys in ties(one).items()
            }
            kinds = [kind for kind in KINDS if found.get(kind)]
            if kinds:
                involved = {id(other): other for kind in kinds for other in found[kind]}
                yield Leak(kinds[0], (earlier, later), tuple(involved.values()), one)


def ties_of(near: Near | None, with_items: bool, group_by: str | None) -> Ties:
    """What rows are tied by; `group_by` is a field, or None where none groups them."""

    def ties(one: Content) -> Mapping[str, Sequence[Hashable]]:
        tied: dict[str, Sequence[Hashable]] = {"question": [one.question_key]}
        if near is not None:
            tied["near"] = list(near.get(one.question_key, ()))
        if with_items:
            tied["item"] = [item.sha256 for item in one.items]
        if group_by is not None:
            tied["group"] = [value_of(one, group_by)]
        return tied

    return ties


def together(contents: Sequence[Content], ties: Ties) -> list[list[int]]:
    """Sets of positions that stay in one split."""
    sets: dict[tuple[str, Hashable], list[int]] = defaultdict(list)
    for position, one in enumerate(contents):
        for kind, keys in ties(one).items():
            for key in keys:
                sets[what_of(kind), key].append(position)
    return [positions for positions in sets.values() if len(positions) > 1]


def what_of(kind: str) -> str:
    """What the keys of a kind of tie are of: near-duplicates are named by their questions."""
    return "question" if kind == "near" else kind
