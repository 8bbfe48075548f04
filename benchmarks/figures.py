"""Ratios within a round, and the bars that this project sets itself.

A round is {peer: record}, what each peer's process measured in it; checks are {peer: record} with losses.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Round = Mapping[str, Mapping[str, Any]]

SPEED_BAR = 1.40
"""Times the tokens/s of Trainer, on `tiny`."""
LOSS_BAR = 1e-5
"""The largest difference from a loss of Trainer's, on `tiny`."""
OVERHEAD_BAR = 0.6
"""Milliseconds a step over the loop by hand, on `empty`."""


@dataclass(frozen=True)
class Spread:
    """Of one figure over the rounds."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Bar:
    what: str
    wanted: str
    found: str
    reached: bool


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def median(rounds: Sequence[Round], peer: str, figure: str) -> float:
    return float(statistics.median(one[peer][figure] for one in rounds))


def speed_ratio(rounds: Sequence[Round], peer: str, other: str) -> Spread:
    """Tokens/s of a peer to those of another in the same round, so that both met the machine in one mood."""
    return spread([one[peer]["tokens_per_s"] / one[other]["tokens_per_s"] for one in rounds])


def overhead(rounds: Sequence[Round], peer: str, other: str) -> Spread:
    """Milliseconds that a step takes longer than another peer's in the same round."""
    return spread([one[peer]["step_ms"] - one[other]["step_ms"] for one in rounds])


def loss_difference(checks: Round, peer: str, other: str) -> float:
    """The largest over the steps."""
    pairs = zip(checks[peer]["losses"], checks[other]["losses"], strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs)


def bars(variants: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Those of the variants that were measured."""
    found = []
    if "tiny" in variants:
        rounds, checks = variants["tiny"]["rounds"], variants["tiny"]["checks"]
        ratio = speed_ratio(rounds, "runner", "trainer").median
        found.append(
            Bar("tokens/s on `tiny`", f"at least {SPEED_BAR:.2f} x Trainer's", f"{ratio:.2f} x", ratio >= SPEED_BAR)
        )
        largest = loss_difference(checks, "runner", "trainer")
        what = f"each of {len(checks['runner']['losses'])} losses on `tiny`"
        found.append(Bar(what, f"within {LOSS_BAR:.0e} of Trainer's", f"{largest:.1e}", largest <= LOSS_BAR))
    if "empty" in variants:
        extra = overhead(variants["empty"]["rounds"], "runner", "hand").median
        wanted = f"at most {OVERHEAD_BAR:.1f} ms over the loop by hand"
        found.append(Bar("a step on `empty`", wanted, f"{extra:.2f} ms", extra <= OVERHEAD_BAR))
    return found
