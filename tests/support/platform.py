"""The other side of the simulated carrier for tests: a small platform over real HTTP and WebSockets on loopback.

It verifies signatures, drives calls with the program's own call control and command client, records what it receives,
and serves final packets as the console does.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from aiohttp import WSMsgType, web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr

from dispatchai.calls.commands import step, with_token
from dispatchai.calls.config import CallControlConfig
from dispatchai.records.values import CallEvent, CallState
from dispatchai.telnyx.client import RetryPolicy, TelnyxClient
from dispatchai.telnyx.commands import Command, Outcome

CONFIG = CallControlConfig(
    stream_url="",
    greeting="Please describe your emergency.",
    greeting_voice="female",
    greeting_language="en-US",
    call_deadline_s=30,
    call_expiry_s=3600,
    call_longest_s=14_400,
)

FAST = RetryPolicy(first_delay_s=0.001, connect_s=1.0, total_s=2.0, budget_s=5.0)


SILENCE = 0
"""In `Platform.replies`: no answer until the carrier gives up the attempt."""
SILENCE_S = 0.5


@dataclass
class Webhook:
    """One delivery, with the status of its answer."""

    body: dict[str, Any]
    raw: bytes
    headers: dict[str, str]
    status: int

    @property
    def type(self) -> str:
        return str(self.body["data"]["event_type"])

    @property
    def payload(self) -> dict[str, Any]:
        return dict(self.body["data"]["payload"])


@dataclass
class Socket:
    """One media socket: its handshake's token, its messages and how it closed."""

    token: str | None
    messages: list[dict[str, Any]] = field(default_factory=list)
    close_code: int | None = None
    broken: int = 0
    """Messages that were not JSON."""

    @property
    def kinds(self) -> list[str]:
        return [message["event"] for message in self.messages]

    @property
    def media(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["event"] == "media"]

    @property
    def audio(self) -> bytes:
        """The caller's audio in order of arrival, as far as it can be decoded."""
        return b"".join(b64decode(message["media"]["payload"]) for message in self.media)


class Platform:
    """Use with `async with`; then `commands_to` names the carrier. The program's call control handles the events."""

    def __init__(self, public_key: str) -> None:
        self.webhooks: list[Webhook] = []
        self.sockets: list[Socket] = []
        self.outcomes: list[tuple[Command, Outcome]] = []
        self.replies: deque[int] = deque()
        """Statuses of the next webhooks; 200 when empty."""
        self.refuse_socket: deque[int] = deque()
        """Statuses that refuse the next sockets."""
        self.close_after: int | None = None
        """The platform closes the first socket after this many messages."""
        self.commands_for: Callable[[tuple[Command, ...]], tuple[Command, ...]] = lambda commands: commands
        """Changes the commands of call control before they are sent."""
        self.on_media: Callable[[Socket], None] = lambda socket: None
        self.packets: dict[str, dict[str, Any]] = {}
        self.url = ""
        self.client: TelnyxClient | None = None
        self._key = Ed25519PublicKey.from_public_bytes(b64decode(public_key))
        self._states: dict[str, CallState] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Event()
        self._clients: list[TelnyxClient] = []

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/api/v1/call/incoming", self._webhook)
        application.router.add_get("/ws", self._media)
        application.router.add_get("/health/live", self._live)
        application.router.add_get("/api/v1/calls/{call_id}", self._call)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def commands_to(self, api_url: str, api_key: str = "KEY-simulated") -> TelnyxClient:
        self.client = TelnyxClient(api_url, SecretStr(api_key), policy=FAST)
        self._clients.append(self.client)
        return self.client

    def in_background(self, command: Command) -> None:
        """Send `command` after the webhook's answer, as the program does."""
        task = asyncio.create_task(self._command(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`, which is called after each webhook and media message."""
        async with asyncio.timeout(10):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    def has_heard(self, frames: int) -> bool:
        """Whether the first socket has received this many frames."""
        return bool(self.sockets) and len(self.sockets[0].media) >= frames

    def types(self) -> list[str]:
        """Types of the accepted events, in order of arrival."""
        return [webhook.type for webhook in self.webhooks if webhook.status == 200]

    def last(self, kind: str) -> Webhook:
        return [webhook for webhook in self.webhooks if webhook.type == kind][-1]

    async def _command(self, command: Command) -> None:
        assert self.client is not None
        self.outcomes.append((command, await self.client.run(command)))

    async def _webhook(self, request: web.Request) -> web.Response:
        raw = await request.read()
        status = self.replies.popleft() if self.replies else 200
        if not self._is_signed(request, raw):
            status = 401
        webhook = Webhook(json.loads(raw), raw, {k.lower(): v for k, v in request.headers.items()}, status)
        self.webhooks.append(webhook)
        self._changed.set()
        if status == SILENCE:
            await asyncio.sleep(SILENCE_S)
            return web.Response()
        if status == 200 and self.client is not None:
            for command in self._commands(webhook):
                self.in_background(command)
        return web.Response(status=status)

    def _is_signed(self, request: web.Request, raw: bytes) -> bool:
        timestamp = request.headers.get("telnyx-timestamp", "0")
        if abs(int(timestamp) - time.time()) > 300:
            return False
        try:
            signature = b64decode(request.headers.get("telnyx-signature-ed25519", ""), validate=True)
            self._key.verify(signature, timestamp.encode() + b"|" + raw)
        except InvalidSignature:
            return False
        return True

    def _commands(self, webhook: Webhook) -> tuple[Command, ...]:
        data, payload = webhook.body["data"], webhook.payload
        moment = round(datetime.fromisoformat(data["occurred_at"]).timestamp() * 1_000_000)
        event = CallEvent(
            event_id=data["id"],
            type=data["event_type"],
            occurred_at=moment,
            received_at=moment,
            call_control_id=payload.get("call_control_id", ""),
            from_number=payload.get("from"),
            to_number=payload.get("to"),
            attempt=webhook.body["meta"]["attempt"],
            payload=webhook.raw,
        )
        call_id = payload["call_session_id"]
        config = CallControlConfig(
            **{**{name: getattr(CONFIG, name) for name in CONFIG.__slots__}, "stream_url": f"ws{self.url[4:]}/ws"}
        )
        state, commands = step(self._states.get(call_id), call_id, event, config)
        self._states[call_id] = state
        return self.commands_for(tuple(with_token(command, lambda control: f"token-{control}") for command in commands))

    async def _media(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_socket:
            return web.Response(status=self.refuse_socket.popleft())
        response = web.WebSocketResponse()
        await response.prepare(request)
        socket = Socket(request.headers.get("x-telnyx-streaming-auth-token"))
        self.sockets.append(socket)
        async for message in response:
            if message.type is not WSMsgType.TEXT:
                break
            try:
                socket.messages.append(json.loads(message.data))
            except ValueError:
                socket.broken += 1
                continue
            self._changed.set()
            self.on_media(socket)
            if len(socket.messages) == self.close_after:
                self.close_after = None
                await response.close()
        socket.close_code = response.close_code
        return response

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _call(self, request: web.Request) -> web.Response:
        call_id = request.match_info["call_id"]
        if call_id not in self._states:
            return web.json_response({"error": "unknown"}, status=404)
        packet = self.packets.get(call_id) or self.packets.get("*")
        over = any(w.type == "call.hangup" and w.payload["call_session_id"] == call_id for w in self.webhooks)
        if packet is None or not over:
            return web.json_response({"call_id": call_id, "status": "LIVE", "packet": None, "live": {}})
        return web.json_response(
            {"call_id": call_id, "status": "FINAL", "packet": {**packet, "call_id": call_id}, "live": None}
        )
