"""What the call flow can be told, as one value. Leaves the names in the environment to `dispatchai.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatchai.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class CallControlConfig:
    """What the call flow can be told. Durations in seconds."""

    stream_url: str
    greeting: str
    greeting_voice: str
    greeting_language: str
    call_deadline_s: float
    call_expiry_s: float
    call_longest_s: float
    help_prompt: str = ""
    """What a dispatcher's SPEAK without words says, in the greeting's voice and language."""
    human_line: str = ""
    """Where a dispatcher's TRANSFER goes; empty for nowhere."""
    record_format: str = ""
    """wav or mp3; empty for no recording."""
    stream_restarts_max: int = 5

    @classmethod
    def from_settings(cls, settings: Settings, *, gateway_port: int | None = None) -> CallControlConfig:
        """The configuration that `settings` asks for; `gateway_port` where the gateway was given a free port."""
        return cls(
            stream_url=settings.ws_public_url or _local_stream_url(settings, gateway_port),
            greeting=settings.greeting,
            greeting_voice=settings.greeting_voice,
            greeting_language=settings.greeting_language,
            call_deadline_s=settings.call_deadline_s,
            call_expiry_s=settings.call_expiry_s,
            call_longest_s=settings.call_longest_s,
            help_prompt=settings.help_prompt,
            human_line=settings.human_line,
            record_format=settings.record_format.value if settings.record_calls else "",
            stream_restarts_max=settings.stream_restarts_max,
        )


def _local_stream_url(settings: Settings, gateway_port: int | None) -> str:
    # An address that means "all interfaces" is one to listen on, not one to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104
    port = settings.gateway_port if gateway_port is None else gateway_port
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"
