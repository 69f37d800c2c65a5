"""`POST /api/v1/call/incoming`: the carrier's webhooks become records of `call-events`.

Decides the answer, which tells the carrier whether to send the webhook again: 200 after Kafka acknowledged the record,
503 when it did not, 4xx only for what no retry can make right. Does not look for duplicates: a redelivered webhook may
be stored again, and consumers deduplicate by event id. Leaves what an event means to the calls agent.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from aiohttp.web import RequestPayloadError

from dispatchai.gateway.config import GatewayConfig
from dispatchai.gateway.error_responses import error_response
from dispatchai.gateway.errors import GatewayError
from dispatchai.gateway.kafka_writer import KafkaUnavailableError, Outbox
from dispatchai.gateway.metrics import GatewayMetrics, WebhookOutcome
from dispatchai.kafka.dead_letters import body_headers
from dispatchai.kafka.topics import Topic
from dispatchai.records import CallEvent, Micros, encode
from dispatchai.telnyx.signatures import Refusal, SignatureError
from dispatchai.telnyx.webhooks import EnvelopeError, Webhook, parse_webhook

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETRY_AFTER_S: Final = 1
"""What a 503 asks the carrier to wait: its own first retry comes about as soon."""

_HINTS: Final = {
    Refusal.NOT_CONFIGURED: "set TELNYX_PUBLIC_KEY (Portal, Keys, Public Key) or TELNYX_WEBHOOK_SECRET; to try things "
    "out on one machine, WEBHOOK_VERIFICATION=off",
    Refusal.MISSING: "send telnyx-signature-ed25519 with telnyx-timestamp, or telnyx-signature-sha256",
    Refusal.MALFORMED: "telnyx-signature-ed25519 is the base64 of 64 bytes, telnyx-timestamp is in unix seconds, "
    "telnyx-signature-sha256 is 64 hex digits; each comes once",
    Refusal.STALE: "telnyx-timestamp is too far from this machine's time: check both clocks",
    Refusal.WRONG: "sign the raw bytes of the body; compare TELNYX_PUBLIC_KEY with the Portal's",
}


class BodyTooLargeError(GatewayError):
    """The body is longer than allowed."""


class Webhooks:
    """The handler of webhooks. `outbox` stores, `config` says what is believed and how large a body may be."""

    def __init__(self, config: GatewayConfig, outbox: Outbox, metrics: GatewayMetrics) -> None:
        self._config = config
        self._outbox = outbox
        self._metrics = metrics

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one webhook."""
        received_at = self._config.clock()
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                body = await _read(request, self._config.webhook_max_bytes)
        except TimeoutError:
            self._metrics.webhooks[WebhookOutcome.TOO_SLOW] += 1
            return error_response(408, "too_slow", "the body did not come in time", "send the webhook again")
        except (ConnectionError, RequestPayloadError, PayloadEncodingError):
            self._metrics.webhooks[WebhookOutcome.CUT_OFF] += 1
            return error_response(408, "cut_off", "the body is not whole", "send the webhook again")
        except BodyTooLargeError:
            self._metrics.webhooks[WebhookOutcome.TOO_LARGE] += 1
            limit = self._config.webhook_max_bytes
            return error_response(413, "too_large", f"the body is longer than {limit} bytes", "see WEBHOOK_MAX_BYTES")
        if self._config.verify_webhooks:
            try:
                self._config.verifier.verify(request.headers, body, received_at / 1_000_000)
            except SignatureError as error:
                return self._refuse(error.refusal)
        try:
            return await self._store(body, received_at)
        except KafkaUnavailableError as error:
            self._metrics.webhooks[WebhookOutcome.UNAVAILABLE] += 1
            log.error("webhook not stored", reason=str(error))
            return _try_again("unavailable", "the event could not be stored", "send the webhook again")

    def _refuse(self, refusal: Refusal) -> web.Response:
        self._metrics.webhooks[WebhookOutcome.REFUSED] += 1
        self._metrics.refusals[refusal] += 1
        log.warning("webhook refused", reason=refusal.value)
        if refusal is Refusal.STALE:
            # It is the carrier's own, and may be refused for a wrong clock of ours. Telnyx gives up at 401.
            return _try_again(f"signature_{refusal.value}", "the webhook's signature", _HINTS[refusal])
        return error_response(401, f"signature_{refusal.value}", "the webhook's signature", _HINTS[refusal])

    async def _store(self, body: bytes, received_at: Micros) -> web.Response:
        try:
            webhook = parse_webhook(body)
        except EnvelopeError as error:
            await self._outbox.publish(
                Topic.DEAD_LETTERS,
                error.best_known_id.encode() or None,
                body,
                body_headers("webhook", reader="gateway", error=error),
            )
            self._metrics.webhooks[WebhookOutcome.DEAD_LETTERED] += 1
            log.warning("webhook unusable, kept in dead-letters", reason=str(error))
            return error_response(400, "unusable", str(error), "kept in dead-letters; sending it again cannot help")
        event = call_event(webhook, received_at, body)
        await self._outbox.publish(Topic.CALL_EVENTS, webhook.call_id.encode(), encode(event))
        self._metrics.webhooks[WebhookOutcome.STORED] += 1
        log.info("webhook stored", type=webhook.type, call_id=webhook.call_id, attempt=webhook.attempt)
        return web.json_response({"result": "stored"})


def _try_again(code: str, message: str, hint: str) -> web.Response:
    """An answer after which the carrier sends the webhook again."""
    response = error_response(503, code, message, hint)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def call_event(webhook: Webhook, received_at: Micros, body: bytes) -> CallEvent:
    """The record of a webhook. It happened when it was received, where the carrier gave no time."""
    return CallEvent(
        event_id=webhook.event_id,
        type=webhook.type,
        occurred_at=received_at if webhook.occurred_at is None else webhook.occurred_at,
        received_at=received_at,
        call_control_id=webhook.call_control_id,
        from_number=webhook.from_number,
        to_number=webhook.to_number,
        attempt=webhook.attempt,
        payload=body,
    )


async def _read(request: web.Request, max_bytes: int) -> bytes:
    """The raw body. Raises BodyTooLargeError as soon as it is known to be longer than `max_bytes`."""
    if (request.content_length or 0) > max_bytes:
        raise BodyTooLargeError
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError
    return bytes(body)
