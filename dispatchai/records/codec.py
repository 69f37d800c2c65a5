"""The Avro codec of the records: values to bytes and back.

Every value is written in Avro's single-object encoding: the bytes C3 01, the CRC-64-AVRO fingerprint of the
writer's schema in its Parsing Canonical Form (8 bytes, little-endian), then the body. So any consumer finds the
writer's schema among the files of `schemas/` without a registry, and a record of an older version is resolved to
the current one. Source: Apache Avro 1.12 specification, "Single-object encoding" and "Schema Resolution".
"""

from __future__ import annotations

import dataclasses
import io
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

from dispatchai.records import values
from dispatchai.records.errors import DecodeError
from dispatchai.resources import data_path

MARKER = b"\xc3\x01"
"""First two bytes of a single-object encoded value."""

HEADER_LENGTH = 10
"""Marker (2 bytes) and fingerprint (8 bytes)."""

type_of_record: dict[str, type] = {
    name: value
    for name, value in vars(values).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value) and not name.startswith("_")
}
"""The dataclasses of the records and of what is in them, by name."""

Record = Any
"""A frozen dataclass of `dispatchai.records.values` that has a schema file."""

R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class _Schema:
    name: str
    parsed: Any
    header: bytes


def _without_logical_types(schema: Any) -> Any:
    """The schema with plain longs for timestamps: the bytes are the same, and integers are several times cheaper."""
    match schema:
        case {"type": "long", "logicalType": _}:
            return "long"
        case dict():
            return {key: _without_logical_types(value) for key, value in schema.items()}
        case list():
            return [_without_logical_types(item) for item in schema]
        case _:
            return schema


def _load(path: Path) -> _Schema:
    text = json.loads(path.read_text(encoding="utf-8"))
    crc = fingerprint(to_parsing_canonical_form(text), "CRC-64-AVRO")
    # fastavro prints the 64-bit value as the hex of its little-endian bytes, which is the order on the wire.
    return _Schema(
        name=text["name"],
        parsed=parse_schema(_without_logical_types(text)),
        header=MARKER + bytes.fromhex(crc),
    )


@cache
def _current(name: str) -> _Schema:
    return _load(data_path("schemas") / f"{name}.avsc")


def header_of(name: str) -> bytes:
    """The HEADER_LENGTH bytes with which this version begins every value of the record `name`."""
    return _current(name).header


def parsed_schema(name: str) -> Any:
    """The current schema of the record `name` in fastavro's form: full names of types, times as plain longs."""
    return _current(name).parsed


@cache
def _by_header() -> dict[bytes, _Schema]:
    """Every schema that this version can read, current and past, by the header of its records."""
    root = data_path("schemas")
    schemas = [_load(path) for path in sorted(root.glob("history/*.avsc")) + sorted(root.glob("*.avsc"))]
    return {schema.header: schema for schema in schemas}


