"""Every option of the gateway, as one checked value.

Decides which combinations make sense. `dispatchai.settings` decides the names in the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from dispatchai.audio.g711 import L16_BIG, L16_LITTLE
from dispatchai.process.clock import now_micros
from dispatchai.records import Micros
from dispatchai.settings import ByteOrder, Settings, Verification
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.signatures import WebhookVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What the gateway accepts, and how much of it.

    `verifier` verifies webhooks; it is not used when `verify_webhooks` is False. `stream_secret` verifies the media
    sockets' tokens; without it every socket is refused, or accepted where webhooks are not verified either. `clock`
    gives the time of receipt. The rest are bounds, with their units.
    """

    verifier: WebhookVerifier
    verify_webhooks: bool = True
    stream_secret: bytes | None = field(default=None, repr=False)
    clock: Callable[[], Micros] = now_micros

    host_names: frozenset[str] = frozenset()
    """Names under which the pages for monitoring are reached, besides the addresses of this machine."""
    tunnel_port: int = 0
    """The local port at which only webhooks and media are served; 0 for none."""

    webhook_max_bytes: int = 262_144
    body_timeout_s: float = 5.0
    """A body that takes longer is given up; by then the carrier has given up too."""
    ack_timeout_s: float = 1.5
    """How long Kafka may take to acknowledge a webhook. The carrier waits 2 s for the answer."""

    l16_encoding: str = L16_LITTLE
    """The recorded encoding of L16 whose audio does not show its byte order: L16_LITTLE or L16_BIG."""
    media_message_max_bytes: int = 65_536
    start_timeout_s: float = 10.0
    """How long a media socket may be open without a `start`."""
    bad_messages_max: int = 50
    """This many unusable messages in a row close a socket: one second of a stream without anything usable."""
    heartbeat_s: float = 30.0
    """A media socket that is silent for this long is pinged, and closed if no answer comes within half of it."""
    media_ahead_s: float = 60.0
    """How much faster than speech a stream may come: seconds of audio beyond those since it began. Then its socket is
    read no faster than speech. A carrier that was cut off sends a few seconds at once."""
    stream_longest_s: float = 14_400.0
    """After this time a stream is closed. A call that goes on starts another."""
    records_waiting_max: int = 100_000
    """Media records that may wait for Kafka: five seconds of 400 calls, enough to elect another leader; 40 MB."""
    drain_timeout_s: float = 5.0
    """How long the waiting records may take to be stored when the gateway stops."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """From the settings. Raises ValueError, naming the setting, for a key or a secret that is invalid."""
        try:
            verifier = WebhookVerifier.of(
                (settings.telnyx_public_key, settings.telnyx_public_key_next),
                settings.telnyx_webhook_secret.get_secret_value(),
                settings.webhook_tolerance_s,
            )
        except ValueError as error:
            raise ValueError(f"TELNYX_PUBLIC_KEY or TELNYX_PUBLIC_KEY_NEXT: {error}") from None
        return cls(
            verifier=verifier,
            verify_webhooks=settings.webhook_verification is Verification.ON,
            stream_secret=stream_tokens.stream_secret(
                settings.stream_token_secret.get_secret_value(), settings.telnyx_api_key.get_secret_value()
            ),
            host_names=frozenset(settings.console_names),
            tunnel_port=settings.gateway_tunnel_port,
            webhook_max_bytes=settings.webhook_max_bytes,
            l16_encoding=L16_BIG if settings.l16_byte_order is ByteOrder.BIG else L16_LITTLE,
            media_message_max_bytes=settings.media_message_max_bytes,
            media_ahead_s=settings.media_ahead_s,
            stream_longest_s=settings.call_longest_s,
        )
