"""`GET /ws`: the carrier's media streams become records of `audio-frames`, one for each frame, as it arrived.

`Stream` decides what is recorded of one stream; `MediaSockets` decides who may open one, what ends it, and that a
call has one stream at a time (in this process). Decodes no audio. Leaves the form of messages to `wire`, the road to
Kafka to `outbox`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from dispatchai.records import AudioFrame, FrameKind, Micros, Track, encode, encode_fields
from dispatchai.telephony import tokens
from dispatchai.telephony.config import GatewayConfig
from dispatchai.telephony.errors import error_response
from dispatchai.telephony.metrics import GatewayMetrics, SocketRefusal
from dispatchai.telephony.outbox import KafkaUnavailableError, Outbox, Throttle
from dispatchai.telephony.reorder import Arrival, ReorderBuffer
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
    parse_media_message,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SUPPORTED_ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16"})
"""Codecs that the program can decode. They are recorded as they come."""

LOWEST_RATE: Final = 8000
HIGHEST_RATE: Final = 48_000
"""Samples per second between which telephony lies."""

G711_FRAME_BYTES: Final = frozenset({80, 160})
"""Length of 10 and 20 ms of G.711. Only where the carrier named no codec does a length decide: 160 bytes could also
be 10 ms of L16. Source: DispatchAI telephony guide, "WebSocket Audio Handler"."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the carrier may take to answer a close."""

REMEMBERED_STREAMS: Final = 10_000
"""Stream ids remembered, so that one that comes again is recorded as another stream. About 1 MB."""

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
    if not LOWEST_RATE <= media_format.sample_rate <= HIGHEST_RATE:
        return f"a sample rate of {media_format.sample_rate} is not supported; ask for {DEFAULT_SAMPLE_RATE}"
    return None


Emit = Callable[[bytes, Micros, bool], None]
"""Takes an encoded record, the time of its capture, and whether it must not be left out. It must not fail."""


