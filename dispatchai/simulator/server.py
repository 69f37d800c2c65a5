"""The simulated carrier: serves call control over HTTP on loopback and places calls to one gateway.

Decides who may command and which call is meant; the call itself decides the rest. One asyncio task a call and a few
short-lived helpers of it, no threads.
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
"""Of a command: the longest speak payload is 3,000 characters, the longest token 4,000."""

ENDED_CALLS_KEPT: Final = 10_000
"""Calls that are over and still get 90018 as answer; older ones are unknown."""

CLOSE_S: Final = 5.0
"""How long the calls have for their last events when the carrier closes."""

SHUTDOWN_S: Final = 1.0
"""How long commands under way may hold up the end: the calls that they were for are over by then."""

UNHEARD_OF: Final = Leg.new("+15550100000", "+15550100000")
"""The other call where there is none."""


class PortTakenError(SimulatorError):
    """The port is in use. The message says what to do."""


class PlacedCall:
    """A call that was placed. Waiting for it may be given up; the call goes on until the carrier closes."""

    def __init__(self, leg: Leg, task: asyncio.Task[CallReport], hang_up: Callable[[], None]) -> None:
        self.leg = leg
        self._task = task
        self._hang_up = hang_up

    async def finished(self) -> CallReport:
        """The report, once the call is over and its events are delivered or given up."""
        return await asyncio.shield(self._task)

    def hang_up(self) -> None:
        """The caller hangs up. Without effect on a call that is over."""
        self._hang_up()


class SimulatedCarrier:
    """Acts as Telnyx for one gateway. Use as `async with`: leaving it hangs up all calls and waits for their ends."""

    def __init__(
        self,
        account: SimulatedAccount,
        port: int,
        gateway_url: str,
        *,
        timing: Timing | None = None,
        webhooks: WebhookPolicy | None = None,
        faults: Faults = NO_FAULTS,
    ) -> None:
        """`port` 0 takes a free one. `gateway_url` such as ``http://127.0.0.1:8000``."""
        self._account = account
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
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that commands are served on."""
        return self._port

    @property
    def api_url(self) -> str:
        """What TELNYX_API_URL would be for this carrier."""
        return f"http://{HOST}:{self._port}/v2"

    async def __aenter__(self) -> Self:
        """Starts serving. Raises PortTakenError."""
        application = web.Application(client_max_size=BODY_MAX_BYTES)
        application.router.add_post("/v2/calls/{call_control_id}/actions/{action}", self._command)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, self._port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortTakenError(
                f"port {self._port} is in use: another `dispatchai call` is running. "
                "Wait for it, or give all files to one command."
            ) from None
        self._runner = runner
        self._port = runner.addresses[0][1]
        # No limit of connections: a slow gateway must not make one call's events wait for another's.
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
        if self._runner is not None:
            await self._runner.cleanup()

    def place_call(
        self,
        audio: CallerAudio,
        from_number: str,
        to_number: str,
        observer: Callable[[Progress], None] = lambda progress: None,
        *,
        faults: Faults | None = None,
    ) -> PlacedCall:
        """Starts a call, whose caller says `audio`. `observer` is told of each change and each second of speech.

        `faults` are this call's own instead of the carrier's.
        """
        if self._http is None:
            raise RuntimeError("the carrier is not serving: enter it first")
        leg = Leg.new(from_number, to_number)
        line = self._faults if faults is None else faults
        call = SimulatedCall(
            self._placed,
            leg,
            audio,
            WebhookSender(self._http, self._account, self._gateway_url, self._webhooks, line),
            self._pacer,
            timing=self._timing,
            line=line,
            other_leg=lambda: self._another_than(leg),
            observer=observer,
        )
        self._placed += 1
        self._forget_oldest()
        task = asyncio.create_task(call.run(), name=f"call-{leg.call_session_id}")
        self._calls[leg.call_control_id] = call
        self._tasks[leg.call_control_id] = task
        return PlacedCall(leg, task, lambda: call.hang_up(HangupSource.CALLER))

    def _forget_oldest(self) -> None:
        excess = len(self._calls) - ENDED_CALLS_KEPT
        if excess > 0:
            for control_id in [known for known, task in self._tasks.items() if task.done()][:excess]:
                del self._calls[control_id], self._tasks[control_id]

    def _another_than(self, leg: Leg) -> Leg:
        """The newest call besides `leg`'s that is not over."""
        live = (known for known, task in reversed(self._tasks.items()) if not task.done())
        return next((self._calls[known].leg for known in live if known != leg.call_control_id), UNHEARD_OF)

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
        return await call.desk.take(action, request)
