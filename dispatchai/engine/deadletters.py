"""What becomes of a record that cannot be decoded or processed: its original bytes go to `dead-letters`.

The headers name the origin, so the record can be listed, understood and sent again. No content is logged.
"""

from __future__ import annotations

from typing import Final

import aiokafka
import structlog

from dispatchai.engine.emit import Emitter

log = structlog.get_logger(__name__)

DEAD_LETTERS: Final = "dead-letters"
"""Topic of the records that could not be processed."""

ERROR_MAX_CHARS: Final = 500
"""An error's text is cut here: some libraries put what they choked on into it."""


def describe(error: Exception) -> str:
    """Type and message of `error`, cut to `ERROR_MAX_CHARS`."""
    return f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARS]


async def bury(emitter: Emitter, record: aiokafka.ConsumerRecord, *, reader: str, error: Exception) -> None:
    """Write `record` to the dead letters: who could not read it (`reader`), where it lies, and why."""
    log.warning(
        "dead_letter",
        reader=reader,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=type(error).__name__,
    )
    await emitter.send(
        DEAD_LETTERS,
        record.key,
        record.value,
        headers=[
            ("origin.topic", record.topic.encode()),
            ("origin.partition", str(record.partition).encode()),
            ("origin.offset", str(record.offset).encode()),
            ("origin.timestamp_ms", str(record.timestamp).encode()),
            ("reader", reader.encode()),
            ("error", describe(error).encode()),
            ("attempt", b"1"),
            *((f"origin.header.{name}", value) for name, value in record.headers),
        ],
    )
