"""Delivery of webhooks as Telnyx does it: signed, answered within two seconds or tried again.

Decides what counts as delivered, what is tried again and when. Which events there are is the call's matter.
Source: Telnyx, "Receiving webhooks" (2xx within 2000 ms; 408, 429, 5xx and no answer are retried, other 4xx not).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import aiohttp

from dispatchai.telephony.carrier.account import SimulatedAccount
from dispatchai.telephony.carrier.messages import WebhookEvent

WEBHOOK_PATH: Final = "/api/v1/call/incoming"
STATUSES_RETRIED: Final = frozenset({408, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicy:
    """The carrier's patience. Its number of attempts is not published; these cover a restart of the gateway."""

    timeout_s: float = 2.0
    attempts: int = 6
    first_delay_s: float = 0.5
    """Doubled after each attempt: .5, 1, 2, 4 and 8 s."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the delivery of an event ended. `status` is that of the last reply, None where there was none."""

    delivered: bool
    attempts: int
    status: int | None
    reason: str


class WebhookSender:
    """Sends events to one gateway. The HTTP session is the caller's."""

    def __init__(
        self, http: aiohttp.ClientSession, account: SimulatedAccount, gateway_url: str, policy: WebhookPolicy
    ) -> None:
        self._http = http
        self._account = account
        self._url = gateway_url.rstrip("/") + WEBHOOK_PATH
        self._policy = policy

    async def attempt(self, event: WebhookEvent, number: int) -> Delivery | None:
        """Delivery attempt `number` (from 1); None where another one is due, after `wait`."""
        status, reason = await self._post(event, number)
        if status is not None and 200 <= status < 300:
            return Delivery(True, number, status, reason)
        worth_another = status is None or status >= 500 or status in STATUSES_RETRIED
        if worth_another and number < self._policy.attempts:
            return None
        return Delivery(False, number, status, reason)

    async def retry(self, event: WebhookEvent) -> Delivery:
        """All attempts after the first, until one settles it."""
        number = 1
        while True:
            await asyncio.sleep(self._policy.first_delay_s * 2 ** (number - 1))
            number += 1
            if (delivery := await self.attempt(event, number)) is not None:
                return delivery

    async def _post(self, event: WebhookEvent, number: int) -> tuple[int | None, str]:
        body = event.body(number, self._url)
        timestamp = str(int(time.time()))
        try:
            async with self._http.post(
                self._url,
                data=body,
                headers={
                    "content-type": "application/json",
                    "user-agent": "telnyx-webhooks",
                    "telnyx-signature-ed25519": self._account.sign(timestamp, body),
                    "telnyx-timestamp": timestamp,
                },
                timeout=aiohttp.ClientTimeout(total=self._policy.timeout_s),
                allow_redirects=False,
            ) as reply:
                return reply.status, reply.reason or ""
        except TimeoutError:
            return None, f"no answer within {self._policy.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return None, type(error).__name__
