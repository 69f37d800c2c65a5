"""A gateway on a free port of loopback, the carrier's side of it, and a reader of its records in Kafka."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatchai.gateway.app import METRICS, create_app, http_server
from dispatchai.gateway.config import GatewayConfig
from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.records import AudioFrame, FrameKind, decode_as
from dispatchai.telnyx import signatures, stream_tokens
from dispatchai.telnyx.signatures import WebhookVerifier

KEY = Ed25519PrivateKey.generate()
SECRET = "the proxy's secret"
STREAM_SECRET = b"the stream tokens' secret"
TOLERANCE_S = 300


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway and a client of it."""

    http: aiohttp.ClientSession
    metrics: GatewayMetrics
    address: tuple[str, int]

    async def webhook(self, body: bytes, headers: dict[str, str] | None = None, *, slash: str = "") -> tuple[int, Any]:
        """POST `body`, signed as the carrier does unless `headers` are given. Returns status and JSON."""
        headers = signatures.sign(KEY, body, int(time.time())) if headers is None else headers
        async with self.http.post(f"/api/v1/call/incoming{slash}", data=body, headers=headers) as response:
            return response.status, await response.json()

    def media(self, call_id: str, *, token: str | None = None) -> Any:
        """Open a media socket as the carrier does for the leg of `call_id`."""
        token = stream_token(call_id) if token is None else token
        return self.http.ws_connect("/ws", headers={stream_tokens.HEADER: token} if token else {})


@asynccontextmanager
async def running_gateway(
    connection: KafkaConnection, *, until_ready: bool = True, connections_max: int = 1000, **options: Any
) -> AsyncIterator[Gateway]:
    """A gateway that accepts signatures by KEY and SECRET; `options` are fields of its configuration."""
    known: dict[str, Any] = {
        "verifier": WebhookVerifier((KEY.public_key(),), SECRET.encode(), TOLERANCE_S),
        "stream_secret": STREAM_SECRET,
        # The carrier's limit of 2 s is too short for a busy machine that runs tests.
        "ack_timeout_s": 20.0,
    }
    producer = AIOKafkaProducer(**connection.producer_options(), linger_ms=5, max_batch_size=262_144)
    await producer.start()
    try:
        app = create_app(GatewayConfig(**(known | options)), producer)
        server = http_server(app, connections_max=connections_max)
        await server.start()
        address = await server.listen("127.0.0.1", 0)
        async with aiohttp.ClientSession(f"http://{address[0]}:{address[1]}") as http:
            try:
                # Until the gateway knows the topics it refuses everything; the tests begin after that.
                async with asyncio.timeout(30):
                    while until_ready and (await http.get("/health/ready")).status != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                yield Gateway(http, app[METRICS], address)
            finally:
                # The carrier's connections are still open when the gateway stops.
                await server.stop()
    finally:
        await producer.stop()


def new_call() -> str:
    """A call id that no other test has."""
    return f"call-{uuid.uuid4()}"


def control_id(call_id: str) -> str:
    """The control id of the one leg of `call_id`."""
    return f"v3:{call_id}"


def stream_token(call_id: str, *, secret: bytes = STREAM_SECRET, valid_s: int = 60) -> str:
    """The token of the one leg of `call_id`."""
    return stream_tokens.issue(secret, stream_tokens.Subject(control_id(call_id), call_id), int(time.time()) + valid_s)


def event(call_id: str | None, **changes: Any) -> dict[str, Any]:
    """A call.initiated as the carrier sends it; `changes` replace fields of `data`."""
    payload = {"from": "+15551234567", "to": "+15559876543", "direction": "incoming", "state": "parked"}
    if call_id is not None:
        payload |= {"call_session_id": call_id, "call_control_id": control_id(call_id)}
    data = {
        "record_type": "event",
        "event_type": "call.initiated",
        "id": str(uuid.uuid4()),
        "occurred_at": "2026-05-19T23:30:15.038431Z",
        "payload": payload,
    }
    return {"data": data | changes, "meta": {"attempt": 1}}


def hmac_headers(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """The header by which a proxy signs `body`."""
    return {signatures.HMAC_HEADER: hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def occurred(ago_s: float = 0.0) -> str:
    """The carrier's text for the time `ago_s` seconds ago."""
    return datetime.fromtimestamp(time.time() - ago_s, UTC).isoformat().replace("+00:00", "Z")


def start(call_id: str, *, stream_id: str = "stream-1", media_format: Any = None, **changes: Any) -> str:
    """The start message; `media_format=False` omits the format."""
    fields: dict[str, Any] = {"call_session_id": call_id, "call_control_id": control_id(call_id)}
    if media_format is not False:
        fields["media_format"] = media_format or {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}
    return text({"event": "start", "sequence_number": "1", "stream_id": stream_id, "start": fields | changes})


def media(chunk: int, payload: bytes | None = None, *, track: str = "inbound") -> str:
    """One frame: 160 bytes that hold its number, unless `payload` is given."""
    audio = chunk.to_bytes(4, "big") * 40 if payload is None else payload
    return text(
        {
            "event": "media",
            "sequence_number": str(chunk + 1),
            "stream_id": "stream-1",
            "media": {
                "track": track,
                "chunk": str(chunk),
                "timestamp": str(20 * chunk),
                "payload": base64.b64encode(audio).decode(),
            },
        }
    )


STOP = '{"event":"stop","sequence_number":"99","stream_id":"stream-1","stop":{"user_id":"u"}}'
CONNECTED = '{"event":"connected","version":"1.0.0"}'


def text(message: Any) -> str:
    return orjson.dumps(message).decode()


async def records_of(
    connection: KafkaConnection, topic: str, key: str, done: Callable[[Sequence[ConsumerRecord]], bool]
) -> list[ConsumerRecord]:
    """The records with `key` on `topic`, as soon as `done` accepts them.

    The test's own time limit ends a wait for records that never come.
    """
    consumer = AIOKafkaConsumer(**connection.client_options(), enable_auto_commit=False, fetch_max_wait_ms=20)
    await consumer.start()
    try:
        partitions = {TopicPartition(topic, number) for number in range(8)}
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[ConsumerRecord] = []
        while not done(found):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [record for record in records if record.key == key.encode()]
        return found
    finally:
        await consumer.stop()


async def frames_of(connection: KafkaConnection, call_id: str, *, ends: int = 1) -> list[AudioFrame]:
    """The records of a call on `audio-frames`, up to the END of its last stream."""

    def ended(records: Sequence[ConsumerRecord]) -> bool:
        return sum(decode_as(AudioFrame, record.value).kind == "END" for record in records) >= ends

    records = await records_of(connection, "audio-frames", call_id, ended)
    return [decode_as(AudioFrame, record.value) for record in records]


def outline(frames: Sequence[AudioFrame]) -> list[str]:
    """Frames in short: START, the sequence of each frame, END:sequence:detail."""
    return [
        {
            FrameKind.START: "START",
            FrameKind.FRAME: str(frame.sequence),
            FrameKind.END: f"END:{frame.sequence}:{frame.detail}",
        }[frame.kind]
        for frame in frames
    ]
