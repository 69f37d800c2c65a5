"""HTTP of the views: the page, REST, server-sent events and health, for any aiohttp application.

Decides paths, limits, headers and when a reader that does not read is disconnected. `queue_view` and `json_view` decide
what is shown. There is no authentication here: the server belongs on loopback or behind a proxy that knows its users.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

import orjson
from aiohttp import web

from dispatchai.console import json_view
from dispatchai.console.queue_view import Change, Entry
from dispatchai.console.topic_feed import SLICE, Feed, FeedState, Subscription, TooManySubscribersError, Update
from dispatchai.process import health
from dispatchai.resources import data_path

DEFAULT_LIMIT: Final = 200
"""Entries of a list that names no limit: more than anyone reads."""
MAX_LIMIT: Final = 5_000
SNAPSHOT_FINALS: Final = 500
"""Finished calls that a page starts with, the highest of the queue. It gets all calls in progress."""
HEARTBEAT_S: Final = 15.0
"""Proxies close a connection that is silent for 30 to 60 s; the page reconnects after 40 s of silence."""
WRITE_S: Final = 5.0
"""A reader whose socket takes nothing for this long is disconnected; its EventSource reconnects."""
RETRY_MS: Final = 1_000
"""When a browser reconnects."""

Checks = Mapping[str, Callable[[], bool]]
"""Further conditions of readiness, by name."""

T = TypeVar("T")

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def mount(app: web.Application, feed: Feed, *, checks: Checks | None = None) -> None:
    """Put the views on `app`: routes, security headers on every response, and the end of open streams at shutdown.

    Call it before the application starts. `checks` are further conditions of `/health/ready`. The owner of the feed
    starts and stops it.
    """

    async def close_streams(_: web.Application) -> None:
        feed.close_subscriptions()

    app.add_routes(routes(feed, checks=checks))
    app.on_response_prepare.append(_secure)
    app.on_shutdown.append(close_streams)


def routes(feed: Feed, *, checks: Checks | None = None) -> list[web.AbstractRouteDef]:
    """The routes alone, without headers and shutdown. An application uses `mount`."""
    views = _Views(feed)
    page = data_path("dispatchai/console/page")

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(page / "index.html")

    return [
        web.get("/", index),
        web.static("/static", page),
        web.get("/debug/live_calls", views.live_calls),
        web.get("/debug/live_calls/", views.live_calls),
        web.get("/debug/list_queue", views.list_queue),
        web.get("/debug/list_queue/", views.list_queue),
        web.get("/api/v1/queue", views.queue),
        web.get("/api/v1/calls", views.calls),
        web.get("/api/v1/calls/{call_id}", views.call),
        web.get("/api/v1/events", views.events),
        *health.routes({"views": lambda: feed.ready, **(checks or {})}, ready_details=views.readiness_details),
    ]


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json", charset="utf-8")


def _error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"code": code, "message": message}}, status=status)


def _limit(request: web.Request) -> int:
    """The query's `limit`, or the default. Raises HTTPBadRequest with a JSON body."""
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        error = {"code": "bad_limit", "message": f"limit is a number from 1 to {MAX_LIMIT}"}
        raise web.HTTPBadRequest(text=orjson.dumps({"error": error}).decode(), content_type="application/json")
    return int(text)


async def _rendered(entries: Iterable[T], render: Callable[[T], json_view.Json]) -> list[orjson.Fragment]:
    """Each entry as JSON text. Yields to the agents' event loop after each slice."""
    rendered: list[orjson.Fragment] = []
    for index, entry in enumerate(entries, start=1):
        rendered.append(orjson.Fragment(orjson.dumps(render(entry))))
        if index % SLICE == 0:
            await asyncio.sleep(0)
    return rendered


