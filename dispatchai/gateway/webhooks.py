"""`POST /api/v1/call/incoming`: the carrier's webhooks become records of `call-events`.

Decides the answer, which determines whether the carrier sends the webhook again: 200 after Kafka acknowledged the
record, 503 when it did not, 4xx only for a webhook that no retry can make right. Does not look for duplicates: a
redelivered webhook may be stored again, and consumers deduplicate by event id. The calls agent decides what an event
means.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from aiohttp.web import RequestPayloadError

from dispatchai.gateway.config import GatewayConfig
from dispatchai.gateway.ended_legs import EndedLegs
from dispatchai.gateway.error_responses import error_response
from dispatchai.gateway.errors import GatewayError
from dispatchai.gateway.kafka_writer import KafkaUnavailableError, KafkaWriter
from dispatchai.gateway.metrics import GatewayMetrics, WebhookOutcome
from dispatchai.kafka.dead_letters import body_headers
from dispatchai.kafka.topics import Topic
from dispatchai.process.log_limit import LogLimits
from dispatchai.records import CallEvent, Micros, encode
from dispatchai.telnyx.signatures import Refusal, Scheme, SignatureError
from dispatchai.telnyx.webhooks import EnvelopeError, Webhook, WebhookType, parse_webhook

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETRY_AFTER_S: Final = 1
"""How long a 503 asks the carrier to wait: about as long as before its own first retry."""

_HINTS: Final = {
    Refusal.NOT_CONFIGURED: "set TELNYX_PUBLIC_KEY (Portal, Keys, Public Key) or TELNYX_WEBHOOK_SECRET; to try things "
    "out on one machine, WEBHOOK_VERIFICATION=off",
    Refusal.MISSING: "send telnyx-signature-ed25519 with telnyx-timestamp, or telnyx-signature-sha256",
    Refusal.MALFORMED: "telnyx-signature-ed25519 is the base64 of 64 bytes, telnyx-timestamp is in unix seconds, "
    "telnyx-signature-sha256 is 64 hex digits; send each once",
    Refusal.STALE: "telnyx-timestamp, or the event's time where HMAC signs it, is too far from this machine's time: "
    "check both clocks",
    Refusal.UNDATED: "with HMAC an event needs its time, occurred_at: sign with Ed25519, or pass the carrier's body on",
    Refusal.WRONG: "sign the raw bytes of the body; compare TELNYX_PUBLIC_KEY with the Portal's",
}


SMALL_BODY_BYTES: Final = 32_768
"""A body of this length is always read. The carrier's have a few kB."""

UNVERIFIED_MAX_BYTES: Final = 33_554_432
"""Bytes of bodies that are being read, after which only small ones are read on. Nobody has signed them yet."""


class BodyTooLargeError(GatewayError):
    """The body is longer than allowed."""


class TooManyBodiesError(GatewayError):
    """Other bodies take the memory that a large one needs."""


