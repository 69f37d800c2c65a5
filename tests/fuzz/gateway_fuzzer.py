"""Throws broken input at the gateway: `python -m tests.fuzz --minutes 10`. Tests run the same checks for seconds.

Half of the time goes to the parsers alone, by the hundred thousand; half to a gateway in a process of its own over
loopback: webhooks with broken bodies and signatures, media sockets with broken messages, connections with garbage.
Decides what must hold: no unhandled exception, every bad input counted, flat memory. `inputs` makes the broken input.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from dispatchai.gateway.app import MEDIA_PATH, WEBHOOK_PATH
from dispatchai.gateway.media_stream import Stream, refusal_of
from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.gateway.webhooks import call_event
from dispatchai.records import AudioFrame, CallEvent, FrameKind, decode_as, encode
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.fields import identifier
from dispatchai.telnyx.media_messages import BadMessage, Media, Start, Stop, parse_media_message
from dispatchai.telnyx.signatures import SignatureError, WebhookVerifier
from dispatchai.telnyx.webhooks import EnvelopeError, parse_webhook
from tests.fuzz.inputs import (
    CALL,
    CONVERSATIONS,
    GARBAGE,
    INVENTED_TOKENS,
    LEG,
    WEBHOOKS,
    signature_headers,
    variations,
)
from tests.support.gateway_process import STREAM_SECRET, Running, gateway
from tests.support.kafka.measured import broker


class DoesNotHoldError(Exception):
    """The gateway broke a claim. Hypothesis prints the input."""


def _hold(claim: bool) -> None:
    if not claim:
        raise DoesNotHoldError


# ---- what must hold of the parsers -----------------------------------------------------------------------------------

RECEIVED_AT: Final = 1_779_233_415_038_431


def check_webhook(body: bytes) -> bool:
    """A body is an event that fits its record, or names no call. Returns whether it was an event."""
    try:
        webhook = parse_webhook(body)
    except EnvelopeError as error:
        _hold(error.best_known_id == "" or identifier(error.best_known_id) is not None)
        return False
    event = call_event(webhook, RECEIVED_AT, body)
    _hold(identifier(webhook.call_id) is not None)
    _hold(decode_as(CallEvent, encode(event)) == event)
    return True


def check_signature(verifier: WebhookVerifier, headers: dict[str, str], body: bytes, now_s: int) -> bool:
    """Verify `body`. Returns whether its signature is accepted."""
    try:
        verifier.verify(CIMultiDict(headers), body, now_s)
    except SignatureError:
        return False
    return True


def check_token(secret: bytes, text: str) -> bool:
    """Whether the invented token `text` is accepted, which must never happen."""
    return stream_tokens.verify(secret, text, 0) is not None


def check_conversation(messages: Sequence[bytes]) -> int:
    """After any messages, a stream's records are complete and in order. Returns the number of bad messages."""
    records: list[bytes] = []
    metrics = GatewayMetrics()
    stream: Stream | None = None
    bad = accepted = 0
    for now, message in enumerate(messages, 1):
        try:
            match parse_media_message(message):
                case Start() as start if stream is None:
                    if start.media_format is not None and refusal_of(start.media_format) is not None:
                        Stream("s", start.media_format, lambda record, *_: None, metrics, now).end("refused", now)
                        continue
                    stream = Stream("s", start.media_format, lambda record, *_: records.append(record), metrics, now)
                case Media() as media if stream is not None:
                    stream.receive(media, now)
                    accepted += 1
                    if stream.holds and now % 3 == 0:
                        stream.release()
                case Stop():
                    break
        except BadMessage:
            bad += 1
    if stream is not None:
        stream.end("stop", len(messages) + 1)
        frames = [decode_as(AudioFrame, record) for record in records]
        _hold([frame.kind for frame in frames].count(FrameKind.START) == 1)
        _hold((frames[0].kind, frames[-1].kind) == (FrameKind.START, FrameKind.END))
        numbers: dict[str, int] = {}
        for frame in frames[1:-1]:
            _hold(frame.sequence > numbers.get(frame.track, 0))
            numbers[frame.track] = frame.sequence
        _hold(metrics.frames == len(frames) - 2)
        _hold(metrics.frames + metrics.frames_duplicate + metrics.frames_late == accepted)
    return bad


