"""The dataclasses and the schema files agree."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any

import pytest

from dispatchai.records import codec, values
from tests.records.examples import RECORD_NAMES, hints, inner_of_optional, item_of_tuple, record_class
from tests.records.schemas import current_path, expand, load

NAMESPACE = "dispatchai"

AVRO_OF = {str: {"string"}, bytes: {"bytes"}, bool: {"boolean"}, int: {"int", "long"}, float: {"double"}}
"""The Avro types that a Python type may stand for. The schema decides the size of a whole number."""

TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}


def assert_equal(where: str, hint: Any, written: str, schema: Any) -> None:
    """`hint`, written as `written` in the source, agrees with `schema`."""
    if (inner := inner_of_optional(hint)) is not None:
        assert isinstance(schema, list), f"{where}: optional in Python only"
        assert schema[0] == "null", f"{where}: null must come first, for it is the default"
        assert len(schema) == 2, where
        assert_equal(where, inner, written.removesuffix(" | None"), schema[1])
    elif (item := item_of_tuple(hint)) is not None:
        assert isinstance(schema, dict), where
        assert schema["type"] == "array", where
        assert_equal(f"{where}[]", item, written.removeprefix("tuple[").removesuffix(", ...]"), schema["items"])
    elif written == "Micros":
        assert schema == TIMESTAMP, f"{where}: a time is a timestamp-micros"
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        assert_record_equal(where, hint, schema)
    elif issubclass(hint, StrEnum):
        assert schema["name"] == f"{NAMESPACE}.{hint.__name__}", where
        assert schema["symbols"] == [member.value for member in hint], where
        assert [member.name for member in hint] == schema["symbols"], where
    else:
        assert isinstance(schema, str), f"{where}: {schema} in the schema, {hint.__name__} in Python"
        assert schema in AVRO_OF[hint], f"{where}: {schema} in the schema, {hint.__name__} in Python"


def assert_record_equal(where: str, cls: type, schema: Any) -> None:
    assert schema["name"] == f"{NAMESPACE}.{cls.__name__}", where
    assert [field.name for field in dataclasses.fields(cls)] == [field["name"] for field in schema["fields"]], where
    written = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    for (name, hint), field in zip(hints(cls), schema["fields"], strict=True):
        assert_equal(f"{where}.{name}", hint, written[name], field["type"])


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_a_dataclass_has_the_fields_of_its_schema_in_order_and_type(name: str) -> None:
    assert_record_equal(name, record_class(name), expand(load(current_path(name))))


def test_every_dataclass_is_in_some_schema() -> None:
    named: dict[str, Any] = {}
    for name in RECORD_NAMES:
        expand(load(current_path(name)), known=named)
    enums = {
        value.__name__
        for value in vars(values).values()
        if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum
    }
    assert {f"{NAMESPACE}.{name}" for name in {*codec.type_of_record, *enums}} == set(named)


@pytest.mark.parametrize("name", sorted({*codec.type_of_record}))
def test_values_are_frozen_and_slotted(name: str) -> None:
    cls = codec.type_of_record[name]
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(cls)


def test_a_type_that_several_files_hold_is_the_same_in_each() -> None:
    found: dict[str, tuple[str, Any]] = {}
    for name in RECORD_NAMES:
        known: dict[str, Any] = {}
        expand(load(current_path(name)), known=known)
        for full_name, definition in known.items():
            first, before = found.setdefault(full_name, (name, definition))
            assert definition == before, f"{full_name} differs between {first}.avsc and {name}.avsc"


def fields_of(schema: Any, where: str) -> list[tuple[str, Any]]:
    match schema:
        case {"type": "record"}:
            own = [(f"{where}.{field['name']}", field) for field in schema["fields"]]
            return own + [item for path, field in own for item in fields_of(field["type"], path)]
        case {"type": "array"}:
            return fields_of(schema["items"], where)
        case list():
            return [item for branch in schema for item in fields_of(branch, where)]
        case _:
            return []


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_every_field_and_type_has_a_doc(name: str) -> None:
    schema = expand(load(current_path(name)))
    assert schema["doc"]
    for where, field in fields_of(schema, name):
        assert field.get("doc", "").endswith("."), f"{where}: a doc is a sentence"
        inner = field["type"]
        if isinstance(inner, dict) and inner["type"] in ("record", "enum"):
            assert inner["doc"], where


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_an_optional_field_has_the_default_null_so_that_it_can_be_added_and_dropped(name: str) -> None:
    for where, field in fields_of(expand(load(current_path(name))), name):
        if isinstance(field["type"], list):
            assert "default" in field, where
            assert field["default"] is None, where
