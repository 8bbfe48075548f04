"""What a frozen encoder gave for items, kept on disk: how an item is found again, and its tokens for a batch.

A shard is a folder with one safetensors file, memory-mapped: the tokens of its items one after another. Shapes: K items
of a shard, S tokens of them all, N items of a batch, T tokens of an item, E width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from runner import fingerprint
from runner.data.decode import normalise
from runner.protocols import Fault, Tokens

FILE = "features.safetensors"
KEY_BYTES = 16


class NoContentError(Exception):
    """An item of a kind whose content nobody here can tell from another's."""


def key_of(modality: str, item: Any) -> bytes:
    """By what a run knows an item of a row: a file by its path, anything else by its content.

    Raises `NoContentError` for an item that is no path, text, picture or array.
    """
    return digest(b"path", str(item).encode()) if is_file(modality, item) else digest(*content_parts(item))


def content_of(modality: str, item: Any) -> bytes:
    """By what an item is known in every run: a file by its bytes and suffix, which says how they are read."""
    if not is_file(modality, item):
        return key_of(modality, item)
    file = Path(item)
    return digest(b"file", file.suffix.lower().encode(), fingerprint.of_file(file).encode())


def is_file(modality: str, item: Any) -> bool:
    return isinstance(item, Path) or (isinstance(item, str) and modality in ("image", "audio"))


def content_parts(item: Any) -> list[bytes]:
    if isinstance(item, str):
        return [b"text", item.encode()]
    if isinstance(item, Image.Image):
        item = normalise(item, "a picture")
        return [b"picture", item.mode.encode(), repr(item.size).encode(), item.tobytes()]
    if isinstance(item, list):  # of numbers, None for a missing one: read as `decode` reads it
        try:
            item = np.asarray(item, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise NoContentError(str(error)) from error
    if isinstance(item, Tensor) and item.dtype != torch.bfloat16:
        item = item.numpy(force=True)
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        return [b"array", item.dtype.str.encode(), repr(item.shape).encode(), item.tobytes()]
    if isinstance(item, tuple):
        return [b"tuple", *(digest(*content_parts(one)) for one in item)]
    if isinstance(item, bool | int | float):
        return [b"number", repr(item).encode()]
    raise NoContentError(type(item).__name__)


def digest(*parts: bytes) -> bytes:
    known = hashlib.sha256()
    for part in parts:
        known.update(len(part).to_bytes(8, "little") + part)
    return known.digest()[:KEY_BYTES]


@dataclass(frozen=True)
class ItemTokens:
    """An item's tokens as its encoder gave them for it alone."""

    features: Tensor
    """[T, E]"""
    mask: Tensor
    """bool [T]"""
    grid: tuple[int, int] | None
    by_channel: bool = False
    """Whether they lie in memory channel after channel, as a convolution leaves them: sums over them go by that."""


def write_shard(folder: Path, items: Sequence[ItemTokens]) -> None:
    starts = np.cumsum([0, *(len(one.mask) for one in items)])
    tensors = {
        "features": torch.cat([one.features for one in items]),  # [S, E]
        "mask": torch.cat([one.mask for one in items]),  # [S]
        "starts": torch.from_numpy(starts),  # [K + 1]
        "by_channel": torch.tensor([one.by_channel for one in items]),  # [K]
        "grids": torch.tensor([one.grid or (0, 0) for one in items]),  # [K, 2]
    }
    save_file(tensors, folder / FILE)


class Shard:
    """One that is open. The file is mapped: nothing of it is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        with safe_open(folder / FILE, framework="pt") as file:
            self.starts: list[int] = file.get_tensor("starts").tolist()
            self.grids: list[list[int]] = file.get_tensor("grids").tolist()
            self.by_channel: list[bool] = file.get_tensor("by_channel").tolist()
            self.features, self.mask = file.get_slice("features"), file.get_slice("mask")

    def item(self, number: int) -> ItemTokens:
        own = slice(self.starts[number], self.starts[number + 1])
        rows, columns = self.grids[number]
        grid = (rows, columns) if rows else None
        return ItemTokens(self.features[own], self.mask[own], grid, self.by_channel[number])


@dataclass(frozen=True)
class KeptFeatures:
    """The features of all items of one modality that a run sees. It goes to loader workers: paths and positions, no
    features; each process maps the files when it first needs them."""

    modality: str
    shards: tuple[Path, ...]
    keys: np.ndarray
    """S16, in order: the items' keys"""
    places: np.ndarray
    """int64 [len(keys), 2]: of each its shard, and its number in it"""
    _open: dict[int, Shard] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, modality: str, shards: Sequence[Path], places: Mapping[bytes, tuple[int, int]]) -> KeptFeatures:
        """`places`: by an item's key its shard, and its number in it."""
        keys = np.array(list(places), dtype=f"S{KEY_BYTES}")
        order = np.argsort(keys)
        numbers = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)
        return cls(modality, tuple(shards), keys[order], numbers[order])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def tokens(self, items: Sequence[Any]) -> Tokens:
        """[N, T, E] on the CPU, padded to the longest."""
        kept = [self.item(one) for one in items]
        sizes = [len(one.mask) for one in kept]
        grids = {one.grid for one in kept}
        grid = kept[0].grid if len(grids) == 1 and len(set(sizes)) == 1 else None
        count, longest, width = len(kept), max(sizes), kept[0].features.shape[1]
        turned = kept[0].by_channel
        features = kept[0].features.new_zeros((count, width, longest) if turned else (count, longest, width))
        features = features.transpose(1, 2) if turned else features
        mask = torch.zeros(features.shape[:2], dtype=torch.bool)
        for k, (one, size) in enumerate(zip(kept, sizes, strict=True)):
            features[k, :size], mask[k, :size] = one.features, one.mask
        return Tokens(features, mask, grid)

    def item(self, item: Any) -> ItemTokens:
        key = np.array(key_of(self.modality, item), dtype=self.keys.dtype)
        found = int(np.searchsorted(self.keys, key))
        if found == len(self.keys) or self.keys[found] != key:
            raise Fault(f"The features of `{self.modality}` item {str(item)[:200]} were not computed before training.")
        shard, number = (int(one) for one in self.places[found])
        if shard not in self._open:
            self._open[shard] = Shard(self.shards[shard])
        return self._open[shard].item(number)
