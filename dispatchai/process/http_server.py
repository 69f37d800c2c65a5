"""The HTTP server of every process: aiohttp's, with bounds on what a peer that nobody knows can make it hold and do.

Decides how many connections are open and which one gives way to a new one, how large a request's head may be, how long
a peer may take over what it sends and reads, and that nothing is decompressed. The applications decide what they serve,
and how large a body may be.

A connection that waits for its peer (for a head, for the rest of a body, or for the peer to read an answer) gives way
to a new one when the bound is reached, the oldest first. So slow peers cannot keep a quick one out. A connection whose
request is being answered, and an upgraded one, stay.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.process.log_limit import LogLimit, LogLimits

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 5_000
"""Open connections of a server, unless it is set otherwise: 2000 calls, each of which may reconnect, and as many slow
strangers. One that waits costs 6 kB and a file descriptor."""

DESCRIPTORS_RESERVED: Final = 256
"""File descriptors of the process that connections do not get: Kafka, files, child processes, accepted connections."""

IDLE_TIMEOUT_S: Final = 20.0
"""How long a connection may be idle, and how long the head of a request may take. A proxy should give up its idle
connections sooner; aiohttp's client does so after 15 s."""

BODY_TIMEOUT_S: Final = 10.0
"""How long the body of a request may take. An application may set a shorter time for its own requests."""

WRITE_TIMEOUT_S: Final = 20.0
"""How long a peer may read nothing of what waits for it."""

SWEEP_S: Final = 5.0
"""How often bodies that take too long, and connections that do not close, are looked for."""

HEAD_MAX_BYTES: Final = 32_768
HEAD_FIELDS_MAX: Final = 64
FIELD_MAX_BYTES: Final = 8_190
"""Largest head of a request, its number of fields, and the size of each. Browsers send 20 fields, proxies add five."""

FRAMING_MAX_BYTES: Final = 16_384
"""Bytes between the pieces of a chunked body. A body in pieces of one byte costs a hundred times what it should."""

PIPELINED_MAX: Final = 4
"""Requests that may wait behind the one that is being answered. Neither browsers nor proxies send any."""

READ_BYTES: Final = 16_384
"""Body bytes that aiohttp buffers before it stops reading: twice as many at most."""

BACKLOG: Final = 1024
"""Connections that may wait to be accepted: all calls of a gateway may reconnect at once."""

PLACES_MAX: Final = 5
"""Innermost stack frames of an unexpected error that are logged."""

EVICTION_LOOKS: Final = 64
"""Connections that are looked at to find one that may give way. Those that stay move to the end of the line."""

_IDENTITY: Final = "identity"


@dataclass(slots=True)
class HttpCounts:
    """What a server has counted since it started."""

    open: int = 0
    accepted: int = 0
    refused: int = 0
    """Closed as they were accepted: all others were busy."""
    evicted: int = 0
    """Closed to make room while they waited for their peer."""
    timed_out: int = 0
    """Closed because a body, or the reading of an answer, took too long."""
    oversized: int = 0
    """Closed because a head was too large, or too many requests were pipelined."""
    unreadable: int = 0
    """Requests that are not HTTP."""


