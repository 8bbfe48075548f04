"""Values of a config held against type annotations: `Annotated[int, Ge(1)]`, `Literal`, `X | None`, lists and dicts.

Strict as JSON is: 1 is a float too, but "1" is no number, 1.0 no whole number and true neither.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from runner.spelling import did_you_mean

PLAIN_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
BOUNDS = (
    ("ge", "at least"),
    ("gt", "more than"),
    ("le", "at most"),
    ("lt", "less than"),
    ("multiple_of", "a multiple of"),
)


def check_value(path: str, value: Any, annotation: Any) -> str | None:
    """A sentence that says what is wrong with the value, or None."""
    if annotation is Any:
        return None
    if not all_finite(value):
        return f"{path}: {json.dumps(value)} is wrong; it must be {describe(annotation)}, and finite."
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return None  # a class that only its own constructor can judge
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        hint = did_you_mean(value, choices_of(annotation)) if isinstance(value, str) else "."
        return f"{path}: {json.dumps(value, ensure_ascii=False)} is wrong; it must be {describe(annotation)}{hint}"
    return None


def all_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(all_finite(one) for one in value.values())
    if isinstance(value, list):
        return all(all_finite(one) for one in value)
    return not isinstance(value, float) or math.isfinite(value)


def describe(annotation: Any) -> str:
    """In words, as what follows "it must be": `a whole number, at least 1, or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, *limits = arguments
        words = [describe(kind)]
        for limit in limits:
            words += [f"{word} {getattr(limit, name)}" for name, word in BOUNDS if hasattr(limit, name)]
            if hasattr(limit, "min_length"):
                words.append(length_in_words(limit.min_length, limit.max_length))
        return ", ".join(words)
    if origin is Literal:
        return "one of " + ", ".join("null" if one is None else str(one) for one in arguments)
    if origin in (Union, types.UnionType):
        parts = [describe(one) for one in arguments]
        return f"{', '.join(parts[:-1])}{',' if ',' in parts[0] else ''} or {parts[-1]}"
    if origin in (list, tuple, set) or _is_abstract(origin, "Sequence", "Iterable"):
        items = [one for one in arguments if one is not Ellipsis]
        return f"a list ({describe(items[0])} each)" if items else "a list"
    if origin is dict or _is_abstract(origin, "Mapping"):
        return "a mapping" + (f" (name: {describe(arguments[1])})" if arguments else "")
    return PLAIN_NAMES.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}"


def length_in_words(least: int, most: int | None) -> str:
    if least == most:
        return f"{least} of them"
    return f"{least} or more of them" if most is None else f"{least} to {most} of them"


def _is_abstract(origin: Any, *names: str) -> bool:
    return getattr(origin, "__module__", "") == "collections.abc" and origin.__name__ in names


def choices_of(annotation: Any) -> list[str]:
    """The words that a `Literal` anywhere in the annotation allows."""
    if get_origin(annotation) is Literal:
        return [one for one in get_args(annotation) if isinstance(one, str)]
    return [one for part in get_args(annotation) if typing.get_origin(part) for one in choices_of(part)]
