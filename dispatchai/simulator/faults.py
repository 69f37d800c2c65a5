"""What goes wrong on the simulated line, and when. Pure: a seed and a call's number give the same faults each time.

Decides which faults there are, how they are written on a command line, and which frame, event and command each meets.
A new kind of fault is a new field here and the one place that asks for it.
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
    """What the leg carries, and the stream with it."""

    PCMU = "PCMU"
    PCMA = "PCMA"
    L16 = "L16"
    """Little-endian, as most who recorded real calls report it."""
    L16_BE = "L16-BE"
    """Big-endian, as RFC 3551 has it."""
    G722 = "G722"
    AMR_WB = "AMR-WB"
    OPUS = "OPUS"


class TokenFault(StrEnum):
    """What is wrong with the handshake of the media socket."""

    RIGHT = "right"
    ABSENT = "absent"
    WRONG = "wrong"
    OTHER_CALL = "other-call"
    """The token is right and the stream says that it is another call's."""


class SignatureFault(StrEnum):
    """What is wrong with the signatures of all webhooks."""

    RIGHT = "right"
    ABSENT = "absent"
    FORGED = "forged"
    """Made with another key."""
    STALE = "stale"
    """Right, and an hour old."""
    TRUNCATED = "truncated"


class CommandFate(Enum):
    """What becomes of the first request of a command. Later ones with the same command_id are served."""

    SERVED = "served"
    FAILED = "failed"
    """500, and nothing is done."""
    LIMITED = "limited"
    """429 with the carrier's x-ratelimit headers, and nothing is done."""
    IGNORED = "ignored"
    """No answer for longer than a client waits, and nothing is done."""
    UNANSWERED = "unanswered"
    """The command is obeyed and the connection breaks before the answer."""


@dataclass(frozen=True, slots=True)
class WebhookFate:
    """What becomes of an event's first delivery."""

    delay_s: float = 0.0
    twice: bool = False
    lost: bool = False
    unanswered: bool = False


