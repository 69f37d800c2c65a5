"""The console process: the page, REST, server-sent events and the dispatchers' actions, over one HTTP server.

Decides how its parts are put together, started and stopped. It reads compacted topics and holds no state of the agents,
so it is a process of its own: no number of readers, and no reader that is slow, takes time from the agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from dispatchai.console import actions
from dispatchai.console.metrics import Exposed
from dispatchai.console.topic_feed import Feed
from dispatchai.console.web import mount
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.process import memory
from dispatchai.process.http_server import HttpCollector, HttpServer
from dispatchai.process.metrics import PATH as METRICS_PATH
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.process.starts import Starts
from dispatchai.process.watchdog import Watchdog
from dispatchai.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HANDLER_GRACE_S: Final = 3.0
"""How long requests may take at shutdown. Event streams end at once."""


def create_app(
    settings: Settings, feed: Feed, writer: actions.ActionWriter, process: ProcessMetrics
) -> web.Application:
    """The console's application. The caller starts and stops `feed`, and closes `writer` at the end."""

    async def show_metrics(request: web.Request) -> web.StreamResponse:
        process.kafka_reachable.set(feed.ready)
        await feed.current()  # without an open page nobody decodes the live entries, of which the metrics count some
        return await process.show(request)

    app = web.Application()
    mount(app, feed, names=settings.console_names)
    app.add_routes(actions.routes(feed, writer, can_transfer=bool(settings.human_line)))
    app.router.add_get(METRICS_PATH, show_metrics)
    process.checks({"views": lambda: feed.ready})
    process.registry.register(Exposed(feed))
    return app


async def serve(
    settings: Settings,
    kafka: KafkaConnection,
    *,
    listening: Callable[[str, int], None] | None = None,
    starts: Starts | None = None,
) -> None:
    """Run the console until cancelled. It serves at once, and is ready when the topics have been read.

    `listening` is called with address and port once connections are accepted; `starts` becomes a metric. Raises OSError
    if the port is taken.
    """
    process = ProcessMetrics()
    if starts is not None:
        starts.show(process.registry)
    writer = actions.ActionWriter(kafka)
    async with Feed(kafka, max_finals=settings.console_finished_max) as feed:
        app = create_app(settings, feed, writer, process)
        server = HttpServer(app, grace_s=_HANDLER_GRACE_S, connections_max=settings.http_connections_max)
        process.registry.register(HttpCollector(server.counts))
        await server.start()
        memory.settle()
        watchdog = Watchdog(process.loop_delay.observe, settings.stuck_after_s)
        watchdog.start()
        try:
            host, port = await server.listen(settings.console_host, settings.console_port)
            log.info("console_listening", host=host, port=port)
            if listening is not None:
                listening(host, port)
            await asyncio.Event().wait()
        finally:
            watchdog.stop()
            await server.stop()
            await writer.close()
