"""HTTP of the views: the page, REST, server-sent events and health, for any aiohttp application.

Decides paths, limits, headers, how many readers are served at a time and when one that does not read is disconnected.
`queue_view` and `json_view` decide what is shown. There is no authentication here: the server belongs on loopback or
behind a proxy that knows its users. `origin_check` keeps the pages of other sites out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Final

import orjson
from aiohttp import web

from dispatchai.console import json_view
from dispatchai.console.queue_view import Entry
from dispatchai.console.topic_feed import (
    SLICE,
    Feed,
    FeedState,
    Snapshot,
    Subscription,
    TooManySubscribersError,
    Update,
)
from dispatchai.process import health
from dispatchai.process.origin_check import origin_check
from dispatchai.resources import data_path

DEFAULT_LIMIT: Final = 200
"""Entries of a list that names no limit: more than anyone reads."""
MAX_LIMIT: Final = 500
"""About 1.5 MB. Programs that need more read the topics."""
LISTS_AT_ONCE: Final = 16
"""Lists that are being sent. Further readers get 503 and come again: each holds its list in memory until it is sent."""
HEARTBEAT_S: Final = 15.0
"""Proxies close a connection that is silent for 30 to 60 s; the page reconnects after 40 s of silence."""
WRITE_S: Final = 5.0
"""A reader whose socket takes nothing for this long is disconnected; its EventSource reconnects."""
LIST_S: Final = 15.0
"""A list that is not read in this time is given up."""
WRITE_BYTES: Final = 65_536
"""Bytes of a list that are written at once, and the most that is buffered for a reader that does not read."""
RETRY_MS: Final = 1_000
"""When a browser reconnects."""
RETRY_AFTER_S: Final = 2
"""When a reader that was refused may ask again."""

Checks = Mapping[str, Callable[[], bool]]
"""Further conditions of readiness, by name."""

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


def mount(app: web.Application, feed: Feed, *, names: Set[str] = frozenset(), checks: Checks | None = None) -> None:
    """Put the views on `app`: routes, the check of their callers, security headers, and the end of streams at shutdown.

    Call it before the application starts. `names` are further names of the server, see `origin_check`; `checks` are
    further conditions of `/health/ready`. The owner of the feed starts and stops it.
    """

    async def close_streams(_: web.Application) -> None:
        feed.close_subscriptions()

    app.middlewares.append(origin_check(names))
    app.add_routes(routes(feed, checks=checks))
    app.on_response_prepare.append(_secure)
    app.on_shutdown.append(close_streams)


def routes(feed: Feed, *, checks: Checks | None = None) -> list[web.AbstractRouteDef]:
    """The routes alone, without check, headers and shutdown. An application uses `mount`."""
    views = _Views(feed)
    page = data_path("dispatchai/console/page")

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(page / "index.html")

    async def static(request: web.Request) -> web.FileResponse:
        return web.FileResponse(page / request.path.rpartition("/")[2])

    # Not `web.static`, which asks the file system: for a name that is too long this raises an error of its own.
    files = [file.name for file in page.iterdir() if file.is_file()]

    return [
        web.get("/", index),
        *(web.get(f"/static/{name}", static) for name in files),
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
    response = _json({"error": {"code": code, "message": message}}, status=status)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _limit(request: web.Request) -> int:
    """The query's `limit`, or the default. Raises HTTPBadRequest with a JSON body."""
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        error = {"code": "bad_limit", "message": f"limit is a number from 1 to {MAX_LIMIT}"}
        raise web.HTTPBadRequest(text=orjson.dumps({"error": error}).decode(), content_type="application/json")
    return int(text)


