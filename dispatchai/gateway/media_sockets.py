"""`GET /ws`: the carrier's media sockets.

Decides who may open a stream, what ends it, and that a call has one stream at a time (in this process: see the
guide to deployment for several gateways). Leaves what is recorded of a stream to `media`, the connection to `link`.
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
from dispatchai.gateway.connection import HandshakeError, Link, upgrade
from dispatchai.gateway.error_responses import error_response
from dispatchai.gateway.fair_queue import Turns
from dispatchai.gateway.kafka_writer import KafkaUnavailableError, Outbox
from dispatchai.gateway.media_stream import QUIET_S, Emit, Stream, refusal_of
from dispatchai.gateway.metrics import GatewayMetrics, SocketRefusal
from dispatchai.gateway.websocket import NO_STATUS, Binary
from dispatchai.process.log_limit import Throttle
from dispatchai.records import Micros
from dispatchai.telnyx import stream_tokens as tokens
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

QUIET_TICKS: Final = 5
"""Looks at a socket in QUIET_S, each of which must find nothing to read. The event loop reads its sockets between two
of them, so a gateway that is itself behind cannot take its own delay for the carrier's silence."""

STOPPED: Final = "stop"
CLOSED: Final = "closed"
REPLACED: Final = "replaced"


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
    """One open socket."""

    subject: tokens.Subject | None
    """What its token was issued for; None where no token is asked for."""
    over: asyncio.Future[Farewell]
    """How it is to be closed: its handler waits for that."""
    link: Link | None = None
    """None until the handshake is through."""
    start_timer: asyncio.TimerHandle | None = None
    call_id: str | None = None
    stream: Stream | None = None
    bad_in_a_row: int = 0
    bad: Throttle = field(default_factory=Throttle)
    taken: int = 0
    """Messages taken so far."""
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
        silent = self.taken == taken and (self.link is None or self.link.is_read)
        ticks = ticks - 1 if silent else QUIET_TICKS
        if ticks > 0:
            self._look_again(stream, ticks)
            return
        stream.release()
        self.watch_silence(stream)


class MediaSockets:
    """The handler of media sockets, and the streams that are open."""

    def __init__(self, config: GatewayConfig, outbox: Outbox, metrics: GatewayMetrics) -> None:
        self._config = config
        self._outbox = outbox
        self._metrics = metrics
        self._turns = Turns()
        self._open: set[_Socket] = set()
        self._of_call: dict[str, _Socket] = {}
        self._stopping = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One socket, from handshake to close."""
        if request.headers.get("upgrade", "").lower() != "websocket":
            refusal = error_response(426, "upgrade_required", "this is a websocket", "connect with a websocket client")
            refusal.headers["Upgrade"] = "websocket"
            return refusal
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
        socket = _Socket(subject, asyncio.get_running_loop().create_future())
        try:
            response, link = await upgrade(
                request,
                self._turns,
                partial(self._receive, socket),
                partial(self._lost, socket),
                message_max_bytes=self._config.media_message_max_bytes,
                heartbeat_s=self._config.heartbeat_s,
            )
        except HandshakeError as error:
            return error_response(HTTPStatus.BAD_REQUEST, "handshake", str(error), "connect with a websocket client")
        await self._serve(socket, link)
        return response

    def dismiss_all(self) -> None:
        """Close every socket: the gateway stops."""
        self._stopping = True
        for socket in tuple(self._open):
            self._leave(socket, _STOPPING)

    def _subject(self, request: web.Request) -> tokens.Subject | None:
        token = request.headers.get(tokens.HEADER, "")
        if self._config.stream_secret is None:
            return None
        return tokens.verify(self._config.stream_secret, token, self._config.clock() / 1_000_000)

    async def _serve(self, socket: _Socket, link: Link) -> None:
        self._metrics.sockets_opened += 1
        self._metrics.sockets_open += 1
        self._open.add(socket)
        socket.link = link
        socket.start_timer = asyncio.get_running_loop().call_later(
            self._config.start_timeout_s, self._not_started, socket
        )
        farewell = _GONE
        try:
            if self._stopping:
                self._leave(socket, _STOPPING)
            farewell = await socket.over
        finally:
            self._open.discard(socket)
            self._metrics.sockets_open -= 1
            self._leave(socket, farewell)
            try:
                await link.close(farewell.code, farewell.reason)
            finally:
                socket.link = None  # the two refer to each other: else they wait for the collector

    # ---- what happens to a socket ------------------------------------------------------------------------------------

    def _receive(self, socket: _Socket, message: bytes | Binary) -> None:
        """One message came."""
        socket.taken += 1
        try:
            if isinstance(message, Binary):
                raise BadMessage(BadMessageKind.BINARY)
            self._take(socket, message)
            socket.bad_in_a_row = 0
        except BadMessage as bad:
            self._count_bad(socket, bad.kind)

    def _lost(self, socket: _Socket, code: int) -> None:
        """The socket was closed by the carrier, broke the protocol, or its connection is lost."""
        if code in (WSCloseCode.OK, NO_STATUS):
            self._leave(socket, _GONE)
        else:
            self._leave(socket, Farewell(code, "", f"{CLOSED}: code {code}"))

    def _not_started(self, socket: _Socket) -> None:
        """It is open for long enough and has no stream."""
        self._metrics.sockets_refused[SocketRefusal.NO_START] += 1
        self._leave(socket, _NO_START)

    def _leave(self, socket: _Socket, farewell: Farewell) -> None:
        """Record the end of the socket's stream and have it closed. A second farewell does nothing."""
        if socket.start_timer is not None:
            socket.start_timer.cancel()
        if not socket.over.done():
            socket.over.set_result(farewell)
        if socket.link is not None:
            socket.link.deafen()
        self._end(socket, farewell)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _take(self, socket: _Socket, text: bytes) -> None:
        """Do what one message says. Raises BadMessage."""
        match parse_media_message(text):
            case Media() as media:
                stream = socket.stream
                if stream is None:
                    raise BadMessage(BadMessageKind.ORDER)
                stream.media(media, self._config.clock())
                if stream.holds or socket.timer is not None:
                    socket.watch_silence(stream)
            case Start() as start:
                if socket.stream is not None:
                    raise BadMessage(BadMessageKind.ORDER)
                if (refused := self._start(socket, start)) is not None:
                    self._leave(socket, refused)
            case Stop():
                self._leave(socket, _NORMAL)
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
            self._leave(former, _REPLACED)
            self._metrics.sockets_replaced += 1
        socket.stream = Stream(
            stream_id, start.media_format, emit, self._metrics, now, l16_encoding=self._config.l16_encoding
        )
        self._of_call[call_id] = socket
        if socket.start_timer is not None:
            socket.start_timer.cancel()
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
            self._leave(socket, _BAD_MESSAGES)


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
