"""One open WebSocket of the carrier: turns the bytes of its TCP connection into messages, as the fair queue allows.

Decides how much of a connection is held in memory, in both directions, when its peer counts as gone, and how the socket
is closed. `websocket` decides what a message is, `fair_queue` when it is processed, `media_sockets` what is done with
it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from dispatchai.gateway.errors import GatewayError
from dispatchai.gateway.fair_queue import FairQueue
from dispatchai.gateway.websocket import (
    NO_STATUS,
    VERSION,
    Binary,
    Broken,
    Close,
    MessageReader,
    Ping,
    Pong,
    accept_of,
    close_frame,
    frame,
)

PIECE_BYTES: Final = 8192
"""Bytes that are processed at once: 24 messages of 20 ms, half a millisecond. One read may bring 256 kB."""

UNREAD_MAX_BYTES: Final = 65_536
"""Bytes that may wait for processing before reading from the connection pauses: four seconds of audio. The rest waits
in the kernel, and then with the carrier."""

UNSENT_MAX_BYTES: Final = 16_384
"""Bytes that may wait for the peer to read them: over a hundred pongs. Audio only comes in, so a peer with more than
this does not read at all."""

CONTROL_FRAMES_MAX: Final = 50
CONTROL_FRAMES_S: Final = 10.0
"""Pings and pongs that a peer may send in this time. A peer that checks the connection pings every few seconds."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the carrier may take to answer a close frame."""


class HandshakeError(GatewayError):
    """The request opens no WebSocket. The message says why."""


class Connection:
    """An open socket, made by `upgrade`.

    `receive` is called with each message. `lost` is called once: when the peer closed (its code), broke the protocol
    (the code to close with) or is gone (ABNORMAL_CLOSURE). Neither is called after `stop_receiving`. Neither may fail.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        fair_queue: FairQueue,
        receive: Callable[[bytes | Binary], None],
        lost: Callable[[int], None],
        *,
        message_max_bytes: int,
        heartbeat_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._transport = transport
        self._fair_queue = fair_queue
        self._receive = receive
        self._lost = lost
        self._reader = MessageReader(message_max_bytes)
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._queued = False
        self._paused = False
        self._held: asyncio.TimerHandle | None = None
        self._receiving = True
        self._at_eof = False
        self._controls = 0
        self._controls_since = loop.time()
        self.flooded = False
        """Whether the peer was given up because it sent too many pings, or did not read the pongs."""
        self._peer_gone: asyncio.Future[None] = loop.create_future()
        """Done when the peer has closed its half, or its connection is lost."""
        self._close_sent_at: float | None = None
        self._heartbeat_s = heartbeat_s
        self._time = loop.time
        self._heard_at = loop.time()
        self._heartbeat = loop.call_later(heartbeat_s, self._check_heartbeat)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was read from the connection is processed."""
        return not self._unread

    def stop_receiving(self) -> None:
        """Drop all messages from now on."""
        self._receiving = False

    def hold(self, seconds: float) -> None:
        """Process and read nothing for `seconds`: what comes waits in the kernel, and then with the peer."""
        if self._held is None and self._receiving and self._close_sent_at is None:
            self._held = asyncio.get_running_loop().call_later(seconds, self._go_on)
            if not self._paused and not self._transport.is_closing():
                self._paused = True
                self._transport.pause_reading()

    def _go_on(self) -> None:
        """Process and read again."""
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._unread or self._at_eof:
            self._queue()
        self._resume_if_drained()

    def _resume_if_drained(self) -> None:
        is_drained = self._unread_bytes <= UNREAD_MAX_BYTES // 2
        if self._paused and self._held is None and is_drained and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def begin_close(self, code: int, reason: str) -> None:
        """Send the close frame, and go on receiving: the peer's answer follows everything that it sent before."""
        if self._close_sent_at is None:
            self._close_sent_at = self._time()
            self._heartbeat.cancel()
            self._go_on()
            self._write(close_frame(code, reason))

    async def close(self, code: int, reason: str) -> None:
        """Perform the closing handshake. Gives up CLOSE_TIMEOUT_S after the close frame was sent."""
        self._receiving = False
        self._go_on()
        try:
            if not self._peer_gone.done():
                self.begin_close(code, reason)
                # What the peer still sends is read meanwhile: a connection that is closed on unread bytes is reset,
                # and the close frame may be lost with it.
                waited_s = self._time() - (self._close_sent_at or 0.0)
                await asyncio.wait([self._peer_gone], timeout=max(0.0, CLOSE_TIMEOUT_S - waited_s))
        finally:
            self._heartbeat.cancel()
            if not self._peer_gone.done():
                self._transport.abort()

    # ---- called by the TCP connection --------------------------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes that were read. The result is in aiohttp's form: not at the end, no bytes left over."""
        self._heard_at = self._time()
        if len(data) <= PIECE_BYTES:
            self._unread.append(data)
        else:
            self._unread.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        self._unread_bytes += len(data)
        if self._unread_bytes > UNREAD_MAX_BYTES and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        self._queue()
        return False, b""

    def feed_eof(self) -> None:
        """The connection is lost."""
        self._at_eof = True
        self._queue()

    # ---- called by the fair queue ------------------------------------------------------------------------------------

    def process_piece(self) -> bool:
        """Process the messages of one piece. Returns whether more wait."""
        if self._held is not None:
            self._queued = False
            return False
        succeeded = False
        try:
            if self._unread:
                self._process(self._unread.popleft())
            if self._at_eof and not self._unread:
                self._end(WSCloseCode.ABNORMAL_CLOSURE)
            succeeded = True
        finally:
            if not succeeded:  # an error of the gateway's own: it ends this socket, and the event loop reports it
                self._transport.abort()
                self._end(WSCloseCode.ABNORMAL_CLOSURE)
        self._queued = bool(self._unread)
        return self._queued

    def _process(self, piece: bytes) -> None:
        self._unread_bytes -= len(piece)
        for message in self._reader.feed(piece):
            if type(message) is not bytes:
                self._control(message)
            elif self._receiving:
                self._receive(message)
        self._resume_if_drained()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._fair_queue.add(self)

    def _control(self, message: object) -> None:
        if isinstance(message, Ping | Pong) and not self._may_send_control_frame():
            self.flooded = True
            self._report_lost(WSCloseCode.POLICY_VIOLATION)
            return
        match message:
            case Binary() if self._receiving:
                self._receive(message)
            case Ping(payload) if self._receiving and self._close_sent_at is None:
                self._write(frame(WSMsgType.PONG, payload))
            case Close(code):
                if self._receiving and self._close_sent_at is None:  # else it answers the gateway's close frame
                    self._write(frame(WSMsgType.CLOSE, b"" if code == NO_STATUS else code.to_bytes(2, "big")))
                self._end(code)
            case Broken(code):
                self._report_lost(code)
            case Binary() | Ping() | Pong():
                pass

    def _may_send_control_frame(self) -> bool:
        """Count a ping or a pong. Returns whether the peer may send it."""
        now = self._time()
        if now - self._controls_since >= CONTROL_FRAMES_S:
            self._controls, self._controls_since = 0, now
        self._controls += 1
        return self._controls <= CONTROL_FRAMES_MAX

    def _end(self, code: int) -> None:
        """The peer has closed or is gone: nothing more is sent to it."""
        self._heartbeat.cancel()
        if not self._peer_gone.done():
            self._peer_gone.set_result(None)
        self._report_lost(code)

    def _report_lost(self, code: int) -> None:
        if self._receiving:
            self._receiving = False
            self._lost(code)

    def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNSENT_MAX_BYTES:
            self.flooded = True
            self._transport.abort()
            self._end(WSCloseCode.ABNORMAL_CLOSURE)
            return
        self._transport.write(data)

    # ---- is the peer alive? ------------------------------------------------------------------------------------------

    def _check_heartbeat(self) -> None:
        """Ping a peer that has been silent for a heartbeat."""
        silent_s = self._time() - self._heard_at
        if self._unread or self._held is not None or silent_s < self._heartbeat_s:
            delay_s = self._heartbeat_s - silent_s if silent_s < self._heartbeat_s else self._heartbeat_s
            self._heartbeat = asyncio.get_running_loop().call_later(delay_s, self._check_heartbeat)
            return
        self._write(frame(WSMsgType.PING, b""))
        self._heartbeat = asyncio.get_running_loop().call_later(self._heartbeat_s / 2, self._check_pong, self._heard_at)

    def _check_pong(self, heard_at: float) -> None:
        """Give up a peer that has sent nothing since the ping; `heard_at` is when it was heard last before it."""
        if self._heard_at == heard_at:
            self._transport.abort()
            self._end(WSCloseCode.ABNORMAL_CLOSURE)
        else:
            self._check_heartbeat()


