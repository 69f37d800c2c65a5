"""Requests that are not as HTTP wants them, or cost more than they should. Nobody knows the sender."""

from __future__ import annotations

import asyncio

import orjson

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import exchange, ready
from tests.support.gateway import SECRET, event, hmac_headers, new_call, occurred

POST = b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: g\r\nConnection: close\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: g\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def signed_requests() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Requests that the gateway accepts and such that it refuses, by name. Signed now: it refuses old signatures."""
    body = orjson.dumps(event(new_call(), occurred_at=occurred()))
    signed = b"telnyx-signature-sha256: " + hmac_headers(body)["telnyx-signature-sha256"].encode() + b"\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    accepted = {
        "length": POST + length + signed + b"\r\n" + body,
        "chunked": POST + CHUNKED + signed + b"\r\n" + chunk,
        "http-1.0": POST.replace(b"1.1", b"1.0") + length + signed + b"\r\n" + body,
        "expect": POST + b"Expect: 100-continue\r\n" + length + signed + b"\r\n" + body,
        "identity": POST + b"Content-Encoding: identity\r\n" + length + signed + b"\r\n" + body,
    }
    refused = {
        "two-lengths": POST + length + b"Content-Length: 5\r\n" + signed + b"\r\n" + body,
        "length-and-chunked": POST + length + CHUNKED + signed + b"\r\n" + chunk,
        "chunked-then-gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n" + signed + b"\r\n" + chunk,
        "gzip-then-chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n" + signed + b"\r\n" + chunk,
        "only-gzip": POST + b"Transfer-Encoding: gzip\r\n" + signed + b"\r\n" + chunk,
        "twice-chunked": POST + CHUNKED + CHUNKED + signed + b"\r\n" + chunk,
        "xchunked": POST + b"Transfer-Encoding: xchunked\r\n" + signed + b"\r\n" + chunk,
        "signed-length": POST + b"Content-Length: +%d\r\n" % len(body) + signed + b"\r\n" + body,
        "negative-length": POST + b"Content-Length: -1\r\n" + signed + b"\r\n" + body,
        "endless-length": POST + b"Content-Length: " + b"9" * 30 + b"\r\n" + signed + b"\r\n" + body,
        "large-length": POST + b"Content-Length: 9999999999\r\n" + signed + b"\r\n" + body,
        "short-length": POST + b"Content-Length: 10\r\n" + signed + b"\r\n" + body,
        "blank-before-colon": POST + b"Content-Length : %d\r\n" % len(body) + signed + b"\r\n" + body,
        "folded-header": POST + b"X: a\r\n b\r\n" + length + signed + b"\r\n" + body,
        "null-in-header": POST + b"X: a\0b\r\n" + length + signed + b"\r\n" + body,
        "line-feeds-alone": POST.replace(b"\r\n", b"\n") + length + signed + b"\n" + body,
        "chunk-with-line-feed": POST + CHUNKED + signed + b"\r\n" + chunk.replace(b"\r\n", b"\n"),
        "two-hosts": POST + b"Host: other\r\n" + length + signed + b"\r\n" + body,
        "no-host": POST.replace(b"Host: g\r\n", b"") + length + signed + b"\r\n" + body,
        "unknown-expectation": POST + b"Expect: much\r\n" + length + signed + b"\r\n" + body,
        "signature-twice": POST + length + signed + signed + b"\r\n" + body,
        "encoded": POST + b"Content-Encoding: gzip\r\n" + length + signed + b"\r\n" + body,
        "connect": b"CONNECT g:80 HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n",
        "put": POST.replace(b"POST", b"PUT") + length + signed + b"\r\n" + body,
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    return accepted, refused


ENDLESS = {
    "one-byte-chunks": POST + CHUNKED + b"\r\n" + b"1\r\na\r\n" * 200_000,
    "chunk-extension": POST + CHUNKED + b"\r\n1;" + b"a" * 1_000_000,
    "trailers": POST + CHUNKED + b"\r\n0\r\n" + b"a: b\r\n" * 100_000,
    "header": POST + b"X: " + b"a" * 1_000_000,
    "headers": POST + b"X: a\r\n" * 100_000,
    "large-headers": POST + (b"X: " + b"a" * 8_000 + b"\r\n") * 60,
    "path": b"GET /" + b"a" * 1_000_000,
    "pipelined": GET * 20_000,
    "blank-lines": b"\r\n" * 500_000,
}
"""Each ends before the gateway has read it all."""


def status(answer: bytes) -> int:
    """The status of an answer; 100 may come before it."""
    return int(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").split(b" ", 2)[1])


async def test_requests_are_taken_as_they_are_meant_or_not_at_all(embedded: KafkaConnection) -> None:
    accepted, refused = signed_requests()
    async with ready(embedded, settings={"TELNYX_WEBHOOK_SECRET": SECRET}) as running:
        for name, request in accepted.items():
            assert status(await exchange(running.port, request)) == 200, name
        for name, request in refused.items():
            answer = await exchange(running.port, request)
            # 505 and 400 for what cannot be read; 4xx and 501 for the rest.
            assert not answer or 400 <= status(answer) <= 505, name
            assert b'"stored"' not in answer, name
        before = running.used()
        for name, request in ENDLESS.items():
            answers = await asyncio.gather(*(exchange(running.port, request) for _ in range(4)))
            assert all(b'"stored"' not in answer for answer in answers), name
        assert status(await exchange(running.port, accepted["length"])) == 200
        after = running.used()
    assert after.memory_bytes - before.memory_bytes < 60_000_000


async def test_large_bodies_that_nobody_signed_take_bounded_memory(embedded: KafkaConnection) -> None:
    accepted, _ = signed_requests()
    head = b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: g\r\nContent-Length: 262144\r\n\r\n"

    async with ready(embedded, settings={"TELNYX_WEBHOOK_SECRET": SECRET}) as running:
        before = running.used()
        waiting = [asyncio.create_task(exchange(running.port, head + bytes(262_143))) for _ in range(250)]
        answers: list[bytes] = []
        while len(answers) < 100:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting = [task for task in waiting if task not in done]
            answers += [task.result() for task in done]
        # The carrier's webhook is small, and comes through.
        assert status(await exchange(running.port, accepted["length"])) == 200
        after = running.used()
        answers += await asyncio.gather(*waiting)
    counted = {status(answer) for answer in answers if answer}
    assert 503 in counted
    assert counted <= {408, 503}
    assert after.memory_bytes - before.memory_bytes < 100_000_000