class Webhooks:
    """The handler of webhooks. `config` says which webhooks are accepted, and how large a body may be.

    Each leg that hangs up is added to `ended`.
    """

    def __init__(self, config: GatewayConfig, writer: KafkaWriter, metrics: GatewayMetrics, ended: EndedLegs) -> None:
        self._ended = ended
        self._config = config
        self._writer = writer
        self._metrics = metrics
        self._unverified_bytes = 0
        self._refused_log = LogLimits()
        self._not_stored_log = LogLimits()
        self._dead_letter_log = LogLimits()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one webhook."""
        received_at = self._config.clock()
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                body = await self._read(request, self._config.webhook_max_bytes)
        except TimeoutError:
            self._metrics.webhooks[WebhookOutcome.TOO_SLOW] += 1
            return error_response(408, "too_slow", "the body did not come in time", "send the webhook again")
        except (ConnectionError, RequestPayloadError, PayloadEncodingError):
            self._metrics.webhooks[WebhookOutcome.CUT_OFF] += 1
            return error_response(408, "cut_off", "the body is incomplete", "send the webhook again")
        except BodyTooLargeError:
            self._metrics.webhooks[WebhookOutcome.TOO_LARGE] += 1
            limit = self._config.webhook_max_bytes
            return error_response(413, "too_large", f"the body is longer than {limit} bytes", "see WEBHOOK_MAX_BYTES")
        except TooManyBodiesError:
            self._metrics.webhooks[WebhookOutcome.BUSY] += 1
            return _try_again("busy", "too many large bodies are being read", "send the webhook again")
        try:
            scheme: Scheme | None = None
            if self._config.verify_webhooks:
                scheme = self._config.verifier.verify(request.headers, body, received_at / 1_000_000)
            return await self._store(body, received_at, scheme)
        except SignatureError as error:
            return self._refuse(error.refusal)
        except KafkaUnavailableError as error:
            self._metrics.webhooks[WebhookOutcome.UNAVAILABLE] += 1
            if count := self._not_stored_log.add(str(error)):
                log.error("webhook_not_stored", reason=str(error), webhooks=count)
            return _try_again("unavailable", "the event cannot be stored", "send the webhook again")

    async def _read(self, request: web.Request, max_bytes: int) -> bytes:
        """The raw body. Raises BodyTooLargeError as soon as it is known to be longer than `max_bytes`.

        Raises TooManyBodiesError for a large body while others take UNVERIFIED_MAX_BYTES.
        """
        if (request.content_length or 0) > max_bytes:
            raise BodyTooLargeError
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                self._unverified_bytes += len(chunk)
                if len(body) > max_bytes:
                    raise BodyTooLargeError
                if len(body) > SMALL_BODY_BYTES and self._unverified_bytes > UNVERIFIED_MAX_BYTES:
                    raise TooManyBodiesError
        finally:
            self._unverified_bytes -= len(body)
        return bytes(body)

    def _refuse(self, refusal: Refusal) -> web.Response:
        self._metrics.webhooks[WebhookOutcome.REFUSED] += 1
        self._metrics.refusals[refusal] += 1
        if count := self._refused_log.add(refusal):
            log.warning("webhook_refused", reason=refusal.value, webhooks=count)
        code, message, hint = f"signature_{refusal.value}", "the webhook's signature is not accepted", _HINTS[refusal]
        if refusal is Refusal.STALE:
            # Its signature is the carrier's, and this machine's clock may be wrong. Telnyx does not retry after 401.
            return _try_again(code, message, hint)
        return error_response(401, code, message, hint)

    async def _store(self, body: bytes, received_at: Micros, scheme: Scheme | None) -> web.Response:
        """Store a webhook that was signed in `scheme`. Raises SignatureError if it is too old for it."""
        try:
            webhook = parse_webhook(body)
        except EnvelopeError as error:
            await self._writer.publish(
                Topic.DEAD_LETTERS,
                error.best_known_id.encode() or None,
                body,
                body_headers("webhook", reader="gateway", error=error),
            )
            self._metrics.webhooks[WebhookOutcome.DEAD_LETTERED] += 1
            if count := self._dead_letter_log.add(str(error)):
                log.warning("webhook_dead_lettered", reason=str(error), webhooks=count)
            return error_response(400, "unusable", str(error), "kept in dead-letters; sending it again cannot help")
        if scheme is Scheme.HMAC:
            occurred_at_s = None if webhook.occurred_at is None else webhook.occurred_at / 1_000_000
            self._config.verifier.check_time(occurred_at_s, received_at / 1_000_000)
        if webhook.type == WebhookType.CALL_HANGUP:
            self._ended.add(webhook.call_control_id, received_at / 1_000_000)
        event = call_event(webhook, received_at, body)
        await self._writer.publish(Topic.CALL_EVENTS, webhook.call_id.encode(), encode(event))
        self._metrics.webhooks[WebhookOutcome.STORED] += 1
        self._metrics.webhooks_repaired += webhook.repaired
        log.info("webhook_stored", type=webhook.type, call_id=webhook.call_id, attempt=webhook.attempt)
        return web.json_response({"result": "stored"})


def _try_again(code: str, message: str, hint: str) -> web.Response:
    """An answer after which the carrier sends the webhook again."""
    response = error_response(503, code, message, hint)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def call_event(webhook: Webhook, received_at: Micros, body: bytes) -> CallEvent:
    """The record of a webhook. An event to which the carrier gave no time occurred when it was received."""
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
