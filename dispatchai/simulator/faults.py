"""The faults of the simulated line, and when they happen. Pure: a seed and a call's number always give the same faults.

Decides which faults exist, how they are written on a command line, and which frames, events and commands each affects.
A new kind of fault is a new field here, and the one place that reads it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from math import isfinite
from typing import Any, Final, Self

from dispatchai.simulator.errors import SimulatorError


class Codec(StrEnum):
    """The codec of the leg, and of its stream."""

    PCMU = "PCMU"
    PCMA = "PCMA"
    L16 = "L16"
    """Little-endian, as most recordings of real calls show it."""
    L16_BE = "L16-BE"
    """Big-endian, as RFC 3551 specifies."""
    G722 = "G722"
    AMR_WB = "AMR-WB"
    OPUS = "OPUS"


class TokenFault(StrEnum):
    """The fault in the handshake of the media socket."""

    RIGHT = "right"
    ABSENT = "absent"
    WRONG = "wrong"
    OTHER_CALL = "other-call"
    """The token is right, and `start` names another call."""


class SignatureFault(StrEnum):
    """The fault in the signature of every webhook."""

    RIGHT = "right"
    ABSENT = "absent"
    FORGED = "forged"
    """Made with another key."""
    STALE = "stale"
    """Right, but an hour old."""
    TRUNCATED = "truncated"


class CommandFate(Enum):
    """How the first request for a command ends. Later ones with the same command_id are served."""

    SERVED = "served"
    FAILED = "failed"
    """500, without effect."""
    LIMITED = "limited"
    """429 with the carrier's x-ratelimit headers, without effect."""
    IGNORED = "ignored"
    """No answer for longer than a client waits, and no effect."""
    UNANSWERED = "unanswered"
    """The command is obeyed, and the connection breaks before the answer."""


@dataclass(frozen=True, slots=True)
class WebhookFate:
    """How an event's first delivery goes."""

    delay_s: float = 0.0
    twice: bool = False
    lost: bool = False
    unanswered: bool = False


class FaultError(SimulatorError, ValueError):
    """A fault that does not exist, or a value that it does not accept. The message lists the valid ones."""


_HELP: Final = "help"
_BARE: Final = "bare"
_UNIT: Final = "unit"


def _rate(text: str) -> float:
    metadata = {_HELP: text, _BARE: 0.1, _UNIT: "0..1"}
    return field(default=0.0, metadata=metadata)


def _seconds(bare: float, text: str) -> float:
    return field(default=0.0, metadata={_HELP: text, _BARE: bare, _UNIT: "s"})


def _count(bare: int, text: str, unit: str = "n") -> int:
    return field(default=0, metadata={_HELP: text, _BARE: bare, _UNIT: unit})


