"""`dispatchai dead-letters`: what is told of the records that could not be processed, and which may be sent again.

Decides what is shown: callers' numbers are masked and what they said is left out unless content is asked for. Leaves
finding and sending to `engine.letterbox`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TextIO

from dispatchai.console.json_view import masked
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import Complaint, Entry, Filter, Letterbox, LetterboxError, Sent
from dispatchai.kafka.dead_letters import Letter, Place
from dispatchai.kafka.topics import Policy, Topics
from dispatchai.records import Assessment, AssessmentKind, DecodeError, Record, decode
from dispatchai.records.codec import HEADER_LENGTH, MARKER
from dispatchai.settings import Settings

PROGRESS_AFTER_S: Final = 2.0
PROGRESS_EVERY_S: Final = 1.0

KEY_MAX_CHARS: Final = 64
"""A call id has some 40; a poison record's key may be anything."""

HEADER_MAX_CHARS: Final = 200
TEXT_MAX_CHARS: Final = 4_000
HEX_MAX_BYTES: Final = 512
"""Of bytes that are no record of this program so many are shown."""

HEX_WIDTH: Final = 16

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_NUMBER: Final = re.compile(r"\+?\d{7,15}")
"""What may be somebody's number, where a call id should be."""

_PLAIN: Final = frozenset({"type", "encoding", "engine", "rules_version", "hangup_cause", "degraded"})
"""Texts of records that hold nothing of a caller; so do identifiers. Every other text is content."""

_TELLS_NOTHING: Final = re.compile(r"(DecodeError|UnicodeDecodeError|UnreadableError): ")
"""Errors whose text holds nothing of the record; that of an error in a step may."""

_GATEWAY: Final = "gateway"
"""The reader whose errors have no type before them, and no content."""


