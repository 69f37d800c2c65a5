"""`GET /ws`: the carrier's media sockets.

Decides who may open a stream, what ends it, and that a call has one stream at a time (in this process: the guide to
deployment covers several gateways). `media_stream` decides what is recorded of a stream, `connection` does the I/O.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import WSCloseCode, web

from dispatchai.gateway.config import GatewayConfig
from dispatchai.gateway.connection import CLOSE_TIMEOUT_S, Connection, HandshakeError, upgrade
from dispatchai.gateway.ended_legs import EndedLegs
from dispatchai.gateway.error_responses import error_response
from dispatchai.gateway.fair_queue import FairQueue
from dispatchai.gateway.kafka_writer import KafkaUnavailableError, KafkaWriter
from dispatchai.gateway.media_stream import QUIET_S, Emit, Stream, refusal_of
from dispatchai.gateway.metrics import GatewayMetrics, SocketRefusal
from dispatchai.gateway.websocket import NO_STATUS, Binary
from dispatchai.process.log_limit import LogLimit, LogLimits
from dispatchai.records import Micros, Track
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.fields import call_id_of
from dispatchai.telnyx.media_messages import (
    BadMessage,
    BadMessageKind,
    CarrierError,
    Connected,
    Media,
    Notice,
    Start,
    Stop,
    parse_media_message,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

QUIET_CHECKS: Final = 5
"""Checks of a socket within QUIET_S, each of which must find nothing to read. The event loop reads its sockets between
two of them, so a gateway that falls behind cannot take its own delay for the carrier's silence."""

HANGUP_GRACE_S: Final = 5.0
"""How long a stream may go on after its leg has hung up. The last frames and the stop come within a second."""

STOPPED: Final = "stop"
CLOSED: Final = "closed"
REPLACED: Final = "replaced"


@dataclass(frozen=True, slots=True)
class Closing:
    """How a socket is closed: code and reason of the close frame, and the detail of its stream's END."""

    code: int
    reason: str
    detail: str


_NORMAL: Final = Closing(WSCloseCode.OK, "", STOPPED)
_PEER_GONE: Final = Closing(WSCloseCode.OK, "", CLOSED)
_REPLACED: Final = Closing(WSCloseCode.OK, "replaced by another stream of the call", REPLACED)
_STOPPING: Final = Closing(WSCloseCode.GOING_AWAY, "the gateway stops", f"{CLOSED}: the gateway stops")
_NO_START: Final = Closing(WSCloseCode.POLICY_VIOLATION, "no start in time", CLOSED)
_OTHER_CALL: Final = Closing(WSCloseCode.POLICY_VIOLATION, "the token is for another call", CLOSED)
_CALL_OVER: Final = Closing(WSCloseCode.POLICY_VIOLATION, "the call is over", CLOSED)
_BAD_MESSAGES: Final = Closing(
    WSCloseCode.POLICY_VIOLATION, "too many unusable messages", f"{CLOSED}: too many unusable messages"
)
_TOO_LONG: Final = Closing(WSCloseCode.GOING_AWAY, "the stream is too long", f"{CLOSED}: the stream is too long")
_NO_KAFKA: Final = Closing(WSCloseCode.TRY_AGAIN_LATER, "the stream cannot be stored", CLOSED)


@dataclass(slots=True)
class Heard:
    """How much audio a stream has brought, against the time since it began, in seconds of the event loop's clock."""

    began_at: float = 0.0
    seconds: dict[Track, float] = field(default_factory=lambda: dict.fromkeys(Track, 0.0))

    def ahead_s(self, more_s: float, track: Track, now: float) -> float:
        """Count `more_s` of a track. Returns by how much its audio exceeds the time since the stream began."""
        self.seconds[track] += more_s
        return self.seconds[track] - (now - self.began_at)