class Stream:
    """The records of one stream: START, frames in order per track, END, each to `emit`.

    START waits for the first frame if the carrier named no codec.
    """

    def __init__(
        self, stream_id: str, media_format: MediaFormat | None, emit: Emit, metrics: GatewayMetrics, now: Micros
    ) -> None:
        self._stream_id = stream_id
        self._format = media_format
        self._emit = emit
        self._metrics = metrics
        self._tracks = {track: ReorderBuffer[tuple[Micros, bytes]]() for track in Track}
        # One for all frames: each changes the fields in which it differs.
        self._fields: dict[str, Any] = {}
        self._ended = False
        if media_format is not None:
            self._begin(media_format, None, now)

    def media(self, message: Media, now: Micros) -> None:
        """One frame, received at `now`. Dropped after the end: a replaced socket may still have read it."""
        if self._ended:
            return
        if self._format is None:
            guess = "PCMU" if len(message.payload) in G711_FRAME_BYTES else "L16"
            self._assume(guess, f"its first frame has {len(message.payload)} bytes", now)
        arrival, released = self._tracks[message.track].push(message.chunk, (now, message.payload))
        if released:
            self._frames(message.track, released)
        match arrival:
            case Arrival.IN_ORDER | Arrival.EARLY:
                pass
            case Arrival.REORDERED:
                self._metrics.frames_reordered += 1
            case Arrival.DUPLICATE:
                self._metrics.frames_duplicate += 1
            case Arrival.LATE:
                self._metrics.frames_late += 1

    def end(self, detail: str, now: Micros) -> None:
        """The stream is over, and why. A second call does nothing."""
        if self._ended:
            return
        self._ended = True
        media_format = self._format or self._assume("PCMU", "it has no frame", now)
        for track, buffer in self._tracks.items():
            self._frames(track, buffer.flush())
        self._edge(FrameKind.END, media_format, self._tracks[Track.INBOUND].next, detail, now)

    def _assume(self, encoding: str, because: str, now: Micros) -> MediaFormat:
        media_format = MediaFormat(encoding, DEFAULT_SAMPLE_RATE, channels=1)
        self._format = media_format
        self._begin(media_format, f"no media_format: {encoding} assumed, {because}", now)
        return media_format

    def _begin(self, media_format: MediaFormat, detail: str | None, now: Micros) -> None:
        self._fields = {
            "stream_id": self._stream_id,
            "kind": FrameKind.FRAME.value,
            "encoding": media_format.encoding,
            "sample_rate": media_format.sample_rate,
            "detail": None,
        }
        self._edge(FrameKind.START, media_format, 0, detail, now)

    def _edge(self, kind: FrameKind, media_format: MediaFormat, sequence: int, detail: str | None, now: Micros) -> None:
        record = AudioFrame(
            stream_id=self._stream_id,
            kind=kind,
            track=Track.INBOUND,
            sequence=sequence,
            captured_at=now,
            encoding=media_format.encoding,
            sample_rate=media_format.sample_rate,
            payload=b"",
            detail=detail,
        )
        self._emit(encode(record), now, True)

    def _frames(self, track: Track, frames: list[tuple[int, tuple[Micros, bytes]]]) -> None:
        fields = self._fields
        fields["track"] = track
        for sequence, (captured_at, payload) in frames:
            fields["sequence"] = sequence
            fields["captured_at"] = captured_at
            fields["payload"] = payload
            self._emit(encode_fields("AudioFrame", fields), captured_at, False)
        self._metrics.frames += len(frames)


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
    subject: str | None
    """Call control id that its token was issued for; None where no token is asked for."""
    deadline: asyncio.Timeout
    farewell: Farewell | None = None
    call_id: str | None = None
    stream: Stream | None = None
    bad_in_a_row: int = 0
    bad: Throttle = field(default_factory=Throttle)

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
        self._stream_ids: OrderedDict[str, None] = OrderedDict()
        self._stopping = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One socket, from handshake to close."""
        if request.headers.get("upgrade", "").lower() != "websocket":
            response = error_response(426, "upgrade_required", "this is a websocket", "connect with a websocket client")
            response.headers["Upgrade"] = "websocket"
            return response
        subject: str | None = None
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

    def _subject(self, request: web.Request) -> str | None:
        token = request.headers.get(tokens.HEADER, "")
        if self._config.stream_secret is None:
            return None
        return tokens.verify(self._config.stream_secret, token, self._config.clock() / 1_000_000)

    async def _serve(self, ws: web.WebSocketResponse, subject: str | None) -> None:
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
            message = await receive()
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
        if socket.subject is not None and not hmac.compare_digest(socket.subject, start.call_control_id):
            self._metrics.sockets_refused[SocketRefusal.OTHER_CALL] += 1
            log.warning("media socket closed: its token is for another call")
            return _OTHER_CALL
        try:
            emit = self._emitter(start.call_id)
        except KafkaUnavailableError:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            return _NO_KAFKA
        now = self._config.clock()
        socket.call_id = start.call_id
        stream_id = self._stream_id(start.stream_id)
        if start.media_format is not None and (refusal := refusal_of(start.media_format)) is not None:
            # A stream that the call already has goes on.
            socket.stream = Stream(stream_id, start.media_format, emit, self._metrics, now)
            self._metrics.sockets_refused[SocketRefusal.CODEC] += 1
            log.error("media stream refused", call_id=start.call_id, reason=refusal)
            return Farewell(WSCloseCode.UNSUPPORTED_DATA, refusal, f"refused: {refusal}")
        if (former := self._of_call.get(start.call_id)) is not None:
            # Its END is recorded here, before the START of the new one.
            self._end(former, _REPLACED)
            former.dismiss(_REPLACED)
            self._metrics.sockets_replaced += 1
        socket.stream = Stream(stream_id, start.media_format, emit, self._metrics, now)
        self._of_call[start.call_id] = socket
        socket.deadline.reschedule(None)
        log.info("media stream started", call_id=start.call_id, stream_id=stream_id)
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
        if socket.stream is None or socket.call_id is None:
            return
        if self._of_call.get(socket.call_id) is socket:
            del self._of_call[socket.call_id]
            log.info("media stream ended", call_id=socket.call_id, detail=farewell.detail)
        socket.stream.end(farewell.detail, self._config.clock())

    def _stream_id(self, given: str | None) -> str:
        """An id that no other stream has: the carrier's, unless it gave none or gave it before."""
        stream_id = given or uuid4().hex
        if stream_id in self._stream_ids:
            stream_id = f"{stream_id}~{uuid4().hex[:8]}"
        self._stream_ids[stream_id] = None
        if len(self._stream_ids) > REMEMBERED_STREAMS:
            self._stream_ids.popitem(last=False)
        return stream_id

    def _count_bad(self, socket: _Socket, kind: BadMessageKind) -> None:
        self._metrics.bad_messages[kind] += 1
        socket.bad_in_a_row += 1
        if count := socket.bad.add():
            log.warning("media messages dropped", call_id=socket.call_id, reason=kind.value, messages=count)
        if socket.bad_in_a_row >= self._config.bad_messages_max:
            self._metrics.sockets_refused[SocketRefusal.BAD_MESSAGES] += 1
            socket.farewell = _BAD_MESSAGES


def _lost(ws: web.WebSocketResponse, cause: object) -> Farewell:
    """The socket is closed: by the carrier, by a lost connection, or by aiohttp for a message that it refuses."""
    code = cause.code if isinstance(cause, WebSocketError) else ws.close_code
    if code in (None, WSCloseCode.OK, NO_STATUS):
        return _GONE
    return Farewell(code, "", f"{CLOSED}: code {int(code)}")
