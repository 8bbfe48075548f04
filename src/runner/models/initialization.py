"""Random numbers that belong to one place: a part's weights depend on the run's seed and the part's name alone, so that
adding a part does not change another, and a step's dropout on the seed, the step, the process and the micro-batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*key: object) -> int:
    """A 63-bit seed out of any key; the same in every process, unlike Python's salted `hash`."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Draw from the key's own random numbers inside, and leave the global ones (CPU) as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*key))
        yield


def reseed(device: torch.device, *key: object) -> None:
    """Let torch's global random numbers go on from the key, on the CPU and on the run's device."""
    seed = seed_of(*key)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also visits every other backend, at 30 times the cost
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
