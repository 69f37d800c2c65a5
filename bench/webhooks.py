"""How long the carrier waits for the answer to a webhook: `python -m bench.webhooks --rate 300 --seconds 20 [--write]`.

Senders post signed webhooks one after the other, each at its own pace or without a pause. The gateway is a process of
its own and answers 200 when a real broker acknowledged the event. Reported: the time from request to answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench import command
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.telnyx import signatures
from tests.support.gateway_process import gateway
from tests.support.kafka.measured import broker
from tests.support.report import machine, quantile, table

EVENT_TYPES: Final = ("call.initiated", "call.answered", "streaming.started", "call.speak.ended", "call.hangup")
_PARTS: Final = (0.5, 0.99, 1.0)


@dataclass(slots=True)
class Result:
    """The result of one run: milliseconds of each answer, and how often each status came."""

    senders: int
    rate: float
    seconds: float
    answers_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    cpu_s: float = 0.0


def webhook(call_id: str, event_type: str) -> bytes:
    """An event as the carrier sends it, about 1 kB."""
    payload = {
        "call_control_id": f"v3:{call_id}",
        "call_leg_id": str(uuid.uuid4()),
        "call_session_id": call_id,
        "connection_id": "2963572552552678752",
        "client_state": None,
        "direction": "incoming",
        "state": "parked",
        "from": "+15551234567",
        "to": "+15559876543",
        "start_time": "2026-05-19T23:30:15.038431Z",
        "connection_codecs": "PCMU,PCMA,G729",
        "offered_codecs": "AMR-WB~OCTET-ALIGN=0; MODE-SET=0,16000H,1,0CH,PCMU,G729" * 6,
    }
    data = {
        "record_type": "event",
        "event_type": event_type,
        "id": str(uuid.uuid4()),
        "occurred_at": "2026-05-19T23:30:15.038431Z",
        "payload": payload,
    }
    return orjson.dumps({"data": data, "meta": {"attempt": 1, "delivered_to": "https://example.com"}})


async def _sender(http: aiohttp.ClientSession, key: Ed25519PrivateKey, number: int, result: Result) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    interval_s = result.senders / result.rate if result.rate else 0.0
    sent = 0
    while (now := loop.time()) < begun + result.seconds:
        # The senders send in turn, so that the rate is even.
        due = begun + interval_s * (sent + number / result.senders)
        if due > now:
            await asyncio.sleep(due - now)
        body = webhook(f"bench-{number}-{sent // len(EVENT_TYPES)}", EVENT_TYPES[sent % len(EVENT_TYPES)])
        headers = signatures.sign(key, body, int(time.time()))
        asked = time.perf_counter()
        async with http.post(WEBHOOK_PATH, data=body, headers=headers) as response:
            await response.read()
        result.answers_ms.append((time.perf_counter() - asked) * 1000)
        result.statuses[response.status] += 1
        sent += 1


async def measure(senders: int, rate: float, seconds: float, *, apache: bool) -> Result:
    """Post webhooks for `seconds` from `senders` at once, `rate` a second in all; 0: as fast as they are answered."""
    key = Ed25519PrivateKey.generate()
    public_key = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    result = Result(senders, rate, seconds)
    async with broker(apache=apache) as kafka, gateway(kafka.connection, public_key) as running:
        url, connector = f"http://127.0.0.1:{running.port}", aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            before = running.used()
            await asyncio.gather(*(_sender(http, key, number, result) for number in range(senders)))
            result.cpu_s = running.used().cpu_s - before.cpu_s
    return result


def _text(results: list[Result], kafka: str) -> str:
    rows = [
        [
            str(result.senders),
            f"{result.rate:,.0f}" if result.rate else "all it takes",
            f"{len(result.answers_ms) / result.seconds:,.0f}",
            *(f"{quantile(result.answers_ms, part):.1f}" for part in _PARTS),
            ", ".join(f"{count} × {status}" for status, count in sorted(result.statuses.items())),
            f"{result.cpu_s / len(result.answers_ms) * 1e6:.0f}",
        ]
        for result in results
    ]
    header = ["senders", "asked for/s", "answered/s", "p50 ms", "p99 ms", "max ms", "answers", "µs a webhook"]
    return "\n".join(
        [
            "## Webhooks",
            "",
            f"`python -m bench.webhooks`: signed webhooks of 1 kB over loopback, each answered after {kafka} has "
            f"acknowledged it. Load generator and broker run on the same machine ({machine()}).",
            "",
            table(header, rows),
        ]
    )


async def _measure(arguments: argparse.Namespace) -> str:
    results = [
        await measure(arguments.senders, rate, arguments.seconds, apache=arguments.apache) for rate in arguments.rate
    ]
    return _text(results, "Apache Kafka" if arguments.apache else "the embedded broker")


def main() -> None:
    """Command line."""
    parser = command.parser("bench.webhooks", __doc__)
    parser.add_argument("--senders", type=int, default=32, help="webhooks that wait for an answer at most")
    parser.add_argument("--rate", type=float, nargs="+", default=[100, 300, 0], help="webhooks a second; 0: no pause")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each rate is tried")
    command.run("bench.webhooks", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
