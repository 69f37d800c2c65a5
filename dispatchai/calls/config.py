"""The settings of call control, as one value. `dispatchai.settings` decides their names in the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatchai.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class CallControlConfig:
    """The settings of call control. Durations are in seconds."""

    stream_url: str
    greeting: str
    greeting_voice: str
    greeting_language: str
    call_deadline_s: float
    call_expiry_s: float
    call_longest_s: float
    help_prompt: str = ""
    """The text of a dispatcher's SPEAK without words, in the greeting's voice and language."""
    human_line: str = ""
    """The number or SIP address of a dispatcher's TRANSFER; empty if there is none."""
    record_format: str = ""
    """wav or mp3; empty for no recording."""
    stream_restarts_max: int = 5

    @classmethod
    def from_settings(cls, settings: Settings, *, gateway_port: int | None = None) -> CallControlConfig:
        """From the settings; `gateway_port` overrides theirs where the gateway listens on a free port."""
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
    # An address that means "all interfaces" is for listening, not for connecting.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104
    port = settings.gateway_port if gateway_port is None else gateway_port
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"