def _switch(text: str) -> bool:
    return field(default=False, metadata={_HELP: text, _BARE: True, _UNIT: ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Faults of each call. Rates are probabilities, 0 to 1, for each frame, event or command. The default is no fault.

    Seconds of media are the caller's seconds: they shrink with the speed at which the caller speaks.
    """

    seed: int = 0

    # Frames
    frame_duplicates: float = _rate("probability that a frame is sent twice")
    frame_swaps: float = _rate("probability that a frame is sent after its successor")
    frame_losses: float = _rate("probability that a frame is never sent; its chunk number is skipped")
    frame_damages: float = _rate("probability that a frame's base64 is invalid")
    garbage: float = _rate("probability that a message that is not JSON precedes a frame")
    huge_message: int = _count(1 << 20, "one message of this size in the middle of the call", "bytes")
    media_stall_s: float = _seconds(
        3.0, "nothing is sent for this long in the middle of the call, then everything at once"
    )

    # Streams
    codec: Codec = field(
        default=Codec.PCMU,
        metadata={_HELP: "codec of the leg, whichever is requested", _BARE: Codec.PCMA, _UNIT: "|".join(Codec)},
    )
    frame_ms: int = field(default=20, metadata={_HELP: "length of a frame", _BARE: 99, _UNIT: "ms"})
    missing_media_format: bool = _switch("`start` has no media_format")
    early_media: int = _count(5, "number of frames that are sent before `start`")
    missing_start: bool = _switch("the stream has no `start`")
    missing_stop: bool = _switch("the stream ends with a closed socket, without `stop`")
    both_tracks: bool = _switch("the platform's voice is streamed too, whatever is requested")
    token: TokenFault = field(
        default=TokenFault.RIGHT,
        metadata={_HELP: "token of the media socket", _BARE: TokenFault.WRONG, _UNIT: "|".join(list(TokenFault)[1:])},
    )
    stream_failures: int = _count(1, "number of streams that end as streaming.failed before one is opened")
    cut_after_frames: int | None = field(
        default=None,
        metadata={
            _HELP: "the socket is cut (1006) after this many frames; another stream may follow",
            _BARE: 100,
            _UNIT: "frames",
        },
    )
    reconnects: int = _count(3, "number of times that the carrier ends the stream during the call and opens another")
    cut_reconnects: int = _count(1, "number of reconnects, the first ones, that come without `stop` (1006)")
    reconnect_pause_s: float = field(
        default=0.5, metadata={_HELP: "duration of a reconnect; half a second if not given", _BARE: 2.0, _UNIT: "s"}
    )

    # Webhooks
    webhook_duplicates: float = _rate("probability that an event is delivered twice at the same time")
    webhook_retries: float = _rate(
        "probability that the answer to an event is lost: it is sent again with meta.attempt 2"
    )
    webhook_losses: float = _rate("probability that an event's first delivery is lost")
    webhook_delay_s: float = _seconds(1.0, "each event is delayed by up to this long and may be overtaken")
    webhook_stall_s: float = _seconds(1.0, "each delivery pauses for this long in the middle of its body")
    hangup_before_answered: bool = _switch("the caller hangs up at once, and call.hangup comes before call.answered")
    signature: SignatureFault = field(
        default=SignatureFault.RIGHT,
        metadata={
            _HELP: "signature of the webhooks",
            _BARE: SignatureFault.FORGED,
            _UNIT: "|".join(list(SignatureFault)[1:]),
        },
    )
    clock_skew_s: float = _seconds(60.0, "the carrier's clock is ahead by this much (behind if negative)")

    # Commands
    command_failures: float = _rate("probability that a command fails once with 500")
    command_limits: float = _rate("probability that a command fails once with 429")
    command_timeouts: float = _rate("probability that a command is neither answered nor obeyed, once")
    command_lost_answers: float = _rate("probability that a command is obeyed and its answer lost, once")
    command_delay_s: float = _seconds(1.0, "each answer takes this long")

    def __post_init__(self) -> None:
        """Raises FaultError."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            match each.metadata.get(_UNIT):
                case "0..1" if not 0 <= value <= 1:
                    raise FaultError(f"{each.name} is a probability: 0 to 1")
                case "s" if not isfinite(value) or (value < 0 and each.name != "clock_skew_s"):
                    raise FaultError(f"{each.name} is a time: 0 or more seconds")
                case "n" | "bytes" if value < 0:
                    raise FaultError(f"{each.name} is a number: 0 or more")
        if not 1 <= self.frame_ms <= LONGEST_FRAME_MS:
            raise FaultError(f"frame_ms is a frame's length: 1 to {LONGEST_FRAME_MS} ms")
        if self.cut_reconnects > self.reconnects:
            raise FaultError("cut_reconnects are some of the reconnects: it cannot be larger than reconnects")

    @classmethod
    def parse(cls, named: Sequence[str], seed: int = 0) -> Self:
        """The faults named on a command line, each as ``name`` or ``name=value``. Raises FaultError."""
        given: dict[str, Any] = {}
        for text in named:
            name, _, value = text.partition("=")
            entry = _ENTRIES.get(name)
            if entry is None:
                raise FaultError(f"there is no fault {name!r}: {', '.join(_ENTRIES)}")
            given[entry.name] = _value(entry, value) if value else entry.metadata[_BARE]
        return cls(seed=seed, **given)

    def rng(self, call_number: int, use: str) -> random.Random:
        """The random numbers of call `call_number` for one use, independent of every other use."""
        return random.Random(f"{self.seed}:{call_number}:{use}")  # noqa: S311 - repeatable on purpose

    def webhook_fate(self, rng: random.Random) -> WebhookFate:
        """How the first delivery of an event goes."""
        late, *rolls = (rng.random() for _ in range(4))
        rates = (self.webhook_duplicates, self.webhook_losses, self.webhook_retries)
        twice, lost, unanswered = (roll < rate for roll, rate in zip(rolls, rates, strict=True))
        return WebhookFate(late * self.webhook_delay_s, twice, lost, unanswered)

    def command_fate(self, rng: random.Random) -> CommandFate:
        """How the first request for a command ends: the first fault whose rate is hit."""
        for rate, fate in (
            (self.command_failures, CommandFate.FAILED),
            (self.command_limits, CommandFate.LIMITED),
            (self.command_timeouts, CommandFate.IGNORED),
            (self.command_lost_answers, CommandFate.UNANSWERED),
        ):
            if rng.random() < rate:
                return fate
        return CommandFate.SERVED

    def breaks(self, frames: int) -> dict[int, bool]:
        """Before which of `frames` frames the carrier reconnects, evenly spread, and whether it sends `stop` first."""
        parts = self.reconnects + 1
        return {frames * part // parts: part > self.cut_reconnects for part in range(1, parts)}


LONGEST_FRAME_MS: Final = 1000

NO_FAULTS = Faults()

_ENTRIES: Final[Mapping[str, dataclasses.Field[Any]]] = {
    entry.name.replace("_", "-"): entry for entry in dataclasses.fields(Faults) if entry.metadata
}


def catalogue() -> Iterator[tuple[str, str, str]]:
    """Every fault as its name, the unit of its value, and one line about it with the value of a bare name."""
    for name, entry in _ENTRIES.items():
        bare = entry.metadata[_BARE]
        without = "" if bare is True else f" ({bare:g})" if isinstance(bare, float) else f" ({bare})"
        yield name, entry.metadata[_UNIT], f"{entry.metadata[_HELP]}{without}"


def frame_schedule(count: int, faults: Faults, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """For each of `count` moments, a frame apart, the frames (0 to count-1) that are sent then, in order.

    Without faults, moment n has frame n. A swapped frame goes out with its successor; the last frame has none.
    """
    held: tuple[int, ...] = ()
    for index in range(count):
        lost, twice, later = (
            rng.random() < rate for rate in (faults.frame_losses, faults.frame_duplicates, faults.frame_swaps)
        )
        copies = () if lost else (index, index) if twice else (index,)
        if later and not held and index + 1 < count:
            held = copies
            yield ()
        else:
            yield copies + held
            held = ()


def sample(count: int, rate: float, rng: random.Random) -> frozenset[int]:
    """A random choice among `count` frames: each with the probability `rate`."""
    return frozenset(index for index in range(count) if rng.random() < rate) if rate else frozenset()


def _value(entry: dataclasses.Field[Any], text: str) -> Any:
    bare = entry.metadata[_BARE]
    try:
        match bare:
            case bool():
                raise FaultError(f"{entry.name} takes no value")
            case StrEnum():
                return type(bare)(text)
            case int():
                return int(text)
            case _:
                return float(text)
    except FaultError:
        raise
    except ValueError:
        raise FaultError(f"{entry.name}={text}: give {entry.metadata[_UNIT]}") from None
