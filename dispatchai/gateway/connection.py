"""One open WebSocket of the carrier: what the connection reads becomes messages, as turns allow.

Decides how much of a connection is held in memory, when its peer counts as gone, and how the socket is closed. Leaves
to `websocket` what a message is, to `turns` when it is taken, to `sockets` what is done with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from dispatchai.gateway.errors import GatewayError
from dispatchai.gateway.fair_queue import Turns
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
"""What is taken at once: 24 messages of 20 ms, half a millisecond. One read may bring 256 kB."""

UNREAD_MAX_BYTES: Final = 65_536
"""Bytes that wait for their turn before no more are read from the connection: four seconds of audio. The rest waits in
the kernel, and then with the carrier."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the carrier may take to answer a close."""


class HandshakeError(GatewayError):
    """The request opens no WebSocket. The message says why."""


class Link:
    """An open socket, made by `upgrade`.

    `receive` is called with each message, `lost` once, when the peer closed (its code), broke the protocol (the code to
    close with) or is gone (ABNORMAL_CLOSURE). Neither is called after `deafen`. Neither may fail.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        turns: Turns,
        receive: Callable[[bytes | Binary], None],
        lost: Callable[[int], None],
        *,
        message_max_bytes: int,
        heartbeat_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._transport = transport
        self._turns = turns
        self._receive = receive
        self._lost = lost
        self._reader = MessageReader(message_max_bytes)
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._in_turn = False
        self._paused = False
        self._deaf = False
        self._cut = False
        self._gone: asyncio.Future[None] = loop.create_future()
        """Done when the peer has closed its half, or its connection is lost."""
        self._heartbeat_s = heartbeat_s
        self._time = loop.time
        self._heard_at = loop.time()
        self._pulse = loop.call_later(heartbeat_s, self._listen)

    @property
    def is_read(self) -> bool:
        """Whether nothing waits here of what was read from the connection."""
        return not self._unread

    def deafen(self) -> None:
        """Take no more messages."""
        self._deaf = True

    async def close(self, code: int, reason: str) -> None:
        """The closing handshake. Gives up after CLOSE_TIMEOUT_S."""
        self._deaf = True
        try:
            if not self._gone.done():
                self._write(close_frame(code, reason))
                # What the peer still sends is read meanwhile: a connection that is closed on unread bytes is reset,
                # and the close frame may be lost with it.
                await asyncio.wait([self._gone], timeout=CLOSE_TIMEOUT_S)
        finally:
            self._pulse.cancel()
            if not self._gone.done():
                self._transport.abort()

    # ---- what the connection calls -----------------------------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes were read. The answer is aiohttp's: not at an end, nothing left over."""
        self._heard_at = self._time()
        if len(data) <= PIECE_BYTES:
            self._unread.append(data)
        else:
            self._unread.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        self._unread_bytes += len(data)
        if self._unread_bytes > UNREAD_MAX_BYTES and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        self._ask_for_a_turn()
        return False, b""

    def feed_eof(self) -> None:
        """The connection is lost."""
        self._cut = True
        self._ask_for_a_turn()

    # ---- what is done in a turn --------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Take the messages of one piece. Returns whether more wait."""
        whole = False
        try:
            if self._unread:
                self._take(self._unread.popleft())
            if self._cut and not self._unread:
                self._end(WSCloseCode.ABNORMAL_CLOSURE)
            whole = True
        finally:
            if not whole:  # an error of the gateway's own: it ends this socket, and the event loop reports it
                self._transport.abort()
                self._end(WSCloseCode.ABNORMAL_CLOSURE)
        self._in_turn = bool(self._unread)
        return self._in_turn

    def _take(self, piece: bytes) -> None:
        self._unread_bytes -= len(piece)
        for message in self._reader.feed(piece):
            if type(message) is not bytes:
                self._control(message)
            elif not self._deaf:
                self._receive(message)
        if self._paused and self._unread_bytes <= UNREAD_MAX_BYTES // 2 and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _ask_for_a_turn(self) -> None:
        if not self._in_turn:
            self._in_turn = True
            self._turns.add(self)

    def _control(self, message: object) -> None:
        match message:
            case Binary() if not self._deaf:
                self._receive(message)
            case Ping(payload) if not self._deaf:
                self._write(frame(WSMsgType.PONG, payload))
            case Close(code):
                if not self._deaf:  # else it answers ours
                    self._write(frame(WSMsgType.CLOSE, b"" if code == NO_STATUS else code.to_bytes(2, "big")))
                self._end(code)
            case Broken(code):
                self._tell(code)
            case Binary() | Ping() | Pong():
                pass

    def _end(self, code: int) -> None:
        """The peer has closed, or is gone: nothing need be said to it any more."""
        self._pulse.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        self._tell(code)

    def _tell(self, code: int) -> None:
        if not self._deaf:
            self._deaf = True
            self._lost(code)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    # ---- is the peer alive? ------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Ping a peer that has been silent for a heartbeat."""
        silent_s = self._time() - self._heard_at
        if self._unread or silent_s < self._heartbeat_s:
            self._pulse = asyncio.get_running_loop().call_later(self._heartbeat_s - silent_s, self._listen)
            return
        self._write(frame(WSMsgType.PING, b""))
        self._pulse = asyncio.get_running_loop().call_later(self._heartbeat_s / 2, self._give_up, self._heard_at)

    def _give_up(self, heard_at: float) -> None:
        """Take a peer for gone that has not answered the ping."""
        if self._heard_at == heard_at:
            self._transport.abort()
            self._end(WSCloseCode.ABNORMAL_CLOSURE)
        else:
            self._listen()


async def upgrade(
    request: web.Request,
    turns: Turns,
    receive: Callable[[bytes | Binary], None],
    lost: Callable[[int], None],
    *,
    message_max_bytes: int,
    heartbeat_s: float,
) -> tuple[web.StreamResponse, Link]:
    """Answer the handshake of `request`. Returns what its handler must return in the end, and the open socket.

    Raises HandshakeError for a request that is no handshake, and ConnectionError if the peer is gone already. A peer
    that is silent for `heartbeat_s` is pinged, and taken for gone when it does not answer in half of that.
    """
    accept = accept_of(request.headers.get("Sec-WebSocket-Key", ""))
    if "upgrade" not in request.headers.get("Connection", "").lower():
        raise HandshakeError("there is no Connection: Upgrade")
    if request.headers.get("Sec-WebSocket-Version") != VERSION:
        raise HandshakeError(f"the version is not {VERSION}")
    if accept is None:
        raise HandshakeError("there is no Sec-WebSocket-Key")
    headers = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Accept": accept}
    response = web.StreamResponse(status=101, headers=headers)
    response.force_close()
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the connection is lost")
    link = Link(transport, turns, receive, lost, message_max_bytes=message_max_bytes, heartbeat_s=heartbeat_s)
    # aiohttp hands an upgraded connection's bytes to whatever has feed_data and feed_eof; its own reader is one.
    parser: Any = link
    request.protocol.set_parser(parser)
    return response, link
