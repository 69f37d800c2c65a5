"""Reads all records of one call as a stranger to the project would: from the topics and `schemas/` alone.

    python consumer.py BOOTSTRAP_SERVERS SCHEMAS CALL_ID TOPIC...

Prints a JSON object for each record. A call is in one partition of a topic, so its records come in order. A value is
Avro in single-object encoding (C3 01, the CRC-64-AVRO fingerprint of the writer's schema, the body); the fingerprint
identifies the schema among the files of SCHEMAS. Other values are printed as hex.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import aiokafka
from fastavro import parse_schema, schemaless_reader
from fastavro.schema import fingerprint, to_parsing_canonical_form

MARKER = b"\xc3\x01"
HEADER_LENGTH = 10
QUIET_POLLS = 3
"""Polls without a record after which the topics count as read: not every broker reports their ends exactly."""


def load_schemas(folder: Path) -> dict[bytes, Any]:
    """Every schema under `folder`, past versions too, by the ten bytes with which its values begin."""
    schemas: dict[bytes, Any] = {}
    for path in sorted(folder.rglob("*.avsc")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
        schemas[MARKER + bytes.fromhex(crc)] = parse_schema(schema)
    return schemas


def decoded(value: bytes | None, schemas: dict[bytes, Any]) -> dict[str, Any]:
    """The name of the record and its fields; neither for a tombstone, the hex of other bytes."""
    if value is None:
        return {"record": None}
    schema = schemas.get(value[:HEADER_LENGTH])
    if schema is None:
        return {"record": "unknown", "hex": value.hex()}
    body = io.BytesIO(value[HEADER_LENGTH:])
    fields = schemaless_reader(body, schema, None)
    if body.read(1):
        raise ValueError("bytes after the record's end")
    return {"record": schema["name"].rpartition(".")[2], "fields": fields}


def jsonable(value: object) -> str:
    """Values for which JSON has no type: bytes as hex, times in ISO 8601."""
    match value:
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


async def main(servers: str, schemas: str, call_id: str, *topics: str) -> None:
    """Read the topics from their beginning until nothing more comes."""
    known = load_schemas(Path(schemas))
    async with aiokafka.AIOKafkaConsumer(*topics, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        quiet = 0
        while quiet < QUIET_POLLS:
            fetched = await consumer.getmany(timeout_ms=500)
            quiet = 0 if fetched else quiet + 1
            for record in (record for records in fetched.values() for record in records):
                if record.key == call_id.encode():
                    shown = {
                        "topic": record.topic,
                        "partition": record.partition,
                        "offset": record.offset,
                        "key": record.key.decode(),
                        "headers": {name: value.decode() for name, value in record.headers},
                        **decoded(record.value, known),
                    }
                    print(json.dumps(shown, default=jsonable))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
