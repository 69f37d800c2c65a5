"""`GET /ws`: the carrier's media streams become records of `audio-frames`, one for each frame, as it arrived.

`Stream` decides what is recorded of one stream; `MediaSockets` decides who may open one, what ends it, and that a
call has one stream at a time (in this process). Decodes no audio; of L16 it measures which byte order it has. Leaves
the form of messages to `wire`, the road to Kafka to `outbox`.

A codec that has memory (G722, AMR-WB, Opus) is refused: decoding it means to carry a decoder's state through every
gap, snapshot and replay, and the call asks the carrier for PCMU. The refusal is recorded as the END of a stream with
its reason, the socket is closed with 1003, and the call goes on without that stream.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from dispatchai.audio.g711 import L16_LITTLE
from dispatchai.audio.pcm import ByteOrderCheck
from dispatchai.records import AudioFrame, FrameKind, Micros, Track, encode
from dispatchai.telephony import tokens
from dispatchai.telephony.config import GatewayConfig
from dispatchai.telephony.errors import error_response
from dispatchai.telephony.framing import FrameEncoder
from dispatchai.telephony.metrics import GatewayMetrics, SocketRefusal
from dispatchai.telephony.outbox import KafkaUnavailableError, Outbox
from dispatchai.telephony.reorder import Arrival, ReorderBuffer
from dispatchai.telephony.throttle import Throttle
from dispatchai.telephony.wire import (
    DEFAULT_SAMPLE_RATE,
    BadMessage,
    BadMessageKind,
    CarrierError,
    Connected,
    Media,
    MediaFormat,
    Notice,
    Start,
    Stop,
    call_id_of,
    parse_media_message,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SUPPORTED_ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16"})
"""Codecs that the program can decode, as the carrier names them. They are recorded as they come."""

SAMPLE_RATES: Final = frozenset({8000, 16_000})
"""Samples per second that the carrier's telephony has, and that all recognisers take."""

G711_FRAME_BYTES: Final = frozenset({80, 160})
"""Length of 10 and 20 ms of G.711. Only where the carrier named no codec does a length decide: 160 bytes could also
be 10 ms of L16. Source: DispatchAI telephony guide, "WebSocket Audio Handler"."""

QUIET_S: Final = 0.5
"""How long a socket is silent until what its stream holds goes out: two retransmissions of TCP, as the carrier's next
message may be on its way. A live stream does not come to this: four later frames settle what one waits for."""

QUIET_TICKS: Final = 5
"""Looks at a socket in QUIET_S, each of which must find nothing to read. The event loop reads its sockets between two
of them, so a gateway that is itself behind cannot take its own delay for the carrier's silence."""

HELD_BESIDE: Final = 12
"""Messages of the other track that a held frame waits for at most: a quarter of a second, as a track that goes on alone
keeps the socket from ever being silent."""

BYTE_ORDER_S: Final = 1.0
"""Audio of an L16 stream that is kept back at most, to find out its byte order; 50 ms of a voice are enough. A stream
without any audio yet keeps its START back, too."""

TURN_MESSAGES: Final = 2
"""Messages that a socket may have taken in one turn of the event loop. `receive` does not give way while messages are
there; when all sockets are behind, each with hundreds, Kafka's answers would otherwise wait for seconds."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the carrier may take to answer a close."""

NO_STATUS: Final = 1005
"""Close code of a close frame without one, which is how the carrier closes after `stop`. Source: RFC 6455, 7.4.1."""

STOPPED: Final = "stop"
CLOSED: Final = "closed"
REPLACED: Final = "replaced"


def refusal_of(media_format: MediaFormat) -> str | None:
    """Why audio of this format is not taken, or None if it is."""
    if media_format.encoding not in SUPPORTED_ENCODINGS:
        return f"codec {media_format.encoding} is not supported; ask for PCMU"
    if media_format.channels != 1:
        return f"{media_format.channels} channels are not supported; ask for 1"
    if media_format.sample_rate not in SAMPLE_RATES:
        return f"a sample rate of {media_format.sample_rate} is not supported; ask for {DEFAULT_SAMPLE_RATE}"
    return None