@cache
def _plainer(cls: type) -> Callable[[Any], dict[str, Any]]:
    """The function that turns a dataclass into a dict of its fields for fastavro, and those in it likewise."""
    hints = typing.get_type_hints(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    values_of = attrgetter(*names) if len(names) > 1 else lambda record: (getattr(record, names[0]),)
    others = [(name, convert) for name in names if (convert := _plain_value(hints[name])) is not None]

    def plain(record: Any) -> dict[str, Any]:
        fields = dict(zip(names, values_of(record), strict=True))
        for name, convert in others:
            fields[name] = convert(fields[name])
        return fields

    return plain


def _plain_value(hint: Any) -> Callable[[Any], Any] | None:
    """The function that turns the value of a field into fastavro's; None if the two are the same."""
    if typing.get_origin(hint) is tuple:
        item = _plain_value(typing.get_args(hint)[0])
        return None if item is None else lambda values: [item(value) for value in values]
    if isinstance(hint, types.UnionType):
        inner = _plain_value(next(arg for arg in typing.get_args(hint) if arg is not types.NoneType))
        return None if inner is None else lambda value: None if value is None else inner(value)
    return _plainer(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


@cache
def _finite(cls: type) -> Callable[[Mapping[str, Any]], bool] | None:
    """The test whether all numbers in the fields of a `cls`, in fastavro's form, are finite. None if it has no floats.

    Each is a measure, a weight or a share. NaN has no place in an order or in JSON, and JSON has no infinity either.
    """
    hints = typing.get_type_hints(cls)
    tests = [(field.name, test) for field in dataclasses.fields(cls) if (test := _finite_value(hints[field.name]))]
    return (lambda fields: all(test(fields[name]) for name, test in tests)) if tests else None


def _finite_value(hint: Any) -> Callable[[Any], bool] | None:
    if typing.get_origin(hint) is tuple:
        item = _finite_value(typing.get_args(hint)[0])
        return None if item is None else lambda values: all(map(item, values))
    if isinstance(hint, types.UnionType):
        inner = _finite_value(next(arg for arg in typing.get_args(hint) if arg is not types.NoneType))
        return None if inner is None else lambda value: value is None or inner(value)
    if hint is float:
        return isfinite
    return _finite(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def encode(record: Record) -> bytes:
    """`record` in single-object encoding.

    Raises ValueError, TypeError, AttributeError if a field has a wrong type, and ValueError if a number is not finite.
    """
    cls = record.__class__
    fields = _plainer(cls)(record)
    if (finite := _finite(cls)) is not None and not finite(fields):
        raise ValueError(f"a number in this {cls.__name__} is not finite")
    return encode_fields(cls.__name__, fields)


def encode_fields(name: str, fields: Mapping[str, Any]) -> bytes:
    """`encode` for the fields of a record `name`: for thousands of records, where dataclasses cost too much."""
    schema = _current(name)
    out = io.BytesIO()
    out.write(schema.header)
    schemaless_writer(out, schema.parsed, fields)
    return out.getvalue()


def decode_fields(data: bytes) -> tuple[str, dict[str, Any]]:
    """Name and fields of the record in `data`, enums as text: for thousands of records. Raises DecodeError."""
    writer = _writer_of(data)
    reader = _current(writer.name)
    fields = _read(data, writer, None if writer.header == reader.header else reader.parsed)
    if (finite := _finite(type_of_record[writer.name])) is not None and not finite(fields):
        raise DecodeError(f"broken {writer.name}: a number is not finite")
    return writer.name, fields


def decode_only(name: str, data: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """These `fields` of the record `name` in `data`, enums as text; the others are skipped. Raises DecodeError.

    A type with a name must be defined within `fields` if one of them uses it.
    """
    writer = _writer_of(data)
    if writer.name != name:
        raise DecodeError(f"expected {name}, found {writer.name}")
    return _read(data, writer, _reduced(name, fields))


@cache
def _reduced(name: str, fields: tuple[str, ...]) -> Any:
    schema = json.loads((data_path("schemas") / f"{name}.avsc").read_text(encoding="utf-8"))
    schema["fields"] = [field for field in schema["fields"] if field["name"] in fields]
    return parse_schema(_without_logical_types(schema))


def _writer_of(data: bytes) -> _Schema:
    if data[:2] != MARKER or len(data) < HEADER_LENGTH:
        raise DecodeError(f"not single-object Avro: {len(data)} bytes that do not begin with C3 01")
    writer = _by_header().get(data[:HEADER_LENGTH])
    if writer is None:
        raise DecodeError(f"unknown schema fingerprint {data[2:HEADER_LENGTH].hex()}: written by another version?")
    return writer


def _read(data: bytes, writer: _Schema, reader: Any) -> dict[str, Any]:
    body = io.BytesIO(data)
    body.seek(HEADER_LENGTH)
    try:
        fields: dict[str, Any] = schemaless_reader(body, writer.parsed, reader)
    except Exception as error:  # fastavro raises whatever error the broken bytes lead to
        raise DecodeError(f"broken {writer.name}: {type(error).__name__}") from error
    if body.tell() != len(data):
        raise DecodeError(f"broken {writer.name}: bytes after its end")
    return fields


NAME_MAX_CHARS: Final = 512
"""Longest id or name in a record that agents read: states hold many of them. A carrier's ids have at most 256
characters."""

_NAMES: Final = {
    "Action": ("action_id", "actor", "other_call_id"),
    "AudioFrame": ("stream_id", "encoding"),
    "CallEvent": ("event_id", "type", "call_control_id"),
    "Signal": ("stream_id",),
    "Utterance": ("stream_id", "utterance_id", "engine"),
}
"""The fields with such ids and names, by record."""


def decode(data: bytes) -> Record:
    """The record in `data`, whatever its type. Raises DecodeError, also for an id that is too long for a state."""
    name, fields = decode_fields(data)
    for field in _NAMES.get(name, ()):
        if len(fields[field] or "") > NAME_MAX_CHARS:
            raise DecodeError(f"{name} with a {field} of {len(fields[field]):,} characters")
    return _builder(type_of_record[name])(fields)


def decode_as(cls: type[R], data: bytes) -> R:
    """The record in `data`, which must be a `cls`. Raises DecodeError."""
    record = decode(data)
    if not isinstance(record, cls):
        raise DecodeError(f"expected {cls.__name__}, found {type(record).__name__}")
    return record


@cache
def _builder(cls: type) -> Callable[[dict[str, Any]], Any]:
    hints = typing.get_type_hints(cls)
    conversions = [(field.name, _conversion(hints[field.name])) for field in dataclasses.fields(cls)]
    needed = [(name, convert) for name, convert in conversions if convert is not None]

    def build(fields: dict[str, Any]) -> Any:
        for name, convert in needed:
            fields[name] = convert(fields[name])
        return cls(**fields)

    return build


def _conversion(hint: Any) -> Callable[[Any], Any] | None:
    """The function that turns fastavro's value into that of a field; None if the two are the same."""
    if typing.get_origin(hint) is tuple:
        item = _conversion(typing.get_args(hint)[0])
        return tuple if item is None else lambda values: tuple(item(value) for value in values)
    if isinstance(hint, types.UnionType):
        inner = _conversion(next(arg for arg in typing.get_args(hint) if arg is not types.NoneType))
        return None if inner is None else lambda value: None if value is None else inner(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda fields: _builder(hint)(fields)
    return None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MICROS_MIN: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
MICROS_MAX: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC) - _EPOCH) // timedelta(microseconds=1)
"""Bounds of the times that can be written as text, in µs since the epoch."""


def to_json(record: Record, *, omit: Iterable[str] = ()) -> dict[str, Any]:
    """`record` as JSON-ready values: times as RFC 3339 in UTC, bytes as their length. `omit` names top-level fields.

    A record may hold a time outside the years 1 to 9999, which RFC 3339 and `datetime` do not allow. It becomes the
    nearest time inside, because one absurd record must not hide the calls that are listed with it.
    """

    def rfc3339(micros: int) -> str:
        micros = min(max(micros, MICROS_MIN), MICROS_MAX)
        moment = datetime.fromtimestamp(micros // 1_000_000, UTC)
        return f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}.{micros % 1_000_000:06d}Z"

    def convert(value: Any, hint: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bytes):
            return {"bytes": len(value)}
        if isinstance(value, tuple):
            return [convert(item, None) for item in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: convert(getattr(value, field.name), field.type) for field in dataclasses.fields(value)}
        if hint is not None and str(hint).startswith("Micros"):
            return rfc3339(value)
        return value

    skipped = frozenset(omit)
    result = convert(record, None)
    return {name: value for name, value in result.items() if name not in skipped}