class _Views:
    """The request handlers of one feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._lists = 0

    async def live_calls(self, request: web.Request) -> web.StreamResponse:
        """The calls in progress, an object by call_id, as in the telephony guide."""
        limit = _limit(request)
        entries = (await self._feed.current()).live(limit)

        def shape(texts: list[bytes]) -> bytes:
            names = (orjson.dumps(entry.call_id) for entry in entries)
            return b"{%s}" % b",".join(b"%s:%s" % pair for pair in zip(names, texts, strict=True))

        return await self._list(request, entries, "live", shape)

    async def list_queue(self, request: web.Request) -> web.StreamResponse:
        """The ranked queue as a list, as in the telephony guide."""
        limit = _limit(request)
        entries = (await self._feed.current()).ranked(limit)
        return await self._list(request, entries, "queue", lambda texts: b"[%s]" % b",".join(texts))

    async def queue(self, request: web.Request) -> web.StreamResponse:
        """The ranked queue, live and final, with its totals."""
        limit = _limit(request)
        view = await self._feed.current()
        head = {"state": self._feed.state, "number": view.number, "live": view.live_count, "final": view.final_count}
        return await self._list(request, view.ranked(limit), "queue", partial(_with_list, head, b"queue"))

    async def calls(self, request: web.Request) -> web.StreamResponse:
        """The calls in progress, ranked."""
        limit = _limit(request)
        view = await self._feed.current()
        head = {"state": self._feed.state, "number": view.number, "live": view.live_count}
        return await self._list(request, view.live(limit), "live", partial(_with_list, head, b"calls"))

    async def _list(
        self, request: web.Request, entries: tuple[Entry, ...], form: str, shape: Callable[[list[bytes]], bytes]
    ) -> web.StreamResponse:
        """Answer with `entries` in `form`, unless LISTS_AT_ONCE others are being sent."""
        with self._one_list() as is_free:
            if not is_free:
                self._feed.counts.refused_readers += 1
                return _error(503, "busy", "too many lists are being read; ask again")
            return await _send(request, shape(await self._texts(entries, form)))

    @contextmanager
    def _one_list(self) -> Iterator[bool]:
        self._lists += 1
        try:
            yield self._lists <= LISTS_AT_ONCE
        finally:
            self._lists -= 1

    async def _texts(self, entries: Iterable[Entry], form: str) -> list[bytes]:
        """The JSON text of each entry. Those not made before are made in slices, between which other tasks run."""
        texts: list[bytes] = []
        made = 0
        for entry in entries:
            made += form not in entry.texts
            texts.append(self._text(entry, form))
            if made == SLICE:
                made = 0
                await asyncio.sleep(0)
        return texts

    def _text(self, entry: Entry, form: str) -> bytes:
        return json_view.text(entry, form, self._feed.counts)

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
                "refused_readers": counts.refused_readers,
                "not_shown": counts.not_shown,
            }
        }

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: `snapshot` first, then `call`, `packet`, `remove` and `state` as they come.

        A Last-Event-ID changes nothing: a reader that comes back gets a snapshot, which is smaller than the events it
        missed.
        Source: HTML Living Standard, 9.2 "Server-sent events".
        """
        try:
            subscription, snapshot = await self._feed.subscribe()
        except TooManySubscribersError:
            self._feed.counts.refused_readers += 1
            return _error(503, "too_many_subscribers", "too many event streams are open")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            await _write(response, b"retry: %d\n\n" % RETRY_MS)
            await self._send_snapshot(response, snapshot)
            await self._send_updates(response, subscription)
        except (ConnectionError, TimeoutError):
            _disconnect(request)
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
                await self._send_snapshot(response, await self._feed.snapshot())
            else:
                await _write(response, self._update_events(update))
            await asyncio.sleep(0)

    async def _send_snapshot(self, response: web.StreamResponse, snapshot: Snapshot) -> None:
        """Send all calls in progress and the first finals, in slices. The last slice is marked as the last."""
        async with snapshot.making:
            if not snapshot.texts:
                texts = await self._texts(snapshot.entries, "queue")
                snapshot.texts = [b",".join(texts[at : at + SLICE]) for at in range(0, max(1, len(texts)), SLICE)]
        for number, text in enumerate(snapshot.texts, start=1):
            head = {
                "first": number == 1,
                "last": number == len(snapshot.texts),
                "state": self._feed.state,
                "now": _now_ms(),
                "live": snapshot.live,
                "final": snapshot.final,
            }
            await _write(response, _event("snapshot", _with_list(head, b"entries", [text]), snapshot.number))
            await asyncio.sleep(0)

    @lru_cache(maxsize=64)  # noqa: B019 - the views live as long as the process
    def _update_events(self, update: Update) -> bytes:
        """The text of an update, made once for all subscribers."""
        events: list[bytes] = []
        for change in update.changes:
            if change.entry is None:
                body = orjson.dumps({"call_id": change.call_id})
                events.append(_event("remove", body, change.number))
            else:
                name = "call" if change.entry.stored is None else "packet"
                events.append(_event(name, self._text(change.entry, "queue"), change.number))
        return b"".join([*events, _state_event(update.state)])


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Write `data`. Raises TimeoutError after WRITE_S if the reader takes nothing, ConnectionError if it is gone."""
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


async def _send(request: web.Request, body: bytes) -> web.StreamResponse:
    """Answer with the JSON text `body`. A reader that does not take it within LIST_S is disconnected."""
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    response.content_length = len(body)
    try:
        async with asyncio.timeout(LIST_S):
            await response.prepare(request)
            for start in range(0, len(body), WRITE_BYTES):
                await response.write(body[start : start + WRITE_BYTES])
            await response.write_eof()
    except (ConnectionError, TimeoutError):
        _disconnect(request)
    return response


def _disconnect(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _with_list(head: Mapping[str, object], name: bytes, texts: list[bytes]) -> bytes:
    """The JSON object `head`, which is not empty, with one more field: the list of `texts`, which are JSON."""
    return b'%s,"%s":[%s]}' % (orjson.dumps(head)[:-1], name, b",".join(texts))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _event(name: str, body: bytes, number: int | None = None) -> bytes:
    identifier = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (identifier, name.encode(), body)


def _state_event(state: FeedState) -> bytes:
    return _event("state", orjson.dumps({"state": state, "now": _now_ms()}))
