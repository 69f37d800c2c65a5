"""Schema files as the tests need them: with names expanded, in Parsing Canonical Form, with their fingerprints.

Written by the specification (Apache Avro 1.12, "Parsing Canonical Form for Schemas", "Schema Fingerprints") and not by
the codec's library, so that the two can be compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dispatchai.resources import data_path

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

KEPT = ("name", "type", "fields", "symbols", "items", "values", "size")
"""The attributes that the canonical form keeps, in its order."""


def current_path(name: str) -> Path:
    return data_path("schemas") / f"{name}.avsc"


def history_paths(name: str) -> list[Path]:
    """The published versions of the record `name`, oldest first."""
    paths = (data_path("schemas") / "history").glob(f"{name}-*.avsc")
    return sorted(paths, key=version_of)


def version_of(path: Path) -> int:
    """3 of ``Signal-3.avsc``."""
    return int(path.stem.rpartition("-")[2])


def load(path: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def full_name(schema: dict[str, Any], namespace: str) -> str:
    name: str = schema["name"]
    return name if "." in name else f"{schema.get('namespace', namespace)}.{name}"


def expand(schema: Any, namespace: str = "", known: dict[str, Any] | None = None) -> Any:
    """`schema` with each reference to a named type replaced by its definition. No type here contains itself."""
    known = {} if known is None else known
    match schema:
        case str() if schema in PRIMITIVES:
            return schema
        case str():
            return known[schema if "." in schema else f"{namespace}.{schema}"]
        case list():
            return [expand(branch, namespace, known) for branch in schema]
        case {"type": "record", "fields": fields}:
            name = full_name(schema, namespace)
            space = name.rpartition(".")[0]
            expanded = schema | {
                "name": name,
                "fields": [field | {"type": expand(field["type"], space, known)} for field in fields],
            }
            expanded.pop("namespace", None)
            known[name] = expanded
            return expanded
        case {"type": "enum"}:
            name = full_name(schema, namespace)
            expanded = schema | {"name": name}
            expanded.pop("namespace", None)
            known[name] = expanded
            return expanded
        case {"type": "array", "items": items}:
            return schema | {"items": expand(items, namespace, known)}
        case dict():
            return schema
    raise TypeError(f"not a schema: {schema!r}")


def without_docs(schema: Any) -> Any:
    """`schema` without its docs, which do not matter for reading and writing."""
    match schema:
        case dict():
            return {key: without_docs(value) for key, value in schema.items() if key != "doc"}
        case list():
            return [without_docs(item) for item in schema]
        case _:
            return schema


def canonical(schema: Any) -> str:
    """The Parsing Canonical Form: [PRIMITIVES] [FULLNAMES] [STRIP] [ORDER] [WHITESPACE]."""
    return json.dumps(_canonical(schema, ""), separators=(",", ":"), ensure_ascii=False)


def _canonical(schema: Any, namespace: str) -> Any:
    match schema:
        case str():
            return schema if schema in PRIMITIVES or "." in schema else f"{namespace}.{schema}"
        case list():
            return [_canonical(branch, namespace) for branch in schema]
        case {"type": str(primitive)} if primitive in PRIMITIVES:
            return primitive
    result: dict[str, Any] = {}
    if schema["type"] in ("record", "enum", "fixed"):
        name = full_name(schema, namespace)
        namespace = name.rpartition(".")[0]
        schema = schema | {"name": name}
    for attribute in KEPT:
        match attribute, schema.get(attribute):
            case _, None:
                continue
            case "fields", fields:
                result["fields"] = [
                    {"name": field["name"], "type": _canonical(field["type"], namespace)} for field in fields
                ]
            case (("items" | "values"), inner):
                result[attribute] = _canonical(inner, namespace)
            case _, value:
                result[attribute] = value
    return result


EMPTY_FINGERPRINT = 0xC15D213AA4D7A795
"""CRC-64-AVRO of no bytes, and its polynomial."""


def crc_64_avro(data: bytes) -> int:
    """The fingerprint of the specification, bit by bit."""
    fingerprint = EMPTY_FINGERPRINT
    for byte in data:
        fingerprint ^= byte
        for _ in range(8):
            fingerprint = (fingerprint >> 1) ^ (EMPTY_FINGERPRINT if fingerprint & 1 else 0)
    return fingerprint