Emit = Callable[[bytes, Micros, bool], None]
"""Takes an encoded record, the time of its capture, and whether it must not be left out. It must not fail."""

_Released = Sequence[tuple[int, tuple[Micros, bytes]]]
"""Frames of one track in order: number, time of receipt, payload."""


@dataclass(slots=True, eq=False)
class _Numbered:
    """One track: its reorder buffer, and what is added to the carrier's numbers so that they count from 1."""

    buffer: ReorderBuffer[tuple[Micros, bytes]] = field(default_factory=ReorderBuffer)
    shift: int = 0
    empty: bool = True
    beside: int = 0
    """Messages of the other track since this one began to hold frames."""


@dataclass(slots=True, eq=False)
class _Undecided:
    """An L16 stream whose byte order is not known yet, and its frames so far."""

    check: ByteOrderCheck = field(default_factory=ByteOrderCheck)
    frames: list[tuple[Track, int, Micros, bytes]] = field(default_factory=list)


class Stream:
    """The records of one stream: START, frames in order per track, END, each to `emit`.

    START waits for the first frame if the carrier named no codec, and for enough audio to tell the byte order of L16;
    `l16_encoding` is what such a stream is recorded as when the audio does not tell. While `holds`, something waits
    that must go out though nothing follows: the owner calls `release` when the socket has been silent for QUIET_S.
    """

    def __init__(
        self,
        stream_id: str,
        media_format: MediaFormat | None,
        emit: Emit,
        metrics: GatewayMetrics,
        now: Micros,
        *,
        l16_encoding: str = L16_LITTLE,
    ) -> None:
        self._stream_id = stream_id
        self._format = media_format
        self._emit = emit
        self._metrics = metrics
        self._l16_encoding = l16_encoding
        self._tracks = {track: _Numbered() for track in Track}
        self._encoder: FrameEncoder | None = None
        self._undecided: _Undecided | None = None
        self._assumption: str | None = None
        self._began_at = now
        self._ended = False
        self.holds = False
        if media_format is not None:
            self._open(media_format)

    def media(self, message: Media, now: Micros) -> None:
        """One frame, received at `now`. Dropped after the end: a replaced socket may still have read it."""
        if self._ended:
            return
        if self._format is None:
            guess = "PCMU" if len(message.payload) in G711_FRAME_BYTES else "L16"
            self._assume(guess, f"its first frame has {len(message.payload)} bytes", now)
        numbered = self._tracks[message.track]
        if numbered.empty:
            numbered.empty = False
            numbered.shift = 1 if message.chunk == 0 else 0
        buffer = numbered.buffer
        arrival, released = buffer.push(message.chunk + numbered.shift, (now, message.payload))
        if released:
            self._frames(message.track, released)
        if self.holds:
            self._pass_by(message.track)
        if arrival is Arrival.IN_ORDER:
            return
        self._note_holds()
        match arrival:
            case Arrival.REORDERED:
                self._metrics.frames_reordered += 1
            case Arrival.DUPLICATE:
                self._metrics.frames_duplicate += 1
            case Arrival.LATE:
                self._metrics.frames_late += 1

    def _pass_by(self, track: Track) -> None:
        """A message of `track` came: what the other one holds waits for no more than HELD_BESIDE of them."""
        for other, numbered in self._tracks.items():
            if other is track or not numbered.buffer.holds:
                numbered.beside = 0
                continue
            numbered.beside += 1
            if numbered.beside > HELD_BESIDE:
                self._frames(other, numbered.buffer.flush())
                self._note_holds()

    def release(self) -> None:
        """Let out all that waits, giving up what is missing before it."""
        if self._ended:
            return
        for track, numbered in self._tracks.items():
            self._frames(track, numbered.buffer.flush())
        if self._undecided is not None and self._undecided.frames:
            self._settle()
        self._note_holds()

    def end(self, detail: str, now: Micros) -> None:
        """The stream is over, and why. A second call does nothing."""
        if self._ended:
            return
        if self._format is None:
            self._assume("PCMU", "it has no frame", now)
        for track, numbered in self._tracks.items():
            self._frames(track, numbered.buffer.flush())
        self._settle()
        self._ended = True
        self.holds = False
        self._edge(FrameKind.END, self._tracks[Track.INBOUND].buffer.next, detail, now)

    def _assume(self, encoding: str, because: str, now: Micros) -> None:
        self._began_at = now
        self._assumption = f"no media_format: {encoding} assumed, {because}"
        self._open(MediaFormat(encoding, DEFAULT_SAMPLE_RATE, channels=1))

    def _open(self, media_format: MediaFormat) -> None:
        """The codec is known; unless it is L16, so is how it is recorded."""
        self._format = media_format
        if media_format.encoding == "L16" and refusal_of(media_format) is None:
            self._undecided = _Undecided()
        else:
            self._begin(media_format)

    def _begin(self, media_format: MediaFormat) -> None:
        self._format = media_format
        self._encoder = FrameEncoder(self._stream_id, media_format.encoding, media_format.sample_rate)
        self._edge(FrameKind.START, 0, self._assumption, self._began_at)

    def _edge(self, kind: FrameKind, sequence: int, detail: str | None, now: Micros) -> None:
        if self._format is None:
            raise RuntimeError("a stream has no edge before its codec is known")
        record = AudioFrame(
            stream_id=self._stream_id,
            kind=kind,
            track=Track.INBOUND,
            sequence=sequence,
            captured_at=now,
            encoding=self._format.encoding,
            sample_rate=self._format.sample_rate,
            payload=b"",
            detail=detail,
        )
        self._emit(encode(record), now, True)

    def _frames(self, track: Track, frames: _Released) -> None:
        self._metrics.frames += len(frames)
        if self._undecided is None:
            self._write(track, frames)
        else:
            self._keep_back(self._undecided, track, frames)

    def _write(self, track: Track, frames: _Released) -> None:
        if self._encoder is not None:
            for sequence, (captured_at, payload) in frames:
                self._emit(self._encoder.encode(track, sequence, captured_at, payload), captured_at, False)

    def _keep_back(self, undecided: _Undecided, track: Track, frames: _Released) -> None:
        for sequence, (captured_at, payload) in frames:
            undecided.frames.append((track, sequence, captured_at, payload))
            undecided.check.add(payload)
        rate = self._format.sample_rate if self._format else DEFAULT_SAMPLE_RATE
        if undecided.check.verdict is not None or undecided.check.samples >= BYTE_ORDER_S * rate:
            self._settle()
        else:
            self._note_holds()

    def _settle(self) -> None:
        """Decide the byte order of an L16 stream by what is there, and record what was kept back."""
        undecided, self._undecided = self._undecided, None
        if undecided is None or self._format is None:
            return
        encoding = undecided.check.verdict or self._l16_encoding
        if encoding != self._l16_encoding:
            self._metrics.streams_swapped += 1
            swapped = f"byte order: {encoding} by its smoothness, against L16_BYTE_ORDER"
            self._assumption = f"{self._assumption}; {swapped}" if self._assumption else swapped
            log.warning("the audio has the other byte order: set L16_BYTE_ORDER", stream_id=self._stream_id)
        self._begin(MediaFormat(encoding, self._format.sample_rate, self._format.channels))
        for track, sequence, captured_at, payload in undecided.frames:
            self._write(track, [(sequence, (captured_at, payload))])
        self._note_holds()

    def _note_holds(self) -> None:
        kept_back = self._undecided is not None and bool(self._undecided.frames)
        self.holds = kept_back or any(numbered.buffer.holds for numbered in self._tracks.values())


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a socket is closed: code and reason of the close frame, and the detail of its stream's END."""

    code: int
    reason: str
    detail: str