@dataclass(slots=True, eq=False)
class _Socket:
    """One open socket."""

    subject: stream_tokens.Subject | None
    """The subject of its token; None where no token is required."""
    closing: asyncio.Future[Closing]
    """How to close it. Its handler waits for this."""
    connection: Connection | None = None
    """None until the handshake is complete."""
    start_timer: asyncio.TimerHandle | None = None
    call_id: str | None = None
    call_control_id: str | None = None
    stream: Stream | None = None
    end_timer: asyncio.TimerHandle | None = None
    """When the stream is closed: at its longest, or soon after its call's hangup."""
    heard: Heard = field(default_factory=Heard)
    bad_in_a_row: int = 0
    bad_log: LogLimit = field(default_factory=LogLimit)
    received: int = 0
    """Messages received so far."""
    quiet_timer: asyncio.TimerHandle | None = None
    """Set while the stream holds frames."""

    def watch_silence(self, stream: Stream) -> None:
        """Run the timer exactly while `stream` holds frames, so that they go out even if nothing follows."""
        if not stream.holds:
            self.stop_quiet_timer()
        elif self.quiet_timer is None:
            self._start_quiet_timer(stream, QUIET_CHECKS)

    def stop_quiet_timer(self) -> None:
        """Stop watching for silence."""
        if self.quiet_timer is not None:
            self.quiet_timer.cancel()
            self.quiet_timer = None

    def _start_quiet_timer(self, stream: Stream, checks: int) -> None:
        self.quiet_timer = asyncio.get_running_loop().call_later(
            QUIET_S / QUIET_CHECKS, self._check_silence, stream, checks, self.received
        )

    def _check_silence(self, stream: Stream, checks: int, received: int) -> None:
        """Release the held frames after the last of `checks`; start over if a message came since `received`."""
        self.quiet_timer = None
        silent = self.received == received and (self.connection is None or self.connection.is_drained)
        checks = checks - 1 if silent else QUIET_CHECKS
        if checks > 0:
            self._start_quiet_timer(stream, checks)
            return
        stream.release()
        self.watch_silence(stream)


