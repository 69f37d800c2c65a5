"""The gateway process: one HTTP server for webhooks, media sockets and health, one producer to Kafka.

Decides how its parts are put together, started and stopped. `webhooks` and `media_sockets` handle the requests,
`kafka_writer` writes to Kafka.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from dispatchai.gateway.config import GatewayConfig
from dispatchai.gateway.ended_legs import EndedLegs
from dispatchai.gateway.error_responses import error_response, errors_as_json
from dispatchai.gateway.kafka_writer import KafkaWriter
from dispatchai.gateway.media_sockets import MediaSockets
from dispatchai.gateway.metrics import GatewayCollector, GatewayMetrics
from dispatchai.gateway.webhooks import Webhooks
from dispatchai.kafka.clients import make_producer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.identity import ClusterIdentity
from dispatchai.kafka.readiness import wait_until_reachable
from dispatchai.process import health, memory
from dispatchai.process.http_server import HttpCollector, HttpServer
from dispatchai.process.metrics import PATH as METRICS_PATH
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.process.origin_check import origin_check
from dispatchai.process.starts import Starts
from dispatchai.process.watchdog import Watchdog
from dispatchai.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WEBHOOK_PATH: Final = "/api/v1/call/incoming"
MEDIA_PATH: Final = "/ws"

_PUBLIC_PATHS: Final = frozenset({WEBHOOK_PATH, f"{WEBHOOK_PATH}/", MEDIA_PATH})
"""What the carrier uses. Health and metrics are for this machine and its network."""

METRICS: Final = web.AppKey("metrics", GatewayMetrics)
"""The counts of an application made by `create_app`."""

_PROCESS: Final = web.AppKey("process", ProcessMetrics)
_KAFKA_WRITER: Final = web.AppKey("kafka_writer", KafkaWriter)
_MEDIA: Final = web.AppKey("media", MediaSockets)

_BATCH_BYTES: Final = 900_000
"""3000 frames, so that the records that waited out an outage, or a busy moment of this process, go in one request for
each partition. Kafka accepts batches of up to 1 MiB."""


_LOOPBACK: Final = "127.0.0.1"
"""Where tunnel programs connect."""

_HANDLER_GRACE_S: Final = 2.0
"""How long requests may take at shutdown, after the media sockets were closed: longer than Kafka's acknowledgement."""

_PRODUCER_GRACE_S: Final = 2.0
"""How long the producer may take to deliver its records at shutdown, after the media records were drained."""


def create_app(
    config: GatewayConfig, producer: AIOKafkaProducer, identity: ClusterIdentity | None = None
) -> web.Application:
    """The gateway's application. The caller starts `producer`, and stops it after the application.

    With `identity` the gateway breaks when Kafka comes back as another cluster.
    """
    metrics = GatewayMetrics()
    process = ProcessMetrics()
    process.registry.register(GatewayCollector(metrics))
    answered = process.stage("webhook_answer")
    writer = KafkaWriter(
        producer,
        metrics,
        max_waiting=config.records_waiting_max,
        ack_timeout_s=config.ack_timeout_s,
        identity=identity,
    )
    ended = EndedLegs()
    webhooks = Webhooks(config, writer, metrics, ended)
    media = MediaSockets(config, writer, metrics, ended)

    async def webhook(request: web.Request) -> web.StreamResponse:
        begun = time.perf_counter()
        try:
            return await webhooks.handle(request)
        finally:
            answered.observe(time.perf_counter() - begun)

    async def show_metrics(request: web.Request) -> web.StreamResponse:
        process.kafka_reachable.set((await writer.readiness()).reachable)
        return await process.show(request)

    async def kafka_is_ready() -> bool:
        return (await writer.readiness()).ready

    def counts() -> Mapping[str, Any]:
        return {"metrics": metrics.as_json()}

    def kafka_and_counts() -> Mapping[str, Any]:
        return {"kafka": writer.last_readiness.as_json(), **counts()}

    async def sending(_: web.Application) -> AsyncIterator[None]:
        await writer.readiness()  # so that the first webhook need not wait for it
        sender = asyncio.create_task(writer.run(), name="kafka-writer")
        sender.add_done_callback(writer.run_ended)
        watcher = asyncio.create_task(writer.watch(), name="kafka-watch")
        try:
            yield
            await writer.drain(config.drain_timeout_s)
        finally:
            watcher.cancel()
            sender.cancel()
            await asyncio.wait([sender, watcher])

    checks = [_public_alone_at(config.tunnel_port), _own_pages_alone(config)]
    app = web.Application(middlewares=[errors_as_json(metrics), *checks])
    app[METRICS] = metrics
    app[_PROCESS] = process
    app[_KAFKA_WRITER] = writer
    app[_MEDIA] = media
    app.router.add_post(WEBHOOK_PATH, webhook)
    app.router.add_post(f"{WEBHOOK_PATH}/", webhook)
    app.router.add_get(MEDIA_PATH, media.handle, allow_head=False)
    app.add_routes(health.routes({"kafka": kafka_is_ready}, live_details=counts, ready_details=kafka_and_counts))
    app.router.add_get(METRICS_PATH, show_metrics)
    app.cleanup_ctx.append(sending)
    if not config.verify_webhooks:
        log.warning(
            "webhooks_not_verified",
            setting="WEBHOOK_VERIFICATION=off",
            risk="anyone who reaches this port can invent calls",
        )
    elif not config.verifier.configured:
        log.warning("all_webhooks_refused", reason="neither TELNYX_PUBLIC_KEY nor TELNYX_WEBHOOK_SECRET is set")
    return app