_NORMAL: Final = Farewell(WSCloseCode.OK, "", STOPPED)
_GONE: Final = Farewell(WSCloseCode.OK, "", CLOSED)
_REPLACED: Final = Farewell(WSCloseCode.OK, "replaced by another stream of the call", REPLACED)
_STOPPING: Final = Farewell(WSCloseCode.GOING_AWAY, "the gateway stops", f"{CLOSED}: the gateway stops")
_NO_START: Final = Farewell(WSCloseCode.POLICY_VIOLATION, "no start in time", CLOSED)
_OTHER_CALL: Final = Farewell(WSCloseCode.POLICY_VIOLATION, "the token is for another call", CLOSED)
_BAD_MESSAGES: Final = Farewell(
    WSCloseCode.POLICY_VIOLATION, "too many unusable messages", f"{CLOSED}: too many unusable messages"
)
_NO_KAFKA: Final = Farewell(WSCloseCode.TRY_AGAIN_LATER, "the stream cannot be stored", CLOSED)


@dataclass(slots=True, eq=False)
class _Socket:
    """One open socket. Its handler's task owns it; others may only `dismiss` it."""

    ws: web.WebSocketResponse
    subject: tokens.Subject | None
    """What its token was issued for; None where no token is asked for."""
    deadline: asyncio.Timeout
    farewell: Farewell | None = None
    call_id: str | None = None
    stream: Stream | None = None
    bad_in_a_row: int = 0
    bad: Throttle = field(default_factory=Throttle)
    taken: int = 0
    """Messages taken so far."""
    waits: bool = False
    """Whether its handler waits for a message: it has taken all that was read from the connection."""
    timer: asyncio.TimerHandle | None = None
    """Set while the stream holds frames back."""

    def watch_silence(self, stream: Stream) -> None:
        """Have the timer set exactly while `stream` holds frames back, so that they go out though nothing follows."""
        if not stream.holds:
            self.stop_timer()
        elif self.timer is None:
            self._look_again(stream, QUIET_TICKS)

    def stop_timer(self) -> None:
        """Forget what is held."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _look_again(self, stream: Stream, ticks: int) -> None:
        self.timer = asyncio.get_running_loop().call_later(QUIET_S / QUIET_TICKS, self._look, stream, ticks, self.taken)

    def _look(self, stream: Stream, ticks: int, taken: int) -> None:
        """Count a tick of silence, or begin anew if there was none since `taken` messages."""
        self.timer = None
        ticks = ticks - 1 if self.waits and self.taken == taken else QUIET_TICKS
        if ticks > 0:
            self._look_again(stream, ticks)
            return
        stream.release()
        self.watch_silence(stream)

    def dismiss(self, farewell: Farewell) -> None:
        """Make the handler's task leave its loop at once and close the socket."""
        if self.farewell is None:
            self.farewell = farewell
        # The deadline is the one way to wake a task that waits for a message. One that has expired is waking it.
        if not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time())


