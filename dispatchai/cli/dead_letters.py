"""`dispatchai dead-letters`: lists and shows the records that could not be processed, and sends them again.

Decides what is shown and which records may be sent again. Callers' numbers are masked and their words left out unless
content is asked for. `kafka.dead_letter_store` finds and sends the records.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TextIO

from dispatchai.cli.printing import printable, printable_json
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import (
    DeadLetterStore,
    DeadLetterStoreError,
    FailedRecord,
    Failure,
    Filter,
    Sent,
)
from dispatchai.kafka.dead_letters import DeadLetter, Place
from dispatchai.kafka.topics import Policy, Topic, Topics
from dispatchai.records import Assessment, AssessmentKind, DecodeError, Record, decode
from dispatchai.records.codec import HEADER_LENGTH, MARKER
from dispatchai.records.phone_numbers import masked
from dispatchai.settings import Settings

PROGRESS_AFTER_S: Final = 2.0
PROGRESS_EVERY_S: Final = 1.0

KEY_MAX_CHARS: Final = 64
"""A call id has about 40; a poison record's key may be anything."""

HEADER_MAX_CHARS: Final = 200
TEXT_MAX_CHARS: Final = 4_000
HEX_MAX_BYTES: Final = 512
"""How much is shown of a value that is not a record of this program."""

HEX_WIDTH: Final = 16

COMMANDS: Final = frozenset({Topic.DISPATCH_ACTIONS})
"""Topics of which each record does something to a call. None is sent again unless it is named."""

NOT_NAMED: Final = "a command to the carrier is sent again only if it is named"
NEVER_A_RECORD: Final = "it never was a record of a topic: the carrier sends a webhook again"

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_NUMBER: Final = re.compile(r"\+?\d{7,15}")
"""A key that may be a phone number, where a call id should be."""

_SAFE_TEXTS: Final = frozenset({"type", "encoding", "engine", "rules_version", "hangup_cause", "degraded"})
"""Text fields of records that hold no caller's data; identifiers hold none either. Every other text is content."""

_SAFE_ERROR: Final = re.compile(r"(DecodeError|UnicodeDecodeError|UnreadableError): ")
"""Errors whose text repeats nothing of the record. The text of an error in a step may."""

_GATEWAY: Final = "gateway"
"""The reader whose errors begin with no type and hold no content."""


