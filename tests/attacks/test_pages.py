"""Attacks through a browser: requests of pages of other sites, to processes on this machine or in its network."""

from __future__ import annotations

import orjson
import pytest

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import WEBHOOK, exchange, post, ready
from tests.support.gateway import event, new_call, occurred


def get(path: str, *, host: str, **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("path", ["/metrics", "/health/live", "/health/ready"])
async def test_a_page_of_another_site_reads_nothing_of_the_gateway(embedded: KafkaConnection, path: str) -> None:
    async with ready(embedded) as running:
        own = f"127.0.0.1:{running.port}"
        assert (await exchange(running.port, get(path, host=own))).startswith(b"HTTP/1.1 200 ")
        for request in (
            get(path, host="rebound.example"),  # by a name that the site makes resolve to this machine
            get(path, host=own, Origin="https://site.example"),
            get(path, host=own, Sec_Fetch_Site="cross-site"),
        ):
            assert (await exchange(running.port, request)).startswith(b"HTTP/1.1 403 ")


async def test_a_page_of_another_site_invents_no_call_where_signatures_are_off(embedded: KafkaConnection) -> None:
    body = orjson.dumps(event(new_call(), occurred_at=occurred()))
    browser = {"Content-Type": "text/plain", "Origin": "https://site.example", "Sec-Fetch-Site": "cross-site"}
    async with ready(embedded, settings={"WEBHOOK_VERIFICATION": "off"}) as running:
        answer = await exchange(running.port, post(body, browser, path=WEBHOOK))
        assert not answer.startswith(b"HTTP/1.1 200 ")
        assert (await exchange(running.port, post(body))).startswith(b"HTTP/1.1 200 ")
