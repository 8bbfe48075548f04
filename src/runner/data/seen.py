"""Which ids were there already: 16 bytes an id, where a set of Python strings takes a hundred."""

from __future__ import annotations

import hashlib

import numpy as np

BLOCK = 4096
"""Ids that are held as Python numbers before they become part of an array."""


class Seen:
    """Sorted arrays of hashes, the later ones smaller; two that are of a size become one, so there are few."""

    def __init__(self) -> None:
        self.recent: dict[int, int] = {}
        self.blocks: list[np.ndarray] = []
        """uint64 [2, N]: hashes, sorted, and what was noted with each"""

    def find(self, name: str) -> int | None:
        """What was noted with it, if it was. 64 bits tell 1e6 names apart but for one chance in 4e7."""
        key = key_of(name)
        found = self.recent.get(key)
        if found is None:
            found = next((hit for block in self.blocks if (hit := look_up(block, key)) is not None), None)
        return found

    def note(self, name: str, number: int) -> None:
        self.recent[key_of(name)] = number
        if len(self.recent) == BLOCK:
            self.settle()

    def settle(self) -> None:
        block = np.array([list(self.recent), list(self.recent.values())], dtype=np.uint64)
        self.recent = {}
        while self.blocks and self.blocks[-1].shape[1] <= block.shape[1]:
            block = np.concatenate([self.blocks.pop(), block], axis=1)
        self.blocks.append(block[:, np.argsort(block[0], kind="stable")])


def key_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def look_up(block: np.ndarray, key: int) -> int | None:
    place = int(np.searchsorted(block[0], np.uint64(key)))
    return int(block[1, place]) if place < block.shape[1] and block[0, place] == key else None
