"""The tokens of all of a row's items in a line, in the order of their places in its text.

Where everything goes is known on the CPU, so the device is never asked and one gather does it. Shapes: B rows, N items
of a modality, T tokens an item, S tokens of all items of a row, D width, M text tokens with their padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from runner.protocols import Batch, Tokens


@dataclass(frozen=True)
class Lines:
    features: Tensor
    """[B, S, D], zeros where a row has fewer"""
    mask: Tensor
    """bool [B, S]"""
    places: Tensor
    """int64 [B, S] on the CPU: the text token that each one's item comes before"""

    def seen(self, lengths: list[int], longest: int, side: Literal["left", "right"]) -> Tensor:
        """bool [B, M, S]: each text token sees the items before it, as it would if they stood among the text. `lengths`
        are the rows' text tokens, M the `longest`, `side` where the padding is."""
        starts = [longest - length if side == "left" else 0 for length in lengths]
        token = torch.arange(longest).unsqueeze(0) - torch.tensor(starts).unsqueeze(1)  # [B, M]: its number in its row
        before = self.places.unsqueeze(1) <= token.unsqueeze(2)
        return before.to(self.mask.device, non_blocking=True) & self.mask.unsqueeze(1)


def lined_up(batch: Batch, streams: Mapping[str, Tokens], kind: nn.ParameterDict) -> Lines:
    """`streams` by modality, each [N, T, D], at least one; `kind` are vectors [D] that say of a token which it is."""
    sources, masks, first = [], [], 0
    items: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in batch.lengths]  # (place, rank, sources)
    for name, tokens in streams.items():
        count, length = tokens.features.shape[:2]
        sources.append((tokens.features + kind[name]).flatten(0, 1))
        masks.append(tokens.mask.flatten())
        for k, (row, place, rank) in enumerate(batch.streams[name].places):
            items[row].append((place, rank, np.arange(length) + first + k * length))
        first += count * length
    nothing = first  # one more source, of zeros
    longest = max(sum(len(numbers) for _, _, numbers in some) for some in items)
    index, places = (np.full((len(items), longest), fill) for fill in (nothing, 0))
    for row, some in enumerate(items):
        end = 0
        for place, _, numbers in sorted(some, key=lambda item: item[:2]):
            index[row, end : end + len(numbers)] = numbers
            places[row, end : end + len(numbers)] = place
            end += len(numbers)
    where = torch.from_numpy(index).to(sources[0].device, non_blocking=True)
    return Lines(
        features=torch.cat([*sources, sources[0].new_zeros(1, sources[0].shape[1])])[where],
        mask=torch.cat([*masks, masks[0].new_zeros(1)])[where],
        places=torch.from_numpy(places),
    )


def kinds(modalities: Sequence[str], width: int) -> nn.ParameterDict:
    """A learnt vector for each modality."""
    return nn.ParameterDict({name: nn.Parameter(torch.randn(width) * 0.02) for name in modalities})
