"""Fields of rows that a split goes by: label, or what data.extra keeps."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from typing import Any

from runner.preparing.content import Content
from runner.protocols import Mistake
from runner.spelling import did_you_mean


def check_known(contents: Sequence[Content], name: str, key: str) -> None:
    """Raises `Mistake` for a field `name` that no row has. `key` is the setting that names it."""
    if all(value_of(one, name) is None for one in contents):
        known = ["label", *dict.fromkeys(field for one in contents for field in one.row.extra)]
        raise Mistake(
            f"prepare.{key}={name}: no row has it{did_you_mean(name, known)} Fields are label and what the source "
            f"keeps (data.extra=[{name}]); here: {', '.join(known)}."
        )


def values_of(contents: Sequence[Content], name: str, key: str) -> list[Any]:
    """The field of each row. Raises `Mistake` for one that lacks it."""
    check_known(contents, name, key)
    values = [value_of(one, name) for one in contents]
    lacking = [one.row for one, value in zip(contents, values, strict=True) if value is None]
    if lacking:
        raise Mistake(
            f"prepare.{key}={name}: {len(lacking):,} of {len(values):,} rows lack it, {lacking[0].where} "
            f"(id {lacking[0].id}) for one. Give each row a value."
        )
    return values


def value_of(one: Content, name: str) -> Any:
    return one.row.label if name == "label" else one.row.extra.get(name)


def kinds_of(contents: Sequence[Content], name: str, key: str) -> list[Hashable]:
    """Values that are the same or not: texts, whole numbers, true and false."""
    values = values_of(contents, name, key)
    for one, value in zip(contents, values, strict=True):
        if not isinstance(value, str | int):
            raise Mistake(
                f"prepare.{key}={name}: it is {str(value)[:40]!r} in {one.row.where} (id {one.row.id}), and must be a "
                "text or a whole number."
            )
    return values


def times_of(contents: Sequence[Content], name: str, key: str) -> list[float]:
    """Numbers as they are, and ISO 8601 dates as seconds since 1970; one without a time zone is taken as UTC."""
    values = values_of(contents, name, key)
    times = []
    for one, value in zip(contents, values, strict=True):
        time = moment_of(value)
        if time is None or isinstance(value, str) != isinstance(values[0], str):
            raise Mistake(
                f"prepare.{key}={name}: it is {str(value)[:40]!r} in {one.row.where} (id {one.row.id}). A time is a "
                "number in every row, or a date as ISO 8601 writes it in every row."
            )
        times.append(time)
    return times


def moment_of(value: Any) -> float | None:
    if isinstance(value, datetime):
        return seconds_of(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    try:
        return seconds_of(datetime.fromisoformat(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def seconds_of(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