class FaultError(SimulatorError, ValueError):
    """A fault that does not exist, or a value that it does not take. The message says which there are."""


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
    """Faults of each call. Rates are chances, 0 to 1, of each frame, event or command. The default is none at all.

    Seconds of media are seconds of the caller's: they shrink with the speed at which a caller speaks.
    """

    seed: int = 0

    # Frames
    frame_duplicates: float = _rate("chance that a frame is sent twice")
    frame_swaps: float = _rate("chance that a frame is sent after its successor")
    frame_losses: float = _rate("chance that a frame is never sent; its chunk number is used up")
    frame_damages: float = _rate("chance that a frame's base64 is broken")
    garbage: float = _rate("chance that a message that is not JSON goes before a frame")
    huge_message: int = _count(1 << 20, "one message of so many bytes in mid call", "bytes")
    media_stall_s: float = _seconds(3.0, "in mid call nothing is sent for so long, then all of it at once")

    # Streams
    codec: Codec = field(
        default=Codec.PCMU,
        metadata={_HELP: "codec of the leg, whatever is asked for", _BARE: Codec.PCMA, _UNIT: "|".join(Codec)},
    )
    frame_ms: int = field(default=20, metadata={_HELP: "length of a frame", _BARE: 99, _UNIT: "ms"})
    missing_media_format: bool = _switch("`start` does not say the codec")
    early_media: int = _count(5, "so many frames are sent before `start`")
    missing_start: bool = _switch("a stream without `start`")
    missing_stop: bool = _switch("a stream ends by a closed socket, without `stop`")
    both_tracks: bool = _switch("the platform's voice is streamed too, whatever is asked for")
    token: TokenFault = field(
        default=TokenFault.RIGHT,
        metadata={_HELP: "token of the media socket", _BARE: TokenFault.WRONG, _UNIT: "|".join(list(TokenFault)[1:])},
    )
    stream_failures: int = _count(1, "so many streams end as streaming.failed before one is opened")
    cut_after_frames: int | None = field(
        default=None,
        metadata={
            _HELP: "after so many frames the socket is cut (1006), and the platform may stream again",
            _BARE: 100,
            _UNIT: "frames",
        },
    )
    reconnects: int = _count(3, "so many times in mid call the carrier breaks the stream off and opens another")
    cut_reconnects: int = _count(1, "of the reconnects so many, the first ones, go without `stop` (1006)")
    reconnect_pause_s: float = field(
        default=0.5, metadata={_HELP: "how long a reconnect takes; half a second if not given", _BARE: 2.0, _UNIT: "s"}
    )

    # Webhooks
    webhook_duplicates: float = _rate("chance that an event is delivered twice at once")
    webhook_retries: float = _rate("chance that an event's answer is lost: it comes again with meta.attempt 2")
    webhook_losses: float = _rate("chance that an event's first delivery is lost")
    webhook_delay_s: float = _seconds(1.0, "each event is held for up to so long and may be overtaken")
    webhook_stall_s: float = _seconds(1.0, "each delivery stops so long in the middle of its body")
    hangup_before_answered: bool = _switch("the caller gives up at once, and call.hangup comes before call.answered")
    signature: SignatureFault = field(
        default=SignatureFault.RIGHT,
        metadata={
            _HELP: "signature of the webhooks",
            _BARE: SignatureFault.FORGED,
            _UNIT: "|".join(list(SignatureFault)[1:]),
        },
    )
    clock_skew_s: float = _seconds(60.0, "the carrier's clock is ahead by so much (behind, if negative)")

    # Commands
    command_failures: float = _rate("chance that a command fails once with 500")
    command_limits: float = _rate("chance that a command fails once with 429")
    command_timeouts: float = _rate("chance that a command is not answered and not obeyed, once")
    command_lost_answers: float = _rate("chance that a command is obeyed and its answer lost, once")
    command_delay_s: float = _seconds(1.0, "each answer takes so long")

    def __post_init__(self) -> None:
        """Raises FaultError."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            match each.metadata.get(_UNIT):
                case "0..1" if not 0 <= value <= 1:
                    raise FaultError(f"{each.name} is a chance: 0 to 1")
                case "s" if not isfinite(value) or (value < 0 and each.name != "clock_skew_s"):
                    raise FaultError(f"{each.name} is a time: 0 or more seconds")
                case "n" | "bytes" if value < 0:
                    raise FaultError(f"{each.name} is a number: 0 or more")
        if not 1 <= self.frame_ms <= LONGEST_FRAME_MS:
            raise FaultError(f"frame_ms is a frame's length: 1 to {LONGEST_FRAME_MS} ms")
        if self.cut_reconnects > self.reconnects:
            raise FaultError("cut_reconnects are some of the reconnects: there cannot be more of them")

    @classmethod
    def parse(cls, named: Sequence[str], seed: int = 0) -> Self:
        """The faults of a command line, each ``name`` or ``name=value``. Raises FaultError."""
        given: dict[str, Any] = {}
        for text in named:
            name, _, value = text.partition("=")
            entry = _ENTRIES.get(name)
            if entry is None:
                raise FaultError(f"there is no fault {name!r}: {', '.join(_ENTRIES)}")
            given[entry.name] = _value(entry, value) if value else entry.metadata[_BARE]
        return cls(seed=seed, **given)

    def dice(self, call_number: int, use: str) -> random.Random:
        """The randomness of call `call_number` for one use of it, which does not depend on any other use."""
        return random.Random(f"{self.seed}:{call_number}:{use}")  # noqa: S311 - repeatable on purpose

    def webhook_fate(self, dice: random.Random) -> WebhookFate:
        """What becomes of an event."""
        late, *rolls = (dice.random() for _ in range(4))
        rates = (self.webhook_duplicates, self.webhook_losses, self.webhook_retries)
        twice, lost, unanswered = (roll < rate for roll, rate in zip(rolls, rates, strict=True))
        return WebhookFate(late * self.webhook_delay_s, twice, lost, unanswered)

    def command_fate(self, dice: random.Random) -> CommandFate:
        """What becomes of a command's first request: the rates share the dice, and the first that hits is it."""
        for rate, fate in (
            (self.command_failures, CommandFate.FAILED),
            (self.command_limits, CommandFate.LIMITED),
            (self.command_timeouts, CommandFate.IGNORED),
            (self.command_lost_answers, CommandFate.UNANSWERED),
        ):
            if dice.random() < rate:
                return fate
        return CommandFate.SERVED

    def breaks(self, frames: int) -> dict[int, bool]:
        """Before which of `frames` frames the carrier reconnects, evenly spread, and whether it says `stop`."""
        parts = self.reconnects + 1
        return {frames * part // parts: part > self.cut_reconnects for part in range(1, parts)}


LONGEST_FRAME_MS: Final = 1000

NO_FAULTS = Faults()

_ENTRIES: Final[Mapping[str, dataclasses.Field[Any]]] = {
    entry.name.replace("_", "-"): entry for entry in dataclasses.fields(Faults) if entry.metadata
}


def catalogue() -> Iterator[tuple[str, str, str]]:
    """Every fault as ``name``, ``name=unit``'s unit and one line about it, with the value that it has without one."""
    for name, entry in _ENTRIES.items():
        bare = entry.metadata[_BARE]
        without = "" if bare is True else f" ({bare:g})" if isinstance(bare, float) else f" ({bare})"
        yield name, entry.metadata[_UNIT], f"{entry.metadata[_HELP]}{without}"


def slots(count: int, faults: Faults, dice: random.Random) -> Iterator[tuple[int, ...]]:
    """For each of `count` moments, a frame apart, which frames (0 to count-1) are sent then, in this order.

    Without faults moment n sends frame n. A swapped frame goes out with its successor; the last one has none.
    """
    held: tuple[int, ...] = ()
    for index in range(count):
        lost, twice, later = (
            dice.random() < rate for rate in (faults.frame_losses, faults.frame_duplicates, faults.frame_swaps)
        )
        copies = () if lost else (index, index) if twice else (index,)
        if later and not held and index + 1 < count:
            held = copies
            yield ()
        else:
            yield copies + held
            held = ()


def chosen(count: int, rate: float, dice: random.Random) -> frozenset[int]:
    """Each of `count` frames with the chance `rate`."""
    return frozenset(index for index in range(count) if dice.random() < rate) if rate else frozenset()


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
