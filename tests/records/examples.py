"""Records made from their classes alone: a fixed example of each, and Hypothesis strategies for all others."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import StrEnum
from typing import Any

from hypothesis import strategies as st

from dispatchai.records import codec
from dispatchai.resources import data_path

RECORD_NAMES = sorted(path.stem for path in data_path("schemas").glob("*.avsc"))
"""Names of the records that have a schema file."""

INT_BITS, LONG_BITS = 32, 64


def record_class(name: str) -> type:
    """The dataclass of the record `name`."""
    return codec.type_of_record[name]


def inner_of_optional(hint: Any) -> Any | None:
    """X of the hint ``X | None``; None for another hint."""
    if not isinstance(hint, types.UnionType):
        return None
    (inner,) = (argument for argument in typing.get_args(hint) if argument is not types.NoneType)
    return inner


def item_of_tuple(hint: Any) -> Any | None:
    """X of the hint ``tuple[X, ...]``; None for another hint."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def hints(cls: type) -> list[tuple[str, Any]]:
    """Names and resolved types of the fields of a dataclass, in order."""
    resolved = typing.get_type_hints(cls)
    return [(field.name, resolved[field.name]) for field in dataclasses.fields(cls)]


def example(cls: type) -> Any:
    """A record with every optional field filled and two items in every list; always the same."""
    return cls(**{name: _example(name, hint, number) for number, (name, hint) in enumerate(hints(cls), 1)})


def _example(name: str, hint: Any, number: int) -> Any:
    if (inner := inner_of_optional(hint)) is not None:
        return _example(name, inner, number)
    if (item := item_of_tuple(hint)) is not None:
        return (_example(name, item, number), _example(name, item, number + 1))
    if dataclasses.is_dataclass(hint):
        return example(typing.cast(type, hint))
    if issubclass(hint, StrEnum):
        members = list(hint)
        return members[number % len(members)]
    match hint():
        case bool():
            return number % 2 == 0
        case int():
            return 1_000_000 + number
        case float():
            return number + 0.25
        case str():
            return f"{name} é {number}"
        case bytes():
            return bytes(range(number))
    raise TypeError(f"no example of {hint}")


def records(cls: type, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Any record of `cls` that `schema` (with all names expanded) can hold."""
    types_of_fields = {field["name"]: field["type"] for field in schema["fields"]}
    return st.builds(cls, **{name: _values(hint, types_of_fields[name]) for name, hint in hints(cls)})


def _values(hint: Any, schema: Any) -> st.SearchStrategy[Any]:
    if (inner := inner_of_optional(hint)) is not None:
        return st.none() | _values(inner, schema[1])
    if (item := item_of_tuple(hint)) is not None:
        return st.lists(_values(item, schema["items"]), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint):
        return records(typing.cast(type, hint), schema)
    if issubclass(hint, StrEnum):
        return st.sampled_from(list(hint))
    match schema:
        case "boolean":
            return st.booleans()
        case "int":
            return _integers(INT_BITS)
        case "long" | {"type": "long"}:
            return _integers(LONG_BITS)
        case "double":
            return st.floats(allow_nan=False, allow_infinity=False)  # the codec refuses the others
        case "string":
            return st.text(max_size=20)
        case "bytes":
            return st.binary(max_size=200)
    raise TypeError(f"no strategy for {schema}")


def _integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
