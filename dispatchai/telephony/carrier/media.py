"""One media stream of the simulated carrier: the socket that it opens to the platform and what goes over it.

Decides how a stream opens, is noticed to be lost and ends. When each frame is due is the call's matter.
Source: Telnyx, media streaming over WebSockets (the carrier is the client).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, Self

import aiohttp

from dispatchai.telephony.carrier import messages
from dispatchai.telephony.carrier.commands import Stream
from dispatchai.telephony.carrier.messages import Leg

TOKEN_HEADER: Final = "x-telnyx-streaming-auth-token"  # noqa: S105 - the name of a header

CONNECT_S: Final = 5.0
CLOSE_S: Final = 2.0
"""How long the platform may take for its half of the closing handshake."""

MESSAGE_MAX_BYTES: Final = 1_048_576
"""Of what the platform sends: 30 s of audio in base64, the most that one message may carry, is 320 kB."""


class StreamRefusedError(Exception):
    """The media socket could not be opened. The message says why."""


class MediaStream:
    """An open stream. Its owner ends it with `stop` or `cut`."""

    def __init__(
        self, leg: Leg, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, lost: Callable[[], None]
    ) -> None:
        self.id = str(uuid.uuid4()).upper()
        self._leg = leg
        self._http = http
        self._socket = socket
        self._lost = lost
        self._open = True
        self._chunks = 0
        self._reader = asyncio.create_task(self._read(), name=f"media-reader-{self.id}")

    @classmethod
    async def open(cls, leg: Leg, wanted: Stream, client_state: str | None, lost: Callable[[], None]) -> Self:
        """A stream that has sent `connected` and `start`. Raises StreamRefusedError.

        `lost` is called once, when the platform closes the socket or it breaks.
        """
        # A session of its own: closing it cuts the connection without a closing handshake.
        http = aiohttp.ClientSession()
        headers = {TOKEN_HEADER: wanted.token} if wanted.token else {}
        try:
            async with asyncio.timeout(CONNECT_S):
                socket = await http.ws_connect(
                    wanted.url,
                    headers=headers,
                    max_msg_size=MESSAGE_MAX_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            await http.close()
            match error:
                case aiohttp.WSServerHandshakeError():
                    reason = f"the media socket refused the handshake with {error.status}"
                case TimeoutError():
                    reason = f"the media socket did not answer within {CONNECT_S:g} s"
                case _:  # not chained: the error of a handshake holds its headers and so the token
                    reason = f"the media socket could not be reached ({type(error).__name__})"
            raise StreamRefusedError(reason) from None
        except asyncio.CancelledError:
            await http.close()
            raise
        stream = cls(leg, http, socket, lost)
        await stream._send(messages.connected(wanted.token))
        await stream._send(messages.start(leg, stream.id, client_state, wanted.custom_parameters))
        return stream

    @property
    def is_open(self) -> bool:
        """False once the platform closed the socket or it broke."""
        return self._open

    async def send(self, chunk: int, payload: bytes) -> None:
        """Sends chunk `chunk` (from 1). Does nothing on a stream that is lost."""
        self._chunks = max(self._chunks, chunk)
        await self._send(messages.media(self.id, chunk, payload))

    async def stop(self, *, say_so: bool = True) -> None:
        """Ends the stream: `stop` (unless not `say_so`) and the closing handshake."""
        if say_so:
            await self._send(messages.stop(self._leg, self.id, self._chunks))
        await self._socket.close()
        await self.cut()

    async def cut(self) -> None:
        """Ends the connection as it is, without another word."""
        self._open = False
        await self._http.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _send(self, message: str) -> None:
        if not self._open:
            return
        try:
            await self._socket.send_str(message)
        except (ConnectionError, aiohttp.ClientError):
            self._close_noticed()

    async def _read(self) -> None:
        """Takes what the platform plays to the caller, who does not listen, until the socket closes."""
        async for _ in self._socket:
            pass
        self._close_noticed()

    def _close_noticed(self) -> None:
        if self._open:
            self._open = False
            self._lost()
