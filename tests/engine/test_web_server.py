"""The pages of an application are served with the bounds of every process's HTTP server."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from aiohttp import web

from dispatchai.engine.app import create_app
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port


async def test_an_application_serves_its_pages_with_bounds(tmp_path: Path) -> None:
    port = free_port()
    app = create_app(
        "pages",
        KafkaConnection("127.0.0.1:1", embedded=True),
        dead_letter_topic="dead-letters",
        partitions=1,
        web_host="127.0.0.1",
        web_port=port,
        data_dir=tmp_path,
        http_connections_max=1,
    )

    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app.web.web_app.router.add_post("/", read)
    app.web.web_app.router.add_get("/metrics", app.metrics.show)
    await app.web.start_server()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.post("/", data=b"abc") as answer:
                assert await answer.text() == "3"
            async with http.post("/", data=b"abc", headers={"Content-Encoding": "gzip"}) as answer:
                assert answer.status == 415
        # The one connection that there may be is the new one.
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, http.get("/metrics") as answer:
            assert "dispatchai_http_connections_open 1.0" in await answer.text()
    finally:
        await app.web.stop_server()
