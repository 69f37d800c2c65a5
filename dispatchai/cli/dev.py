"""`dispatchai dev`: runs the system on this machine, behind a tunnel through which Telnyx reaches the gateway.

Decides which tunnel program runs and how its public URL is found; the tunnel ends with the run. `up` runs the
processes and `doctor` checks the URLs. Behind the tunnel is a port of the gateway that serves webhooks and media alone:
neither its health page and metrics nor the dispatchers' page can be reached from outside.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, Final, NoReturn, Protocol

import aiohttp
import orjson

from dispatchai.cli.doctor import Result, Verdict, check_media, check_webhook
from dispatchai.cli.errors import CliError
from dispatchai.cli.up import Say, UpError, up
from dispatchai.gateway.app import MEDIA_PATH, WEBHOOK_PATH
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.child import Child, ChildError
from dispatchai.settings import Settings, Verification

NGROK_API: Final = "127.0.0.1:4040"
"""Where ngrok's agent serves its API unless its log names another address, as it does when the port is taken."""

URL_TIMEOUT_S: Final = 30.0
"""How long a tunnel may take to get a URL: it takes some seconds, most of them at the provider."""

API_POLL_S: Final = 0.1
"""Pause between two requests to ngrok's API, which does not announce a new tunnel."""

REACHED_TIMEOUT_S: Final = 30.0
"""How long the URL may take to work from outside: the name of a new quick tunnel has to spread in the DNS first."""

REACHED_POLL_S: Final = 1.0
"""Pause between two requests through the tunnel: providers limit the rate of requests."""

GRACE_S: Final = 3.0
"""Seconds from SIGTERM to SIGKILL of the tunnel, which has nothing to save."""

KEPT_LINES: Final = 15
"""Lines of the tunnel's output that are shown when it fails."""

_CLOUDFLARED_URL: Final = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com")
"""A quick tunnel's URL in cloudflared's log. The name `api` is the provider's own and appears in error lines."""

_INSTALL: Final = (
    "install ngrok (https://ngrok.com/download, then `ngrok config add-authtoken ...`) "
    "or cloudflared (https://developers.cloudflare.com/cloudflare-one/connections/connect-networks/downloads/)"
)


class TunnelError(CliError):
    """There is no tunnel. The message says why and what to do."""


class Provider(StrEnum):
    """The supported tunnel programs, by the name of their executable. The first one that is installed is used."""

    NGROK = "ngrok"
    CLOUDFLARED = "cloudflared"


class Tunnel(Protocol):
    """A tunnel program: how it is started, and how its URL is found."""

    def command(self, program: str, port: int) -> list[str]:
        """The command that makes `port` of the loopback address public."""
        ...

    def line(self, text: str) -> None:
        """Take one line of its output."""
        ...

    async def url(self, port: int) -> str:
        """Wait for the public URL, ``https://`` and a host."""
        ...


class Ngrok:
    """ngrok's agent. Source: ngrok documentation, "Agent API", GET /api/tunnels."""

    def __init__(self) -> None:
        self._api = NGROK_API

    def command(self, program: str, port: int) -> list[str]:
        """See `Tunnel.command`. The log on standard output replaces the screen that it would draw."""
        return [program, "http", f"127.0.0.1:{port}", "--log", "stdout", "--log-format", "json"]

    def line(self, text: str) -> None:
        """Take the API's address from the line that names it."""
        try:
            entry: Any = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        match entry:
            case {"obj": "web", "addr": str() as address}:
                self._api = address

    async def url(self, port: int) -> str:
        """See `Tunnel.url`. Skips tunnels of other agents, which lead to other ports."""
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                for tunnel in await self._tunnels(http):
                    match tunnel:
                        case {"public_url": str() as url, "config": {"addr": str() as address}} if url.startswith(
                            "https://"
                        ) and address.rstrip("/").endswith(f":{port}"):
                            return url.rstrip("/")
                await asyncio.sleep(API_POLL_S)

    async def _tunnels(self, http: aiohttp.ClientSession) -> list[Any]:
        try:
            async with http.get(f"http://{self._api}/api/tunnels") as reply:
                answer: Any = orjson.loads(await reply.read())
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return []
        match answer:
            case {"tunnels": list() as tunnels}:
                return tunnels
            case _:
                return []


class Cloudflared:
    """Cloudflare's quick tunnel, without an account. Source: Cloudflare documentation, "TryCloudflare"."""

    def __init__(self) -> None:
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def command(self, program: str, port: int) -> list[str]:
        """See `Tunnel.command`. Ignores the user's own config.yml, whose rules would take the requests."""
        local = f"http://127.0.0.1:{port}"
        return [program, "tunnel", "--config", os.devnull, "--no-autoupdate", "--url", local]

    def line(self, text: str) -> None:
        """Take the URL from the line that names it."""
        if not self._url.done() and (found := _CLOUDFLARED_URL.search(text)):
            self._url.set_result(found[0])

    async def url(self, port: int) -> str:
        """See `Tunnel.url`."""
        return await self._url


