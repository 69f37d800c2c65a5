"""The server's end of a WebSocket as values: bytes in, messages out, frames to be sent. No I/O, no clock.

aiohttp's reader decides what is a message and what breaks the protocol, by RFC 6455. This decides what each is called
here, and leaves to `link` whose bytes they are, and when they are read. aiohttp's own socket has a task's wake-up and a
timer for each message besides, which is more than all that is done with a frame of audio.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue  # no public module has it; WebSocketReader asks for one
from aiohttp.http import WS_KEY, WebSocketReader, WSMessageTextBytes

VERSION: Final = "13"

NO_STATUS: Final = 1005
"""Code of a close frame without one, which is how the carrier closes after `stop`. RFC 6455, 7.4.1."""

REASON_MAX_BYTES: Final = 123
"""A control frame has 125 bytes at most, two of which are the code."""

_KEY_BYTES: Final = 16
_FINAL: Final = 0x80

_OWN_CODE_MAX: Final = 4999
"""The last of the codes that are left to libraries and applications. RFC 6455, 7.4.2."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary message; what is in it is of no account here."""


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered by a PONG with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping, or a sign of life without one."""


@dataclass(frozen=True, slots=True)
class Close:
    """The peer ends the conversation; NO_STATUS where it does not say why. Nothing follows."""

    code: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the protocol: the socket is to be closed with `code`. Nothing after it is read."""

    code: int


Received = bytes | Binary | Ping | Pong | Close | Broken
"""What came: a text message as its bytes, or something else. Whoever parses the bytes sees whether they are UTF-8."""


def accept_of(key: str) -> str | None:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key; None if it is none."""
    try:
        if len(b64decode(key, validate=True)) != _KEY_BYTES:
            return None
    except (Base64Error, ValueError):
        return None
    return b64encode(sha1(key.encode() + WS_KEY, usedforsecurity=False).digest()).decode()


def frame(opcode: WSMsgType, payload: bytes) -> bytes:
    """A control frame of the server, which is not masked. `payload` has 125 bytes at most."""
    return bytes((_FINAL | opcode, len(payload))) + payload


def close_frame(code: int, reason: str) -> bytes:
    """The server's close frame. A longer reason is cut."""
    text = reason.encode()[:REASON_MAX_BYTES].decode(errors="ignore").encode()
    return frame(WSMsgType.CLOSE, code.to_bytes(2, "big") + text)


class _Taken(WebSocketDataQueue):
    """Where aiohttp's reader puts messages until `MessageReader.feed` hands them out, before it returns.

    aiohttp's queue counts what waits in it, and pauses connection and reader. Nothing waits in this one, so it has no
    use for either.
    """

    def __init__(self) -> None:
        unused: Any = None
        super().__init__(unused, 0, loop=unused)
        self.messages: list[WSMessage | WSMessageTextBytes] = []

    def feed_data(self, data: WSMessage | WSMessageTextBytes, size: int) -> None:
        """Take one message. Called by aiohttp's reader."""
        self.messages.append(data)


class MessageReader:
    """Makes messages of the bytes of one connection. No message may have more than `max_bytes`; no more is held.

    No extension is offered, so whatever uses one breaks the protocol. Frames that are not masked are taken as well: the
    mask guards proxies against scripts in browsers (RFC 6455, 10.3), and no call is to be lost over it.
    """

    __slots__ = ("_ended", "_reader", "_taken")

    def __init__(self, max_bytes: int) -> None:
        self._taken = _Taken()
        # aiohttp's limit is the first size that is too much.
        self._reader = WebSocketReader(self._taken, max_bytes + 1, compress=False, decode_text=False)
        self._ended = False

    def feed(self, data: bytes) -> list[Received]:
        """The messages that are whole with `data`. None after a Close or Broken."""
        if self._ended:
            return []
        failed, _ = self._reader.feed_data(data)
        messages, self._taken.messages = self._taken.messages, []
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
        """How the peer broke the protocol. Raises RuntimeError if the reader failed over anything else."""
        error = self._taken.exception()
        if not isinstance(error, WebSocketError):
            raise RuntimeError("aiohttp's reader failed") from error
        return Broken(error.code)


def _other(message: WSMessage | WSMessageTextBytes) -> Received:
    """What is not text, as a value."""
    match message.type:
        case WSMsgType.BINARY:
            return Binary()
        case WSMsgType.PING:
            return Ping(bytes(message.data))
        case WSMsgType.PONG:
            return Pong()
        case WSMsgType.CLOSE:
            # aiohttp also takes codes that no peer may send. 1006 is how a lost connection is told here.
            if message.data == WSCloseCode.ABNORMAL_CLOSURE or message.data > _OWN_CODE_MAX:
                return Broken(WSCloseCode.PROTOCOL_ERROR)
            return Close(message.data or NO_STATUS)
    raise RuntimeError(f"aiohttp's reader made a message of type {message.type!r}")
