"""How many live media sockets one gateway carries: `python -m bench.media --sockets 800 --seconds 20 [--write]`.

Each socket sends a frame of 160 bytes every 20 ms, as the carrier does, spread over the 20 ms. The gateway is a
process of its own and writes to a real broker. Reported is its processor time for each message that it took.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
import orjson

from bench import command
from dispatchai.telnyx import stream_tokens
from tests.support.gateway_process import STREAM_SECRET, Running, gateway
from tests.support.kafka.measured import broker
from tests.support.processes import rounds
from tests.support.report import machine, table

FRAME_S: Final = 0.02
_PAYLOAD: Final = bytes(range(160))
_CONNECT_AT_ONCE: Final = 50
_SLICES: Final = 20
"""The sockets send in this many groups, 1 ms apart."""


@dataclass(slots=True)
class Result:
    """The result of one run. `cpu_s` is the gateway's, while `messages` were sent."""

    sockets: int
    messages: int
    behind: int
    """Frames that were sent more than one frame late. If there are many, the load generator is the limit."""
    seconds: float
    cpu_s: float
    resident_mb: float
    counts: dict[str, int]

    @property
    def us_per_message(self) -> float:
        """Processor time of one message: socket, checks, Avro, Kafka."""
        return self.cpu_s / self.messages * 1e6


class _Carrier(asyncio.Protocol):
    """One media socket of the carrier. Reads nothing after the handshake, so the gateway's pings stay unanswered."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = b""

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        self._answer += data
        if b"\r\n\r\n" in self._answer:
            if self._answer.startswith(b"HTTP/1.1 101"):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(RuntimeError(self._answer.split(b"\r\n")[0].decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


def _frame(text: str) -> bytes:
    """A text message as a client sends it (RFC 6455). The mask is 0, so that all sockets can send the same bytes."""
    payload = text.encode()
    if len(payload) >= 126:
        return struct.pack("!BBHI", 0x81, 0x80 | 126, len(payload), 0) + payload
    return struct.pack("!BBI", 0x81, 0x80 | len(payload), 0) + payload


def call_of(number: int) -> tuple[str, str]:
    """Id and leg of the call on the socket `number`."""
    return f"bench-{number}", f"v3:bench-{number}"


async def connect(port: int, sockets: int) -> list[asyncio.Transport]:
    """Open `sockets` media sockets at the gateway's `port`, and start a stream on each."""
    streams: list[asyncio.Transport] = []
    for first in range(0, sockets, _CONNECT_AT_ONCE):
        numbers = range(first, min(first + _CONNECT_AT_ONCE, sockets))
        streams += await asyncio.gather(*(_connect(port, number) for number in numbers))
    return streams


async def _connect(port: int, number: int) -> asyncio.Transport:
    call_id, leg = call_of(number)
    token = stream_tokens.issue(STREAM_SECRET.encode(), stream_tokens.Subject(leg, call_id), int(time.time()) + 3600)
    transport, carrier = await asyncio.get_running_loop().create_connection(_Carrier, "127.0.0.1", port)
    handshake = (
        "GET /ws HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(number.to_bytes(16)).decode()}",
        f"{stream_tokens.HEADER}: {token}",
        "",
        "",
    )
    transport.write("\r\n".join(handshake).encode())
    await carrier.opened
    media_format = {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}
    start = {"call_session_id": call_id, "call_control_id": leg, "media_format": media_format}
    opened = {"event": "start", "sequence_number": "1", "stream_id": f"stream-{number}", "start": start}
    transport.write(_frame(orjson.dumps(opened).decode()))
    return transport


