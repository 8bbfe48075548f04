"""Labels of windows, out of a column with a label a step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

Label = str | int | float


@dataclass(frozen=True)
class Labels:
    each: list[Label | None]
    """Of each step; None where there is none."""

    def of(self, start: int, end: int, taken: Literal["last", "most"]) -> Label | None:
        """A window's: its last step's, or the one that most of its steps have, of equally many the one seen last."""
        if taken == "last":
            return self.each[end - 1]
        counts = Counter(label for label in reversed(self.each[start:end]) if label is not None)
        return counts.most_common(1)[0][0] if counts else None


def labels_of(cells: np.ndarray) -> Labels:
    """Whole numbers where all cells are some, else numbers, else texts."""
    known = [cell for cell in cells if cell is not None]
    kind = next(kind for kind in (int, float, str) if all(is_a(kind, cell) for cell in known))
    return Labels([None if cell is None else kind(cell) for cell in cells])


def is_a(kind: type, cell: str) -> bool:
    try:
        return kind is str or ("_" not in cell and math.isfinite(kind(cell)))
    except ValueError:
        return False
