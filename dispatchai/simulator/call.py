"""One simulated call: a leg that rings, is answered, streams its caller's audio and ends, and obeys commands meanwhile.

Decides the leg's states, the order of its events and the time of each frame. The caller speaks by a clock that starts
with the first stream: as with a real caller, words that nobody heard are not repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from dispatchai.simulator import commands
from dispatchai.simulator.command_handler import CommandHandler, CommandReport
from dispatchai.simulator.commands import (
    AnswerRequest,
    ApiError,
    HangupRequest,
    PlaybackStopRequest,
    RecordStartRequest,
    RecordStopRequest,
    Request,
    SpeakRequest,
    Stream,
    StreamRequest,
    StreamStopRequest,
    TransferRequest,
)
from dispatchai.simulator.faults import Faults, WebhookFate, frame_schedule, sample
from dispatchai.simulator.media import MediaStream, StreamEnd, StreamRefusedError, StreamReport
from dispatchai.simulator.messages import EventWriter, HangupCause, HangupSource, Leg, WebhookEvent
from dispatchai.simulator.pacer import Pacer
from dispatchai.simulator.payloads import voice_of
from dispatchai.simulator.recording import CallerAudio
from dispatchai.simulator.webhooks import Delivery, WebhookSender

SPOKEN_S_PER_CHARACTER: Final = 0.06
"""How long it takes to speak a text: about 165 words a minute."""

TRANSFER_S: Final = 2.0
"""How long the number rings that a caller is transferred to."""

FRAMES_WITHOUT_PAUSE: Final = 64
"""Frames behind their time are sent at once; after this many the event loop serves the other calls."""

STALL_S: Final = 10.0
"""A socket that accepts no frame for this long is given up."""


class LegState(StrEnum):
    """The state of the leg. It only moves forward."""

    PARKED = "parked"
    ANSWERED = "answered"
    ENDED = "ended"


class Stage(StrEnum):
    """The stages that an observer of the call sees."""

    RINGING = "ringing"
    ANSWERED = "answered"
    STREAMING = "streaming"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is, with the seconds of the caller's audio that are spoken, and in total."""

    stage: Stage
    spoken_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the caller waits, in seconds, and how many times faster than real time they speak."""

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
    """How a call went. `failure` says what did not happen; None if the caller could finish or the platform hung up."""

    leg: Leg
    hangup_cause: HangupCause
    hangup_source: HangupSource
    hung_up_at: float
    """Seconds since the epoch, by this machine's clock, not the carrier's."""
    streams: tuple[StreamReport, ...]
    """In the order of their opening."""
    failed_streams: int
    """Number of streaming.failed events. After each the platform may request another stream."""
    commands: tuple[CommandReport, ...]
    undelivered: tuple[str, ...]
    """Types of the events that the gateway never accepted, in order."""
    webhook_answers_s: tuple[float, ...]
    """Seconds that the gateway took for each of its answers."""
    failure: str | None
    completed: bool = True
    """Whether the call went well to its end, which the gateway knows of. Other events may be undelivered all the same,
    such as streaming.failed while a gateway was down: then `failure` names them."""

    @property
    def frames_sent(self) -> int:
        """Media messages of the caller's voice, including repeated and broken ones."""
        return sum(stream.messages for stream in self.streams)


Observer = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Recording:
    channels: str
    container: str
    since: datetime


