"""Delivers webhooks as Telnyx does: signed, and sent again if they are not answered within two seconds.

Decides what counts as delivered, what is retried and when, and how a faulty signature looks. `call` decides which
events exist.
Source: Telnyx, "Receiving webhooks" (2xx within 2000 ms; 408, 429, 5xx and no answer are retried, other 4xx not).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp

from dispatchai.simulator.account import SimulatedAccount
from dispatchai.simulator.faults import NO_FAULTS, Faults, SignatureFault
from dispatchai.simulator.messages import WebhookEvent

WEBHOOK_PATH: Final = "/api/v1/call/incoming"
STATUSES_RETRIED: Final = frozenset({408, 429})

STALE_S: Final = 3600
"""Age of a stale signature: far beyond the five minutes that Telnyx's own library allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicy:
    """The carrier's timeout and retries. Telnyx publishes no number of attempts; six cover a restart of the gateway."""

    timeout_s: float = 2.0
    attempts: int = 6
    first_delay_s: float = 0.5
    """Doubled after each attempt: .5, 1, 2, 4 and 8 s."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the delivery of an event ended. `status` is that of the last reply, None if there was none."""

    delivered: bool
    attempts: int
    status: int | None
    reason: str


class WebhookSender:
    """Sends the events of one call to one gateway. The HTTP session is the caller's."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        account: SimulatedAccount,
        gateway_url: str,
        policy: WebhookPolicy,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.answers_s: list[float] = []
        """Seconds that each answer of the gateway took, in order."""
        self._http = http
        self._account = account
        self._url = gateway_url.rstrip("/") + WEBHOOK_PATH
        self._policy = policy
        self._faults = faults

    async def attempt(self, event: WebhookEvent, number: int) -> Delivery | None:
        """Make delivery attempt `number`, from 1. Returns None if another attempt must follow."""
        status, reason = await self._post(event, number)
        if status is not None and 200 <= status < 300:
            return Delivery(True, number, status, reason)
        worth_another = status is None or status >= 500 or status in STATUSES_RETRIED
        if worth_another and number < self._policy.attempts:
            return None
        return Delivery(False, number, status, reason)

    async def retry(self, event: WebhookEvent) -> Delivery:
        """Make all attempts after the first, until one is final."""
        number = 1
        while True:
            await asyncio.sleep(self._policy.first_delay_s * 2 ** (number - 1))
            number += 1
            if (delivery := await self.attempt(event, number)) is not None:
                return delivery

    async def _post(self, event: WebhookEvent, number: int) -> tuple[int | None, str]:
        body = event.body(number, self._url)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": "telnyx-webhooks",
            **self._signature(body),
        }
        began = time.monotonic()
        try:
            async with self._http.post(
                self._url,
                data=self._stalling(body) if self._faults.webhook_stall_s else body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._policy.timeout_s),
                allow_redirects=False,
            ) as reply:
                self.answers_s.append(time.monotonic() - began)
                return reply.status, reply.reason or ""
        except TimeoutError:
            return None, f"no answer within {self._policy.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return None, type(error).__name__

    def _signature(self, body: bytes) -> dict[str, str]:
        now = round(time.time() + self._faults.clock_skew_s)
        fault = self._faults.signature
        timestamp = str(now - STALE_S if fault is SignatureFault.STALE else now)
        match fault:
            case SignatureFault.ABSENT:
                return {}
            case SignatureFault.FORGED:
                signature = SimulatedAccount.stranger().sign(timestamp, body)
            case SignatureFault.TRUNCATED:
                signature = self._account.sign(timestamp, body)[:-4]
            case SignatureFault.RIGHT | SignatureFault.STALE:
                signature = self._account.sign(timestamp, body)
        return {"telnyx-signature-ed25519": signature, "telnyx-timestamp": timestamp}

    async def _stalling(self, body: bytes) -> AsyncIterator[bytes]:
        half = len(body) // 2
        yield body[:half]
        await asyncio.sleep(self._faults.webhook_stall_s)
        yield body[half:]