def growth_bytes(check: Callable[[], object], rounds: int = 20) -> int:
    """The growth of memory over `rounds` runs of `check`, after the first runs have filled the caches."""
    for _ in range(3):
        check()
    tracemalloc.start()
    try:
        check()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(rounds):
            check()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


# ---- what must hold of a gateway -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sent:
    """The input sent to a gateway, and the counts that must follow."""

    webhooks: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    sockets: int = 0
    sockets_without_token: int = 0
    messages: int = 0
    bad_messages: int = 0
    connections: int = 0

    def differences(self, metrics: dict[str, Any]) -> list[str]:
        """The differences between the gateway's counts and the right ones; empty is good.

        Garbage may by chance be a request that is refused: it may add one to these counts, and nothing else.
        """
        webhooks = metrics["webhooks"]
        exact = {
            "webhooks stored": (webhooks.get("stored", 0), self.statuses[200]),
            "webhooks dead-lettered": (webhooks.get("dead_lettered", 0), self.statuses[400]),
            "sockets opened": (metrics["sockets_opened"], self.sockets),
            "bad messages": (sum(metrics["bad_messages"].values()), self.bad_messages),
            "internal errors": (metrics["internal_errors"], 0),
        }
        at_least = {
            "webhooks": (sum(webhooks.values()), self.webhooks),
            "signatures refused": (sum(metrics["refusals"].values()), self.statuses[401] + self.statuses[503]),
            "sockets refused": (metrics["sockets_refused"].get("token", 0), self.sockets_without_token),
        }
        wrong = {name: pair for name, pair in exact.items() if pair[0] != pair[1]}
        wrong |= {name: (is_, was) for name, (is_, was) in at_least.items() if not 0 <= is_ - was <= self.connections}
        return [f"{name}: counted {is_}, sent {was}" for name, (is_, was) in wrong.items()]


def bad_in(messages: Sequence[bytes], subject: stream_tokens.Subject) -> tuple[int, int]:
    """How many of a conversation's messages the gateway processes before it closes the socket, and how many are bad."""
    started = False
    bad = 0
    for taken, message in enumerate(messages, 1):
        try:
            match parse_media_message(message):
                case Start() as start if not started:
                    of_leg = start.call_control_id == subject.call_control_id
                    if not of_leg or start.call_session_id not in (None, subject.call_id):
                        return taken, bad
                    if start.media_format is not None and refusal_of(start.media_format) is not None:
                        return taken, bad
                    started = True
                case Start():
                    bad += 1
                case Media() if not started:
                    bad += 1
                case Stop():
                    return taken, bad
        except BadMessage:
            bad += 1
    return len(messages), bad


