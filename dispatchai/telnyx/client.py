"""Sends commands to the carrier over HTTPS and reports how each ended.

Decides what is retried, how often and for how long, and what the carrier's errors mean. `calls.commands` decides which
command is sent when. The API key leaves this module only in the Authorization header.
Sources: Telnyx Voice API v2 (call-control commands, error codes, `command_id`); RFC 9110, section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import aiohttp
import orjson
import structlog
from pydantic import SecretStr
from yarl import URL

from dispatchai.settings import Settings
from dispatchai.telnyx.api_errors import (
    CODE_ALREADY_ENDED,
    CODE_ALREADY_STREAMING,
    CODES_CHANNEL_LIMIT,
    CODES_TOO_EARLY,
    parse_error,
)
from dispatchai.telnyx.commands import (
    AlreadyEnded,
    AlreadyStreaming,
    Command,
    Done,
    NotAnswered,
    Outcome,
    Rejected,
    Unavailable,
)
from dispatchai.telnyx.metrics import CommandCounts

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SIMULATED_API_KEY: Final = "KEY-simulated"
"""Sent to the simulated carrier, which runs on this machine and guards nothing."""

STATUSES_RETRIED: Final = frozenset({408, 429})
"""In addition to every 5xx."""

BODY_MAX_BYTES: Final = 65_536
"""A reply has some hundred bytes; the client reads no more than this."""

SHORTEST_TRY_S: Final = 0.05
"""The least timeout of a try, also at the very end of the budget: to aiohttp a timeout of 0 means none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long to try. The budget is far below the 60 s for which the carrier remembers a command_id."""

    attempts: int = 5
    budget_s: float = 10.0
    """From the first try to the end of the last. The caller hears ringing meanwhile."""
    connect_s: float = 2.0
    total_s: float = 5.0
    """Of one try. Replies take well under a second; five seconds cover a slow failover on the carrier's side."""
    first_delay_s: float = 0.2
    factor: float = 2.5
    """Waits of at most .2, .5, 1.25 and 3.1 s: about 5 s, half the budget. The other half is for the tries."""


@dataclass(frozen=True, slots=True)
class _Retry:
    """A try that failed and is worth another one. `wait_s` is set where the carrier asked for a wait."""

    reason: str
    wait_s: float | None = None


class TelnyxClient:
    """Sends any number of commands at a time over one connection pool. Use it with `async with`, or `close()` it."""

    def __init__(
        self,
        api_url: str,
        api_key: SecretStr,
        *,
        policy: RetryPolicy | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        """`api_url` such as ``https://api.telnyx.com/v2``. `jitter` spreads the waits; seed it to repeat them."""
        self._api_url = api_url.rstrip("/")
        self._api_key = api_key
        self._policy = policy or RetryPolicy()
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._http: aiohttp.ClientSession | None = None
        self._closed = False
        self.counts = CommandCounts()

    @classmethod
    def from_settings(cls, settings: Settings, *, carrier_port: int | None = None) -> Self:
        """The client for `settings`: of Telnyx, or of the simulated carrier on this machine where no API key is set.

        `carrier_port` overrides the simulated carrier's port of the settings.
        """
        if settings.carrier_is_simulated:
            port = settings.simulated_carrier_port if carrier_port is None else carrier_port
            return cls(f"http://127.0.0.1:{port}/v2", SecretStr(SIMULATED_API_KEY))
        return cls(settings.telnyx_api_url, settings.telnyx_api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Commands in flight end as Unavailable."""
        self._closed = True
        if self._http is not None:
            await self._http.close()

    async def run(self, command: Command) -> Outcome:
        """Send `command`, and retry where that helps. Each try has the same body, hence the same command_id.

        Ends within the policy's budget. Raises nothing but CancelledError.
        """
        outcome = await self._run(command)
        self.counts.outcomes[command.action, type(outcome).__name__] += 1
        return outcome

    async def _run(self, command: Command) -> Outcome:
        if command.call_control_id in (
            "",
            ".",
            "..",
        ):  # not a call's id; as a path segment it would name another resource
            return Rejected(0, "", "the command names no call")
        url = URL(
            f"{self._api_url}/calls/{quote(command.call_control_id, safe=':')}/actions/{command.action}", encoded=True
        )
        body = orjson.dumps(command.body())
        command_log = log.bind(action=command.action, call_control_id=command.call_control_id)
        policy = self._policy
        give_up_at = time.monotonic() + policy.budget_s
        attempt = 0
        while not self._closed:
            attempt += 1
            left_s = give_up_at - time.monotonic()
            tried = await self._try(url, body, attempt, min(policy.total_s, max(left_s, SHORTEST_TRY_S)))
            if not isinstance(tried, _Retry):
                return tried
            wait_s = tried.wait_s
            if wait_s is None:
                longest = policy.first_delay_s * policy.factor ** (attempt - 1)
                wait_s = longest * self._jitter.uniform(0.5, 1.0)
            if attempt >= policy.attempts or time.monotonic() + wait_s >= give_up_at:
                command_log.error("command_given_up", attempts=attempt, reason=tried.reason)
                return Unavailable(attempt, tried.reason, tried.wait_s)
            command_log.warning("command_retried", attempt=attempt, reason=tried.reason)
            self.counts.retries[command.action] += 1
            await asyncio.sleep(wait_s)
        return Unavailable(attempt, "the client is closed")

    async def _try(self, url: URL, body: bytes, attempt: int, total_s: float) -> Outcome | _Retry:
        try:
            async with self._session().post(
                url,
                data=body,
                headers={
                    "Authorization": f"Bearer {self._api_key.get_secret_value()}",
                    "Content-Type": "application/json",
                },
                timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=min(self._policy.connect_s, total_s)),
                allow_redirects=False,  # the key must reach the configured host only
            ) as reply:
                return _outcome_of(reply.status, reply.headers, await _read(reply), attempt)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            # Only the type: an exception's text may quote the request and with it the key.
            return _Retry(type(error).__name__)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self._http


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return body[:BODY_MAX_BYTES]
    return body


def _outcome_of(status: int, headers: Mapping[str, str], body: bytes, attempt: int) -> Outcome | _Retry:
    if 200 <= status < 300:
        return Done(attempt)
    error = parse_error(body)
    if error.code == CODE_ALREADY_ENDED:
        return AlreadyEnded()
    if error.code in CODES_TOO_EARLY:
        return NotAnswered()
    if error.code == CODE_ALREADY_STREAMING:
        return AlreadyStreaming()
    if status >= 500 or status in STATUSES_RETRIED or error.code in CODES_CHANNEL_LIMIT:
        return _Retry(f"{status} {error.code}".rstrip(), _requested_wait_s(headers))
    return Rejected(status, error.code, error.title)


def _requested_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds the carrier asks to wait, from `x-ratelimit-reset` (seconds) or `Retry-After` (seconds or a date)."""
    for name in ("x-ratelimit-reset", "retry-after"):
        value = headers.get(name, "").strip()
        if value.isdecimal():
            return float(value)
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
