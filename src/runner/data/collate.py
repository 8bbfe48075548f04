"""Examples to a batch: the only place where anything is padded.

Shapes: B rows, L text tokens, N items of one modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runner.data.decode import decode
from runner.data.kept_features import KeptFeatures
from runner.data.loading import note
from runner.protocols import IGNORED, Batch, Example, Mistake, Preprocess, Stream


@dataclass(frozen=True)
class Collate:
    """Runs in loader workers, so it holds no weights. A modality without an item in the batch has no stream."""

    preprocess: Mapping[str, Preprocess]
    pad_id: int
    packing: bool = False
    kept: Mapping[str, KeptFeatures] = field(default_factory=dict)
    """By modality whose encoder need not run any more: what it gave for every item."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        lengths = [len(example.input_ids) for example in examples]
        input_ids = np.full((len(examples), max(lengths)), self.pad_id, dtype=np.int64)
        labels = np.full_like(input_ids, IGNORED)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            input_ids[row, :length] = example.input_ids
            labels[row, :length] = example.labels
        streams = {modality: self.stream(modality, examples) for modality in self.preprocess}
        note("")
        return Batch(
            ids=[example.id for example in examples],
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            lengths=lengths,
            streams={modality: stream for modality, stream in streams.items() if stream.places},
            rows=[example.row for example in examples],
            weights=[example.weight for example in examples],
            packed=self.packing,
        )

    def stream(self, modality: str, examples: Sequence[Example]) -> Stream:
        seen, places = [], []
        for row, example in enumerate(examples):
            for rank, (name, item, place) in enumerate(example.places):
                if name == modality:
                    seen.append((example, item))
                    places.append((row, place, rank))
        if modality in self.kept and seen:
            items = [example.row.items[modality][item] for example, item in seen]
            return Stream({}, places, self.kept[modality].tokens(items))
        return Stream(stack(modality, [self.item(modality, *one) for one in seen]), places)

    def item(self, modality: str, example: Example, item: int) -> dict[str, Tensor]:
        value = example.row.items[modality][item]
        note(f"{example.row.where} (id {example.id}), `{modality}` item {item + 1}")
        try:
            return self.preprocess[modality](decode(modality, value))
        except Exception as error:  # a broken file shows itself in many ways; the row is what the user needs to know
            reason = str(error) if isinstance(error, Mistake) else f"{type(error).__name__}: {error}"
            raise Mistake(
                f"{example.row.where} (id {example.id}): `{modality}` item {item + 1} ({str(value)[:200]}) cannot be "
                f"read: {reason}"
            ) from error


def stack(modality: str, inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """[N, ...] of each tensor. A ragged one is padded with zeros at the end and comes with `NAME_lengths` [N], those of
    its first ragged dimension; an encoder of such items takes `NAME_lengths=None` for a batch without padding."""
    stacked: dict[str, Tensor] = {}
    for name in inputs[0] if inputs else ():
        tensors = [tensor[name] for tensor in inputs]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len({len(shape) for shape in shapes}) > 1:
            raise Mistake(f"encoder.{modality}: preprocess gives `{name}` of differing rank: {sorted(set(shapes))}.")
        largest = tuple(map(max, zip(*shapes, strict=True)))
        ragged = [d for d, size in enumerate(largest) if any(shape[d] != size for shape in shapes)]
        if not ragged:
            stacked[name] = torch.stack(tensors)
            continue
        padded = tensors[0].new_zeros((len(tensors), *largest))
        for k, tensor in enumerate(tensors):
            padded[k][tuple(slice(size) for size in tensor.shape)] = tensor
        stacked[name] = padded
        stacked[f"{name}_lengths"] = torch.tensor([shape[ragged[0]] for shape in shapes])
    return stacked
