"""What the gateway counts. Decides the names; leaves to the health pages how they are shown."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from dispatchai.telephony.signatures import Refusal
from dispatchai.telephony.wire import BadMessageKind


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


@dataclass(slots=True)
class GatewayMetrics:
    """Counts since the process started, and two gauges: `sockets_open` and `records_waiting`."""

    webhooks: Counter[WebhookOutcome] = field(default_factory=Counter)
    refusals: Counter[Refusal] = field(default_factory=Counter)
    requests_not_served: int = 0
    """Requests for a path or method that is not there, or for the media socket without a websocket."""
    requests_unreadable: int = 0
    """Connections that sent what is no HTTP."""
    internal_errors: int = 0
    """Requests answered 500: an error of the gateway's own."""
    sockets_opened: int = 0
    sockets_open: int = 0
    sockets_replaced: int = 0
    sockets_refused: Counter[SocketRefusal] = field(default_factory=Counter)
    bad_messages: Counter[BadMessageKind] = field(default_factory=Counter)
    carrier_errors: int = 0
    frames: int = 0
    """Frames put in order, those among them that were dropped too."""
    frames_duplicate: int = 0
    frames_late: int = 0
    frames_reordered: int = 0
    streams_swapped: int = 0
    """L16 streams whose byte order was found to be the other one than L16_BYTE_ORDER says."""
    frames_dropped: int = 0
    """Frames left out because too many wait for Kafka. Their sequence numbers are missing on the topic."""
    records_waiting: int = 0
    records_stored: int = 0
    records_resent: int = 0
    """Records of a batch that Kafka did not acknowledge, sent once more: they may be on the topic twice."""
    records_failed: int = 0
    """Records that Kafka refused for good."""

    def as_json(self) -> dict[str, int | dict[str, int]]:
        """The counts by name; those by kind as an object."""
        result: dict[str, int | dict[str, int]] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            result[item.name] = (
                {str(kind): count for kind, count in value.items()} if isinstance(value, dict) else value
            )
        return result