class MediaSockets:
    """The handler of media sockets, and the streams that are open."""

    def __init__(self, config: GatewayConfig, writer: KafkaWriter, metrics: GatewayMetrics, ended: EndedLegs) -> None:
        """`ended` has the legs that no stream may be opened for any more."""
        self._ended = ended
        ended.on_ended = self._leg_ended
        self._config = config
        self._writer = writer
        self._metrics = metrics
        self._fair_queue = FairQueue()
        self._open: set[_Socket] = set()
        self._of_call: dict[str, _Socket] = {}
        self._stopping = False
        self._refused_log = LogLimits()
        self._codec_log = LogLimit()
        self._carrier_log = LogLimit()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one socket, from handshake to close."""
        if request.headers.get("upgrade", "").lower() != "websocket":
            refusal = error_response(426, "upgrade_required", "this is a websocket", "connect with a websocket client")
            refusal.headers["Upgrade"] = "websocket"
            return refusal
        subject: stream_tokens.Subject | None = None
        if self._config.stream_secret is not None or self._config.verify_webhooks:
            subject = self._subject(request)
            if subject is None:
                self._metrics.sockets_refused[SocketRefusal.TOKEN] += 1
                self._report_refusal("no valid token")
                return error_response(
                    403,
                    "token",
                    "no valid token for a media stream",
                    f"start the stream with its token: {stream_tokens.HEADER}",
                )
            if subject.call_control_id in self._ended:
                self._metrics.sockets_refused[SocketRefusal.CALL_OVER] += 1
                self._report_refusal("its call is over")
                return error_response(403, "call_over", "the call of this token is over", "start no stream for it")
        if self._stopping:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            self._report_refusal("the gateway stops")
            return error_response(503, "unavailable", "the gateway stops", "start the stream again")
        try:
            await self._writer.require_topics()
        except KafkaUnavailableError as error:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            self._report_refusal(str(error))
            return error_response(503, "unavailable", "the stream cannot be stored", "start the stream again")
        socket = _Socket(subject, asyncio.get_running_loop().create_future())
        try:
            response, connection = await upgrade(
                request,
                self._fair_queue,
                partial(self._receive, socket),
                partial(self._lost, socket),
                message_max_bytes=self._config.media_message_max_bytes,
                heartbeat_s=self._config.heartbeat_s,
            )
        except HandshakeError as error:
            return error_response(HTTPStatus.BAD_REQUEST, "handshake", str(error), "connect with a websocket client")
        await self._serve(socket, connection)
        return response

    async def close_all(self) -> None:
        """Close every socket: the gateway stops. Returns when all are closed, after CLOSE_TIMEOUT_S at most.

        What a carrier sent before it read the close frame is recorded: its answer follows that.
        """
        self._stopping = True
        closing = {socket.closing: socket for socket in self._open}
        for socket in closing.values():
            if socket.connection is not None:
                socket.connection.begin_close(_STOPPING.code, _STOPPING.reason)
        if closing:
            _, unanswered = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
            for future in unanswered:
                self._close(closing[future], _STOPPING)

    def _report_refusal(self, reason: str) -> None:
        if count := self._refused_log.add(reason):
            log.warning("media_socket_refused", reason=reason, sockets=count)

    def _subject(self, request: web.Request) -> stream_tokens.Subject | None:
        token = request.headers.get(stream_tokens.HEADER, "")
        if self._config.stream_secret is None:
            return None
        return stream_tokens.verify(self._config.stream_secret, token, self._config.clock() / 1_000_000)

    async def _serve(self, socket: _Socket, connection: Connection) -> None:
        self._metrics.sockets_opened += 1
        self._metrics.sockets_open += 1
        self._open.add(socket)
        socket.connection = connection
        socket.start_timer = asyncio.get_running_loop().call_later(
            self._config.start_timeout_s, self._not_started, socket
        )
        closing = _PEER_GONE
        try:
            if self._stopping:
                self._close(socket, _STOPPING)
            closing = await socket.closing
        finally:
            self._open.discard(socket)
            self._metrics.sockets_open -= 1
            self._close(socket, closing)
            try:
                await connection.close(closing.code, closing.reason)
            finally:
                socket.connection = None  # the two refer to each other, and would wait for the garbage collector

    # ---- events of a socket ------------------------------------------------------------------------------------------

    def _receive(self, socket: _Socket, message: bytes | Binary) -> None:
        """One message came."""
        socket.received += 1
        try:
            if isinstance(message, Binary):
                raise BadMessage(BadMessageKind.BINARY)
            self._process(socket, message)
            socket.bad_in_a_row = 0
        except BadMessage as bad:
            self._count_bad(socket, bad.kind)

    def _lost(self, socket: _Socket, code: int) -> None:
        """The carrier closed the socket or broke the protocol, or the connection is lost."""
        if socket.connection is not None and socket.connection.flooded:
            self._metrics.sockets_refused[SocketRefusal.FLOOD] += 1
            self._report_refusal("too many pings, or the answers are not read")
        if self._stopping:
            self._close(socket, _STOPPING)
        elif code in (WSCloseCode.OK, NO_STATUS):
            self._close(socket, _PEER_GONE)
        else:
            self._close(socket, Closing(code, "", f"{CLOSED}: code {code}"))

    def _not_started(self, socket: _Socket) -> None:
        """No `start` came in time."""
        self._metrics.sockets_refused[SocketRefusal.NO_START] += 1
        self._close(socket, _NO_START)

    def _close(self, socket: _Socket, closing: Closing) -> None:
        """Record the end of the socket's stream and have its handler close it. A second call does nothing."""
        for timer in (socket.start_timer, socket.end_timer):
            if timer is not None:
                timer.cancel()
        if not socket.closing.done():
            socket.closing.set_result(closing)
        if socket.connection is not None:
            socket.connection.stop_receiving()
        self._end_stream(socket, closing)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _process(self, socket: _Socket, text: bytes) -> None:
        """Do what one message says. Raises BadMessage."""
        match parse_media_message(text):
            case Media() as media:
                stream = socket.stream
                if stream is None:
                    raise BadMessage(BadMessageKind.ORDER)
                stream.receive(media, self._config.clock())
                # Not by the clock of the records, which may jump.
                now = asyncio.get_running_loop().time()
                ahead_s = socket.heard.ahead_s(stream.seconds_of(media), media.track, now) - self._config.media_ahead_s
                if ahead_s > 0 and socket.connection is not None:
                    socket.connection.hold(ahead_s)
                if stream.holds or socket.quiet_timer is not None:
                    socket.watch_silence(stream)
            case Start() as start:
                if socket.stream is not None:
                    raise BadMessage(BadMessageKind.ORDER)
                if (closing := self._start_stream(socket, start)) is not None:
                    self._close(socket, closing)
            case Stop():
                self._close(socket, _NORMAL)
            case CarrierError(code):
                self._metrics.carrier_errors += 1
                if count := self._carrier_log.add():
                    log.warning("carrier_error", call_id=socket.call_id, code=code, errors=count)
            case Connected() | Notice():
                pass

    def _start_stream(self, socket: _Socket, start: Start) -> Closing | None:
        """Open the stream. Returns how to close the socket if the stream is refused."""
        call_id = _call_of(socket.subject, start)
        if call_id is None:
            self._metrics.sockets_refused[SocketRefusal.OTHER_CALL] += 1
            self._report_refusal("its token is for another call")
            return _OTHER_CALL
        if start.call_control_id in self._ended:
            self._metrics.sockets_refused[SocketRefusal.CALL_OVER] += 1
            self._report_refusal("its call is over")
            return _CALL_OVER
        try:
            emit = self._emitter(call_id)
        except KafkaUnavailableError:
            self._metrics.sockets_refused[SocketRefusal.UNAVAILABLE] += 1
            return _NO_KAFKA
        now = self._config.clock()
        socket.call_id = call_id
        stream_id = _unique_stream_id(start.stream_id)
        if start.media_format is not None and (refusal := refusal_of(start.media_format)) is not None:
            # A stream that the call already has goes on.
            socket.stream = Stream(stream_id, start.media_format, emit, self._metrics, now)
            self._metrics.sockets_refused[SocketRefusal.CODEC] += 1
            if count := self._codec_log.add():
                log.error("media_stream_refused", call_id=call_id, reason=refusal, streams=count)
            return Closing(WSCloseCode.UNSUPPORTED_DATA, refusal, f"refused: {refusal}")
        if (former := self._of_call.get(call_id)) is not None:
            # Its END is recorded here, before the START of the new one.
            self._close(former, _REPLACED)
            self._metrics.sockets_replaced += 1
        socket.stream = Stream(
            stream_id, start.media_format, emit, self._metrics, now, l16_encoding=self._config.l16_encoding
        )
        self._of_call[call_id] = socket
        socket.call_control_id = start.call_control_id
        socket.heard.began_at = asyncio.get_running_loop().time()
        self._close_in(self._config.stream_longest_s, socket, _TOO_LONG)
        if socket.start_timer is not None:
            socket.start_timer.cancel()
        log.info("media_stream_started", call_id=call_id, stream_id=stream_id)
        return None

    def _leg_ended(self, call_control_id: str) -> None:
        """The leg has hung up: close its stream once the carrier had time to send the rest and to stop it."""
        for socket in self._open:
            if socket.call_control_id == call_control_id and not socket.closing.done():
                self._close_in(HANGUP_GRACE_S, socket, _CALL_OVER)

    def _close_in(self, seconds: float, socket: _Socket, closing: Closing) -> None:
        """Close the socket of a stream after `seconds`, in place of the time that was set before."""
        if socket.end_timer is not None:
            socket.end_timer.cancel()
        socket.end_timer = asyncio.get_running_loop().call_later(seconds, self._close, socket, closing)

    def _emitter(self, call_id: str) -> Emit:
        key = call_id.encode()
        queue = self._writer.queue_of(key)
        put = self._writer.put

        def emit(record: bytes, captured_at: Micros, never_drop: bool) -> None:
            put(queue, key, record, captured_at // 1000, never_drop=never_drop)

        return emit

    def _end_stream(self, socket: _Socket, closing: Closing) -> None:
        """Record the end of the socket's stream, if it has one that has not ended."""
        socket.stop_quiet_timer()
        if socket.stream is None or socket.call_id is None:
            return
        if self._of_call.get(socket.call_id) is socket:
            del self._of_call[socket.call_id]
            log.info("media_stream_ended", call_id=socket.call_id, detail=closing.detail)
        socket.stream.end(closing.detail, self._config.clock())

    def _count_bad(self, socket: _Socket, kind: BadMessageKind) -> None:
        self._metrics.bad_messages[kind] += 1
        socket.bad_in_a_row += 1
        if count := socket.bad_log.add():
            log.warning("media_messages_dropped", call_id=socket.call_id, reason=kind.value, messages=count)
        if socket.bad_in_a_row >= self._config.bad_messages_max:
            self._metrics.sockets_refused[SocketRefusal.BAD_MESSAGES] += 1
            self._close(socket, _BAD_MESSAGES)


def _call_of(subject: stream_tokens.Subject | None, start: Start) -> str | None:
    """The call that a stream belongs to; None if its token is for another call.

    The token names the call. `start` must name the same leg, and the same session where it names one and the call is
    known by its session. Where no token is required, `start` names the call.
    """
    if subject is None:
        return call_id_of(start.call_session_id, start.call_control_id)
    if not hmac.compare_digest(subject.call_control_id, start.call_control_id):
        return None
    by_session = subject.call_id != subject.call_control_id
    if by_session and start.call_session_id and not hmac.compare_digest(subject.call_id, start.call_session_id):
        return None
    return subject.call_id


def _unique_stream_id(stream_id: str | None) -> str:
    """An id that no other stream has: the carrier's, with a random suffix.

    A carrier may reconnect with the id that it had and count from 1 again, to this gateway or to another one.
    """
    return f"{stream_id or 'stream'}~{uuid4().hex[:8]}"