class HttpCollector:
    """Shows the counts to Prometheus."""

    def __init__(self, counts: HttpCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        counts = self._counts
        yield GaugeMetricFamily("dispatchai_http_connections_open", "Open HTTP connections.", counts.open)
        yield CounterMetricFamily("dispatchai_http_connections_accepted", "HTTP connections accepted.", counts.accepted)
        closed = CounterMetricFamily(
            "dispatchai_http_connections_cut", "HTTP connections that the server cut off, by reason.", labels=["reason"]
        )
        for reason in ("refused", "evicted", "timed_out", "oversized"):
            closed.add_metric([reason], getattr(counts, reason))
        yield closed
        yield CounterMetricFamily(
            "dispatchai_http_requests_unreadable", "Requests that are not HTTP.", counts.unreadable
        )


class HttpServer:
    """Serves `app` on any number of addresses. `grace_s` is how long requests may take to end at `stop`.

    Start it with `start` and `listen`, in this order. `counts` may be shared between servers; `on_unreadable` is called
    for each request that is not HTTP. `before_stop` runs at `stop` while connections are still read: aiohttp drops what
    comes in once it shuts down, also on upgraded connections.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        grace_s: float,
        connections_max: int = CONNECTIONS_MAX,
        counts: HttpCounts | None = None,
        on_unreadable: Callable[[], None] = lambda: None,
        before_stop: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._before_stop = before_stop
        self.counts = HttpCounts() if counts is None else counts
        app.middlewares.append(refuse_encoded_bodies)
        app.on_response_prepare.append(_close_on_unread_body)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=grace_s)
        self._logger = _UnreadableRequests.logger(self.counts, on_unreadable)
        self._connections_max = connections_max
        self._connections: _Connections | None = None
        self._listening: list[asyncio.Server] = []

    async def start(self) -> None:
        """Start the application."""
        await self._runner.setup()
        most = _descriptors_for(self._connections_max)
        self._connections = _Connections(self._runner, most, self.counts, self._logger)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept connections at `host` and `port`, where 0 is a free port. Returns the address. Raises OSError."""
        if self._connections is None:
            raise RuntimeError("listen before start")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connections.admission, host, port, backlog=BACKLOG)
        self._listening.append(server)
        address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        return address

    async def stop(self) -> None:
        """Accept nothing more, let the requests end, and stop the application."""
        for server in self._listening:
            server.close()
        if self._before_stop is not None:
            await self._before_stop()
        await self._runner.cleanup()
        if self._connections is not None:
            self._connections.stop()


@web.middleware
async def refuse_encoded_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 415 to a request whose body is encoded, and 501 if it is encoded for the transfer.

    A signature covers the bytes as they were sent, and a stranger could make 255 kB inflate to 255 MB.
    """
    if any(value.strip().lower() != _IDENTITY for value in request.headers.getall("Content-Encoding", ())):
        error = {
            "code": "content_encoding",
            "message": "the body is encoded",
            "hint": "send the body as it is, without Content-Encoding",
        }
        return web.json_response({"error": error}, status=415, headers={"Accept-Encoding": _IDENTITY})
    if any(value.strip().lower() != "chunked" for value in request.headers.getall("Transfer-Encoding", ())):
        error = {
            "code": "transfer_encoding",
            "message": "the body has a transfer coding that is not served",
            "hint": "send it with Content-Length, or chunked",
        }
        return web.json_response({"error": error}, status=501)
    return await handler(request)


async def _close_on_unread_body(request: web.Request, response: web.StreamResponse) -> None:
    """An answer that comes before the end of the body closes the connection: nobody reads the rest."""
    if not request.content.is_eof():
        response.force_close()
        response.headers["Connection"] = "close"


class _Connections:
    """The open connections of a server, in the order in which they may have to give way."""

    def __init__(self, runner: web.AppRunner, most: int, counts: HttpCounts, logger: logging.Logger) -> None:
        self._runner = runner
        self._most = most
        self._counts = counts
        self._logger = logger
        self._open: OrderedDict[_Connection, None] = OrderedDict()
        self._full_log = LogLimit()
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def admission(self) -> asyncio.Protocol:
        """The protocol of a connection that is being accepted."""
        return _Admission(self)

    def admit(self, transport: asyncio.Transport) -> None:
        """Serve a new connection, or cut it off."""
        server = self._runner.server
        if server is None or (len(self._open) >= self._most and not self._make_room()):
            self._counts.refused += 1
            transport.abort()
            return
        connection = _Connection(self, server, self._loop, self._logger)
        self._open[connection] = None
        self._counts.accepted += 1
        self._counts.open += 1
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def discard(self, connection: _Connection) -> None:
        """`connection` is closed. A second call does nothing."""
        if connection in self._open:
            del self._open[connection]
            self._counts.open -= 1

    def oversized(self, connection: _Connection) -> None:
        """The peer sends more than it may."""
        self._counts.oversized += self._cut(connection)

    def timed_out(self, connection: _Connection) -> None:
        """The peer takes too long."""
        self._counts.timed_out += self._cut(connection)

    def stop(self) -> None:
        """Stop looking for connections that take too long."""
        self._sweeper.cancel()

    def _make_room(self) -> bool:
        """Cut off the oldest connection that waits for its peer. Returns whether there was one."""
        for _ in range(min(EVICTION_LOOKS, len(self._open))):
            connection = next(iter(self._open))
            if connection.waits_for_peer:
                self._counts.evicted += self._cut(connection)
                self._report_full("evicted")
                return True
            self._open.move_to_end(connection)
        self._report_full("refused")
        return False

    def _report_full(self, outcome: str) -> None:
        if count := self._full_log.add():
            log.warning("connections_full", connections_max=self._most, outcome=outcome, connections=count)

    def _cut(self, connection: _Connection) -> bool:
        """Cut `connection` off. Returns whether it was open."""
        was_open = connection in self._open
        self.discard(connection)
        connection.abort()
        return was_open

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._loop.time()
        for connection in [connection for connection in self._open if connection.is_overdue(now)]:
            self.timed_out(connection)


class _Admission(asyncio.Protocol):
    """Decides about one connection before anything is allocated for it."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._connections.admit(cast("asyncio.Transport", transport))  # uvloop's is no subclass


