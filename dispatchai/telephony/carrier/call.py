"""One simulated call: a leg that rings, is answered, streams what its caller says and ends, obeying commands meanwhile.

Decides the leg's states, the order of its events and the moment of each frame. The caller speaks by a clock that
starts with the first stream: what nobody listens to is not said again, as with a person.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dispatchai.telephony.carrier import commands, faults
from dispatchai.telephony.carrier.audio import FRAME_MS, CallerAudio
from dispatchai.telephony.carrier.commands import (
    AnswerRequest,
    ApiError,
    HangupRequest,
    Request,
    SpeakRequest,
    Stream,
    StreamRequest,
    StreamStopRequest,
)
from dispatchai.telephony.carrier.faults import Faults
from dispatchai.telephony.carrier.media import MediaStream, StreamRefusedError
from dispatchai.telephony.carrier.messages import EventWriter, HangupCause, HangupSource, Leg, WebhookEvent
from dispatchai.telephony.carrier.webhooks import Delivery, WebhookSender

FRAMES_PER_S: Final = 1000 // FRAME_MS

SPOKEN_S_PER_CHARACTER: Final = 0.06
"""How long a text takes to be spoken: about 165 words a minute."""

COMMAND_MEMORY_S: Final = 60.0
"""For this long a command_id is known again and its command ignored, as Telnyx documents."""

FRAMES_WITHOUT_PAUSE: Final = 64
"""When frames are behind their time they are sent at once; after so many the event loop sees to the others."""

STALL_S: Final = 10.0
"""A socket that takes no frame for this long is given up."""


class LegState(StrEnum):
    """Where the leg is in its life. It only moves forward."""

    PARKED = "parked"
    ANSWERED = "answered"
    ENDED = "ended"


class Stage(StrEnum):
    """What a watcher of the call sees."""

    RINGING = "ringing"
    ANSWERED = "answered"
    STREAMING = "streaming"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is. Seconds of the caller's audio, spoken and in all."""

    stage: Stage
    spoken_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the caller waits, in seconds, and how much faster than a person they speak."""

    answer_s: float = 10.0
    """From the delivery of call.initiated to `answer`."""
    stream_s: float = 10.0
    """From `answer` to the first stream that opens."""
    speed: float = 1.0
    """1 is real time. Frames stay 20 ms of audio each."""

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError("speed must be above 0: 1 is real time")


@dataclass(frozen=True, slots=True)
class CallReport:
    """How a call went. `failure` says what did not happen; None when the caller could say all or was hung up on."""

    leg: Leg
    hangup_cause: HangupCause
    hangup_source: HangupSource
    streams: int
    frames_sent: int
    """Media messages that were sent, repeated ones included."""
    undelivered: tuple[str, ...]
    """Types of the events that the gateway never took, in order."""
    failure: str | None


Observer = Callable[[Progress], None]


class SimulatedCall:
    """A call. `run` is its whole life; `obey` and `hang_up` may be called meanwhile, from the same event loop."""

    def __init__(
        self,
        number: int,
        leg: Leg,
        audio: CallerAudio,
        sender: WebhookSender,
        *,
        timing: Timing,
        line: Faults,
        observer: Observer,
    ) -> None:
        """`number` counts the carrier's calls and seeds the faults of this one."""
        self.leg = leg
        self._audio = audio
        self._sender = sender
        self._timing = timing
        self._line = line
        self._observer = observer
        self._events = EventWriter(leg)

        self._state = LegState.PARKED
        self._hangup = (HangupCause.NORMAL_CLEARING, HangupSource.CALLER)
        self._commands: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

        self._wanted: Stream | None = None
        self._streaming = False
        self._stop_wanted = False
        self._streams = 0
        self._frames_sent = 0
        self._refusal: str | None = None
        self._began: float | None = None
        self._moment = 0
        self._plan = faults.slots(audio.frames, line, line.dice(number))
        self._cut_after = line.close_after_frames

        self._speeches: asyncio.Queue[SpeakRequest | None] = asyncio.Queue()
        self._outbox: asyncio.Queue[tuple[WebhookEvent, asyncio.Future[Delivery]] | None] = asyncio.Queue()
        self._undelivered: list[str] = []

    # Commands

    def obey(self, request: Request) -> ApiError | None:
        """Does what `request` asks, or says why not. A command_id that was obeyed within 60 s is not obeyed again."""
        if self._is_repeated(request.command_id):
            return None
        refusal = self._refusal_of(request)
        if refusal is not None:
            return refusal
        if request.command_id is not None:
            self._commands[request.command_id] = _clock()
        if request.client_state is not None:
            self._events.client_state = request.client_state
        match request:
            case AnswerRequest(stream=stream):
                self._state = LegState.ANSWERED
                self._post(self._events.answered())
                self._report(Stage.ANSWERED)
                if stream is not None:
                    self._want(stream)
            case StreamRequest(stream=stream):
                self._want(stream)
            case StreamStopRequest():
                self._stop_wanted = True
            case SpeakRequest():
                self._speeches.put_nowait(request)
            case HangupRequest():
                self.hang_up(HangupSource.CALLEE)
        self._changed.set()
        return None

    def hang_up(self, source: HangupSource) -> None:
        """Ends the call from either side. The first to do so is the one that counts."""
        match self._state, source:
            case LegState.ENDED, _:
                return
            case LegState.PARKED, HangupSource.CALLER:
                cause = HangupCause.ORIGINATOR_CANCEL
            case LegState.PARKED, _:
                cause = HangupCause.CALL_REJECTED
            case _:
                cause = HangupCause.NORMAL_CLEARING
        self._state = LegState.ENDED
        self._hangup = (cause, source)
        self._over.set()
        self._changed.set()

    def _is_repeated(self, command_id: str | None) -> bool:
        forgotten = [known for known, at in self._commands.items() if _clock() - at >= COMMAND_MEMORY_S]
        for known in forgotten:
            del self._commands[known]
        return command_id in self._commands

    def _refusal_of(self, request: Request) -> ApiError | None:
        match self._state, request:
            case LegState.ENDED, _:
                return commands.CALL_ENDED
            case _, HangupRequest():
                return None
            case LegState.PARKED, AnswerRequest():
                return None
            case LegState.PARKED, _:
                return commands.NOT_ANSWERED
            case _, AnswerRequest():
                return commands.ALREADY_ANSWERED
            case _, StreamRequest() if self._streaming:
                return commands.STREAMING_IN_USE
            case _, StreamStopRequest() if not self._streaming:
                return commands.STREAMING_NOT_IN_USE
            case _:
                return None

    def _want(self, stream: Stream) -> None:
        self._wanted = stream
        self._streaming = True
        self._stop_wanted = False

    # The call's life

    async def run(self) -> CallReport:
        """Rings, speaks and hangs up; returns when every event was delivered or given up."""
        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(self._deliver())
            speaker = helpers.create_task(self._speak())
            failure = await self._live()
            self.hang_up(HangupSource.CALLER)
            self._speeches.put_nowait(None)
            await speaker
            cause, source = self._hangup
            self._post(self._events.hangup(cause, source, self._frames_sent))
            self._report(Stage.ENDED)
            self._outbox.put_nowait(None)
        if failure is None and self._undelivered:
            failure = f"the gateway never took {', '.join(self._undelivered)}"
        return CallReport(
            leg=self.leg,
            hangup_cause=cause,
            hangup_source=source,
            streams=self._streams,
            frames_sent=self._frames_sent,
            undelivered=tuple(self._undelivered),
            failure=failure,
        )

    async def _live(self) -> str | None:
        """From the first ring until somebody wants to hang up. Returns what did not happen, if something did not."""
        initiated = self._post(self._events.initiated())
        self._report(Stage.RINGING)
        await self._until(lambda: initiated.done() or self._state is not LegState.PARKED)
        if self._state is LegState.PARKED and not initiated.result().delivered:
            return _refused(initiated.result())
        if not await self._until(lambda: self._state is not LegState.PARKED, self._timing.answer_s):
            return (
                f"the gateway answered {initiated.result().status} but no `answer` command came within "
                f"{self._timing.answer_s:g} s: is the worker running?"
            )
        give_up_at = _clock() + self._timing.stream_s
        while not self._over.is_set() and not self._has_said_all():
            wait_until = give_up_at if self._began is None else self._due(self._audio.frames)
            if not await self._until(
                lambda: self._wanted is not None or self._over.is_set(), max(0.0, wait_until - _clock())
            ):
                break
            if self._wanted is not None and not self._over.is_set():
                wanted, self._wanted = self._wanted, None
                await self._stream(wanted)
                self._streaming = self._wanted is not None
        if self._streams:
            return None
        if self._hangup[1] is HangupSource.CALLEE:
            return "the platform hung up before it listened"
        if self._refusal is not None:
            return self._refusal
        if self._over.is_set():
            return "the caller hung up before anybody listened"
        return f"the call was answered but no `streaming_start` command came within {self._timing.stream_s:g} s"

    async def _until(self, reached: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Waits until `reached`, or says that it was not within `timeout_s`. Only the call's own task waits here."""
        try:
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # Media

    async def _stream(self, wanted: Stream) -> None:
        try:
            stream = await MediaStream.open(self.leg, wanted, self._events.client_state, self._changed.set)
        except StreamRefusedError as refused:
            self._refusal = str(refused)
            self._post(self._events.streaming_failed("", wanted.url, wanted.track))
            return
        self._streams += 1
        self._post(self._events.streaming_started(wanted.url))
        if self._began is None:
            self._began = _clock()
            self._report(Stage.STREAMING)
        first = max(self._moment, int((_clock() - self._began) / self._frame_s()))
        try:
            if await self._send_frames(stream, first):
                await stream.stop(say_so=not self._line.missing_stop)
        finally:
            await stream.cut()
        self._post(self._events.streaming_stopped(wanted.url))

    async def _send_frames(self, stream: MediaStream, first: int) -> bool:
        """Sends frames from `first` on, each at its moment, until all is said, the call is over or the stream is.

        Each moment follows from the start of the speech and not from the moment before, so that delays do not add
        up. Returns whether the stream can still be ended in good order.
        """
        try:
            async with asyncio.timeout(None) as stall:
                for frames in self._plan:
                    moment = self._moment
                    self._moment += 1
                    if moment < first:
                        continue
                    if moment % FRAMES_PER_S == 0 or moment == first:
                        stall.reschedule(asyncio.get_running_loop().time() + STALL_S + 1 / self._timing.speed)
                    await self._moment_of(moment)
                    if self._over.is_set() or self._stop_wanted or not stream.is_open:
                        return True
                    if self._cut_after is not None and moment >= self._cut_after:
                        self._cut_after = None
                        return False
                    for index in frames:
                        if index >= first:
                            await stream.send(index - first + 1, self._audio.frame(index))
                            self._frames_sent += 1
                    if self._moment % FRAMES_PER_S == 0:
                        self._report(Stage.STREAMING)
        except TimeoutError:  # the platform takes no more frames
            return False
        return True

    async def _moment_of(self, moment: int) -> None:
        """Waits until frame `moment` is complete, which is when the line sends it."""
        wait_s = self._due(moment + 1) - _clock()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        elif moment % FRAMES_WITHOUT_PAUSE == 0:
            await asyncio.sleep(0)

    def _frame_s(self) -> float:
        return FRAME_MS / 1000 / self._timing.speed

    def _due(self, moment: int) -> float:
        """When the caller has said `moment` frames."""
        return (self._began or 0.0) + moment * self._frame_s()

    def _has_said_all(self) -> bool:
        return self._began is not None and (
            self._moment >= self._audio.frames or _clock() >= self._due(self._audio.frames)
        )

    # What the platform says to the caller

    async def _speak(self) -> None:
        while (request := await self._speeches.get()) is not None:
            if self._over.is_set():
                continue
            self._post(self._events.speak_started())
            try:
                async with asyncio.timeout(len(request.payload) * SPOKEN_S_PER_CHARACTER / self._timing.speed):
                    await self._over.wait()
            except TimeoutError:
                self._post(self._events.speak_ended(completed=True))
            else:
                self._post(self._events.speak_ended(completed=False))

    # Webhooks

    def _post(self, event: WebhookEvent) -> asyncio.Future[Delivery]:
        """Hands `event` to delivery; the future says how that ended."""
        delivery: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._outbox.put_nowait((event, delivery))
        return delivery

    async def _deliver(self) -> None:
        """First attempts one after another, in the order of the events; further ones each for itself, as they come."""
        async with asyncio.TaskGroup() as retries:
            while (item := await self._outbox.get()) is not None:
                event, result = item
                delivery = await self._sender.attempt(event, 1)
                if delivery is None:
                    retries.create_task(self._retry(event, result))
                else:
                    self._settle(event, result, delivery)

    async def _retry(self, event: WebhookEvent, result: asyncio.Future[Delivery]) -> None:
        self._settle(event, result, await self._sender.retry(event))

    def _settle(self, event: WebhookEvent, result: asyncio.Future[Delivery], delivery: Delivery) -> None:
        if not delivery.delivered:
            self._undelivered.append(event.type)
        result.set_result(delivery)
        self._changed.set()

    def _report(self, stage: Stage) -> None:
        spoken = min(self._moment, self._audio.frames) / FRAMES_PER_S
        self._observer(Progress(stage, spoken, self._audio.seconds))


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _refused(delivery: Delivery) -> str:
    match delivery.status:
        case None:
            return f"the gateway could not be reached ({delivery.reason}) in {delivery.attempts} attempts"
        case 401 | 403:
            return (
                f"the gateway refused the signature of call.initiated with {delivery.status}: "
                "does it run with the key of this state folder?"
            )
        case status:
            return f"the gateway did not take call.initiated: {status} {delivery.reason}, attempt {delivery.attempts}"