def find(wanted: Provider | None = None) -> tuple[Provider, str]:
    """The tunnel program to use, and its path. Raises TunnelError if none is installed."""
    for provider in Provider if wanted is None else (wanted,):
        if program := shutil.which(provider):
            return provider, program
    missing = "neither ngrok nor cloudflared is" if wanted is None else f"{wanted} is not"
    raise TunnelError(f"{missing} installed: {_INSTALL}")


@asynccontextmanager
async def tunnel(port: int, wanted: Provider | None = None) -> AsyncIterator[tuple[str, Child]]:
    """A tunnel to `port` of the loopback address, open while the block runs: its public URL and its process.

    Raises TunnelError.
    """
    provider, program = find(wanted)
    kind: Tunnel = Ngrok() if provider is Provider.NGROK else Cloudflared()
    output: deque[str] = deque(maxlen=KEPT_LINES)

    def line(text: str) -> None:
        output.append(text)
        kind.line(text)

    child = Child(kind.command(program, port), on_line=line, grace_s=GRACE_S)
    try:
        await child.start()
    except ChildError as error:
        raise TunnelError(f"{provider} cannot be started: {error}") from error
    try:
        yield await _url(kind, port, provider, child, output), child
    finally:
        await child.stop()


async def _url(kind: Tunnel, port: int, provider: Provider, child: Child, output: deque[str]) -> str:
    """The tunnel's URL. Raises TunnelError if the program ends or reports no URL in time."""
    url = asyncio.create_task(kind.url(port))
    ended = asyncio.create_task(child.wait())
    try:
        await asyncio.wait([url, ended], timeout=URL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if url.done():
            return url.result()
        what = f"ended with code {ended.result()}" if ended.done() else f"reported no URL in {URL_TIMEOUT_S:g} s"
        raise TunnelError("\n".join([f"{provider} {what}. Its last lines:", *output]))
    finally:
        url.cancel()
        ended.cancel()
        await asyncio.gather(url, ended, return_exceptions=True)


async def dev(settings: Settings, say: Say, wanted: Provider | None = None) -> NoReturn:
    """Run the system behind a tunnel until cancelled. Raises CliError when it may not or cannot run."""
    if settings.webhook_verification is Verification.OFF:
        raise CliError("WEBHOOK_VERIFICATION=off is not allowed behind a tunnel: the gateway is public")
    port = settings.gateway_tunnel_port or free_port()
    async with tunnel(port, wanted) as (url, child):
        public = _public(url, port)
        async with up(public, say) as running:
            watched = {
                asyncio.create_task(child.wait()): "the tunnel ended and its URL is gone: start again",
                asyncio.create_task(running.failure()): None,
            }
            introducing = asyncio.create_task(_introduce(public, say))
            try:
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                (task, *_) = done
                raise UpError(watched[task] or str(task.result()))
            finally:
                for task in (introducing, *watched):
                    task.cancel()
                await asyncio.gather(introducing, *watched, return_exceptions=True)


def _public(url: str, port: int) -> Settings:
    """The settings with the tunnel's URL and local port, which the processes read from the environment."""
    os.environ["GATEWAY_TUNNEL_PORT"] = str(port)
    os.environ["HTTP_PUBLIC_URL"] = url
    os.environ["WS_PUBLIC_URL"] = f"wss://{url.removeprefix('https://')}{MEDIA_PATH}"
    return Settings()


async def _introduce(settings: Settings, say: Say) -> None:
    """Print what to enter into the Portal, and whether the URL works from outside."""
    say("")
    say(f"webhook URL for the Portal   {settings.http_public_url}{WEBHOOK_PATH}")
    say(f"media (sent to Telnyx)       {settings.ws_public_url}")
    say("Portal: Call Control, Applications, your application, Webhook URL; API v2, POST. Then call your number.")
    if settings.carrier_is_simulated:
        say("TELNYX_API_KEY is not set: calls from Telnyx are not answered. Set it and TELNYX_PUBLIC_KEY in .env.")
    say("Ctrl-C stops everything")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8.0)) as http:
        webhook = await _until_reached(lambda: check_webhook(http, settings))
        media = await _until_reached(lambda: check_media(http, settings))
    for result in (webhook, media):
        say(f"{result.verdict}  {result.check}: {result.seen}{f' -> {result.todo}' if result.todo else ''}")


async def _until_reached(check: Callable[[], Awaitable[Result]]) -> Result:
    """The first result that is not a failure, or the last one."""
    result = await check()
    try:
        async with asyncio.timeout(REACHED_TIMEOUT_S):
            while result.verdict is Verdict.FAIL:
                await asyncio.sleep(REACHED_POLL_S)
                result = await check()
    except TimeoutError:
        pass
    return result
