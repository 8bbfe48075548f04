"""Rows that break the schema, told at once: by file and line, or id, and the same reason once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from runner.protocols import BadRow, Mistake, Row

TOLD = 10
"""Different reasons told at once."""
KEPT = 100
"""Different reasons that are counted apart."""


@dataclass(frozen=True)
class BadReport:
    """What was left out of a split."""

    total: int
    """Rows that were read, bad ones with them."""
    skipped: int
    lines: list[str]
    """A line for each of the first reasons."""


class BadRows:
    """Of one split: collected while its rows are read, and told when the last one was.

    Memory: a count and a place for each of so many reasons, whatever the number of rows.
    """

    def __init__(self, split: str, policy: Literal["error", "skip"], max_share: float) -> None:
        self.split = split
        self.policy = policy
        self.max_share = max_share
        self.total = 0
        """Rows that were read, bad ones with them."""
        self.reasons: dict[str, tuple[str, int]] = {}
        """By reason: where it was first, and of how many rows it is told."""

    @property
    def count(self) -> int:
        return sum(count for _, count in self.reasons.values())

    def sound(self, rows: Iterable[Row | BadRow]) -> Iterator[Row]:
        """The others, as they come. Raises `Mistake` after the last one where the bad ones may not be left out."""
        for row in rows:
            self.total += 1
            if isinstance(row, BadRow):
                self.note(row.where, row.reason)
            else:
                yield row
        self.check()

    def note(self, where: str, reason: str) -> None:
        if len(self.reasons) == KEPT and reason not in self.reasons:
            reason = "has another reason."
        first, count = self.reasons.get(reason, (where, 0))
        self.reasons[reason] = (first, count + 1)

    def check(self) -> None:
        if not self.reasons:
            return
        share = self.count / self.total
        if self.policy == "error":
            head = f"data, {self.split}: {self.counted()} cannot be used."
            end = "Mend them, or leave such rows out (data.on_bad_row=skip)."
        elif share > self.max_share:
            head = (
                f"data, {self.split}: {self.counted()} of {self.total:,} cannot be used, {share:.2%}, which is more "
                f"than data.max_bad_share={self.max_share:g}."
            )
            end = "Mend them, or raise it."
        else:
            return
        raise Mistake("\n".join([head, *self.lines(), end]))

    def report(self) -> BadReport:
        return BadReport(self.total, self.count, self.lines())

    def counted(self) -> str:
        return f"{self.count:,} row{'s' if self.count > 1 else ''}"

    def lines(self) -> list[str]:
        """A line for each of the first reasons."""
        lines = []
        for reason, (where, count) in list(self.reasons.items())[:TOLD]:
            more = f" and {count - 1:,} more" if count > 1 else ""
            lines.append(f"  {where}{more}: {reason}")
        hidden = sum(count for _, count in list(self.reasons.values())[TOLD:])
        return [*lines, f"  ... and {hidden:,} more rows."] if hidden else lines
