"""Every record that is written can be read, by this program and by any other that follows Avro's specification."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import avro.io
import avro.schema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.records import (
    AudioFrame,
    CallEvent,
    DecodeError,
    FrameKind,
    Signal,
    Track,
    Word,
    decode,
    decode_as,
    encode,
    to_json,
)
from tests.records.examples import RECORD_NAMES, example, record_class, records
from tests.records.schemas import canonical, crc_64_avro, current_path, expand, load

HEADER_LENGTH = 10

FRAME = AudioFrame(
    stream_id="s",
    kind=FrameKind.FRAME,
    track=Track.INBOUND,
    sequence=3,
    captured_at=1_700_000_000_000_000,
    encoding="PCMU",
    sample_rate=8000,
    payload=b"\xff" * 160,
    detail=None,
)


def any_record(name: str) -> st.SearchStrategy[Any]:
    return records(record_class(name), expand(load(current_path(name))))


@pytest.mark.parametrize("name", RECORD_NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_record_is_read_as_it_was_written(name: str, data: st.DataObject) -> None:
    record = data.draw(any_record(name))
    read = decode(encode(record))
    assert type(read) is record_class(name)
    assert read == record


@pytest.mark.parametrize("name", RECORD_NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_record_can_be_written_as_json(name: str, data: st.DataObject) -> None:
    written = orjson.loads(orjson.dumps(to_json(data.draw(any_record(name)))))
    assert written.keys() == {field.name for field in dataclasses.fields(record_class(name))}


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_json_has_the_fields_in_the_order_of_the_schema(name: str) -> None:
    names = [field["name"] for field in load(current_path(name))["fields"]]
    assert list(to_json(example(record_class(name)))) == names


@pytest.mark.parametrize(
    ("micros", "written"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (-(2**63), "0001-01-01T00:00:00.000000Z"),
        (2**63 - 1, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_written_in_utc_and_one_that_no_calendar_has_as_the_nearest(micros: int, written: str) -> None:
    assert to_json(dataclasses.replace(FRAME, captured_at=micros))["captured_at"] == written


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_enums_are_read_as_enums_and_lists_as_tuples(name: str) -> None:
    record = example(record_class(name))
    assert repr(decode(encode(record))) == repr(record), "equal text would hide a plain string in place of an enum"


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_the_body_is_that_of_avros_own_library(name: str) -> None:
    """Avro's reference implementation, which shares no code with the codec, reads the same fields."""
    schema = avro.schema.parse(_without_times(current_path(name).read_text(encoding="utf-8")))
    encoded = encode(example(record_class(name)))
    decoder = avro.io.BinaryDecoder(io.BytesIO(encoded[HEADER_LENGTH:]))
    fields = avro.io.DatumReader(schema).read(decoder)
    out = io.BytesIO()
    avro.io.DatumWriter(schema).write(fields, avro.io.BinaryEncoder(out))
    assert out.getvalue() == encoded[HEADER_LENGTH:]


def _without_times(text: str) -> str:
    """The schema with plain numbers for times: the library turns times into datetimes, which cannot hold far ones."""

    def plain(schema: Any) -> Any:
        match schema:
            case {"type": "long", "logicalType": _}:
                return "long"
            case dict():
                return {key: plain(value) for key, value in schema.items()}
            case list():
                return [plain(item) for item in schema]
            case _:
                return schema

    return json.dumps(plain(json.loads(text)))


# -- the header


@pytest.mark.parametrize(
    ("schema", "fingerprint"),
    [
        ('"null"', 0x63DD24E7CC258F8A),
        ('"int"', 0x7275D51A3F395C8F),
        ('"string"', 0x8F014872634503C7),
    ],
)
def test_the_tests_compute_the_fingerprints_of_the_specification(schema: str, fingerprint: int) -> None:
    assert crc_64_avro(canonical(json.loads(schema)).encode()) == fingerprint


