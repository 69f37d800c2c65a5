"""The client's end of a WebSocket, as far as the carrier's media streams need it: text out, control frames in.

Decides the bytes on the wire; `messages` decides what a message says. It is made for thousands of small messages a
second, and for what a library does not allow: a cut without a close frame, a message of any size. Source: RFC 6455.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import cache
from hashlib import sha1
from typing import Final, Self, cast

from yarl import URL

from dispatchai.simulator.errors import SimulatorError

HANDSHAKE_MAX_BYTES: Final = 16_384

MESSAGE_MAX_BYTES: Final = 1_048_576
"""The largest message of the platform: 30 s of audio in base64, the most that one message may carry, is 320 kB."""

CLOSE_S: Final = 2.0
"""How long the platform may take for its half of the closing handshake."""

FLUSH_S: Final = 1.0
"""How long a cut waits until the messages before it are written."""

NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
"""The codes that stand for a close without a code, and for a connection lost without a close. RFC 6455, 7.4.1."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL: Final = 0x80
_MASKED: Final = 0x80

_MASK: Final = bytes(4)
"""A client masks its messages so that a script in a browser cannot make them look like requests to a proxy (RFC 6455,
10.3). Here no script chooses the messages, and with a key of zeros the payload needs no change."""


class _Opcode(IntEnum):
    TEXT = 0x1
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class HandshakeError(SimulatorError):
    """The socket was not opened. The message says why, and quotes nothing of the request, which holds the token."""


class ClientSocket(asyncio.Protocol):
    """One socket. Made by `connect`, ended by `close` or `cut`; `on_lost` is called once if it ends otherwise."""

    def __init__(self, request: bytes, accept: bytes, on_lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._accept = accept
        self._on_lost = on_lost
        self._opened: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self._open = False
        self._close_code: int | None = None

    @classmethod
    async def connect(cls, url: str, headers: Mapping[str, str], on_lost: Callable[[], None]) -> Self:
        """An open socket to `url` (ws or wss). Raises HandshakeError, OSError, or ValueError for an invalid URL."""
        target = URL(url)
        if target.scheme not in ("ws", "wss") or target.host is None or target.port is None:
            raise ValueError("this is not the URL of a WebSocket")
        key = b64encode(os.urandom(16))
        authority = f"[{target.host}]" if ":" in target.host else target.host
        lines = [
            f"GET {target.raw_path_qs} HTTP/1.1",
            f"Host: {authority}:{target.port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        accept = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
        _, socket = await asyncio.get_running_loop().create_connection(
            lambda: cls(request, accept, on_lost),
            target.host,
            target.port,
            ssl=_tls() if target.scheme == "wss" else None,
        )
        try:
            await socket._opened
        except BaseException:
            socket._abort()
            raise
        return socket

    @property
    def is_open(self) -> bool:
        """False once either side has ended the socket, or the connection broke."""
        return self._open

    @property
    def is_ready(self) -> bool:
        """False while the platform reads more slowly than it is sent to."""
        return self._writable.is_set()

    @property
    def close_code(self) -> int:
        """The code with which the platform closed; NO_STATUS if it gave none, ABNORMAL if it did not close."""
        return ABNORMAL if self._close_code is None else self._close_code

    def send(self, message: bytes) -> None:
        """Send a text message. Does nothing if the socket is not open."""
        if self._open and self._transport is not None:
            self._transport.write(_frame(_Opcode.TEXT, message))

    async def ready(self) -> None:
        """Wait until the platform reads again, or the socket has ended."""
        await self._writable.wait()

    async def close(self) -> None:
        """Perform the closing handshake, without a code as the carrier does, and end the connection."""
        if self._open and self._transport is not None:
            self._open = False
            self._transport.write(_frame(_Opcode.CLOSE, b""))
            await self._until_gone(CLOSE_S)
        self._abort()

    async def cut(self) -> None:
        """End the connection without a close frame; the messages sent before still go out."""
        if self._transport is not None and self._open:
            self._open = False
            # Nothing more is written: at the buffer's low-water mark of 0, everything has reached the kernel.
            self._transport.set_write_buffer_limits(0)
            if self._transport.get_write_buffer_size():
                with suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._writable.wait()
        self._abort()

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._opened.done() or self._shake_hands():
            while self._take_frame():
                pass

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(HandshakeError("the media socket closed during the handshake"))
        self._writable.set()
        self._gone.set_result(None)
        self._lose()

    # Internal

    def _shake_hands(self) -> bool:
        """Read the platform's answer to the handshake once it is complete. Returns whether the socket is open."""
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not end:
            if len(head) > HANDSHAKE_MAX_BYTES:
                self._refuse("the media socket's handshake is too long")
            return False
        status, *lines = head.split(b"\r\n")
        parts = status.split(b" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            self._refuse("the media socket does not speak HTTP")
            return False
        if parts[1] != b"101":
            self._refuse(f"the media socket refused the handshake with {parts[1].decode()}")
            return False
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if fields.get(b"sec-websocket-accept") != self._accept:
            self._refuse("the media socket answered a different handshake")
            return False
        self._received = bytearray(rest)
        self._open = True
        self._opened.set_result(None)
        return True

    def _refuse(self, reason: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(HandshakeError(reason))
        self._abort()

    def _take_frame(self) -> bool:
        """Handle the first complete frame received, and ignore it if it is text. Returns whether there was one."""
        received = self._received
        if len(received) < 2:
            return False
        opcode, length, at = received[0] & 0x0F, received[1] & 0x7F, 2
        if length >= 126:
            at = 4 if length == 126 else 10
            if len(received) < at:
                return False
            length = int.from_bytes(received[2:at], "big")
        if received[1] & _MASKED or length > MESSAGE_MAX_BYTES:
            self._abort()
            return False
        if len(received) < at + length:
            return False
        payload = bytes(received[at : at + length])
        del received[: at + length]
        match opcode:
            case _Opcode.CLOSE:
                self._close_code = int.from_bytes(payload[:2], "big") if payload else NO_STATUS
                if self._open and self._transport is not None:
                    self._transport.write(_frame(_Opcode.CLOSE, payload[:2]))
                self._lose()
                if self._transport is not None:
                    self._transport.close()
            case _Opcode.PING if self._open and self._transport is not None:
                self._transport.write(_frame(_Opcode.PONG, payload))
        return True

    async def _until_gone(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._gone)

    def _lose(self) -> None:
        """The socket ended, and not by `close` or `cut`."""
        if self._open:
            self._open = False
            self._on_lost()

    def _abort(self) -> None:
        self._open = False
        if self._transport is not None:
            self._transport.abort()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _frame(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((_FINAL | opcode, _MASKED | length)) + _MASK + payload
    if length < 1 << 16:
        return b"%c\xfe%b%b%b" % (_FINAL | opcode, length.to_bytes(2, "big"), _MASK, payload)
    return b"%c\xff%b%b%b" % (_FINAL | opcode, length.to_bytes(8, "big"), _MASK, payload)
