"""Attacks on the terminal of an operator: text in records that would steer it, if it were printed as it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from typing import Any

import aiokafka
import pytest

from dispatchai.cli import call, dead_letters
from dispatchai.kafka.dead_letter_store import FailedRecord
from dispatchai.kafka.dead_letters import DeadLetter, RetryNote, parse_dead_letter
from dispatchai.kafka.topics import Topic
from dispatchai.records import encode
from tests.support.recorded_call import event

STEERING = {
    "escape": "\x1b]0;title\x07\x1b[2J\x1b[31mall is well",
    "control sequence of one character": "\x9b2J\x9b31mall is well",
    "line feed": "x\nOPEN 0 records failed",
    "carriage return": "x\rOPEN 0 records failed",
    "right to left": "\u202ellew si lla",
    "delete": "x\x7f\x7f\x7f",
}

_STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What steers a terminal or the order of a text. The lines that the command prints end with line feeds."""

ORIGIN = {"origin.topic": "call-events", "origin.partition": "0", "origin.offset": "7"}


def read(value: bytes, headers: dict[str, str], offset: int = 3) -> Any:
    """What the command makes of a record of the dead-letter topic."""
    pairs = tuple((name, content.encode()) for name, content in headers.items())
    record = aiokafka.ConsumerRecord(
        Topic.DEAD_LETTERS, 0, offset, 1_795_000_000_000, 0, b"k", value, None, 0, 0, pairs
    )
    return parse_dead_letter(record)


def printed(letter: DeadLetter, *notes: RetryNote) -> str:
    """All that `list` and `show` print of a dead letter."""
    record = FailedRecord(letter.first, None, is_record=True)
    record.add(letter)
    for note in notes:
        record.add(note)
    texts = [dead_letters.render_list([record])]
    for content in (False, True):
        texts.append(dead_letters.render_record(record, letter, content=content))
        shown = dead_letters.record_as_json(record, content=content)
        texts.append(json.dumps(shown | dead_letters.value_as_json(letter, content=content), indent=2))
    return "\n".join(texts)


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
@pytest.mark.parametrize("header", ["error", "reader", "origin.topic", "first", "origin.header.x", "sha256"])
def test_no_header_of_a_dead_letter_steers_the_terminal(header: str, text: str) -> None:
    headers = {**ORIGIN, "reader": "calls", "error": "DecodeError: x", "attempt": "1", "truncated": "9"}
    letter = read(b"value", headers | {header: f"{text}/0/1" if header == "first" else text})
    out = printed(letter)
    assert not _STEERS.search(out)
    assert "\nOPEN 0 records failed" not in out


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
def test_no_note_steers_the_terminal(text: str) -> None:
    letter = read(b"value", {**ORIGIN, "reader": "calls", "error": "x", "attempt": "1"})
    note = read(b"", {"first": "call-events/0/7", "retried": "2", "retried.to": f"{text}/0/1"}, offset=4)
    out = printed(letter, note)
    assert not _STEERS.search(out)
    assert "\nOPEN 0 records failed" not in out


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
@pytest.mark.parametrize("field", ["event_id", "type", "call_control_id", "from_number"])
def test_no_field_of_a_record_steers_the_terminal(field: str, text: str) -> None:
    changes: dict[str, Any] = {field: text}
    value = encode(replace(event("call.initiated"), **changes))
    out = printed(read(value, {**ORIGIN, "reader": "calls", "error": "x", "attempt": "1"}))
    assert not _STEERS.search(out)


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "JSON"])
@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
def test_no_packet_steers_the_terminal_of_a_simulated_call(text: str, as_json: bool) -> None:
    # The words of a caller, with whatever is between them, become the address in the summary.
    summary = f"Fire in a building: spreading. 42 garden{text} street."
    packet = {"call_id": text, "summary": summary, "risk": {"level": "HIGH", "score": 0.7}, "nlp": {"category": "FIRE"}}
    out = StringIO()
    unused: Any = None
    call._print([call._Result("a.wav", packet, None, unused)], out, as_json=as_json)
    assert not _STEERS.search(out.getvalue())
    assert "\nOPEN 0 records failed" not in out.getvalue()