def test_the_tests_compute_the_canonical_form_of_the_specification() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "namespace": "n",
        "doc": "d",
        "fields": [
            {"name": "t", "doc": "d", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 1},
            {"name": "e", "type": {"type": "enum", "doc": "d", "symbols": ["A"], "name": "E"}},
            {"name": "es", "type": ["null", {"items": "E", "type": "array"}]},
        ],
    }
    assert canonical(schema) == (
        '{"name":"n.R","type":"record","fields":[{"name":"t","type":"long"},'
        '{"name":"e","type":{"name":"n.E","type":"enum","symbols":["A"]}},'
        '{"name":"es","type":["null",{"type":"array","items":"n.E"}]}]}'
    )


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_a_record_begins_with_the_marker_and_the_fingerprint_of_its_schema(name: str) -> None:
    fingerprint = crc_64_avro(canonical(load(current_path(name))).encode())
    header = encode(example(record_class(name)))[:HEADER_LENGTH]
    assert header == b"\xc3\x01" + fingerprint.to_bytes(8, "little")


def test_no_two_records_share_a_header() -> None:
    headers = {encode(example(record_class(name)))[:HEADER_LENGTH] for name in RECORD_NAMES}
    assert len(headers) == len(RECORD_NAMES)


# -- what is no record


@pytest.mark.parametrize("data", [b"", b"\xc3", b"\xc3\x01", b"\xc3\x01" + b"\0" * 7, b"\xc3\x02" + b"\0" * 8, b"{}"])
def test_bytes_without_a_header_are_no_record(data: bytes) -> None:
    with pytest.raises(DecodeError, match="C3 01"):
        decode(data)


def test_a_record_of_a_future_version_is_refused_with_its_fingerprint() -> None:
    data = bytearray(encode(FRAME))
    data[2:10] = bytes.fromhex("0102030405060708")
    with pytest.raises(DecodeError, match="0102030405060708"):
        decode(bytes(data))


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_a_record_cut_off_anywhere_is_refused(name: str) -> None:
    data = encode(example(record_class(name)))
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode(data[:length])


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_bytes_after_the_end_are_refused(name: str) -> None:
    with pytest.raises(DecodeError, match=f"{name}: bytes after its end"):
        decode(encode(example(record_class(name))) + b"\0")


def test_a_record_of_another_type_than_expected_is_refused() -> None:
    with pytest.raises(DecodeError, match="expected Signal, found AudioFrame"):
        decode_as(Signal, encode(FRAME))
    assert decode_as(AudioFrame, encode(FRAME)) == FRAME


@pytest.mark.parametrize("name", RECORD_NAMES)
@settings(max_examples=50)
@given(body=st.binary(max_size=300))
def test_any_bytes_after_a_right_header_are_a_record_or_refused(name: str, body: bytes) -> None:
    header = encode(example(record_class(name)))[:HEADER_LENGTH]
    try:
        record = decode(header + body)
    except DecodeError:
        return
    assert type(record) is record_class(name)


def test_a_length_beyond_all_memory_is_refused() -> None:
    header = encode(FRAME)[:HEADER_LENGTH]
    with pytest.raises(DecodeError):
        decode(header + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01")


def test_a_refusal_shows_nothing_of_the_content() -> None:
    event = example(CallEvent)
    secret = event.payload + event.from_number.encode()
    with pytest.raises(DecodeError) as caught:
        decode(encode(event)[:-3])
    assert event.from_number not in str(caught.value)
    assert repr(secret)[2:-1] not in str(caught.value)


# -- what cannot be written


def test_a_value_of_a_wrong_type_is_not_written() -> None:
    for wrong in ({"sequence": "3"}, {"payload": 3}, {"sequence": None}, {"kind": "MIDDLE"}, {"sequence": 2**63}):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            encode(dataclasses.replace(FRAME, **wrong))


def test_a_value_that_is_no_record_is_not_written() -> None:
    with pytest.raises(FileNotFoundError):
        encode(Word("help", 0, 1, None))