def _public_alone_at(port: int) -> Middleware:
    """A middleware that serves nothing but webhooks and media to whoever connects to the local `port`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if port and request.path not in _PUBLIC_PATHS:
            local = None if request.transport is None else request.transport.get_extra_info("sockname")
            if local is None or local[1] == port:
                raise web.HTTPNotFound
        return await handler(request)

    return middleware


def _own_pages_alone(config: GatewayConfig) -> Middleware:
    """A middleware that refuses what a page of another site has sent.

    The pages for monitoring are checked as those of the other processes are. The carrier's webhooks and sockets come
    from anywhere and prove by signature and token where they come from; where these are not verified, what a browser
    has sent is refused.
    """
    check_origin = origin_check(config.host_names)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _PUBLIC_PATHS:
            return await check_origin(request, handler)
        if not config.verify_webhooks and (hdrs.ORIGIN in request.headers or "Sec-Fetch-Site" in request.headers):
            return error_response(403, "browser", "a browser has sent this", "only the carrier may ask here")
        return await handler(request)

    return middleware


def http_server(app: web.Application, *, connections_max: int) -> HttpServer:
    """The server of an application made by `create_app`."""
    metrics = app[METRICS]

    def unreadable() -> None:
        metrics.requests_unreadable += 1

    server = HttpServer(
        app,
        grace_s=_HANDLER_GRACE_S,
        connections_max=connections_max,
        on_unreadable=unreadable,
        before_stop=app[_MEDIA].close_all,
    )
    app[_PROCESS].registry.register(HttpCollector(server.counts))
    return server


async def serve(
    settings: Settings,
    kafka: KafkaConnection,
    *,
    listening: Callable[[str, int], None] | None = None,
    starts: Starts | None = None,
) -> None:
    """Run the gateway until cancelled; then refuse new requests, store what was accepted, and stop.

    `listening` is called with address and port once connections are accepted; `starts` becomes a metric. At startup the
    gateway waits for Kafka as long as it takes. Raises OSError if the port is taken, ValueError for invalid settings,
    and ProducerBrokenError when only a new process can go on.
    """
    config = GatewayConfig.from_settings(settings)
    producer = await _start_producer(kafka)
    try:
        app = create_app(config, producer, ClusterIdentity(kafka))
        if starts is not None:
            starts.show(app[_PROCESS].registry)
        server = http_server(app, connections_max=settings.http_connections_max)
        await server.start()
        memory.settle()
        watchdog = Watchdog(app[_PROCESS].loop_delay.observe, settings.stuck_after_s)
        watchdog.start()
        try:
            host, port = await server.listen(settings.gateway_host, settings.gateway_port)
            log.info("gateway_listening", host=host, port=port)
            if settings.gateway_tunnel_port:
                await server.listen(_LOOPBACK, settings.gateway_tunnel_port)
            if listening is not None:
                listening(host, port)
            await app[_KAFKA_WRITER].wait_until_broken()
        finally:
            watchdog.stop()
            await server.stop()
    finally:
        await _stop_producer(producer)


async def _start_producer(kafka: KafkaConnection) -> AIOKafkaProducer:
    """A started producer, once Kafka can be reached, however long that takes."""
    while True:
        await wait_until_reachable(kafka)
        # Idempotent, except on the embedded broker: there a retried request can store a record twice, and consumers
        # skip the duplicate by event id and sequence.
        producer = make_producer(
            kafka,
            client_id="dispatchai-gateway",
            linger_ms=5,
            max_batch_size=_BATCH_BYTES,
        )
        try:
            await producer.start()
        except KafkaConnectionError:  # it was reachable a moment ago
            await producer.stop()
        except BaseException:
            await producer.stop()
            raise
        else:
            return producer


async def _stop_producer(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_PRODUCER_GRACE_S):
            await producer.stop()
    except TimeoutError:
        log.error("producer_not_drained", timeout_s=_PRODUCER_GRACE_S)
        await producer.client.close()
