"""How well rows of one modality find their partners in another. Shapes: Q rows, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

AT_ONCE = 1024
"""Rows that are compared with all at a time: a matrix of all by all may not fit."""


class Retrieval(NamedTuple):
    recall_at_1: float
    recall_at_5: float
    median_rank: float
    """Of the first hit; 1 is the best."""


def retrieval(queries: np.ndarray, candidates: np.ndarray, classes: Sequence[object]) -> Retrieval:
    """Both [Q, D], of length 1; a candidate is a hit where its class is the query's.

    A candidate as similar as the first hit comes before it, so that equal vectors find nothing; nor do such that are no
    numbers.
    """
    numbers = np.unique([str(one) for one in classes], return_inverse=True)[1]
    ranks = []
    for start in range(0, len(queries), AT_ONCE):
        similar = queries[start : start + AT_ONCE] @ candidates.T
        hits = numbers[start : start + AT_ONCE, None] == numbers[None]
        best = np.where(hits, similar, -np.inf).max(axis=1, keepdims=True)
        ranks.append(1 + (~(similar < best) & ~hits).sum(axis=1))
    rank = np.concatenate(ranks)
    return Retrieval(float((rank <= 1).mean()), float((rank <= 5).mean()), float(np.median(rank)))