class MediaSockets:
    """The handler of media sockets, and the streams that are open."""

    def __init__(self, config: GatewayConfig, outbox: Outbox, metrics: GatewayMetrics) -> None:
        self._config = config
        self._outbox = outbox
        self._metrics = metrics
        self._open: set[_Socket] = set()
        self._of_call: dict[str, _Socket] = {}
        self._stopping = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One socket, from handshake to close."""
        if request.headers.get("upgrade", "").lower() != "websocket":
            response = error_response(426, "upgrade_required", "this is a websocket", "connect with a websocket client")
            response.headers["Upgrade"] = "websocket"
            return response
        subject: tokens.Subject | None = None
        if self._config.stream_secret is not None or self._config.verify_webhooks:
            subject = self._subject(request)
            if subject is None:
                self._metrics.sockets_refused[SocketRefusal.TOKEN] += 1
                log.warning("media socket refused: no valid token")
                return error_response(
                    403,
                    "token",
                    "no valid token for a media stream",
                    f"start the stream with its token: {tokens.HEADER}",
                )
        try:
            await self._outbox.prepare()
        except KafkaUnavailableError as error:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            log.error("media socket refused", reason=str(error))
            return error_response(503, "unavailable", "the stream could not be stored", "start the stream again")
        ws = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_S,
            heartbeat=self._config.heartbeat_s,
            max_msg_size=self._config.media_message_max_bytes,
            compress=False,
        )
        await ws.prepare(request)
        await self._serve(ws, subject)
        return ws

    def dismiss_all(self) -> None:
        """Close every socket: the gateway stops."""
        self._stopping = True
        for socket in self._open:
            socket.dismiss(_STOPPING)

    def _subject(self, request: web.Request) -> tokens.Subject | None:
        token = request.headers.get(tokens.HEADER, "")
        if self._config.stream_secret is None:
            return None
        return tokens.verify(self._config.stream_secret, token, self._config.clock() / 1_000_000)

    async def _serve(self, ws: web.WebSocketResponse, subject: tokens.Subject | None) -> None:
        self._metrics.sockets_opened += 1
        self._metrics.sockets_open += 1
        socket = _Socket(ws, subject, asyncio.timeout(self._config.start_timeout_s))
        try:
            async with socket.deadline:
                self._open.add(socket)
                if self._stopping:
                    socket.dismiss(_STOPPING)
                await self._receive(socket)
        except TimeoutError:
            if socket.farewell is None:
                self._metrics.sockets_refused[SocketRefusal.NO_START] += 1
                socket.farewell = _NO_START
        finally:
            farewell = socket.farewell or _GONE
            self._open.discard(socket)
            self._metrics.sockets_open -= 1
            self._end(socket, farewell)
            await ws.close(code=farewell.code, message=farewell.reason.encode())

    async def _receive(self, socket: _Socket) -> None:
        """Take messages until the socket has a farewell."""
        receive = socket.ws.receive
        while socket.farewell is None:
            if socket.taken % TURN_MESSAGES == 0:
                await asyncio.sleep(0)
            socket.waits = True
            message = await receive()
            socket.waits = False
            socket.taken += 1
            try:
                if message.type is WSMsgType.TEXT:
                    self._take(socket, message.data)
                    socket.bad_in_a_row = 0
                elif message.type is WSMsgType.BINARY:
                    raise BadMessage(BadMessageKind.BINARY)
                else:
                    socket.farewell = _lost(socket.ws, message.data)
            except BadMessage as bad:
                self._count_bad(socket, bad.kind)

    def _take(self, socket: _Socket, text: str) -> None:
        """Do what one message says. Raises BadMessage."""
        match parse_media_message(text):
            case Media() as media:
                if socket.stream is None:
                    raise BadMessage(BadMessageKind.ORDER)
                socket.stream.media(media, self._config.clock())
                if socket.stream.holds or socket.timer is not None:
                    socket.watch_silence(socket.stream)
            case Start() as start:
                if socket.stream is not None:
                    raise BadMessage(BadMessageKind.ORDER)
                socket.farewell = self._start(socket, start)
            case Stop():
                socket.farewell = _NORMAL
            case CarrierError(code):
                self._metrics.carrier_errors += 1
                log.warning("the carrier reports an error of the stream", call_id=socket.call_id, code=code)
            case Connected() | Notice():
                pass

    def _start(self, socket: _Socket, start: Start) -> Farewell | None:
        """Open the stream. Returns how to close the socket if it cannot be."""
        call_id = _call_of(socket.subject, start)
        if call_id is None:
            self._metrics.sockets_refused[SocketRefusal.OTHER_CALL] += 1
            log.warning("media socket closed: its token is for another call")
            return _OTHER_CALL
        try:
            emit = self._emitter(call_id)
        except KafkaUnavailableError:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            return _NO_KAFKA
        now = self._config.clock()
        socket.call_id = call_id
        stream_id = _unique(start.stream_id)
        if start.media_format is not None and (refusal := refusal_of(start.media_format)) is not None:
            # A stream that the call already has goes on.
            socket.stream = Stream(stream_id, start.media_format, emit, self._metrics, now)
            self._metrics.sockets_refused[SocketRefusal.CODEC] += 1
            log.error("media stream refused", call_id=call_id, reason=refusal)
            return Farewell(WSCloseCode.UNSUPPORTED_DATA, refusal, f"refused: {refusal}")
        if (former := self._of_call.get(call_id)) is not None:
            # Its END is recorded here, before the START of the new one.
            self._end(former, _REPLACED)
            former.dismiss(_REPLACED)
            self._metrics.sockets_replaced += 1
        socket.stream = Stream(
            stream_id, start.media_format, emit, self._metrics, now, l16_encoding=self._config.l16_encoding
        )
        self._of_call[call_id] = socket
        socket.deadline.reschedule(None)
        log.info("media stream started", call_id=call_id, stream_id=stream_id)
        return None

    def _emitter(self, call_id: str) -> Emit:
        key = call_id.encode()
        lane = self._outbox.lane(key)
        put = self._outbox.put

        def emit(record: bytes, captured_at: Micros, must: bool) -> None:
            put(lane, key, record, captured_at // 1000, must=must)

        return emit

    def _end(self, socket: _Socket, farewell: Farewell) -> None:
        """Record the end of the socket's stream, if it has one that has not ended."""
        socket.stop_timer()
        if socket.stream is None or socket.call_id is None:
            return
        if self._of_call.get(socket.call_id) is socket:
            del self._of_call[socket.call_id]
            log.info("media stream ended", call_id=socket.call_id, detail=farewell.detail)
        socket.stream.end(farewell.detail, self._config.clock())

    def _count_bad(self, socket: _Socket, kind: BadMessageKind) -> None:
        self._metrics.bad_messages[kind] += 1
        socket.bad_in_a_row += 1
        if count := socket.bad.add():
            log.warning("media messages dropped", call_id=socket.call_id, reason=kind.value, messages=count)
        if socket.bad_in_a_row >= self._config.bad_messages_max:
            self._metrics.sockets_refused[SocketRefusal.BAD_MESSAGES] += 1
            socket.farewell = _BAD_MESSAGES