async def upgrade(
    request: web.Request,
    fair_queue: FairQueue,
    receive: Callable[[bytes | Binary], None],
    lost: Callable[[int], None],
    *,
    message_max_bytes: int,
    heartbeat_s: float,
) -> tuple[web.StreamResponse, Connection]:
    """Answer the handshake of `request`. Returns the response that its handler must return, and the open socket.

    Raises HandshakeError for a request that is no handshake, and ConnectionError if the peer is gone already. A peer
    that is silent for `heartbeat_s` is pinged, and counts as gone if it does not answer within half of that.
    """
    accept = accept_of(request.headers.get("Sec-WebSocket-Key", ""))
    if "upgrade" not in request.headers.get("Connection", "").lower():
        raise HandshakeError("the header Connection: Upgrade is missing")
    if request.headers.get("Sec-WebSocket-Version") != VERSION:
        raise HandshakeError(f"Sec-WebSocket-Version is not {VERSION}")
    if accept is None:
        raise HandshakeError("Sec-WebSocket-Key is missing or invalid")
    headers = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Accept": accept}
    response = web.StreamResponse(status=101, headers=headers)
    response.force_close()
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the connection is lost")
    connection = Connection(
        transport, fair_queue, receive, lost, message_max_bytes=message_max_bytes, heartbeat_s=heartbeat_s
    )
    # aiohttp hands an upgraded connection's bytes to any object with feed_data and feed_eof; its own reader is one.
    parser: Any = connection
    request.protocol.set_parser(parser)
    return response, connection
