"""A dead letter: the original bytes of a record that could not be processed, with the failure in its headers.

Decides the headers, the largest size of a dead letter and how attempts are counted. `dead_letter_store` finds dead
letters and sends their records again. No content is logged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import aiokafka

from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.headers import LONG_MAX, number_in

ERROR_MAX_CHARS: Final = 500
"""An error's text is cut here: some libraries put the data they failed on into it."""

DEAD_LETTER_MAX_BYTES: Final = 950_000
"""Key, value and headers of a dead letter together. Faust's producer refuses a request of more than 1,000,000 bytes,
Kafka a batch of more than 1,048,588; the framing of a record takes some of that."""

TRUNCATED_VALUE_BYTES: Final = 65_536
"""How much is kept of a value that would make the dead letter too large: enough to recognise it."""

TRUNCATED_KEY_BYTES: Final = 1_024
"""The same for a key: a call id has about 40 bytes."""

TRUNCATED_HEADERS_BYTES: Final = 65_536
"""How much is kept of the headers of a record that is too large, in their order."""

REASON_MAX_CHARS: Final = 500
"""How much is kept of the reason why a record was dismissed."""

ATTEMPT_MAX: Final = 1_000_000
"""This program never writes a higher number."""

_ORIGIN_HEADER: Final = "origin.header."
_RETRY_ATTEMPT: Final = "retry.attempt"
_RETRY_OF: Final = "retry.of"
_RETRIED: Final = "retried"
_DISMISSED: Final = "dismissed"

PARTITION_MAX: Final = 2**31 - 1
OFFSET_MAX: Final = LONG_MAX - 1
"""The highest numbers that Kafka's clients can ask for: the offset after a record fits in 64 bits too."""

Headers = tuple[tuple[str, bytes | None], ...]


class UnreadableError(KafkaOperationError, ValueError):
    """The reader cannot interpret the record. The message repeats nothing of the record."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The position of a record in Kafka. As text ``topic/partition/offset``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place of ``topic/partition/offset``. Raises ValueError."""
        topic, *numbers = text.split("/")
        partition, offset = map(_number, numbers, (PARTITION_MAX, OFFSET_MAX)) if len(numbers) == 2 else (None, None)
        if not topic or partition is None or offset is None:
            raise ValueError(f"{text!r} names no record: give TOPIC/PARTITION/OFFSET, as `dead-letters list` shows it")
        return cls(topic, partition, offset)


@dataclass(frozen=True, slots=True)
class Truncated:
    """The dead letter holds only the beginning of a value of `value_bytes` bytes with this SHA-256, in hex."""

    value_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One reader's failure to process one record.

    `first` identifies the record over all retries: its place at its first failure. `origin` is its place this time,
    at another offset after a retry; None for bytes that never were a record, such as a webhook's body.
    """

    place: Place
    written_ms: int
    first: Place
    origin: Place | None
    origin_timestamp_ms: int | None
    reader: str
    error: str
    attempt: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    truncated: Truncated | None


@dataclass(frozen=True, slots=True)
class RetryNote:
    """Records that the record `first` was sent again, as attempt number `attempt`, and is stored at `sent_to` now."""

    place: Place
    written_ms: int
    first: Place
    attempt: int
    sent_to: Place


@dataclass(frozen=True, slots=True)
class Dismissal:
    """Records that an operator needs nothing more of the record `first`, after its attempt number `attempt`."""

    place: Place
    written_ms: int
    first: Place
    attempt: int
    reason: str


def describe(error: Exception) -> str:
    """Type and message of `error`, cut to `ERROR_MAX_CHARS`."""
    return f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARS]


def dead_letter_of(
    record: aiokafka.ConsumerRecord, *, reader: str, error: Exception
) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of the dead letter for `record`."""
    own = dict(record.headers)
    attempt, first = _retry_of(own)
    about: list[tuple[str, bytes]] = [
        ("origin.topic", record.topic.encode()),
        ("origin.partition", str(record.partition).encode()),
        ("origin.offset", str(record.offset).encode()),
        ("origin.timestamp_ms", str(record.timestamp).encode()),
        ("reader", reader.encode()),
        ("error", describe(error).encode(errors="replace")),
        ("attempt", str(attempt).encode()),
    ]
    if first is not None:
        about.append(("first", str(first).encode()))
    if record.value is None:
        # Kafka's clients write no record without key and value, and a tombstone is not the same as an empty value.
        about.append(("origin.null", b"value"))
    key, value = record.key, record.value or b""
    carried = own_headers(record)
    if len(key or b"") + len(value) + _size(about) + _size(carried, _ORIGIN_HEADER) > DEAD_LETTER_MAX_BYTES:
        about += [("truncated", str(len(value)).encode()), ("sha256", hashlib.sha256(value).hexdigest().encode())]
        key, value = None if key is None else key[:TRUNCATED_KEY_BYTES], value[:TRUNCATED_VALUE_BYTES]
        carried = _first_of(carried, TRUNCATED_HEADERS_BYTES)
    # A header without a value becomes one with an empty value: not all clients can write the former.
    return key, value, [*about, *((f"{_ORIGIN_HEADER}{name}", content or b"") for name, content in carried)]


def body_headers(origin: str, *, reader: str, error: Exception) -> list[tuple[str, bytes]]:
    """Headers of the dead letter for bytes that never were a record, such as a webhook's body; `origin` names them."""
    text = str(error)[:ERROR_MAX_CHARS].encode(errors="replace")
    return [("origin", origin.encode()), ("reader", reader.encode()), ("error", text), ("attempt", b"1")]