class SimulatedCall:
    """A call. `run` runs it to its end; `obey` and `hang_up` may be called meanwhile, from the same event loop."""

    def __init__(
        self,
        number: int,
        leg: Leg,
        audio: CallerAudio,
        sender: WebhookSender,
        pacer: Pacer,
        *,
        timing: Timing,
        faults: Faults,
        other_leg: Callable[[], Leg],
        observer: Observer,
    ) -> None:
        """`number` counts the carrier's calls and seeds this one's faults. `other_leg` is a leg of another call."""
        self.leg = leg
        self.command_handler = CommandHandler(number, faults, self.obey)
        self._number = number
        self._voice = voice_of(audio, faults.codec, faults.frame_ms)
        self._sender = sender
        self._pacer = pacer
        self._timing = timing
        self._frame_s = self._voice.frame_ms / 1000 / timing.speed
        self._faults = faults
        self._other_leg = other_leg
        self._observer = observer
        self._events = EventWriter(leg, self._voice, faults.clock_skew_s)

        self._state = LegState.PARKED
        self._hangup = (HangupCause.NORMAL_CLEARING, HangupSource.CALLER)
        self._hung_up_at = 0.0
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._held_answer: WebhookEvent | None = None

        self._wanted: Stream | None = None
        self._streaming = False
        self._stop_wanted = False
        self._streams: list[StreamReport] = []
        self._failed_streams = 0
        self._refusal: str | None = None
        self._began: float | None = None
        self._moment = 0

        frames, rng = self._voice.frames, faults.rng
        self._plan = tuple(frame_schedule(frames, faults, rng(number, "frames")))
        self._damaged = sample(frames, faults.frame_damages, rng(number, "damages"))
        self._garbage = sample(frames, faults.garbage, rng(number, "garbage"))
        self._breaks = faults.breaks(frames)
        self._cut_after = faults.cut_after_frames
        self._failures_left = faults.stream_failures

        self._transfers: asyncio.Queue[str | None] = asyncio.Queue()
        self._speeches: asyncio.Queue[SpeakRequest | None] = asyncio.Queue()
        self._stop_speaking = asyncio.Event()
        self._recording: _Recording | None = None
        self._delivery_queue: asyncio.Queue[tuple[WebhookEvent, asyncio.Future[Delivery]] | None] = asyncio.Queue()
        self._event_types: dict[str, int] = {}
        self._undelivered: list[str] = []

    # Commands

    def obey(self, request: Request) -> ApiError | None:
        """Do what `request` asks, or return the error. `command_handler` filters repeated requests."""
        refusal = self._refusal_of(request)
        if refusal is not None:
            return refusal
        if request.client_state is not None:
            self._events.client_state = request.client_state
        match request:
            case AnswerRequest(stream=stream):
                self._answer(stream)
            case StreamRequest(stream=stream):
                self._want(stream)
            case StreamStopRequest():
                self._stop_wanted = True
            case SpeakRequest():
                self._speeches.put_nowait(request)
            case PlaybackStopRequest(stop_all=stop_all):
                self._stop_speaking.set()
                while stop_all and not self._speeches.empty():
                    self._speeches.get_nowait()
            case RecordStartRequest(channels=channels, container=container):
                self._save_recording()
                self._recording = _Recording(channels, container, self._events.recording_started())
            case RecordStopRequest():
                self._save_recording()
            case TransferRequest(to_number=to_number):
                self._transfers.put_nowait(to_number)
            case HangupRequest():
                self.hang_up(HangupSource.CALLEE)
        self._changed.set()
        return None

    def _answer(self, stream: Stream | None) -> None:
        self._state = LegState.ANSWERED
        answered = self._events.answered()
        self._report(Stage.ANSWERED)
        if self._faults.hangup_before_answered:
            self._held_answer = answered
            self.hang_up(HangupSource.CALLER)
            return
        self._post(answered)
        if stream is not None:
            self._want(stream)

    def _save_recording(self) -> None:
        if self._recording is not None:
            made, self._recording = self._recording, None
            self._post(self._events.recording_saved(made.channels, made.container, made.since))

    def hang_up(self, source: HangupSource) -> None:
        """End the call from either side. Only the first call has an effect."""
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
        self._hung_up_at = time.time()
        self._hangup = (cause, source)
        self._over.set()
        self._changed.set()

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
        """Ring, speak and hang up. Returns when every event was delivered or given up."""
        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(self._deliver())
            talking = [helpers.create_task(self._speak()), helpers.create_task(self._transfer())]
            failure = await self._live()
            self.hang_up(HangupSource.CALLER)
            self._speeches.put_nowait(None)
            self._transfers.put_nowait(None)
            await asyncio.gather(*talking)
            cause, source = self._hangup
            ended = self._post(self._events.hangup(cause, source, self._messages_sent()))
            if self._held_answer is not None:
                await asyncio.wait([ended])
                self._post(self._held_answer)
            self._save_recording()
            self._report(Stage.ENDED)
            self._delivery_queue.put_nowait(None)
        completed = failure is None and "call.hangup" not in self._undelivered
        if failure is None and self._undelivered:
            failure = f"the gateway never accepted {', '.join(self._undelivered)}"
        return CallReport(
            leg=self.leg,
            hangup_cause=cause,
            hangup_source=source,
            hung_up_at=self._hung_up_at,
            streams=tuple(self._streams),
            failed_streams=self._failed_streams,
            commands=self.command_handler.report(),
            undelivered=tuple(self._undelivered),
            webhook_answers_s=tuple(self._sender.answers_s),
            failure=failure,
            completed=completed,
        )

    def _messages_sent(self) -> int:
        return sum(stream.messages for stream in self._streams)

    async def _live(self) -> str | None:
        """From the first ring until one side hangs up. Returns what did not happen; None if the call went well."""
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
        while not self._over.is_set() and not self._caller_is_done():
            wait_until = give_up_at if self._began is None else self._due(self._voice.frames)
            if not await self._until(
                lambda: self._wanted is not None or self._over.is_set(), max(0.0, wait_until - _clock())
            ):
                break
            if self._wanted is not None and not self._over.is_set():
                wanted, self._wanted = self._wanted, None
                await self._stream(wanted)
                self._streaming = self._wanted is not None
        if self._streams or self._held_answer is not None:
            return None
        if self._hangup[1] is HangupSource.CALLEE:
            return "the platform hung up before it listened"
        if self._refusal is not None:
            return self._refusal
        if self._over.is_set():
            return "the caller hung up before anybody listened"
        return f"the call was answered but no `streaming_start` command came within {self._timing.stream_s:g} s"

    async def _until(self, reached: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `reached`. Returns False after `timeout_s`. Only the call's own task waits here."""
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
        """Run one stream as the platform sees it: the carrier's reconnects are part of it."""
        if self._failures_left:
            self._failures_left -= 1
            self._stream_failed("", wanted)
            return
        announced = False
        while True:
            try:
                stream = await self._open(wanted)
            except StreamRefusedError as refused:
                self._refusal = str(refused)
                self._stream_failed("", wanted)
                return
            if not announced:
                announced = True
                self._post(self._events.streaming_started(wanted.url))
            try:
                reconnects = await self._send_frames(stream)
            finally:
                await stream.cut()
                report = stream.report(self._wall_time(self._due(stream.first_frame + 1)), self._frame_s)
                self._streams.append(report)
            if not reconnects or await self._until(self._over.is_set, self._scaled(self._faults.reconnect_pause_s)):
                break
        if report.end is StreamEnd.CUT or (report.end is StreamEnd.LOST and not stream.was_closed_in_order):
            self._stream_failed(report.stream_id, wanted)
        else:
            self._post(self._events.streaming_stopped(wanted.url))

    def _stream_failed(self, stream_id: str, wanted: Stream) -> None:
        self._failed_streams += 1
        self._post(self._events.streaming_failed(stream_id, wanted.url, wanted.track))

    async def _open(self, wanted: Stream) -> MediaStream:
        first = self._moment
        if self._began is not None:
            first = max(first, int((_clock() - self._began) / self._frame_s))
        stream = await MediaStream.open(
            self.leg,
            wanted,
            self._voice,
            self._faults,
            client_state=self._events.client_state,
            other_leg=self._other_leg(),
            first_frame=min(first, self._voice.frames),
            lost=self._changed.set,
        )
        if self._began is None:
            self._began = _clock()
            self._report(Stage.STREAMING)
        return stream

    async def _send_frames(self, stream: MediaStream) -> bool:
        """Send the caller's frames from the stream's first on, each at its time, and end the stream.

        Each time follows from the start of the speech and not from the frame before, so that delays do not add up.
        Returns whether the carrier must open another stream after this one.
        """
        self._moment = stream.first_frame
        each_second = max(1, 1000 // self._voice.frame_ms)
        middle = self._voice.frames // 2
        held_until = 0.0
        while self._moment < self._voice.frames:
            moment = self._moment
            if moment == middle and self._faults.media_stall_s:
                held_until = self._due(moment + 1) + self._scaled(self._faults.media_stall_s)
            due = max(self._due(moment + 1), held_until)
            if due > _clock():
                await self._pacer.until(due)
            elif moment % FRAMES_WITHOUT_PAUSE == 0:
                await asyncio.sleep(0)
            if self._over.is_set() or self._stop_wanted or not stream.is_open:
                break
            if self._cut_after is not None and moment >= self._cut_after:
                self._cut_after = None
                await stream.cut()
                return False
            if (with_stop := self._breaks.pop(moment, None)) is not None:
                await (stream.stop() if with_stop else stream.cut())
                return True
            if not stream.is_ready and not await self._until_ready(stream):
                return False
            self._moment += 1
            self._send(stream, moment)
            if moment == middle and self._faults.huge_message:
                stream.send_huge(self._faults.huge_message)
            if self._moment % each_second == 0:
                self._report(Stage.STREAMING)
        await stream.stop(send_stop=not self._faults.missing_stop)
        return False

    def _send(self, stream: MediaStream, moment: int) -> None:
        if moment in self._garbage:
            stream.send_garbage()
        for frame in self._plan[moment]:
            if frame >= stream.first_frame:
                stream.send(frame, damaged=frame in self._damaged)
        stream.send_platform(moment)

    async def _until_ready(self, stream: MediaStream) -> bool:
        """Wait until the platform reads again. Returns False after STALL_S."""
        try:
            async with asyncio.timeout(STALL_S):
                await stream.ready()
        except TimeoutError:
            return False
        return True

    def _scaled(self, seconds: float) -> float:
        """The caller's `seconds` in seconds of this machine."""
        return seconds / self._timing.speed

    def _due(self, moment: int) -> float:
        """When the caller has spoken `moment` frames."""
        return (self._began or 0.0) + moment * self._frame_s

    def _wall_time(self, moment: float) -> float:
        """A time of the event loop's clock, in seconds since the epoch."""
        return time.time() + moment - _clock()

    def _caller_is_done(self) -> bool:
        return self._began is not None and (
            self._moment >= self._voice.frames or _clock() >= self._due(self._voice.frames)
        )

    # Speech to the caller

    async def _speak(self) -> None:
        while (request := await self._speeches.get()) is not None:
            if self._over.is_set():
                continue
            self._stop_speaking.clear()
            self._post(self._events.speak_started())
            length_s = self._scaled(len(request.payload) * SPOKEN_S_PER_CHARACTER)
            await _first_of(self._over, self._stop_speaking, timeout_s=length_s)
            self._post(self._events.speak_ended(completed=not self._over.is_set()))

    async def _transfer(self) -> None:
        while (to_number := await self._transfers.get()) is not None:
            await _first_of(self._over, timeout_s=self._scaled(TRANSFER_S))
            if not self._over.is_set():
                self._post(self._events.bridged(to_number))

    # Webhooks

    def _post(self, event: WebhookEvent) -> asyncio.Future[Delivery]:
        """Queue `event` for delivery. The future has the result."""
        delivery: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._delivery_queue.put_nowait((event, delivery))
        return delivery

    async def _deliver(self) -> None:
        """Make the first attempts one after another, in the order of the events, and each further one in its own task.

        Events that a fault delays, duplicates or loses have tasks of their own too.
        """
        async with asyncio.TaskGroup() as deliveries:
            while (item := await self._delivery_queue.get()) is not None:
                event, result = item
                nth = self._event_types[event.type] = self._event_types.get(event.type, 0) + 1
                fate = self._faults.webhook_fate(self._faults.rng(self._number, f"webhook {event.type} {nth}"))
                if fate.twice:
                    deliveries.create_task(self._sender.attempt(event, 1))
                if fate.delay_s:
                    deliveries.create_task(self._deliver_one(event, result, fate))
                elif not await self._first_attempt(event, result, fate):
                    deliveries.create_task(self._retry(event, result))

    async def _deliver_one(self, event: WebhookEvent, result: asyncio.Future[Delivery], fate: WebhookFate) -> None:
        await asyncio.sleep(fate.delay_s)
        if not await self._first_attempt(event, result, fate):
            await self._retry(event, result)

    async def _first_attempt(self, event: WebhookEvent, result: asyncio.Future[Delivery], fate: WebhookFate) -> bool:
        """Make the first attempt. Returns whether it is final."""
        delivery = None if fate.lost else await self._sender.attempt(event, 1)
        if delivery is None or fate.unanswered:
            return False
        self._settle(event, result, delivery)
        return True

    async def _retry(self, event: WebhookEvent, result: asyncio.Future[Delivery]) -> None:
        self._settle(event, result, await self._sender.retry(event))

    def _settle(self, event: WebhookEvent, result: asyncio.Future[Delivery], delivery: Delivery) -> None:
        if not delivery.delivered:
            self._undelivered.append(event.type)
        result.set_result(delivery)
        self._changed.set()

    def _report(self, stage: Stage) -> None:
        total_s = self._voice.frames * self._voice.frame_ms / 1000
        spoken_s = min(self._moment * self._voice.frame_ms / 1000, total_s)
        self._observer(Progress(stage, spoken_s, total_s))


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    """Wait until one of `events` is set, at most `timeout_s`."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _refused(delivery: Delivery) -> str:
    match delivery.status:
        case None:
            return f"the gateway cannot be reached ({delivery.reason}, {delivery.attempts} attempts)"
        case 401 | 403:
            return (
                f"the gateway refused the signature of call.initiated with {delivery.status}: "
                "its TELNYX_PUBLIC_KEY or TELNYX_PUBLIC_KEY_NEXT must be this carrier's public key: that of "
                "--signing-key or, without it, of this state folder"
            )
        case status:
            return f"the gateway did not accept call.initiated: {status} {delivery.reason}, attempt {delivery.attempts}"