class Attacker:
    """Sends broken input to a gateway that accepts tokens made with `stream_secret`."""

    def __init__(self, http: aiohttp.ClientSession, address: tuple[str, int], stream_secret: bytes) -> None:
        self._http = http
        self._address = address
        self._stream_secret = stream_secret
        self._calls = 0
        self.sent = Sent()

    async def webhook(self, body: bytes, headers: dict[str, str]) -> int:
        """Post `body`. Returns the status."""
        async with self._http.post(WEBHOOK_PATH, data=body, headers=headers) as response:
            answer = await response.json()
            _hold(response.status in (200, 400, 401, 503))
            _hold(("error" in answer) == (response.status != 200))
            _hold(response.status != 503 or answer["error"]["code"] == "signature_stale")
            self.sent.webhooks += 1
            self.sent.statuses[response.status] += 1
            return response.status

    async def conversation(self, messages: Sequence[bytes]) -> None:
        """Open a media socket as the carrier does and send `messages`, as far as the gateway reads them."""
        self._calls += 1
        subject = stream_tokens.Subject(LEG, f"{CALL}-{self._calls}")
        own = [message.replace(f'"{CALL}"'.encode(), f'"{subject.call_id}"'.encode()) for message in messages]
        # A text message must be UTF-8. Other bytes need a binary message, which is always bad.
        sendable = [message for message in own if _is_text(message)]
        taken, bad = bad_in(sendable, subject)
        token = stream_tokens.issue(self._stream_secret, subject, int(time.time()) + 3600)
        async with self._http.ws_connect(MEDIA_PATH, headers={stream_tokens.HEADER: token}) as ws:
            self.sent.sockets += 1
            for message in sendable[:taken]:
                await ws.send_str(message.decode())
            await ws.close()
        self.sent.messages += taken
        self.sent.bad_messages += bad

    async def handshake(self, token: str) -> None:
        """Try to open a media socket with an invented token."""
        try:
            async with self._http.ws_connect(MEDIA_PATH, headers={stream_tokens.HEADER: token}):
                _hold(False)
        except aiohttp.WSServerHandshakeError as error:
            _hold(error.status == 403)
            self.sent.sockets_without_token += 1

    async def garbage(self, raw: bytes) -> None:
        """Write something other than HTTP to a connection, and wait until the gateway closes it."""
        reader, writer = await asyncio.open_connection(*self._address)
        self.sent.connections += 1
        try:
            writer.write(raw)
            writer.write_eof()
            await reader.read()
        except ConnectionError:
            return  # closed while bytes were still being written
        finally:
            writer.close()

    async def metrics(self) -> dict[str, Any]:
        """The gateway's counts."""
        async with self._http.get("/health/live") as response:
            counts: dict[str, Any] = (await response.json())["metrics"]
            return counts

    async def settled(self) -> dict[str, Any]:
        """The counts once the gateway has closed every socket."""
        counts = await self.metrics()
        # Each request makes the gateway's event loop run, which its sockets wait for.
        while counts["sockets_open"]:
            counts = await self.metrics()
        return counts


