"""What a prepared dataset is like, in numbers: docs/prepare.md says of each what it counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.data.bad_rows import BadRows
from runner.preparing.content import Content, answers_of
from runner.preparing.duplicates import Drop, Near, conflicts
from runner.preparing.fields import value_of
from runner.preparing.leaks import KINDS, Leak

Splits = Mapping[str, Sequence[Content]]
TOLD = 5
"""Examples of each thing."""
CLASSES = 1000
"""Different labels from which on they are no longer counted one by one."""


def quality_of(
    splits: Splits,
    near: Near | None,
    leaks: Sequence[Leak],
    drops: Sequence[Drop],
    bad: Sequence[BadRows],
    stratified_by: str | None,
) -> dict[str, Any]:
    """The report, as JSON. `leaks` are those that are left."""
    every = [one for contents in splits.values() for one in contents]
    return {
        "splits": {split: lengths_of(contents) for split, contents in splits.items()},
        "read": {one.split: {"rows": one.total, "bad": one.count} for one in bad},
        "bad_rows": [
            {"split": one.split, "reason": reason, "rows": count, "first": first}
            for one in bad
            for reason, (first, count) in one.reasons.items()
        ],
        "dropped": dropped_of(drops),
        "duplicates": repeats_of(every, near),
        "leaks": leaks_of(splits, leaks),
        "labels": {split: labels_of(contents) for split, contents in splits.items()},
        "strata": strata_of(splits, stratified_by),
        "languages": {
            split: dict(Counter(one.language for one in contents if one.language).most_common())
            for split, contents in splits.items()
        },
        "items": {split: items_of(contents) for split, contents in splits.items()},
        "empty_answers": {split: named(filter(is_unanswered, contents)) for split, contents in splits.items()},
        "longest": {
            split: [
                {"id": one.row.id, "characters": one.characters, "tokens": one.tokens}
                for one in sorted(contents, key=lambda one: (-(one.tokens or 0), -one.characters, one.row.id))[:TOLD]
            ]
            for split, contents in splits.items()
        },
    }


def lengths_of(contents: Sequence[Content]) -> dict[str, Any]:
    measured: dict[str, list[float]] = {
        "turns": [len(one.row.messages) for one in contents],
        "characters": [one.characters for one in contents],
        "words": [one.words for one in contents],
        "tokens": [one.tokens for one in contents if one.tokens is not None],
        "supervised": [one.supervised for one in contents if one.supervised is not None],
    }
    return {"rows": len(contents)} | {name: distribution(values) for name, values in measured.items() if values}


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Percentiles are by nearest rank: values that are there."""
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in (5, 50, 95)}
    total = sum(ordered)
    return {"min": ordered[0], **ranks, "max": ordered[-1], "mean": round(total / len(ordered), 3), "total": total}


def dropped_of(drops: Sequence[Drop]) -> dict[str, Any]:
    by_reason = Counter(one.reason for one in drops)
    examples = {
        reason: [[one.content.row.id, one.same_as] for one in drops if one.reason == reason][:TOLD]
        for reason in by_reason
    }
    return {reason: {"rows": count, "examples": examples[reason]} for reason, count in sorted(by_reason.items())}


def repeats_of(contents: Sequence[Content], near: Near | None) -> dict[str, Any]:
    """Of the rows that stay."""
    said = Counter(one.key for one in contents)
    asked = Counter(one.question_key for one in contents)
    differing = conflicts(contents)
    alike = (
        [] if near is None else [one for one in contents if any(key in asked for key in near.get(one.question_key, ()))]
    )
    return {
        "duplicate": sum(count - 1 for count in said.values()),
        "near_duplicate": named(alike),
        "same_question_other_answer": {
            "rows": sum(map(len, differing)),
            "questions": len(differing),
            "examples": [[one.row.id for one in some[:TOLD]] for some in differing[:TOLD]],
        },
    }


def leaks_of(splits: Splits, leaks: Sequence[Leak]) -> list[dict[str, Any]]:
    """Of every two splits, rows of the later one that share something with the earlier, by kind."""
    found = []
    for pair in dict.fromkeys(leak.splits for leak in leaks):
        for kind in KINDS:
            some = [leak for leak in leaks if leak.splits == pair and leak.kind == kind]
            if some:
                rows = {id(one) for leak in some for one in leak.earlier}
                examples = [[leak.earlier[0].row.id, leak.later.row.id] for leak in some[:TOLD]]
                found.append({"splits": list(pair), "kind": kind, "rows": [len(rows), len(some)], "examples": examples})
    return found


def labels_of(contents: Sequence[Content]) -> dict[str, Any]:
    labels = [one.row.label for one in contents if one.row.label is not None]
    if not labels:
        return {}
    numbers = [label for label in labels if not isinstance(label, str)]
    if len(numbers) == len(labels) and any(isinstance(label, float) for label in numbers):
        return {"numbers": distribution(numbers)}
    counts = Counter(map(str, labels))
    if len(counts) > CLASSES:
        return {"different": len(counts)}
    return {"different": len(counts), "rows": dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))}


def strata_of(splits: Splits, field: str | None) -> dict[str, Any]:
    """Rows by the field that the splits were stratified by, where it is not the label, which is counted anyway."""
    if field in (None, "label"):
        return {"field": field, "rows": {}}
    counted = {split: Counter(str(value_of(one, str(field))) for one in some) for split, some in splits.items()}
    return {"field": field, "rows": {split: dict(sorted(counts.items())) for split, counts in counted.items()}}


def items_of(contents: Sequence[Content]) -> dict[str, Any]:
    by_modality: dict[str, list[Any]] = {}
    for one in contents:
        for item in one.items:
            by_modality.setdefault(item.modality, []).append(item)
    return {
        modality: {
            "items": len(items),
            "different": len({item.sha256 for item in items}),
            "rows": sum(any(item.modality == modality for item in one.items) for one in contents),
            **{
                name: distribution([item.measures[name] for item in items if name in item.measures])
                for name in dict.fromkeys(name for item in items for name in item.measures)
            },
        }
        for modality, items in sorted(by_modality.items())
    }


def is_unanswered(one: Content) -> bool:
    """An assistant's turn is blank, or there is neither one nor a label."""
    answers = answers_of(one.row)
    return not all(answer.strip() for answer in answers) or (not answers and one.row.label is None)


def named(contents: Iterable[Content]) -> dict[str, Any]:
    ids = [one.row.id for one in contents]
    return {"rows": len(ids), "examples": ids[:TOLD]}