class _Views:
    """The request handlers of one feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def live_calls(self, request: web.Request) -> web.Response:
        """The calls in progress, an object by call_id, as in the telephony guide."""
        calls = (await self._feed.current()).live()[: _limit(request)]
        texts = await _rendered(calls, json_view.live_call)
        return _json({call.call_id: text for call, text in zip(calls, texts, strict=True)})

    async def list_queue(self, request: web.Request) -> web.Response:
        """The ranked queue as a list, as in the telephony guide."""
        return _json(await _rendered((await self._feed.current()).ranked()[: _limit(request)], json_view.queue_entry))

    async def queue(self, request: web.Request) -> web.Response:
        """The ranked queue, live and final, with its totals."""
        limit = _limit(request)
        view = await self._feed.current()
        head = {"state": self._feed.state, "number": view.number, "live": view.live_count, "final": view.final_count}
        return _json({**head, "queue": await _rendered(view.ranked()[:limit], json_view.queue_entry)})

    async def calls(self, request: web.Request) -> web.Response:
        """The calls in progress, ranked."""
        limit = _limit(request)
        view = await self._feed.current()
        head = {"state": self._feed.state, "number": view.number, "live": view.live_count}
        return _json({**head, "calls": await _rendered(view.live()[:limit], json_view.live_call)})

    async def call(self, request: web.Request) -> web.Response:
        """One call with the caller's whole number, or 404."""
        entry = (await self._feed.current()).get(request.match_info["call_id"])
        if entry is None:
            return _error(404, "unknown_call", "no such call in the queue or in progress")
        return _json(json_view.call(entry))

    def readiness_details(self) -> Mapping[str, object]:
        """The state and the counts of the feed, for `/health/ready`."""
        counts = self._feed.counts
        return {
            "views": {
                "state": self._feed.state,
                "records": counts.records,
                "skipped": counts.skipped,
                "sessions": counts.sessions,
                "dropped_subscribers": counts.dropped_subscribers,
            }
        }

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: `snapshot` first, then `call`, `packet`, `remove` and `state` as they come.

        A Last-Event-ID changes nothing: a reader that comes back gets a snapshot, which is smaller than the events it
        missed.
        Source: HTML Living Standard, 9.2 "Server-sent events".
        """
        try:
            subscription, entries = await self._feed.subscribe()
        except TooManySubscribersError:
            return _error(503, "too_many_subscribers", "too many event streams are open")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            await _write(response, b"retry: %d\n\n" % RETRY_MS)
            await self._send_snapshot(response, entries)
            await self._send_updates(response, subscription)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            subscription.close()
        return response

    async def _send_updates(self, response: web.StreamResponse, subscription: Subscription) -> None:
        while True:
            try:
                update = await subscription.next(HEARTBEAT_S)
            except TimeoutError:
                await _write(response, b": heartbeat\n\n" + _state_event(self._feed.state))
                continue
            if update is None:
                return
            if update.snapshot:
                await self._send_snapshot(response, (await self._feed.current()).ranked())
            else:
                await _write(response, _update_events(update))
            await asyncio.sleep(0)

    async def _send_snapshot(self, response: web.StreamResponse, entries: tuple[Entry, ...]) -> None:
        """Send all calls in progress and the first finals, in slices. The last slice is marked as the last."""
        view = await self._feed.current()
        sent = _of_snapshot(entries)
        for start in range(0, max(1, len(sent)), SLICE):
            body = {
                "first": start == 0,
                "last": start + SLICE >= len(sent),
                "state": self._feed.state,
                "now": _now_ms(),
                "live": view.live_count,
                "final": view.final_count,
                "entries": [json_view.queue_entry(entry) for entry in sent[start : start + SLICE]],
            }
            await _write(response, _event("snapshot", body, view.number))
            await asyncio.sleep(0)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Write `data`. Raises TimeoutError after WRITE_S if the reader takes nothing, ConnectionError if it is gone."""
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


def _of_snapshot(entries: tuple[Entry, ...]) -> list[Entry]:
    finals = 0
    chosen: list[Entry] = []
    for entry in entries:
        if entry.stored is not None:
            finals += 1
            if finals > SNAPSHOT_FINALS:
                continue
        chosen.append(entry)
    return chosen


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _event(name: str, body: object, number: int | None = None) -> bytes:
    identifier = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (identifier, name.encode(), orjson.dumps(body))


def _state_event(state: FeedState) -> bytes:
    return _event("state", {"state": state, "now": _now_ms()})


def _change_event(change: Change) -> bytes:
    if change.entry is None:
        return _event("remove", {"call_id": change.call_id}, change.number)
    name = "call" if change.entry.stored is None else "packet"
    return _event(name, json_view.queue_entry(change.entry), change.number)


@lru_cache(maxsize=64)
def _update_events(update: Update) -> bytes:
    """The text of an update, rendered once for all subscribers."""
    return b"".join([*map(_change_event, update.changes), _state_event(update.state)])
