"""`POST /api/v1/calls/{call_id}/actions`: a dispatcher's action on a call becomes a record of `dispatch-actions`.

Decides which requests are valid, and answers 202 only once Kafka has the record. `origin_check` decides who may send
one: a page of this server, never another site. The calls agent carries out the action.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import orjson
import structlog
from aiohttp import web
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from dispatchai.console.errors import ConsoleError
from dispatchai.console.queue_view import Entry, EntryStatus
from dispatchai.console.topic_feed import Feed
from dispatchai.kafka.clients import make_producer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.process.log_limit import LogLimit
from dispatchai.records import Action, ActionKind, CallStatus, encode

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


ACTION_ID_HEADER: Final = "X-Action-Id"
"""Names the action: sent again under the same name it has effect once. A page of another site can set this header only
with permission (CORS), which no site has."""

KINDS: Final = frozenset({ActionKind.SPEAK, ActionKind.TRANSFER, ActionKind.HANGUP})
"""The actions that can be sent here."""

BODY_MAX_BYTES: Final = 16_384
"""The longest text in four-byte characters, with room for the other fields."""
TEXT_MAX_CHARS: Final = 3_000
"""The carrier's limit for one command."""
ACTOR_MAX_CHARS: Final = 100

ACK_TIMEOUT_S: Final = 4.0
"""How long Kafka may take: a dispatcher is waiting for the answer. A record that is not sent by then is never sent."""
STOP_TIMEOUT_S: Final = 1.0

_ACTION_ID: Final = re.compile(r"[A-Za-z0-9_.-]{8,64}")


class NotAcknowledgedError(ConsoleError):
    """Kafka did not acknowledge the record in time. It may have stored it all the same."""


class ActionWriter:
    """Writes actions to Kafka and waits for the acknowledgement. Connects at the first one; `close` it at the end."""

    def __init__(self, connection: KafkaConnection, *, ack_timeout_s: float = ACK_TIMEOUT_S) -> None:
        self._connection = connection
        self._ack_timeout_s = ack_timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def write(self, call_id: str, action: Action) -> None:
        """Store `action`. Returns once all replicas have it. Raises NotAcknowledgedError."""
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                producer = await self._connected()
                await producer.send_and_wait(Topic.DISPATCH_ACTIONS, encode(action), call_id.encode())
        except (KafkaError, TimeoutError, OSError) as error:
            # An action that the producer still holds must not be carried out when nobody expects it any more.
            await self.close()
            raise NotAcknowledgedError(type(error).__name__) from error

    async def close(self) -> None:
        """Disconnect without sending what was not acknowledged. The next `write` connects again."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()
        except TimeoutError:
            await producer.client.close()

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = make_producer(
                    self._connection,
                    client_id="dispatchai-actions",
                    request_timeout_ms=round(self._ack_timeout_s * 1000),
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer


def routes(feed: Feed, writer: ActionWriter, *, can_transfer: bool) -> list[web.AbstractRouteDef]:
    """The route, for an application with `origin_check`."""
    actions = _Actions(feed, writer, can_transfer)
    return [web.post("/api/v1/calls/{call_id}/actions", actions.post)]


class _Refused(ConsoleError):  # noqa: N818 - the request is at fault
    """A request that is not carried out, with its answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Actions:
    def __init__(self, feed: Feed, writer: ActionWriter, can_transfer: bool) -> None:
        self._not_stored_log = LogLimit()
        self._feed = feed
        self._writer = writer
        self._can_transfer = can_transfer

    async def post(self, request: web.Request) -> web.Response:
        """Answer 202 once the action is stored, 4xx when it never will be, 503 when the client may send it again."""
        call_id = request.match_info["call_id"]
        try:
            action = _action(_action_id(request), await _body(request))
            await self._check_call(call_id)
            if action.kind is ActionKind.TRANSFER and not self._can_transfer:
                raise _Refused(409, "no_human_line", "HUMAN_LINE is not set: there is nowhere to transfer to")
            await self._writer.write(call_id, action)
        except _Refused as refused:
            return _json({"error": {"code": refused.code, "message": str(refused)}}, status=refused.status)
        except NotAcknowledgedError as error:
            if count := self._not_stored_log.add():
                log.error("action_not_stored", call_id=call_id, reason=str(error), actions=count)
            message = f"the action could not be stored; send it again with the same {ACTION_ID_HEADER}"
            return _json({"error": {"code": "unavailable", "message": message}}, status=503)
        log.info("action_stored", call_id=call_id, action_id=action.action_id, kind=action.kind)
        stored = {"call_id": call_id, "action_id": action.action_id, "kind": action.kind, "status": "accepted"}
        return _json(stored, status=202)

    async def _check_call(self, call_id: str) -> None:
        entry = (await self._feed.current()).get(call_id)
        if entry is None and not self._feed.ready:
            raise _Refused(503, "starting", "the calls are not all known yet")
        if entry is None:
            raise _Refused(404, "unknown_call", "no such call in the queue or in progress")
        if _is_over(entry):
            raise _Refused(409, "call_over", "the call is over")


def _is_over(entry: Entry) -> bool:
    return entry.status is EntryStatus.FINAL or (entry.live is not None and entry.live.status is CallStatus.ENDED)


def _action_id(request: web.Request) -> str:
    action_id = request.headers.get(ACTION_ID_HEADER)
    if action_id is None:
        raise _Refused(403, "no_action_id", f"name the action in the header {ACTION_ID_HEADER}")
    if not _ACTION_ID.fullmatch(action_id):
        raise _Refused(400, "bad_action_id", f"{ACTION_ID_HEADER} is 8 to 64 letters, digits, '-', '_' or '.'")
    return action_id


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise _Refused(415, "content_type", "send application/json")
    content = bytearray()
    async for chunk in request.content.iter_any():
        content += chunk
        if len(content) > BODY_MAX_BYTES:
            raise _Refused(413, "too_large", f"more than {BODY_MAX_BYTES} bytes")
    try:
        body: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise _Refused(400, "bad_json", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise _Refused(400, "bad_json", "the body is not an object")
    return body


def _action(action_id: str, body: dict[str, Any]) -> Action:
    if unknown := body.keys() - {"kind", "text", "actor"}:
        raise _Refused(400, "unknown_field", f"unknown fields: {', '.join(sorted(name[:40] for name in unknown)[:5])}")
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _Refused(400, "bad_kind", f"kind is one of {', '.join(sorted(KINDS))}")
    actor = body.get("actor")
    if not isinstance(actor, str) or not 0 < len(actor.strip()) <= ACTOR_MAX_CHARS:
        raise _Refused(400, "bad_actor", f"actor names who does this, in at most {ACTOR_MAX_CHARS} characters")
    text = body.get("text")
    if text is not None and not (isinstance(text, str) and 0 < len(text.strip()) <= TEXT_MAX_CHARS):
        raise _Refused(400, "bad_text", f"text is 1 to {TEXT_MAX_CHARS} characters, or left out")
    return Action(
        action_id=action_id,
        kind=ActionKind(kind),
        actor=actor.strip(),
        occurred_at=now_micros(),
        text=None if text is None else text.strip(),
        level=None,
        other_call_id=None,
    )


def _json(value: object, *, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json", charset="utf-8")
