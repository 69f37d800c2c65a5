"""Records of every published version can be read for as long as topics contain them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from dispatchai.records import decode
from tests.records.examples import RECORD_NAMES, example, record_class
from tests.records.publish import GOLDEN, golden_path
from tests.records.schemas import current_path, history_paths, load, version_of, without_docs

HEADER_LENGTH = 10

HOW = "run: python -m tests.records.publish"

PUBLISHED = [path for name in RECORD_NAMES for path in history_paths(name)]


def parsed(path: Path) -> Any:
    return avro.schema.parse(path.read_text(encoding="utf-8"))


def compatibility(reader: Any, writer: Any) -> Any:
    """Whether Avro's own library says that the schema `reader` reads what `writer` wrote."""
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # Avro leaves it without types
    return checker.get_compatibility(reader, writer)


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_the_current_schema_is_the_last_of_the_history(name: str) -> None:
    published = history_paths(name)
    assert published, f"{name} was never published; {HOW}"
    assert without_docs(load(published[-1])) == without_docs(load(current_path(name))), f"{name} changed; {HOW}"


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_versions_are_numbered_from_one_without_a_gap(name: str) -> None:
    numbers = [version_of(path) for path in history_paths(name)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_current_schema_reads_every_published_one(path: Path) -> None:
    reader = parsed(current_path(path.stem.rpartition("-")[0]))
    verdict = compatibility(reader, parsed(path))
    assert verdict.compatibility is SchemaCompatibilityType.compatible, verdict.messages


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_golden_record_of_every_version_can_be_read(path: Path) -> None:
    name = path.stem.rpartition("-")[0]
    data = golden_path(path).read_bytes()
    record = decode(data)
    assert type(record) is record_class(name)
    if path == history_paths(name)[-1]:
        assert record == example(record_class(name))
    # And by Avro's own library, resolving the writer's schema to the reader's.
    decoder = avro.io.BinaryDecoder(io.BytesIO(data[HEADER_LENGTH:]))
    fields = avro.io.DatumReader(parsed(path), parsed(current_path(name))).read(decoder)
    assert isinstance(fields, dict)
    assert set(fields) == {field.name for field in dataclasses.fields(record_class(name))}


def test_every_golden_record_has_its_schema() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {golden_path(path).name for path in PUBLISHED}


def test_the_check_of_compatibility_can_fail() -> None:
    """A field without a default that old records lack, and an enum symbol that was dropped, are found."""
    text = current_path("AudioFrame").read_text(encoding="utf-8")
    added = text.replace('"name": "sequence"', '"name": "number"')
    dropped = text.replace('"START",', "", 1)
    assert text not in (added, dropped)
    for changed in (added, dropped):
        verdict = compatibility(avro.schema.parse(changed), avro.schema.parse(text))
        assert verdict.compatibility is SchemaCompatibilityType.incompatible