def moment_ms(text: str, now_ms: int) -> int:
    """``90m``, ``2h`` or ``7d`` before now, or a time in ISO 8601 (UTC, where it names no zone), in ms since the epoch.

    Raises ValueError.
    """
    if text[:-1].isdigit() and text[-1:] in _UNITS:
        return now_ms - int(text[:-1]) * _UNITS[text[-1]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: give 90m, 2h, 7d or 2026-01-31T08:00") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


async def list_letters(
    connection: KafkaConnection, wanted: Filter, limit: int, *, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """Print the `limit` records that were complained about last. Returns the exit code."""
    entries, more = await Letterbox(connection, Progress(err)).newest(wanted, limit)
    if as_json:
        print(json.dumps([entry_as_json(entry) for entry in entries], indent=2), file=out)
    elif not entries:
        print("no dead letters" if wanted == Filter() else "no dead letters match", file=out)
    else:
        print(render_list(entries), file=out)
        if more:
            print(f"… the newest {limit}; --limit shows more", file=out)
    return 0


async def show_letter(
    connection: KafkaConnection, first: Place, *, content: bool, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """Print all that is known of one record. Returns the exit code; raises LetterboxError."""
    box = Letterbox(connection, Progress(err))
    (entry,) = await _entries(box, [first])
    assert entry.newest_letter is not None  # noqa: S101 - an entry has a letter
    letter = await box.letter(entry.newest_letter)
    if as_json:
        shown = entry_as_json(entry, content=content) | value_as_json(letter, content=content)
        print(json.dumps(shown, indent=2), file=out)
    else:
        print(render_entry(entry, letter, content=content), file=out)
    return 0


async def retry_letters(
    connection: KafkaConnection,
    settings: Settings,
    firsts: Sequence[Place],
    wanted: Filter,
    *,
    confirm: Callable[[str], bool],
    out: TextIO,
    err: TextIO,
) -> int:
    """Send the records `firsts` again, or without any all open ones that `wanted` matches.

    `confirm` is asked before. Returns the exit code: 1 when a record was refused. Raises LetterboxError.
    """
    box = Letterbox(connection, Progress(err))
    entries = await _entries(box, firsts) if firsts else await box.open(wanted)
    if not entries:
        print("nothing to send: no open record matches", file=out)
        return 0
    if not confirm(question(entries, time.time_ns() // 1_000_000, settings.call_expiry_s)):
        print("nothing was sent", file=out)
        return 1
    refused = 0
    reasons = Refusals.load()
    progress, sent = Progress(err, "sent"), 0
    async for result in box.retry(entries, reasons):
        match result:
            case Sent(first, attempt, sent_to):
                sent += 1
                progress(sent, len(entries))
                print(f"sent     {first} as {sent_to}, attempt {attempt}", file=out)
            case _:
                refused += 1
                print(f"refused  {result.first}: {result.reason}", file=out)
    missing = len(entries) - sent - refused
    if missing:
        raise LetterboxError(f"{missing} letters were deleted meanwhile: their topic's retention has passed")
    print(f"{sent} sent, {refused} refused; the letters stay", file=out)
    return 1 if refused else 0


async def _entries(box: Letterbox, firsts: Collection[Place]) -> list[Entry]:
    found = await box.entries(frozenset(firsts))
    if missing := [str(first) for first in firsts if first not in found]:
        raise LetterboxError(
            f"no dead letter names {', '.join(missing)}: `dispatchai dead-letters list` shows which do"
        )
    return [found[first] for first in dict.fromkeys(firsts)]


def question(entries: Sequence[Entry], now_ms: int, call_expiry_s: float) -> str:
    """What is asked before `entries` are sent again."""
    topics = Counter(entry.first.topic for entry in entries)
    count = f"{len(entries)} record{'' if len(entries) == 1 else 's'}"
    text = f"send {count} again ({', '.join(f'{topic} {number}' for topic, number in topics.most_common())})?"
    expired = sum((entry.origin_timestamp_ms or now_ms) < now_ms - call_expiry_s * 1000 for entry in entries)
    if expired:
        text = f"{expired} of them older than CALL_EXPIRY_S, so their calls' states may be given up; {text}"
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Refusals:
    """Why a record must not be sent again though it could be: what it says would replace something newer."""

    compacted: frozenset[str]

    @classmethod
    def load(cls) -> Refusals:
        """As `topics.yaml` declares the topics."""
        specs = Topics.load().every_topic()
        return cls(frozenset(spec.name for spec in specs if spec.policy is Policy.COMPACT))

    def __call__(self, letter: Letter) -> str | None:
        """The reason, or None."""
        if letter.origin is not None and letter.origin.topic in self.compacted:
            return f"{letter.origin.topic} is compacted: an old value would replace a newer one"
        record = decoded(letter)
        if isinstance(record, Assessment) and record.kind is AssessmentKind.LIVE:
            return "a live assessment: a later one has replaced it"
        return None


class Progress:
    """Tells how far something is once it has taken `PROGRESS_AFTER_S`."""

    def __init__(self, err: TextIO, what: str = "read") -> None:
        self._err = err
        self._what = what
        self._next = time.monotonic() + PROGRESS_AFTER_S

    def __call__(self, done: int, of: int) -> None:
        """`done` of `of` are done."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_EVERY_S
            print(f"{self._what} {done:,} of {of:,}", file=self._err)


# ---- what is shown -------------------------------------------------------------------------------------------------


def decoded(letter: Letter) -> Record | None:
    """The record in a letter, or None where the bytes are none."""
    try:
        return None if letter.value is None else decode(letter.value)
    except DecodeError:
        return None


def told_key(key: bytes | None, *, content: bool = False) -> str:
    """A record's key as text: bounded, and masked where it may be a number."""
    if key is None:
        return "none"
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = f"hex {key.hex()}"
    if not content and _NUMBER.fullmatch(text):
        text = masked(text) or ""
    return _printable(text, KEY_MAX_CHARS)


def told_error(complaint: Complaint, *, content: bool = False) -> str:
    """An error in one line; of one whose text may hold content only the type."""
    if content or complaint.reader == _GATEWAY or _TELLS_NOTHING.match(complaint.error):
        return _printable(complaint.error, len(complaint.error))
    return complaint.error.partition(":")[0]


def told_value(value: Any, name: str = "", *, content: bool = False) -> Any:
    """A decoded value as JSON-ready values. Without `content` numbers are masked and all free text is left out."""
    match value:
        case StrEnum():
            return value.value
        case str() if name.endswith("_number"):
            return value if content else masked(value)
        case str() if content or name in _PLAIN or name == "id" or name.endswith("_id"):
            return _cut(value, TEXT_MAX_CHARS)
        case str():
            return f"{len(value)} characters"
        case bytes():
            return _bytes(value, content=content)
        case tuple() if value and isinstance(value[0], str) and not isinstance(value[0], StrEnum) and not content:
            return f"{len(value)} texts"
        case tuple():
            return [told_value(item, name, content=content) for item in value]
        case _ if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            return {field: told_value(getattr(value, field), field, content=content) for field in fields}
    return value


def _bytes(value: bytes, *, content: bool) -> str:
    if not content:
        return f"{len(value)} bytes"
    try:
        return _cut(value.decode(), TEXT_MAX_CHARS)
    except UnicodeDecodeError:
        return f"{len(value)} bytes, hex {_cut(value.hex(), HEX_MAX_BYTES)}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} in all)"


def _printable(text: str, most: int) -> str:
    """`text` in one line and without control characters: what a poison record holds must not steer a terminal."""
    cut = _cut(text, most)
    return cut if cut.isprintable() else "".join(one if one.isprintable() else "�" for one in cut)


def hex_dump(data: bytes) -> list[str]:
    """The first `HEX_MAX_BYTES` of `data` as lines of offset, hex and ASCII."""
    lines = []
    for at in range(0, min(len(data), HEX_MAX_BYTES), HEX_WIDTH):
        row = data[at : min(at + HEX_WIDTH, HEX_MAX_BYTES)]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{at:06x}  {row.hex(' '):<{3 * HEX_WIDTH}} {text}")
    if len(data) > HEX_MAX_BYTES:
        lines.append(f"… {len(data) - HEX_MAX_BYTES} bytes more")
    return lines


def _when(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "unknown"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _readers(entry: Entry) -> list[Complaint]:
    """The complaints of the last attempt that failed."""
    return [one for (attempt, _), one in sorted(entry.complaints.items()) if attempt == entry.failed_attempt]


def render_list(entries: Sequence[Entry]) -> str:
    """The records as a table for a terminal."""
    rows = [("RECORD", "STATE", "ATTEMPT", "LAST", "READERS", "KEY", "ERROR")]
    for entry in entries:
        complaints = _readers(entry)
        errors = list(dict.fromkeys(told_error(one) for one in complaints))
        rows.append(
            (
                str(entry.first),
                entry.state.value,
                str(entry.attempt),
                _when(entry.newest_ms),
                ",".join(one.reader for one in complaints),
                told_key(entry.key),
                errors[0] + (f" (and {len(errors) - 1} others)" if len(errors) > 1 else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]) for row in rows
    )


def render_entry(entry: Entry, letter: Letter, *, content: bool) -> str:
    """All that is known of one record, as lines for a terminal."""
    lines = [
        f"record    {entry.first}" + ("" if entry.is_record else " (a letter of its own: it never was a record)"),
        f"state     {entry.state.value}, attempt {entry.attempt}",
        f"key       {told_key(entry.key, content=content)}",
        f"written   {_when(entry.origin_timestamp_ms)}",
    ]
    for (attempt, _), one in sorted(entry.complaints.items()):
        times = f" ({one.times} times)" if one.times > 1 else ""
        lines.append(
            f"failed    {_when(one.written_ms)} {one.reader}, attempt {attempt}{times}: "
            f"{told_error(one, content=content)}"
        )
    lines += [f"retried   {_when(note.written_ms)} as {note.sent_to}, attempt {note.attempt}" for note in entry.retried]
    for name, value in letter.headers:
        shown = _bytes(value or b"", content=content)
        lines.append(f"header    {_printable(name, KEY_MAX_CHARS)}: {_printable(shown, HEADER_MAX_CHARS)}")
    return "\n".join([*lines, *_value_lines(letter, content=content)])


def _value_lines(letter: Letter, *, content: bool) -> list[str]:
    if letter.value is None:
        return ["value     none (a tombstone)"]
    length = len(letter.value) if letter.truncated is None else letter.truncated.value_bytes
    cut = "" if letter.truncated is None else f", of which the letter holds {len(letter.value)}"
    head = f"value     {length} bytes{cut}"
    record = decoded(letter)
    if record is not None:
        told = json.dumps(told_value(record, content=content), indent=2, ensure_ascii=False)
        return [f"{head}: {type(record).__name__}", told, *([] if content else ["(--content shows numbers and texts)"])]
    if not content:
        known = letter.value.startswith(MARKER) and len(letter.value) >= HEADER_LENGTH
        schema = f", schema fingerprint {letter.value[len(MARKER) : HEADER_LENGTH].hex()}" if known else ""
        return [f"{head}, no record that this version can read{schema} (--content shows its bytes)"]
    return [f"{head}, no record that this version can read", *hex_dump(letter.value)]


def entry_as_json(entry: Entry, *, content: bool = False) -> dict[str, Any]:
    """One record as JSON-ready values."""
    return {
        "record": str(entry.first),
        "is_record": entry.is_record,
        "state": entry.state.value,
        "attempt": entry.attempt,
        "key": told_key(entry.key, content=content),
        "written_at": _when(entry.origin_timestamp_ms),
        "failed": [
            {
                "at": _when(one.written_ms),
                "reader": one.reader,
                "attempt": attempt,
                "times": one.times,
                "error": told_error(one, content=content),
            }
            for (attempt, _), one in sorted(entry.complaints.items())
        ],
        "retried": [
            {"at": _when(note.written_ms), "attempt": note.attempt, "sent_to": str(note.sent_to)}
            for note in entry.retried
        ],
    }


def value_as_json(letter: Letter, *, content: bool) -> dict[str, Any]:
    """Headers and value of a record as JSON-ready values; undecodable bytes as bounded hex, when asked for."""
    record = decoded(letter)
    value = letter.value or b""
    hexed = {"hex": value[:HEX_MAX_BYTES].hex()} if content and record is None and letter.value is not None else {}
    return {
        "headers": [{"name": name, "value": _bytes(held or b"", content=content)} for name, held in letter.headers],
        "value": {
            "bytes": len(value) if letter.truncated is None else letter.truncated.value_bytes,
            "truncated": letter.truncated is not None,
            "record": None if record is None else type(record).__name__,
            **({} if record is None else {"fields": told_value(record, content=content)}),
            **hexed,
        },
    }
