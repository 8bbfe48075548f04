"""Records out of Arrow tables, which Parquet files and Hugging Face's sets come as."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from runner.protocols import Mistake

if TYPE_CHECKING:
    import pyarrow


def check_types(schema: pyarrow.Schema, source: str, own: Collection[str] = ()) -> None:
    """Raises `Mistake` for a column that JSON could not hold; those in `own` are their reader's to turn into items."""
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise Mistake(f"{source} has two columns named `{name}`; name each column once.")
        type = schema.field(name).type
        if name not in own and not is_plain(type):
            hint = " Pictures and sounds inside a set are read by data=hub." if holds_item(type) else ""
            raise Mistake(f"{source}: the column `{name}` holds {type}, which a row cannot; take it out.{hint}")


def is_plain(type: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(type):
        return all(is_plain(field.type) for field in type)
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return is_plain(type.value_type)
    if types.is_dictionary(type):
        return is_plain(type.value_type)
    tests = (
        *(types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal),
        *(types.is_string, types.is_large_string, types.is_string_view, types.is_date, types.is_time),
        types.is_timestamp,
    )
    return any(test(type) for test in tests)


def holds_item(type: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_list(type) or types.is_large_list(type):
        return holds_item(type.value_type)
    return types.is_binary(type) or (types.is_struct(type) and any(types.is_binary(field.type) for field in type))


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A column has a cell for every row, so null there is what a missing key is elsewhere."""
    return {name: plain(name, value) for name, value in values.items() if value is not None}


def plain(name: str, value: Any) -> Any:
    """As JSON has it: times and dates by ISO 8601. Raises `Mistake` for a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Mistake(f"holds {value} in `{name}`, which is not a finite number; a missing value is null.")
    if isinstance(value, list):
        return [plain(name, one) for one in value]
    if isinstance(value, dict):
        return {key: plain(name, one) for key, one in value.items()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
