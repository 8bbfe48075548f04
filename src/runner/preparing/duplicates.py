"""Which rows say the same: exactly, by hashes of what they hold, and nearly, by the Jaccard similarity of shingles.

Candidates for the second come from MinHash with locality-sensitive hashing (Broder, 1997; Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", ch. 3); each is then compared exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from runner.preparing.content import Content

SHINGLE = 5
"""Characters: words are not parted by spaces in every script."""
REMEMBERED = 4096
"""Texts whose shingles are kept: those of all take a hundred times the memory of the texts."""
PERMUTATIONS = 256
FOUND = 0.999
"""The probability that a pair just at the threshold is a candidate; of more similar ones it is higher."""

Near = Mapping[str, Mapping[str, float]]
"""By the key of a question, the other questions that are near-duplicates, with their similarity."""


def near_questions(contents: Sequence[Content], threshold: float) -> Near:
    """Questions are compared where their contexts are the same: the pictures, say, that they ask about."""
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for one in contents:
        if one.question:
            texts[one.context][one.question_key] = one.question
    near: dict[str, dict[str, float]] = defaultdict(dict)
    for questions in texts.values():
        keys = sorted(questions)
        for first, second, similarity in near_texts([questions[key] for key in keys], threshold):
            near[keys[first]][keys[second]] = near[keys[second]][keys[first]] = similarity
    return dict(near)


def near_texts(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of different texts with a similarity of at least `threshold`: (later, earlier, similarity)."""
    if len(texts) < 2:
        return
    from datasketch import MinHash, MinHashLSH

    rows = rows_of_a_band(threshold)
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows, rows))
    empty = MinHash(num_perm=PERMUTATIONS)
    shingles_of = lru_cache(maxsize=REMEMBERED)(shingles)
    for later, text in enumerate(texts):
        own, signature = shingles_of(text), empty.copy()
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in own])
        for earlier in sorted(index.query(signature)):
            similarity = jaccard(own, shingles_of(texts[earlier]))
            if similarity >= threshold:
                yield later, earlier, similarity
        index.insert(later, signature)


def rows_of_a_band(threshold: float) -> int:
    """As many as still let a pair at the threshold be found: with b bands of r rows, 1 - (1 - threshold^r)^b."""
    fit = [r for r in range(1, 17) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= FOUND]
    return max(fit, default=1)


def shingles(text: str) -> set[str]:
    """All runs of `SHINGLE` characters; a shorter text is one."""
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


@dataclass(frozen=True)
class Drop:
    """A row that is left out, and why."""

    content: Content
    split: str
    """Of the source."""
    reason: str
    """duplicate, near_duplicate, leak"""
    same_as: str
    """The id of the row that stays."""


def in_order(contents: Sequence[Content]) -> list[Content]:
    """An order that does not depend on the source's: `row-9` before `row-10`."""
    return sorted(contents, key=lambda one: (len(one.row.id), one.row.id))


def redundant(contents: Sequence[Content], near: Near | None, split: str) -> list[Drop]:
    """Rows that say what one that stays says: the same, or nearly the same question with the same answer. `near` is
    None where near-duplicates are not looked for."""
    dropped: list[Drop] = []
    said: dict[str, Content] = {}
    answered: dict[tuple[str, str], Content] = {}
    for one in in_order(contents):
        if one.key in said:
            dropped.append(Drop(one, split, "duplicate", said[one.key].row.id))
            continue
        alike = [] if near is None else [one.question_key, *sorted(near.get(one.question_key, ()))]
        other = next((answered[key, one.answer_key] for key in alike if (key, one.answer_key) in answered), None)
        if other is not None:
            dropped.append(Drop(one, split, "near_duplicate", other.row.id))
            continue
        said[one.key] = answered[one.question_key, one.answer_key] = one
    return dropped


def conflicts(contents: Sequence[Content]) -> list[list[Content]]:
    """Rows with the same question and different answers or labels."""
    asked: dict[str, list[Content]] = defaultdict(list)
    for one in contents:
        asked[one.question_key].append(one)
    return [some for some in asked.values() if len({one.answer_key for one in some}) > 1]
