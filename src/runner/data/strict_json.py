"""JSON as strictly as rows need it: one value of Unicode texts and finite numbers, no key twice."""

from __future__ import annotations

import json
import math
from typing import Any


def parse(text: str) -> Any:
    """Raises `ValueError` with the reason alone for what is no such value."""
    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1} of the line.") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply.") from error
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own limit, told there by its settings
            raise ValueError("holds a whole number of more than 4,300 digits.") from error
        raise
    if "\\ud" in text.lower():  # half of an escaped pair is legal JSON and no Unicode text
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is not a character.") from error
    return value


def finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"holds {number}, which is not a finite number.")
    return value


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has the key `{twice}` twice.")
    return record