def moment_ms(text: str, now_ms: int) -> int:
    """``90m``, ``2h`` or ``7d`` before now, or a time in ISO 8601 (UTC unless it names a zone), in ms since the epoch.

    Raises ValueError.
    """
    if text[:-1].isdigit() and text[-1:] in _UNITS:
        return now_ms - int(text[:-1]) * _UNITS[text[-1]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: give 90m, 2h, 7d or 2026-01-31T08:00") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


async def list_dead_letters(
    connection: KafkaConnection,
    wanted: Filter,
    limit: int,
    *,
    dismissed: bool = False,
    as_json: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Print the `limit` records that failed last, with `dismissed` also those that were dismissed.

    Returns the exit code.
    """
    records, more = await DeadLetterStore(connection, Progress(err)).newest(wanted, limit, dismissed=dismissed)
    if as_json:
        print(printable_json([record_as_json(record) for record in records]), file=out)
    elif not records:
        print("no dead letters" if wanted == Filter() else "no dead letters match", file=out)
    else:
        print(render_list(records), file=out)
        if more:
            print(f"… the newest {limit}; --limit shows more", file=out)
    return 0


async def show_dead_letter(
    connection: KafkaConnection, first: Place, *, content: bool, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """Print everything that is known about one record. Returns the exit code; raises DeadLetterStoreError."""
    store = DeadLetterStore(connection, Progress(err))
    (record,) = await _found(store, [first])
    assert record.newest_dead_letter is not None  # noqa: S101 - a failed record has a dead letter
    dead_letter = await store.dead_letter(record.newest_dead_letter)
    if as_json:
        shown = record_as_json(record, content=content) | value_as_json(dead_letter, content=content)
        print(printable_json(shown), file=out)
    else:
        print(render_record(record, dead_letter, content=content), file=out)
    return 0


async def retry_dead_letters(
    connection: KafkaConnection,
    settings: Settings,
    firsts: Sequence[Place],
    wanted: Filter,
    *,
    unconfirmed: bool = False,
    confirm: Callable[[str], bool],
    out: TextIO,
    err: TextIO,
) -> int:
    """Send the records `firsts` again; without any, all open records that match `wanted`, and no commands.

    With `unconfirmed` those of `firsts` that their topics have deleted are sent as their dead letters have them.
    `confirm` is called with the question before anything is sent. Returns the exit code: 1 when a record was refused.
    Raises DeadLetterStoreError.
    """
    store = DeadLetterStore(connection, Progress(err))
    if firsts:
        records = await _found(store, firsts)
    else:
        records, left_out = sent_unnamed(await store.open_records(wanted))
        for reason, number in left_out.items():
            print(f"left out {_records(number)}: {reason}", file=out)
    if not records:
        print("nothing to send: no open record matches", file=out)
        return 0
    asked = question(records, time.time_ns() // 1_000_000, settings.call_expiry_s)
    if unconfirmed:
        asked = f"Whoever may write dead letters may have made up a record that its topic has deleted. {asked}"
    if not confirm(printable(asked)):
        print("nothing was sent", file=out)
        return 1
    refused = 0
    reasons = Refusals.load(settings.topics_file, named=bool(firsts))
    progress, sent = Progress(err, "sent"), 0
    async for result in store.retry(records, reasons, unconfirmed=unconfirmed and bool(firsts)):
        match result:
            case Sent(first, attempt, sent_to):
                sent += 1
                progress(sent, len(records))
                print(printable(f"sent     {first} as {sent_to}, attempt {attempt}"), file=out)
            case _:
                refused += 1
                print(printable(f"refused  {result.first}: {result.reason}"), file=out)
    missing = len(records) - sent - refused
    if missing:
        raise DeadLetterStoreError(f"{missing} dead letters were deleted meanwhile: their topic's retention has passed")
    print(f"{sent} sent, {refused} refused; the dead letters are kept", file=out)
    return 1 if refused else 0


async def dismiss_dead_letters(
    connection: KafkaConnection,
    firsts: Sequence[Place],
    wanted: Filter,
    reason: str,
    *,
    confirm: Callable[[str], bool],
    out: TextIO,
    err: TextIO,
) -> int:
    """Note that nothing more is needed of the records `firsts` or, without any, of all open ones that match `wanted`.

    `confirm` is called with the question before records that were not named are dismissed. Returns the exit code.
    Raises DeadLetterStoreError.
    """
    store = DeadLetterStore(connection, Progress(err))
    records = await _found(store, firsts) if firsts else await store.open_records(wanted)
    if records and not firsts and not confirm(f"Dismiss {_records(len(records))}?"):
        print("nothing was dismissed", file=out)
        return 1
    await store.dismiss(records, reason)
    for record in records:
        print(printable(f"dismissed  {record.first}"), file=out)
    print(f"{len(records)} dismissed; the dead letters are kept, and `list --dismissed` shows them", file=out)
    return 0


async def _found(store: DeadLetterStore, firsts: Collection[Place]) -> list[FailedRecord]:
    found = await store.failed_records(frozenset(firsts))
    if missing := [str(first) for first in firsts if first not in found]:
        raise DeadLetterStoreError(
            f"there is no dead letter for {', '.join(missing)}: `dispatchai dead-letters list` names the records"
        )
    return [found[first] for first in dict.fromkeys(firsts)]


def sent_unnamed(records: Sequence[FailedRecord]) -> tuple[list[FailedRecord], Counter[str]]:
    """Those of `records` that may be sent without being named, and how many others there are, by reason."""
    sent, left_out = [], Counter[str]()
    for record in records:
        if not record.is_record:
            left_out[NEVER_A_RECORD] += 1
        elif record.first.topic in COMMANDS:
            left_out[NOT_NAMED] += 1
        else:
            sent.append(record)
    return sent, left_out


def _records(number: int) -> str:
    return f"{number} record{'' if number == 1 else 's'}"


def question(records: Sequence[FailedRecord], now_ms: int, call_expiry_s: float) -> str:
    """The question to ask before `records` are sent again."""
    topics = Counter(record.first.topic for record in records)
    named = ", ".join(f"{topic} {number}" for topic, number in topics.most_common())
    text = f"Send {_records(len(records))} again ({named})?"
    expired = sum((record.origin_timestamp_ms or now_ms) < now_ms - call_expiry_s * 1000 for record in records)
    if expired:
        text = f"{expired} of them are older than CALL_EXPIRY_S, so the states of their calls may be gone. {text}"
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Refusals:
    """Why a record must not be sent again although it could be: it would replace something newer, or is a command that
    nobody has `named`."""

    compacted: frozenset[str]
    named: bool

    @classmethod
    def load(cls, topics_file: Path | None = None, *, named: bool) -> Refusals:
        """As `topics_file`, by default the shipped `topics.yaml`, declares the topics."""
        specs = Topics.load(topics_file).every_topic()
        return cls(frozenset(spec.name for spec in specs if spec.policy is Policy.COMPACT), named)

    def __call__(self, dead_letter: DeadLetter) -> str | None:
        """The reason, or None."""
        if dead_letter.origin is not None and dead_letter.origin.topic in self.compacted:
            return f"{dead_letter.origin.topic} is compacted: an old value would replace a newer one"
        if dead_letter.origin is not None and dead_letter.origin.topic in COMMANDS and not self.named:
            return NOT_NAMED
        record = decoded(dead_letter)
        if isinstance(record, Assessment) and record.kind is AssessmentKind.LIVE:
            return "a live assessment: a later one has replaced it"
        return None


class Progress:
    """Prints the progress of something that takes longer than `PROGRESS_AFTER_S`."""

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


def decoded(dead_letter: DeadLetter) -> Record | None:
    """The record in a dead letter; None if its bytes are not a record of this program."""
    try:
        return None if dead_letter.value is None else decode(dead_letter.value)
    except DecodeError:
        return None


def render_key(key: bytes | None, *, content: bool = False) -> str:
    """A record's key as text: bounded, and masked where it may be a number."""
    if key is None:
        return "none"
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = f"hex {key.hex()}"
    if not content and _NUMBER.fullmatch(text):
        text = masked(text) or ""
    return printable(_cut(text, KEY_MAX_CHARS))


def render_error(failure: Failure, *, content: bool = False) -> str:
    """An error in one line; only its type where the text may hold content."""
    if content or failure.reader == _GATEWAY or _SAFE_ERROR.match(failure.error):
        return printable(failure.error)
    return printable(failure.error.partition(":")[0])


def render_value(value: Any, name: str = "", *, content: bool = False) -> Any:
    """A decoded value in JSON's types. Without `content` numbers are masked and all free text is left out."""
    match value:
        case StrEnum():
            return value.value
        case str() if name.endswith("_number"):
            return value if content else masked(value)
        case str() if content or name in _SAFE_TEXTS or name == "id" or name.endswith("_id"):
            return _cut(value, TEXT_MAX_CHARS)
        case str():
            return f"{len(value)} characters"
        case bytes():
            return _bytes(value, content=content)
        case tuple() if value and isinstance(value[0], str) and not isinstance(value[0], StrEnum) and not content:
            return f"{len(value)} texts"
        case tuple():
            return [render_value(item, name, content=content) for item in value]
        case _ if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            return {field: render_value(getattr(value, field), field, content=content) for field in fields}
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


def hex_dump(data: bytes) -> list[str]:
    """The first `HEX_MAX_BYTES` of `data` as lines of offset, hex and ASCII."""
    lines = []
    for at in range(0, min(len(data), HEX_MAX_BYTES), HEX_WIDTH):
        row = data[at : min(at + HEX_WIDTH, HEX_MAX_BYTES)]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{at:06x}  {row.hex(' '):<{3 * HEX_WIDTH}} {text}")
    if len(data) > HEX_MAX_BYTES:
        lines.append(f"… {len(data) - HEX_MAX_BYTES} more bytes")
    return lines


def _when(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "unknown"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _last_failures(record: FailedRecord) -> list[Failure]:
    """The failures of the last attempt that failed."""
    return [failure for (attempt, _), failure in sorted(record.failures.items()) if attempt == record.failed_attempt]


def render_list(records: Sequence[FailedRecord]) -> str:
    """The records as a table for a terminal."""
    rows = [("RECORD", "STATE", "ATTEMPT", "LAST", "READERS", "KEY", "ERROR")]
    for record in records:
        failures = _last_failures(record)
        errors = list(dict.fromkeys(render_error(failure) for failure in failures))
        rows.append(
            (
                str(record.first),
                record.state.value,
                str(record.attempt),
                _when(record.newest_ms),
                ",".join(failure.reader for failure in failures),
                render_key(record.key),
                errors[0] + (f" (and {len(errors) - 1} others)" if len(errors) > 1 else ""),
            )
        )
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
        for row in table
    )


def render_record(record: FailedRecord, dead_letter: DeadLetter, *, content: bool) -> str:
    """Everything that is known about one record, as lines for a terminal."""
    lines = [
        f"record    {record.first}"
        + ("" if record.is_record else " (the place of its dead letter: it never was a record)"),
        f"state     {record.state.value}, attempt {record.attempt}",
        f"key       {render_key(record.key, content=content)}",
        f"written   {_when(record.origin_timestamp_ms)}",
    ]
    for (attempt, _), failure in sorted(record.failures.items()):
        times = f" ({failure.times} times)" if failure.times > 1 else ""
        lines.append(
            f"failed    {_when(failure.written_ms)} {failure.reader}, attempt {attempt}{times}: "
            f"{render_error(failure, content=content)}"
        )
    lines += [
        f"retried   {_when(note.written_ms)} as {note.sent_to}, attempt {note.attempt}" for note in record.retries
    ]
    lines += [
        f"dismissed {_when(note.written_ms)} after attempt {note.attempt}: {_cut(note.reason, TEXT_MAX_CHARS)}"
        for note in record.dismissals
    ]
    for name, value in dead_letter.headers:
        shown = _bytes(value or b"", content=content)
        lines.append(f"header    {_cut(name, KEY_MAX_CHARS)}: {_cut(shown, HEADER_MAX_CHARS)}")
    return "\n".join([*map(printable, lines), *_value_lines(dead_letter, content=content)])


def _value_lines(dead_letter: DeadLetter, *, content: bool) -> list[str]:
    if dead_letter.value is None:
        return ["value     none (a tombstone)"]
    length = len(dead_letter.value) if dead_letter.truncated is None else dead_letter.truncated.value_bytes
    cut = "" if dead_letter.truncated is None else f", of which the dead letter holds {len(dead_letter.value)}"
    head = f"value     {length} bytes{cut}"
    record = decoded(dead_letter)
    if record is not None:
        fields = printable_json(render_value(record, content=content))
        return [
            f"{head}: {type(record).__name__}",
            fields,
            *([] if content else ["(--content shows numbers and texts)"]),
        ]
    if not content:
        known = dead_letter.value.startswith(MARKER) and len(dead_letter.value) >= HEADER_LENGTH
        schema = f", schema fingerprint {dead_letter.value[len(MARKER) : HEADER_LENGTH].hex()}" if known else ""
        return [f"{head}, not a record that this version can read{schema} (--content shows its bytes)"]
    return [f"{head}, not a record that this version can read", *hex_dump(dead_letter.value)]


def record_as_json(record: FailedRecord, *, content: bool = False) -> dict[str, Any]:
    """One failed record in JSON's types."""
    return {
        "record": str(record.first),
        "is_record": record.is_record,
        "state": record.state.value,
        "attempt": record.attempt,
        "key": render_key(record.key, content=content),
        "written_at": _when(record.origin_timestamp_ms),
        "failed": [
            {
                "at": _when(failure.written_ms),
                "reader": failure.reader,
                "attempt": attempt,
                "times": failure.times,
                "error": render_error(failure, content=content),
            }
            for (attempt, _), failure in sorted(record.failures.items())
        ],
        "retried": [
            {"at": _when(note.written_ms), "attempt": note.attempt, "sent_to": str(note.sent_to)}
            for note in record.retries
        ],
        "dismissed": [
            {"at": _when(note.written_ms), "attempt": note.attempt, "reason": _cut(note.reason, TEXT_MAX_CHARS)}
            for note in record.dismissals
        ],
    }


def value_as_json(dead_letter: DeadLetter, *, content: bool) -> dict[str, Any]:
    """Headers and value of a record in JSON's types; with `content` undecodable bytes as bounded hex."""
    record = decoded(dead_letter)
    value = dead_letter.value or b""
    hexed = {"hex": value[:HEX_MAX_BYTES].hex()} if content and record is None and dead_letter.value is not None else {}
    return {
        "headers": [
            {"name": name, "value": _bytes(held or b"", content=content)} for name, held in dead_letter.headers
        ],
        "value": {
            "bytes": len(value) if dead_letter.truncated is None else dead_letter.truncated.value_bytes,
            "truncated": dead_letter.truncated is not None,
            "record": None if record is None else type(record).__name__,
            **({} if record is None else {"fields": render_value(record, content=content)}),
            **hexed,
        },
    }