class _Connection(web.RequestHandler):
    """aiohttp's connection of a server with the bounds of this module.

    Private parts of aiohttp that are used: `_waiter` (a future while no request is there), `_messages` (requests that
    wait), `_current_request` and `_payload_parser` (set after an upgrade).
    """

    __slots__ = (
        "_aborted",
        "_bounds",
        "_closing_since",
        "_framed_bytes",
        "_head_bytes",
        "_slow_body",
        "_socket",
        "_write_timer",
    )

    def __init__(
        self, bounds: _Connections, server: web.Server, loop: asyncio.AbstractEventLoop, logger: logging.Logger
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=IDLE_TIMEOUT_S,
            logger=logger,
            access_log=None,  # type: ignore[arg-type] # as AppRunner passes it
            max_line_size=FIELD_MAX_BYTES,
            max_headers=HEAD_FIELDS_MAX,
            max_field_size=FIELD_MAX_BYTES,
            lingering_time=0,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
        )
        self._bounds = bounds
        self._socket: asyncio.Transport | None = None
        """Also after aiohttp has closed it: it may still have something to write."""
        self._aborted = False
        self._head_bytes = 0
        """Bytes of a head that is not complete."""
        self._framed_bytes = 0
        """Bytes of a request whose body is not complete: the body and what frames it."""
        self._slow_body: tuple[web.BaseRequest, float] | None = None
        self._closing_since: float | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_peer(self) -> bool:
        """Whether nothing happens here before the peer sends or reads something."""
        if self._socket is None or self._socket.is_closing():
            return True
        if self._payload_parser is not None:
            return False
        return self._waiter is not None or self._write_timer is not None or self._body_is_coming() is not None

    def is_overdue(self, now: float) -> bool:
        """Whether a body, or the end of a connection that is being closed, takes too long. Asked at each sweep."""
        if self._socket is not None and self._socket.is_closing():
            since = self._closing_since = now if self._closing_since is None else self._closing_since
            return now - since >= SWEEP_S
        request = self._body_is_coming()
        if request is None:
            self._slow_body = None
            return False
        if self._slow_body is None or self._slow_body[0] is not request:
            self._slow_body = request, now
        return now - self._slow_body[1] >= BODY_TIMEOUT_S

    def abort(self) -> None:
        """Close the connection at once, and read nothing more of it."""
        self._aborted = True
        if self._socket is not None:
            self._socket.abort()

    def _body_is_coming(self) -> web.BaseRequest | None:
        """The request whose body is not complete."""
        content = self._content()
        return None if content is None or content.is_eof() else self._current_request

    # ---- called by the event loop ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._socket = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        self._bounds.discard(self)
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().connection_lost(exc)
        self._slow_body = None

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._aborted:
            return
        if self._payload_parser is not None:  # upgraded, as the busiest connections are
            super().data_received(data)
            return
        for at in range(0, len(data) or 1, READ_BYTES):  # aiohttp itself passes nothing when it reads on
            piece = data[at : at + READ_BYTES]
            super().data_received(piece)
            if self._is_oversized(len(piece)):
                self._bounds.oversized(self)
                return

    def _is_oversized(self, received: int) -> bool:
        """Whether the peer sends more than it may. `received` is the length of what was parsed since the last call."""
        if self._waiter is not None and not self._waiter.done():
            self._head_bytes += received
            return self._head_bytes > HEAD_MAX_BYTES
        body = self._messages[-1][1] if self._messages else self._content()
        if body is None or body.is_eof():
            self._head_bytes = self._framed_bytes = 0
            return len(self._messages) > PIPELINED_MAX
        self._framed_bytes += received
        return self._framed_bytes - body.total_bytes > HEAD_MAX_BYTES + FRAMING_MAX_BYTES

    def _content(self) -> StreamReader | None:
        """The body of the request that is being answered."""
        return None if self._current_request is None else self._current_request.content

    def pause_writing(self) -> None:
        """The peer does not read: give it some time. See asyncio.Protocol."""
        super().pause_writing()
        self._write_timer = self._loop.call_later(WRITE_TIMEOUT_S, self._bounds.timed_out, self)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _UnreadableRequests(logging.Handler):
    """The log handler of aiohttp's server: counts the requests it cannot read, and logs them without their content.

    aiohttp's own lines quote the request, which may hold a token or a caller's number. Errors of the program are logged
    with their places in the code.
    """

    def __init__(self, counts: HttpCounts, on_unreadable: Callable[[], None]) -> None:
        super().__init__(logging.DEBUG)
        self._counts = counts
        self._on_unreadable = on_unreadable
        self._limit = LogLimit()
        self._failed_log = LogLimits()

    @classmethod
    def logger(cls, counts: HttpCounts, on_unreadable: Callable[[], None]) -> logging.Logger:
        """A logger for one server, apart from all others."""
        logger = logging.Logger(__name__, logging.DEBUG)
        logger.addHandler(cls(counts, on_unreadable))
        return logger

    def emit(self, record: logging.LogRecord) -> None:
        """Count one request."""
        error = record.exc_info[1] if record.exc_info else None
        name = type(error).__name__ if error else ""
        if error is not None and not isinstance(error, HttpProcessingError):
            if count := self._failed_log.add(name):
                log.error("request_failed", error=name, places=places_of(error), requests=count)
            return
        self._counts.unreadable += 1
        self._on_unreadable()
        if count := self._limit.add():
            log.warning("requests_unreadable", requests=count, error=name)


def places_of(error: BaseException) -> list[str]:
    """The innermost places in the code where `error` was raised, without values: they may hold what a caller said."""
    frames = traceback.extract_tb(error.__traceback__)[-PLACES_MAX:]
    return [f"{frame.filename}:{frame.lineno}" for frame in frames]


def _descriptors_for(connections: int) -> int:
    """Let the process open `connections` and DESCRIPTORS_RESERVED more. Returns how many connections it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + DESCRIPTORS_RESERVED
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # macOS allows less than its hard limit says
        allowed = soft
    if allowed < wanted:
        most = max(1, allowed - DESCRIPTORS_RESERVED)
        log.warning("connections_limited", connections_max=most, setting=connections, open_files_max=allowed)
        return most
    return connections
