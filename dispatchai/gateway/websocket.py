"""The server's end of a WebSocket as values: bytes in, messages out, frames to be sent. No I/O, no clock.

aiohttp's reader decides what is a message and what breaks the protocol, by RFC 6455. This module gives each a type;
`connection` decides when bytes are read. aiohttp's own WebSocketResponse is not used: it wakes a task and sets a timer
for each message, which costs more than everything that is done with a frame of audio.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue  # no public module has it; WebSocketReader requires one
from aiohttp.http import WS_KEY, WebSocketReader, WSMessageTextBytes

VERSION: Final = "13"

NO_STATUS: Final = 1005
"""Stands for the code of a close frame without one, as the carrier sends it after `stop`. RFC 6455, 7.4.1."""

REASON_MAX_BYTES: Final = 123
"""A control frame has at most 125 bytes, two of which are the code."""

_KEY_BYTES: Final = 16
_FINAL: Final = 0x80

_OWN_CODE_MAX: Final = 4999
"""The last of the codes for libraries and applications. RFC 6455, 7.4.2."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary message. Its content is not kept."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping, to be answered by a pong with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping, or an unsolicited heartbeat."""


@dataclass(frozen=True, slots=True)
class Close:
    """The peer closes; NO_STATUS where it gives no code. Nothing follows."""

    code: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the protocol: the socket must be closed with `code`. Nothing after it is read."""

    code: int


Received = bytes | Binary | Ping | Pong | Close | Broken
"""A text message as its bytes, or something else. The parser of the bytes checks that they are UTF-8."""


def accept_of(key: str) -> str | None:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key; None if the key is invalid."""
    try:
        if len(b64decode(key, validate=True)) != _KEY_BYTES:
            return None
    except (Base64Error, ValueError):
        return None
    return b64encode(sha1(key.encode() + WS_KEY, usedforsecurity=False).digest()).decode()


def frame(opcode: WSMsgType, payload: bytes) -> bytes:
    """A control frame of the server, which is not masked. `payload` has at most 125 bytes."""
    return bytes((_FINAL | opcode, len(payload))) + payload


def close_frame(code: int, reason: str) -> bytes:
    """The server's close frame. A reason above REASON_MAX_BYTES is cut."""
    text = reason.encode()[:REASON_MAX_BYTES].decode(errors="ignore").encode()
    return frame(WSMsgType.CLOSE, code.to_bytes(2, "big") + text)


class _MessageList(WebSocketDataQueue):
    """Holds the messages of aiohttp's reader until `MessageReader.feed`, in the same call, returns them.

    aiohttp's queue counts the bytes that wait in it, to pause the connection. Nothing waits in this one, so it needs
    neither connection nor loop.
    """

    def __init__(self) -> None:
        unused: Any = None
        super().__init__(unused, 0, loop=unused)
        self.messages: list[WSMessage | WSMessageTextBytes] = []

    def feed_data(self, data: WSMessage | WSMessageTextBytes, size: int) -> None:
        """Append one message. Called by aiohttp's reader."""
        self.messages.append(data)


class MessageReader:
    """Turns the bytes of one connection into messages. No message may have more than `max_bytes`; no more is held.

    No extension is offered, so a frame that uses one breaks the protocol. Unmasked frames are accepted: the mask guards
    proxies against scripts in browsers (RFC 6455, 10.3), and no call should be lost over it.
    """

    __slots__ = ("_ended", "_parsed", "_reader")

    def __init__(self, max_bytes: int) -> None:
        self._parsed = _MessageList()
        # aiohttp's limit is the first size that is too large.
        self._reader = WebSocketReader(self._parsed, max_bytes + 1, compress=False, decode_text=False)
        self._ended = False

    def feed(self, data: bytes) -> list[Received]:
        """The messages that `data` completes. Nothing is returned after a Close or Broken."""
        if self._ended:
            return []
        failed, _ = self._reader.feed_data(data)
        messages, self._parsed.messages = self._parsed.messages, []
        received: list[Received] = []
        for message in messages:
            if message.type is WSMsgType.TEXT:  # nearly every message
                received.append(message.data)
                continue
            received.append(_other(message))
            if message.type is WSMsgType.CLOSE:
                self._ended = True
                return received
        if failed:
            self._ended = True
            received.append(self._fault())
        return received

    def _fault(self) -> Broken:
        """How the peer broke the protocol. Raises RuntimeError if the reader failed for any other reason."""
        error = self._parsed.exception()
        if not isinstance(error, WebSocketError):
            raise RuntimeError("aiohttp's reader failed") from error
        return Broken(error.code)


def _other(message: WSMessage | WSMessageTextBytes) -> Received:
    """A message that is not text, as a value."""
    match message.type:
        case WSMsgType.BINARY:
            return Binary()
        case WSMsgType.PING:
            return Ping(bytes(message.data))
        case WSMsgType.PONG:
            return Pong()
        case WSMsgType.CLOSE:
            # aiohttp also accepts codes that no peer may send. 1006 stands for a lost connection here.
            if message.data == WSCloseCode.ABNORMAL_CLOSURE or message.data > _OWN_CODE_MAX:
                return Broken(WSCloseCode.PROTOCOL_ERROR)
            return Close(message.data or NO_STATUS)
    raise RuntimeError(f"aiohttp's reader made a message of type {message.type!r}")
