"""The counts of the gateway. Decides their names and help texts in Prometheus."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.telnyx.media_messages import BadMessageKind
from dispatchai.telnyx.signatures import Refusal


class WebhookOutcome(StrEnum):
    """How a webhook ended."""

    STORED = "stored"
    DEAD_LETTERED = "dead_lettered"
    REFUSED = "refused"
    """For its signature; `refusals` says why."""
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    BUSY = "busy"
    """Too many large bodies were being read at once; the carrier retries."""
    CUT_OFF = "cut_off"
    """The connection ended, or its framing broke, before the body was complete."""
    UNAVAILABLE = "unavailable"
    """Kafka did not acknowledge in time; the carrier retries."""


class SocketRefusal(StrEnum):
    """Why the gateway refused or closed a media socket."""

    TOKEN = "token"  # noqa: S105 - a reason, not a token
    UNAVAILABLE = "unavailable"
    OTHER_CALL = "other_call"
    CALL_OVER = "call_over"
    NO_START = "no_start"
    CODEC = "codec"
    BAD_MESSAGES = "bad_messages"
    FLOOD = "flood"
    """Too many pings and pongs, or the answers to them were not read."""


PREFIX: Final = "dispatchai_gateway_"


def _counter(text: str) -> Any:
    """A number that only grows."""
    return field(default=0, metadata={"text": text, "family": CounterMetricFamily})


def _gauge(text: str) -> Any:
    """A number that grows and shrinks."""
    return field(default=0, metadata={"text": text, "family": GaugeMetricFamily})


def _by(label: str, kinds: type[StrEnum], text: str) -> dict[str, Any]:
    """Metadata of numbers that only grow: one for each of `kinds`, which are the values of `label`."""
    return {"text": text, "label": label, "kinds": kinds}


@dataclass(slots=True)
class GatewayMetrics:
    """Counts since the process started, and two gauges. Plain numbers, because each media message adds to several."""

    webhooks: Counter[WebhookOutcome] = field(
        default_factory=Counter, metadata=_by("outcome", WebhookOutcome, "Webhooks by how they ended.")
    )
    refusals: Counter[Refusal] = field(
        default_factory=Counter, metadata=_by("reason", Refusal, "Webhooks refused for their signature.")
    )
    webhooks_repaired: int = _counter(
        "Webhooks with text that could not be read as it came: it was replaced, and the raw body is kept."
    )
    requests_not_served: int = _counter(
        "Requests for a path or method that is not served, or for the media socket without a websocket handshake."
    )
    requests_unreadable: int = _counter("Connections that sent something other than HTTP.")
    internal_errors: int = _counter("Requests answered 500 for an error of the gateway.")
    sockets_opened: int = _counter("Media sockets accepted.")
    sockets_open: int = _gauge("Open media sockets.")
    sockets_replaced: int = _counter("Media sockets closed because their call opened another.")
    sockets_refused: Counter[SocketRefusal] = field(
        default_factory=Counter,
        metadata=_by("reason", SocketRefusal, "Media sockets refused or closed by the gateway."),
    )
    bad_messages: Counter[BadMessageKind] = field(
        default_factory=Counter,
        metadata=_by("kind", BadMessageKind, "Media messages dropped as unusable."),
    )
    carrier_errors: int = _counter("Stream errors reported by the carrier.")
    frames: int = _counter("Frames put in order, including those that were dropped afterwards.")
    frames_missing: int = _counter("Frames that the carrier numbered and that never arrived, or arrived too late.")
    frames_duplicate: int = _counter("Frames that had arrived before.")
    frames_late: int = _counter("Frames that arrived after their gap was given up.")
    frames_reordered: int = _counter("Frames that arrived after a later one, in time to be put in their place.")
    streams_swapped: int = _counter("L16 streams whose byte order differs from L16_BYTE_ORDER.")
    frames_dropped: int = _counter(
        "Frames dropped because too many wait for Kafka. Their sequence numbers are missing on the topic."
    )
    records_waiting: int = _gauge("Media records that Kafka has not acknowledged.")
    records_stored: int = _counter("Media records that Kafka acknowledged.")
    records_resent: int = _counter(
        "Records of batches that Kafka did not acknowledge, sent again: they may be on the topic twice."
    )
    records_failed: int = _counter("Records that Kafka refused permanently.")

    def as_json(self) -> dict[str, int | dict[str, int]]:
        """The counts by name; those by kind as an object."""
        result: dict[str, int | dict[str, int]] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            result[item.name] = (
                {str(kind): count for kind, count in value.items()} if isinstance(value, dict) else value
            )
        return result


class GatewayCollector:
    """Shows the counts to Prometheus, as they are at a scrape."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        for item in dataclasses.fields(self._metrics):
            name, text = PREFIX + item.name, item.metadata["text"]
            value = getattr(self._metrics, item.name)
            if (label := item.metadata.get("label")) is None:
                yield item.metadata["family"](name, text, value)
                continue
            family = CounterMetricFamily(name, text, labels=[label])
            # All kinds, including those that never occurred: a rate needs the 0 before the first.
            for kind in item.metadata["kinds"]:
                family.add_metric([kind.value], value[kind])
            yield family