def _is_text(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- the long run ----------------------------------------------------------------------------------------------------

_EXAMPLES: Final = 500
_VARIATIONS: Final = 100
_SECRET: Final = b"the proxy's secret"
_WARM_UP: Final = 0.2
"""Fraction of the run after which the gateway's memory is first measured: by then its buffers have their size."""

GROWTH_LIMIT_MB: Final = 16.0
"""How much a gateway's memory may grow after the warm-up. A leak of 100 bytes for each input would be more."""

_QUICKLY: Final = settings(
    max_examples=_EXAMPLES,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def _until(end_s: float) -> Iterator[None]:
    while time.monotonic() < end_s:
        yield


def _fuzz_parsers(minutes: float) -> Counter[str]:
    key = Ed25519PrivateKey.generate()
    verifier = WebhookVerifier((key.public_key(),), _SECRET, 300)
    now_s = int(time.time())
    counts: Counter[str] = Counter()

    @_QUICKLY
    @given(WEBHOOKS, st.integers(0, 2**32))
    def webhooks(body: bytes, seed: int) -> None:
        for varied in (body, *variations(body, seed, _VARIATIONS)):
            counts["webhook bodies"] += 1
            counts["of them events"] += check_webhook(varied)

    @_QUICKLY
    @given(WEBHOOKS.flatmap(lambda body: st.tuples(signature_headers(key, _SECRET, body, now_s), st.just(body))))
    def signed(pair: tuple[dict[str, str], bytes]) -> None:
        counts["signature headers"] += 1
        counts["of them accepted"] += check_signature(verifier, *pair, now_s)

    @_QUICKLY
    @given(CONVERSATIONS, st.integers(0, 2**32))
    def conversations(messages: list[bytes], seed: int) -> None:
        varied = zip(*(variations(message, seed + n, _VARIATIONS) for n, message in enumerate(messages)), strict=True)
        for talk in (messages, *map(list, varied)):
            counts["media messages"] += len(talk)
            counts["of them bad"] += check_conversation(talk)

    @_QUICKLY
    @given(st.text())
    def invented(text: str) -> None:
        counts["tokens"] += 1
        _hold(not check_token(_SECRET, text))

    for _ in _until(time.monotonic() + minutes * 60):
        for target in (webhooks, signed, conversations, invented):
            target()
    return counts


async def _fuzz_gateway(minutes: float) -> tuple[Sent, list[str], float, float]:
    """Returns the input sent, the wrong counts, and the gateway's memory in MiB after the warm-up and at the end."""
    key = Ed25519PrivateKey.generate()
    public_key = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    async with broker(apache=False) as kafka, gateway(kafka.connection, public_key) as running:
        address = ("127.0.0.1", running.port)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as http:
            attacker = Attacker(http, address, STREAM_SECRET.encode())
            loop = asyncio.get_running_loop()
            memory = await asyncio.to_thread(_attack_for, loop, attacker, key, running, minutes)
            metrics = await attacker.settled()
    return attacker.sent, attacker.sent.differences(metrics), *memory


def attack(
    loop: asyncio.AbstractEventLoop, attacker: Attacker, key: Ed25519PrivateKey, secret: bytes, run: settings
) -> None:
    """Send each kind of broken input as often as `run` says. Runs in another thread than `loop`, which sends."""
    now_s = int(time.time())

    def wait_for(coroutine: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    @run
    @given(WEBHOOKS.flatmap(lambda body: st.tuples(st.just(body), signature_headers(key, secret, body, now_s))))
    def webhooks(pair: tuple[bytes, dict[str, str]]) -> None:
        wait_for(attacker.webhook(*pair))

    @run
    @given(CONVERSATIONS)
    def conversations(messages: list[bytes]) -> None:
        wait_for(attacker.conversation(messages))

    @run
    @given(INVENTED_TOKENS)
    def handshakes(token: str) -> None:
        wait_for(attacker.handshake(token))

    @run
    @given(GARBAGE)
    def garbage(raw: bytes) -> None:
        wait_for(attacker.garbage(raw))

    for target in (webhooks, conversations, handshakes, garbage):
        target()


def _attack_for(
    loop: asyncio.AbstractEventLoop, attacker: Attacker, key: Ed25519PrivateKey, running: Running, minutes: float
) -> tuple[float, float]:
    begun = time.monotonic()
    warm: float | None = None
    for _ in _until(begun + minutes * 60):
        attack(loop, attacker, key, _SECRET, _QUICKLY)
        if warm is None and time.monotonic() > begun + minutes * 60 * _WARM_UP:
            warm = running.used().memory_bytes / 2**20
    last = running.used().memory_bytes / 2**20
    return last if warm is None else warm, last


def main() -> None:
    """The command line. Exits with 1 if a claim is broken, and prints the input that broke it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, in all")
    minutes = parser.parse_args().minutes / 2
    for name, count in _fuzz_parsers(minutes).items():
        print(f"{name}: {count:,}", flush=True)
    sent, differences, warm_mb, last_mb = asyncio.run(_fuzz_gateway(minutes))
    print(f"webhooks sent: {sent.webhooks:,} ({dict(sorted(sent.statuses.items()))})")
    print(f"media sockets: {sent.sockets:,} with {sent.messages:,} messages, {sent.bad_messages:,} of them bad")
    print(f"handshakes with invented tokens: {sent.sockets_without_token:,}")
    print(f"connections with garbage: {sent.connections:,}")
    print(f"memory of the gateway: {warm_mb:.1f} MiB after the warm-up, {last_mb:.1f} MiB at the end")
    for difference in differences:
        print(f"counted wrong: {difference}")
    grown = last_mb - warm_mb > GROWTH_LIMIT_MB
    if grown:
        print(f"memory grew by more than {GROWTH_LIMIT_MB:.0f} MiB")
    if differences or grown:
        raise SystemExit(1)
