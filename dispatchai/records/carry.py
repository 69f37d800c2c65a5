"""A record made of the bytes of another: the fields that both have are carried over as they lie there.

For records by the thousand that say the same in another form: encoding them anew costs twenty times as much. Decides
nothing: a test holds it to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding": a record is its fields, one behind the other.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from dispatchai.records.codec import HEADER_LENGTH, encode_fields, header_of, parsed_schema


class Carrier:
    """Makes records `target` of records `source`, whose fields from `first` to the last are fields of `target` too, in
    the same order and of the same types. What `target` has before and behind them is given."""

    def __init__(self, source: str, target: str, first: str) -> None:
        """Raises ValueError if the fields are not the same."""
        of_source, of_target = parsed_schema(source)["fields"], parsed_schema(target)["fields"]
        head = [field["name"] for field in of_source].index(first)
        start = [field["name"] for field in of_target].index(first)
        end = start + len(of_source) - head
        for ours, theirs in zip(of_source[head:], of_target[start:end], strict=True):
            if (ours["name"], ours["type"]) != (theirs["name"], theirs["type"]):
                raise ValueError(f"{source}.{ours['name']} is not {target}.{theirs['name']}")
        self._source = source
        self._header = header_of(target)
        self._skipped = _record("Skipped", of_source[:head])
        self._before = _record("Before", of_target[:start])
        self._behind = _record("Behind", of_target[end:])

    def make(self, data: bytes, fields: Mapping[str, Any], **given: Any) -> bytes:
        """The record in single-object encoding. `data` is a record `source` that says `fields`, in single-object
        encoding of the current schema or of a past one. Raises ValueError or TypeError if something is missing in what
        is given, or of a wrong type."""
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


def _record(name: str, fields: list[Any]) -> Any:
    return parse_schema({"type": "record", "name": name, "fields": fields}, {})
