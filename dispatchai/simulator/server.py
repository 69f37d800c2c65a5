"""The simulated carrier: serves call control over HTTP on loopback and places calls to one gateway.

Decides who may send commands and which call they are for; the call decides the rest. Each call has one asyncio task and
a few short-lived helper tasks; there are no threads.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import web

from dispatchai.process.http_server import HttpServer
from dispatchai.simulator import commands
from dispatchai.simulator.account import SimulatedAccount
from dispatchai.simulator.call import CallReport, Progress, SimulatedCall, Timing
from dispatchai.simulator.command_handler import Obeyed, Refused, Reply, Unanswered
from dispatchai.simulator.commands import ApiError
from dispatchai.simulator.errors import SimulatorError
from dispatchai.simulator.faults import NO_FAULTS, Faults
from dispatchai.simulator.messages import HangupSource, Leg
from dispatchai.simulator.pacer import Pacer
from dispatchai.simulator.recording import CallerAudio
from dispatchai.simulator.webhooks import WebhookPolicy, WebhookSender

HOST: Final = "127.0.0.1"

BODY_MAX_BYTES: Final = 65_536
"""The largest body of a command. The longest speak payload has 3,000 characters, the longest token 4,000."""

ENDED_CALLS_KEPT: Final = 10_000
"""Number of ended calls that still answer with 90018; older ones are unknown."""

CLOSE_S: Final = 5.0
"""How long the calls have for their last events when the carrier stops."""

SHUTDOWN_S: Final = 1.0
"""How long commands in flight may delay the stop: their calls have ended by then."""

UNKNOWN_LEG: Final = Leg.new("+15550100000", "+15550100000")
"""Stands for another call's leg if there is no other call."""


class PortTakenError(SimulatorError):
    """The port is in use. The message says what to do."""


class PlacedCall:
    """A call that was placed. It goes on until the carrier stops, even if nobody waits for it."""

    def __init__(self, leg: Leg, task: asyncio.Task[CallReport], hang_up: Callable[[], None]) -> None:
        self.leg = leg
        self._task = task
        self._hang_up = hang_up

    async def finished(self) -> CallReport:
        """The report, once the call has ended and its events are delivered or given up."""
        return await asyncio.shield(self._task)

    def hang_up(self) -> None:
        """Hang up as the caller. Has no effect on a call that has ended."""
        self._hang_up()


class SimulatedCarrier:
    """Acts as Telnyx for one gateway. Use it with `async with`: on exit it hangs up all calls and waits for them."""

    def __init__(
        self,
        account: SimulatedAccount,
        port: int,
        gateway_url: str,
        *,
        timing: Timing | None = None,
        webhooks: WebhookPolicy | None = None,
        faults: Faults = NO_FAULTS,
        host: str = HOST,
    ) -> None:
        """Commands are served at `host` and `port`; `port` 0 selects a free one. `gateway_url` is such as ``http://127.0.0.1:8000``."""
        self._account = account
        self._host = host
        self._port = port
        self._gateway_url = gateway_url
        self._timing = timing or Timing()
        self._webhooks = webhooks or WebhookPolicy()
        self._faults = faults
        self._pacer = Pacer()
        self._calls: dict[str, SimulatedCall] = {}
        self._tasks: dict[str, asyncio.Task[CallReport]] = {}
        self._placed = 0
        self._http: aiohttp.ClientSession | None = None
        self._server: HttpServer | None = None

    @property
    def port(self) -> int:
        """The port for commands."""
        return self._port

    @property
    def api_url(self) -> str:
        """The TELNYX_API_URL of this carrier."""
        return f"http://{self._host}:{self._port}/v2"

    async def __aenter__(self) -> Self:
        """Start to serve. Raises PortTakenError."""
        application = web.Application(client_max_size=BODY_MAX_BYTES)
        application.router.add_post("/v2/calls/{call_control_id}/actions/{action}", self._command)
        server = HttpServer(application, grace_s=SHUTDOWN_S)
        await server.start()
        try:
            _, self._port = await server.listen(self._host, self._port)
        except OSError as error:
            await server.stop()
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortTakenError(
                f"port {self._port} is in use: another `dispatchai call` is running. "
                "Wait for it, or give all files to one command."
            ) from None
        self._server = server
        # No limit of connections: one call's events must not wait for another's at a slow gateway.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [task for task in self._tasks.values() if not task.done()]
        for call in self._calls.values():
            call.hang_up(HangupSource.CALLER)
        if running:
            _, late = await asyncio.wait(running, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        if self._server is not None:
            await self._server.stop()

    def place_call(
        self,
        audio: CallerAudio,
        from_number: str,
        to_number: str,
        observer: Callable[[Progress], None] = lambda progress: None,
        *,
        faults: Faults | None = None,
    ) -> PlacedCall:
        """Start a call in which the caller says `audio`. `observer` gets each change and each second of speech.

        `faults` replaces the carrier's faults for this call.
        """
        if self._http is None:
            raise RuntimeError("the carrier does not serve yet: use `async with` first")
        leg = Leg.new(from_number, to_number)
        call_faults = self._faults if faults is None else faults
        call = SimulatedCall(
            self._placed,
            leg,
            audio,
            WebhookSender(self._http, self._account, self._gateway_url, self._webhooks, call_faults),
            self._pacer,
            timing=self._timing,
            faults=call_faults,
            other_leg=lambda: self._other_leg(leg),
            observer=observer,
        )
        self._placed += 1
        self._discard_oldest()
        task = asyncio.create_task(call.run(), name=f"call-{leg.call_session_id}")
        self._calls[leg.call_control_id] = call
        self._tasks[leg.call_control_id] = task
        return PlacedCall(leg, task, lambda: call.hang_up(HangupSource.CALLER))

    def _discard_oldest(self) -> None:
        excess = len(self._calls) - ENDED_CALLS_KEPT
        if excess > 0:
            for control_id in [known for known, task in self._tasks.items() if task.done()][:excess]:
                del self._calls[control_id], self._tasks[control_id]

    def _other_leg(self, leg: Leg) -> Leg:
        """The leg of the newest other call in progress."""
        live = (known for known, task in reversed(self._tasks.items()) if not task.done())
        return next((self._calls[known].leg for known in live if known != leg.call_control_id), UNKNOWN_LEG)

    async def _command(self, request: web.Request) -> web.Response:
        reply = await self._obey(
            request.headers.get("authorization", ""),
            request.match_info["call_control_id"],
            request.match_info["action"],
            await request.read(),
        )
        match reply:
            case Obeyed():
                return web.Response(body=b'{"data":{"result":"ok"}}', content_type="application/json")
            case Refused(error):
                return web.Response(
                    status=error.status, body=error.body(), headers=error.headers, content_type="application/json"
                )
            case Unanswered():
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()

    async def _obey(self, authorization: str, control_id: str, action: str, content: bytes) -> Reply:
        expected = f"Bearer {self._account.api_key}"
        if not hmac.compare_digest(authorization.encode(), expected.encode()):
            return Refused(commands.AUTHENTICATION_FAILED)
        call = self._calls.get(control_id)
        if call is None:
            return Refused(commands.NOT_FOUND)
        request = commands.parse(action, content)
        if isinstance(request, ApiError):
            return Refused(request)
        return await call.command_handler.handle(action, request)
