"""What the gateway and its commands to the carrier count. Decides names and texts of what Prometheus is shown."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.telnyx.client import CommandCounts
from dispatchai.telnyx.media_messages import BadMessageKind
from dispatchai.telnyx.signatures import Refusal


class WebhookOutcome(StrEnum):
    """What became of a webhook."""

    STORED = "stored"
    DEAD_LETTERED = "dead_lettered"
    REFUSED = "refused"
    """Its signature: `refusals` says why."""
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    CUT_OFF = "cut_off"
    """The connection ended, or its framing broke, before the body was whole."""
    UNAVAILABLE = "unavailable"
    """Kafka did not acknowledge in time; the carrier retries."""


class SocketRefusal(StrEnum):
    """Why a media socket was turned away or closed by the gateway."""

    TOKEN = "token"  # noqa: S105 - a reason, not a token
    UNAVAILABLE = "unavailable"
    OTHER_CALL = "other_call"
    NO_START = "no_start"
    CODEC = "codec"
    BAD_MESSAGES = "bad_messages"


PREFIX: Final = "dispatchai_gateway_"


def _count(text: str) -> Any:
    """A number that only grows."""
    return field(default=0, metadata={"text": text, "family": CounterMetricFamily})


def _gauge(text: str) -> Any:
    """A number that grows and shrinks."""
    return field(default=0, metadata={"text": text, "family": GaugeMetricFamily})


def _by(label: str, kinds: type[StrEnum], text: str) -> dict[str, Any]:
    """What is said of numbers that only grow, one for each of `kinds`, which are the values of `label`."""
    return {"text": text, "label": label, "kinds": kinds}


@dataclass(slots=True)
class GatewayMetrics:
    """Counts since the process started, and two gauges. Plain numbers: a media message adds to several of them."""

    webhooks: Counter[WebhookOutcome] = field(
        default_factory=Counter, metadata=_by("outcome", WebhookOutcome, "Webhooks by what became of them.")
    )
    refusals: Counter[Refusal] = field(
        default_factory=Counter, metadata=_by("reason", Refusal, "Webhooks refused for their signature.")
    )
    requests_not_served: int = _count(
        "Requests for a path or method that is not there, or for the media socket without a websocket."
    )
    requests_unreadable: int = _count("Connections that sent what is no HTTP.")
    internal_errors: int = _count("Requests answered 500: an error of the gateway's own.")
    sockets_opened: int = _count("Media sockets accepted.")
    sockets_open: int = _gauge("Media sockets that are open.")
    sockets_replaced: int = _count("Media sockets closed because their call opened another.")
    sockets_refused: Counter[SocketRefusal] = field(
        default_factory=Counter,
        metadata=_by("reason", SocketRefusal, "Media sockets turned away or closed by the gateway."),
    )
    bad_messages: Counter[BadMessageKind] = field(
        default_factory=Counter,
        metadata=_by("kind", BadMessageKind, "Media messages dropped because they are unusable."),
    )
    carrier_errors: int = _count("Errors of a stream that the carrier reported.")
    frames: int = _count("Frames put in order, those among them that were dropped too.")
    frames_missing: int = _count("Frames that the carrier numbered and that never came, or came too late.")
    frames_duplicate: int = _count("Frames that came before.")
    frames_late: int = _count("Frames that came after their gap was given up.")
    frames_reordered: int = _count("Frames that came after a later one, in time to be put in their place.")
    streams_swapped: int = _count("L16 streams whose byte order was not what L16_BYTE_ORDER says.")
    frames_dropped: int = _count(
        "Frames left out because too many wait for Kafka. Their sequence numbers are missing on the topic."
    )
    records_waiting: int = _gauge("Media records that Kafka has not acknowledged.")
    records_stored: int = _count("Media records that Kafka acknowledged.")
    records_resent: int = _count(
        "Records of a batch that Kafka did not acknowledge, sent once more: they may be on the topic twice."
    )
    records_failed: int = _count("Records that Kafka refused for good.")

    def as_json(self) -> dict[str, int | dict[str, int]]:
        """The counts by name; those by kind as an object."""
        result: dict[str, int | dict[str, int]] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            result[item.name] = (
                {str(kind): count for kind, count in value.items()} if isinstance(value, dict) else value
            )
        return result


class Exposed:
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
            # All kinds, also those that never came: a rate needs the 0 before the first.
            for kind in item.metadata["kinds"]:
                family.add_metric([kind.value], value[kind])
            yield family


class CommandsExposed:
    """Shows what became of the commands to the carrier, as it is at a scrape."""

    def __init__(self, counts: CommandCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        outcomes = CounterMetricFamily(
            "dispatchai_commands", "Commands to the carrier by how they ended.", labels=["action", "outcome"]
        )
        for (action, outcome), count in self._counts.outcomes.items():
            outcomes.add_metric([action, outcome], count)
        yield outcomes
        retries = CounterMetricFamily(
            "dispatchai_command_retries", "Tries beyond the first of a command.", labels=["action"]
        )
        for action, count in self._counts.retries.items():
            retries.add_metric([action], count)
        yield retries
