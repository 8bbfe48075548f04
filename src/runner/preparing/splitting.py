"""Which rows go where: pure functions of the rows' ids, of what keeps them together, and of a seed.

No order of the rows, no machine and no other random state changes a split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

Group = Sequence[int]
"""Positions of rows that stay in one split."""


def groups_of(count: int, together: Iterable[Iterable[int]]) -> list[list[int]]:
    """The finest groups of `count` rows in which the rows of each set of `together` are together (union-find)."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for some in together:
        first, *others = some
        for other in others:
            one, two = sorted((root(first), root(other)))
            parent[two] = one
    found: dict[int, list[int]] = defaultdict(list)
    for row in range(count):
        found[root(row)].append(row)
    return list(found.values())


def asked_sizes(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Rows of each split that is asked for: the nearest whole number, one at least."""
    return {split: max(1, int(count * share + 0.5)) for split, share in shares.items() if share > 0}


def drawn_splits(
    groups: Sequence[Group],
    ids: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    strata: Sequence[Hashable] | None,
) -> dict[str, list[int]]:
    """Rows by split: `shares` of them in those that it names, the others in train. Each in the rows' order.

    A split has at most the largest group more or fewer rows than its share. `strata`, a value a row: each has the same
    share in every split, and its last group stays in train; a group with several has the most frequent one.
    """
    kinds: dict[Hashable, list[Group]] = defaultdict(list)
    for group in sorted(groups, key=lambda rows: drawn_number(seed, rows, ids)):
        kinds[most_frequent([strata[row] for row in group]) if strata is not None else None].append(group)
    # The largest last: what the others lack or have too much is made up for there.
    order = sorted(kinds, key=lambda kind: (sum(map(len, kinds[kind])), repr(kind)))
    sizes = asked_sizes(len(ids), shares)
    placed: dict[str, list[int]] = {}
    for split, size in sizes.items():
        wanted = dealt_out(size, [sum(map(len, kinds[kind])) for kind in order])
        placed[split], owed = [], 0
        for kind, part in zip(order, wanted, strict=True):
            taken = nearest_fill(kinds[kind][:-1], part + owed)
            chosen = {id(group) for group in taken}
            kinds[kind] = [group for group in kinds[kind] if id(group) not in chosen]
            placed[split] += [row for group in taken for row in group]
            owed += part - sum(map(len, taken))
        placed[split] = placed[split] or smallest_of([group for kind in order for group in kinds[kind]], kinds)
    return with_train(len(ids), placed)


def smallest_of(left: Sequence[Group], kinds: Mapping[Hashable, list[Group]]) -> list[int]:
    """The rows of the smallest group, taken away from its kind; none where it is the only one."""
    if len(left) < 2:
        return []
    smallest = min(left, key=len)
    for some in kinds.values():
        some[:] = [group for group in some if group is not smallest]
    return list(smallest)


def nearest_fill(groups: Sequence[Group], wanted: int) -> list[Group]:
    """Groups in their order, each that brings the number of rows nearer to the wanted one."""
    taken: list[Group] = []
    have = 0
    for group in groups:
        if have + len(group) / 2 < wanted:
            taken.append(group)
            have += len(group)
    return taken


def dealt_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in whole parts as `sizes` are to each other (Hamilton's method: the largest remainders go up)."""
    exact = [total * size / sum(sizes) for size in sizes]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: (parts[k] - exact[k], k))
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts


def splits_by_time(
    groups: Sequence[Group], ids: Sequence[str], times: Sequence[Any], shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """The newest rows in the first split of `shares`, those before them in the next, the oldest in train.

    A group is as new as its newest row, so that no row of train is newer than where a later split begins.
    """
    left = sorted(groups, key=lambda rows: (max(times[row] for row in rows), drawn_number(0, rows, ids)))
    placed: dict[str, list[int]] = {}
    for split, size in asked_sizes(len(ids), shares).items():
        placed[split] = []
        while len(left) > 1 and len(placed[split]) + len(left[-1]) / 2 <= size and len(placed[split]) < size:
            placed[split] += left.pop()
        if not placed[split] and len(left) > 1:
            placed[split] += left.pop()
    return with_train(len(ids), placed)


def with_train(count: int, placed: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    elsewhere = {row for rows in placed.values() for row in rows}
    train = [row for row in range(count) if row not in elsewhere]
    return {"train": train} | {split: sorted(rows) for split, rows in placed.items()}


def drawn_number(seed: int, rows: Group, ids: Sequence[str]) -> tuple[bytes, str]:
    """What a group is drawn by: the lowest of its rows' hashes."""
    return min((hashlib.blake2b(f"{seed}/{ids[row]}".encode(), digest_size=8).digest(), ids[row]) for row in rows)


def most_frequent(values: Sequence[Hashable]) -> Hashable:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], repr(value)))
