"""The known name that a wrong one is most like."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = ".") -> str:
    """The end of a sentence: `; did you mean NAME?` with the nearest known name, or `otherwise`."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else otherwise
