"""Many records of one schema at once, from columns: what `encode` gives of each, at a small part of its cost.

Each field becomes a matrix of bytes, one row for each record, with a mask of those that are its own; side by side they
are the records. Decides nothing: a test holds it to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from dispatchai.records.codec import header_of, parsed_schema

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_ONE_ITEM: Final = b"\x02"
_NO_MORE_ITEMS: Final = b"\0"
"""The block counts of an array of one item: 1 and 0, in zigzag coding."""


@dataclass(frozen=True, slots=True)
class Text:
    """A column of strings in UTF-8, padded with zeros to one width: shape (k, width). None may hold a zero itself."""

    padded: Bytes


@dataclass(frozen=True, slots=True)
class Same:
    """A value that all records have in this field: of a boolean, or the symbol of an enum."""

    value: bool | str


@dataclass(frozen=True, slots=True)
class OneItem:
    """A column of arrays with one record each: its fields."""

    columns: Mapping[str, Column]


Column = npt.NDArray[Any] | Text | Same | OneItem
"""A field of k records. An array has the shape (k,): int64 for a long, float64 for a double, bool for a boolean."""


def encode_columns(name: str, columns: Mapping[str, Column], count: int) -> list[bytes]:
    """`count` records `name` in single-object encoding. `columns` has each field of the schema.

    Raises KeyError for a field that is missing, TypeError for one whose column is not of its type, ValueError for a
    symbol that its enum has not.
    """
    if not count:
        return []
    made = _Matrix(count)
    made.add_same(header_of(name))
    made.add_record(parsed_schema(name), columns)
    return made.rows()


class _Matrix:
    """Records as they grow, field by field."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes: list[Bytes] = []
        self._own: list[Mask] = []

    def rows(self) -> list[bytes]:
        """What was added, row by row."""
        own = np.concatenate(self._own, axis=1)
        data = np.concatenate(self._bytes, axis=1)[own].tobytes()
        ends = np.cumsum(own.sum(axis=1)).tolist()
        return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def add_same(self, value: bytes) -> None:
        """The same bytes in every row."""
        self._add(np.broadcast_to(np.frombuffer(value, np.uint8), (self._count, len(value))))

    def add_record(self, schema: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
        """A record in every row."""
        for field in schema["fields"]:
            self._add_field(field["type"], columns[field["name"]])

    def _add_field(self, kind: Any, column: Column) -> None:
        match kind, column:
            case "boolean", Same(bool(value)):
                self.add_same(bytes([value]))
            case {"type": "enum", "symbols": symbols}, Same(str(value)):
                self._add_longs(np.full(self._count, symbols.index(value)))
            case "string", Text(padded):
                lengths = (padded != 0).sum(axis=1)
                self._add_longs(lengths)
                self._add(padded, np.arange(padded.shape[1]) < lengths[:, np.newaxis])
            case {"type": "array", "items": items}, OneItem(columns):
                self.add_same(_ONE_ITEM)
                self.add_record(cast("Mapping[str, Any]", items), columns)
                self.add_same(_NO_MORE_ITEMS)
            case "long", np.ndarray(dtype=np.dtypes.Int64DType()):
                self._add_longs(column)
            case "double", np.ndarray(dtype=np.dtypes.Float64DType()):
                self._add(column.astype("<f8").view(np.uint8).reshape(-1, 8))
            case "boolean", np.ndarray(dtype=np.dtypes.BoolDType()):
                self._add(column.astype(np.uint8)[:, np.newaxis])
            case _:
                raise TypeError(f"a column of {type(column).__name__} for the type {kind}")

    def _add_longs(self, values: npt.NDArray[np.int64]) -> None:
        zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
        width = max(1, -(-int(zigzag.max()).bit_length() // 7))
        left = zigzag[:, np.newaxis] >> (np.arange(width, dtype=np.uint64) * np.uint64(7))
        more = left > np.uint64(0x7F)
        own = left != 0
        own[:, 0] = True
        self._add(np.where(more, left | np.uint64(0x80), left).astype(np.uint8), own)

    def _add(self, matrix: Bytes, own: Mask | None = None) -> None:
        self._bytes.append(matrix)
        self._own.append(np.ones(matrix.shape, np.bool_) if own is None else own)
