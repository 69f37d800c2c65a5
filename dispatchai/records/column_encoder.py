"""Encodes many records of one schema at once, from columns: the bytes that `encode` makes, at a small part of its cost.

Each field becomes a matrix of bytes, one row for each record, with a mask of the bytes that count; side by side they
are the records. A test holds it to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dispatchai.records.avro_primitives import (
    NO_MORE_ITEMS,
    ONE_ITEM,
    Bytes,
    Mask,
    encode_doubles,
    encode_longs,
)
from dispatchai.records.codec import header_of, parsed_schema


@dataclass(frozen=True, slots=True)
class Text:
    """A column of strings in UTF-8, padded with zeros to one width: shape (k, width). No string contains a zero."""

    padded: Bytes


@dataclass(frozen=True, slots=True)
class Same:
    """The value of a boolean field, or the symbol of an enum, that all records share."""

    value: bool | str


@dataclass(frozen=True, slots=True)
class OneItem:
    """A column of arrays with one record each, by the columns of its fields."""

    columns: Mapping[str, Column]


Column = npt.NDArray[Any] | Text | Same | OneItem
"""A field of k records. An array has the shape (k,): int64 for a long, float64 for a double, bool for a boolean."""


def encode_columns(name: str, columns: Mapping[str, Column], count: int) -> list[bytes]:
    """`count` records `name` in single-object encoding. `columns` has each field of the schema.

    Raises KeyError for a missing field, TypeError for a field whose column has another type, ValueError for a symbol
    that its enum does not have.
    """
    if not count:
        return []
    made = _Matrix(count)
    made.add_same(header_of(name))
    made.add_record(parsed_schema(name), columns)
    return made.rows()


class _Matrix:
    """Records in the making, field by field."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes: list[Bytes] = []
        self._counts: list[Mask] = []

    def rows(self) -> list[bytes]:
        """The bytes that were added to each row."""
        counts = np.concatenate(self._counts, axis=1)
        data = np.concatenate(self._bytes, axis=1)[counts].tobytes()
        ends = np.cumsum(counts.sum(axis=1)).tolist()
        return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def add_same(self, value: bytes) -> None:
        """Add the same bytes to every row."""
        self._add(np.broadcast_to(np.frombuffer(value, np.uint8), (self._count, len(value))))

    def add_record(self, schema: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
        """Add a record to every row."""
        for field in schema["fields"]:
            self._add_field(field["type"], columns[field["name"]])

    def _add_field(self, kind: Any, column: Column) -> None:
        match kind, column:
            case "boolean", Same(bool(value)):
                self.add_same(bytes([value]))
            case {"type": "enum", "symbols": symbols}, Same(str(value)):
                self._add(*encode_longs(np.full(self._count, symbols.index(value))))
            case "string", Text(padded):
                lengths = (padded != 0).sum(axis=1)
                self._add(*encode_longs(lengths))
                self._add(padded, np.arange(padded.shape[1]) < lengths[:, np.newaxis])
            case {"type": "array", "items": items}, OneItem(columns):
                self.add_same(ONE_ITEM)
                self.add_record(cast("Mapping[str, Any]", items), columns)
                self.add_same(NO_MORE_ITEMS)
            case "long", np.ndarray(dtype=np.dtypes.Int64DType()):
                self._add(*encode_longs(column))
            case "double", np.ndarray(dtype=np.dtypes.Float64DType()):
                self._add(encode_doubles(column))
            case "boolean", np.ndarray(dtype=np.dtypes.BoolDType()):
                self._add(column.astype(np.uint8)[:, np.newaxis])
            case _:
                raise TypeError(f"a column of {type(column).__name__} for the type {kind}")

    def _add(self, matrix: Bytes, counts: Mask | None = None) -> None:
        self._bytes.append(matrix)
        self._counts.append(np.ones(matrix.shape, np.bool_) if counts is None else counts)