@dataclass(slots=True)
class Sending:
    """Sends frames to all sockets in turn, one each in FRAME_S; they repeat `payloads`, from different places."""

    sockets: Sequence[asyncio.Transport]
    payloads: Sequence[bytes] = (_PAYLOAD,)
    begun: float = 0.0
    """By the clock of the event loop."""
    messages: int = 0
    behind: int = 0
    """How many of the messages were more than one frame late."""

    def due(self, number: int, chunk: int) -> float:
        """When the socket `number` is to send `chunk`, from 1, by the clock of the event loop."""
        size = self._slice_size
        return self.begun + FRAME_S * (chunk - 1 + number // size * size / len(self.sockets))

    @property
    def _slice_size(self) -> int:
        return max(1, len(self.sockets) // _SLICES)

    async def run(self, seconds: float) -> None:
        """Send for `seconds`."""
        self.begun = asyncio.get_running_loop().time()
        encoded = [base64.b64encode(payload).decode() for payload in self.payloads]
        # Each slice begins at another place: callers do not all raise their voices at once.
        apart = max(1, len(encoded) // _SLICES)
        for chunk in range(1, int(seconds / FRAME_S) + 1):
            await self._send(chunk, encoded, apart)

    async def _send(self, chunk: int, payloads: Sequence[str], apart: int) -> None:
        loop = asyncio.get_running_loop()
        for number, start in enumerate(range(0, len(self.sockets), self._slice_size)):
            payload = payloads[(chunk - 1 + number * apart) % len(payloads)]
            frame = _frame(
                f'{{"event":"media","sequence_number":"{chunk + 1}","stream_id":"32DE0DEA-53A1-4BD4-8A96-3C4E0A5B8B1E",'
                f'"media":{{"track":"inbound","chunk":"{chunk}","timestamp":"{20 * chunk}","payload":"{payload}"}}}}'
            )
            wait = self.due(start, chunk) - loop.time()
            await asyncio.sleep(max(wait, 0))
            part = self.sockets[start : start + self._slice_size]
            if wait < -FRAME_S:
                self.behind += len(part)
            self.messages += len(part)
            for socket in part:
                socket.write(frame)


async def _counts(http: aiohttp.ClientSession) -> dict[str, int]:
    async with http.get("/health/live") as response:
        metrics: dict[str, int] = (await response.json())["metrics"]
        return metrics


async def measure(running: Running, sockets: int, seconds: float) -> Result:
    """Run `sockets` streams for `seconds` against a gateway."""
    streams = await connect(running.port, sockets)
    sending = Sending(streams)
    before, begun = running.used(), time.monotonic()
    await sending.run(seconds)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as http:
        # The health page gives no notice of changes. Each answer comes after everything that was sent before it was
        # read; then Kafka has to acknowledge.
        async for _ in rounds(FRAME_S):
            counts = await _counts(http)
            if counts["frames"] == sending.messages and not counts["records_waiting"]:
                break
    after, took = running.used(), time.monotonic() - begun
    cpu_s, resident = after.cpu_s - before.cpu_s, after.memory_bytes / 2**20
    for stream in streams:
        stream.abort()
    return Result(sockets, sending.messages, sending.behind, took, cpu_s, resident, counts)


def _text(results: list[Result], kafka: str) -> str:
    rows = [
        [
            str(result.sockets),
            f"{result.messages / result.seconds:,.0f}",
            f"{result.us_per_message:.1f}",
            f"{result.cpu_s / result.seconds:.2f}",
            f"{1e6 / result.us_per_message / 50:,.0f}",
            f"{result.resident_mb:.0f}",
            str(result.counts["frames_dropped"]),
            str(result.behind),
        ]
        for result in results
    ]
    header = ["sockets", "messages/s", "µs a message", "cores", "sockets a core", "MiB", "dropped", "sent late"]
    return "\n".join(
        [
            "## Media sockets",
            "",
            f"`python -m bench.media`: sockets that send 50 frames/s each, validated, put in order, Avro-encoded and "
            f"acknowledged by {kafka}. Time is the gateway's; load generator and broker run on the same machine "
            f"({machine()}).",
            "",
            table(header, rows),
        ]
    )


async def _measure(arguments: argparse.Namespace) -> str:
    results = []
    for sockets in arguments.sockets:
        async with broker(apache=arguments.apache) as kafka, gateway(kafka.connection) as running:
            results.append(await measure(running, sockets, arguments.seconds))
    return _text(results, kafka.name)


def main() -> None:
    """Command line."""
    parser = command.parser("bench.media", __doc__)
    parser.add_argument("--sockets", type=int, nargs="+", default=[200, 400, 800], help="numbers of sockets to try")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each number is tried")
    command.run("bench.media", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