def _call_of(subject: tokens.Subject | None, start: Start) -> str | None:
    """The call that a stream belongs to; None if its token is for another.

    The token says it. `start` must name the same leg, and the same session where it names one and the call is known
    by its session. Without tokens `start` is believed.
    """
    if subject is None:
        return call_id_of(start.call_session_id, start.call_control_id)
    if not hmac.compare_digest(subject.call_control_id, start.call_control_id):
        return None
    by_session = subject.call_id != subject.call_control_id
    if by_session and start.call_session_id and not hmac.compare_digest(subject.call_id, start.call_session_id):
        return None
    return subject.call_id


def _unique(stream_id: str | None) -> str:
    """An id that no other stream has: the carrier's, then one of ours.

    A carrier may come back with the id that it had and count from 1 again, to this gateway or to another one.
    """
    return f"{stream_id or 'stream'}~{uuid4().hex[:8]}"


def _lost(ws: web.WebSocketResponse, cause: object) -> Farewell:
    """The socket is closed: by the carrier, by a lost connection, or by aiohttp for a message that it refuses."""
    code = cause.code if isinstance(cause, WebSocketError) else ws.close_code
    if code in (None, WSCloseCode.OK, NO_STATUS):
        return _GONE
    return Farewell(code, "", f"{CLOSED}: code {int(code)}")