def dead_letter_of_output(
    topic: str, partition: int | None, key: bytes | None, value: bytes | None, *, error: Exception
) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of the dead letter for a record of `topic` that Kafka does not take: its beginning.

    It never was a record, and there is nothing to send again.
    """
    content = value or b""
    origin = topic if partition is None else f"{topic}/{partition}"
    headers = [
        *body_headers(origin, reader="output", error=error),
        ("truncated", str(len(content)).encode()),
        ("sha256", hashlib.sha256(content).hexdigest().encode()),
    ]
    return None if key is None else key[:TRUNCATED_KEY_BYTES], content[:TRUNCATED_VALUE_BYTES], headers


def own_headers(record: aiokafka.ConsumerRecord) -> list[tuple[str, bytes | None]]:
    """The headers of `record` without those that a retry added."""
    return [(name, content) for name, content in record.headers if name not in (_RETRY_ATTEMPT, _RETRY_OF)]


def first_place(record: aiokafka.ConsumerRecord) -> Place:
    """The place of `record` at its first failure: where it is, unless it was sent again."""
    _, first = _retry_of(dict(record.headers))
    return first or Place(record.topic, record.partition, record.offset)


def retry_headers(first: Place, attempt: int) -> list[tuple[str, bytes]]:
    """Headers of a record that is sent again: its first place, and the attempt number of its next dead letter."""
    return [(_RETRY_ATTEMPT, str(attempt).encode()), (_RETRY_OF, str(first).encode())]


def retry_note_headers(first: Place, attempt: int, sent_to: Place) -> list[tuple[str, bytes]]:
    """Headers of the note, in the dead-letter topic, that `first` was sent again."""
    return [("first", str(first).encode()), (_RETRIED, str(attempt).encode()), ("retried.to", str(sent_to).encode())]


def dismissal_headers(first: Place, attempt: int, reason: str) -> list[tuple[str, bytes]]:
    """Headers of the note, in the dead-letter topic, that `first` is dismissed."""
    text = reason[:REASON_MAX_CHARS].encode(errors="replace")
    return [("first", str(first).encode()), (_DISMISSED, str(attempt).encode()), ("dismissed.reason", text)]


def parse_dead_letter(record: aiokafka.ConsumerRecord) -> DeadLetter | RetryNote | Dismissal:
    """Interpret a record of the dead-letter topic. Never raises: a missing or invalid header leaves its field empty."""
    headers = {name: content or b"" for name, content in record.headers}
    place = Place(record.topic, record.partition, record.offset)
    first = _place(headers.get("first"))
    sent_to = _place(headers.get("retried.to"))
    if first is not None and sent_to is not None:
        return RetryNote(place, record.timestamp, first, number_in(headers.get(_RETRIED), LONG_MAX) or 1, sent_to)
    if first is not None and _DISMISSED in headers:
        reason = headers.get("dismissed.reason", b"").decode(errors="replace")
        return Dismissal(place, record.timestamp, first, _attempt(headers[_DISMISSED]), reason)
    origin = _place(b"/".join(headers.get(f"origin.{part}", b"") for part in ("topic", "partition", "offset")))
    length = number_in(headers.get("truncated"), LONG_MAX)
    return DeadLetter(
        place=place,
        written_ms=record.timestamp,
        first=first or origin or place,
        origin=origin,
        origin_timestamp_ms=number_in(headers.get("origin.timestamp_ms"), LONG_MAX),
        reader=headers.get("reader", b"").decode(errors="replace"),
        error=headers.get("error", b"").decode(errors="replace"),
        attempt=_attempt(headers.get("attempt")),
        key=record.key,
        value=None if "origin.null" in headers else record.value,
        headers=tuple(
            (name.removeprefix(_ORIGIN_HEADER), content)
            for name, content in record.headers
            if name.startswith(_ORIGIN_HEADER)
        ),
        truncated=None if length is None else Truncated(length, headers.get("sha256", b"").decode(errors="replace")),
    )


def _retry_of(headers: Mapping[str, bytes | None]) -> tuple[int, Place | None]:
    """The number of the attempt that just failed, and the record's first place unless it is the first attempt."""
    first = _place(headers.get(_RETRY_OF))
    return (1, None) if first is None else (_attempt(headers.get(_RETRY_ATTEMPT)), first)


def _number(text: str, at_most: int) -> int | None:
    return number_in(text.encode(errors="replace"), at_most)


def _place(text: bytes | None) -> Place | None:
    try:
        return Place.parse((text or b"").decode())
    except ValueError:
        return None


def _attempt(text: bytes | None) -> int:
    return min(max(number_in(text, LONG_MAX) or 1, 1), ATTEMPT_MAX)


def _size(headers: Iterable[tuple[str, Any]], prefix: str = "") -> int:
    """The most bytes that headers take in a record: lengths are variable-length integers of up to five bytes."""
    return sum(len(prefix) + len(name.encode()) + len(content or b"") + 10 for name, content in headers)


def _first_of(headers: Iterable[tuple[str, Any]], most: int) -> list[tuple[str, Any]]:
    """The first of `headers` that take no more than `most` bytes together."""
    kept = []
    for header in headers:
        most -= _size([header], _ORIGIN_HEADER)
        if most < 0:
            break
        kept.append(header)
    return kept
