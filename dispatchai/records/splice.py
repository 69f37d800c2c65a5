"""Makes a record out of the bytes of another: the fields that both have are copied as they are encoded.

For records that are made by the thousand and say the same in another form: to encode them again costs twenty times as
much. A test holds it to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding": a record is its fields, one after the other.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from dispatchai.records.codec import HEADER_LENGTH, encode_fields, header_of, parsed_schema
from dispatchai.records.errors import SchemaError


class RecordSplicer:
    """Makes records `target` of records `source`. The fields of `source` from `first` to its last are fields of
    `target` too, in the same order and of the same types; the fields of `target` before and behind them are given."""

    def __init__(self, source: str, target: str, first: str) -> None:
        """Raises SchemaError if they are not."""
        of_source, of_target = parsed_schema(source)["fields"], parsed_schema(target)["fields"]
        head, start = _index(of_source, first), _index(of_target, first)
        end = start + len(of_source) - head
        shared = _plain(of_source[head:])
        if not shared or shared != _plain(of_target[start:end]):
            raise SchemaError(f"the fields of {source} from {first} on are not those of {target}")
        self._source = source
        self._header = header_of(target)
        self._skipped = _record("Skipped", of_source[:head])
        self._before = _record("Before", of_target[:start])
        self._behind = _record("Behind", of_target[end:])

    def make(self, data: bytes, fields: Mapping[str, Any], **given: Any) -> bytes:
        """The record in single-object encoding.

        `data` is a record `source` in single-object encoding, of the current schema or of a past one, and `fields` are
        its fields. `given` are the other fields of `target`. Raises ValueError or TypeError if one is missing or has a
        wrong type.
        """
        if data[:HEADER_LENGTH] != header_of(self._source):
            data = encode_fields(self._source, fields)
        body = io.BytesIO(data)
        body.seek(HEADER_LENGTH)
        schemaless_reader(body, self._skipped, None)
        made = io.BytesIO()
        made.write(self._header)
        schemaless_writer(made, self._before, given)
        made.write(data[body.tell() :])
        schemaless_writer(made, self._behind, given)
        return made.getvalue()


def _index(fields: list[Any], name: str) -> int:
    """The index of the field `name` in `fields`; their number if it is not there."""
    return next((index for index, field in enumerate(fields) if field["name"] == name), len(fields))


def _plain(fields: list[Any]) -> list[Any]:
    return [(field["name"], field["type"]) for field in fields]


def _record(name: str, fields: list[Any]) -> Any:
    return parse_schema({"type": "record", "name": name, "fields": fields}, {})
