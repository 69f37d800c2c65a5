"""Since when Kafka has answered without a pause, so that records that are only late can be told from records that never
came.

Decides how long a pause is, and how long records may be late after one. `topic_feed` asks Kafka.
"""

from __future__ import annotations

from typing import Final

PAUSE_S: Final = 8.0
"""Answers further apart than this are an outage: twice the time between two probes, which a poll delays by a second."""

SETTLE_S: Final = 30.0
"""How long after an outage records may still be late: gateways send what waited, and workers get their partitions again
within twice the session timeout, read their tables and catch up."""


class KafkaAnswers:
    """The times of Kafka's answers. Pure: times are given, in seconds of one clock."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._since_s = 0.0

    def answered(self, now_s: float) -> None:
        """Kafka answered a probe."""
        if self._last_s is None or now_s - self._last_s > PAUSE_S:
            self._since_s = now_s
        self._last_s = now_s

    def lost(self) -> None:
        """Kafka failed to answer: the next answer ends an outage."""
        self._last_s = None

    def records_are_current(self, now_s: float) -> bool:
        """Whether Kafka answers, and has done so for long enough that no record is late because of an outage."""
        return self._last_s is not None and now_s - self._last_s <= PAUSE_S and now_s - self._since_s >= SETTLE_S
