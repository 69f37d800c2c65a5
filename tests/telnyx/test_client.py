"""Claims about commands to the carrier: what is sent, what is retried, and what each reply means."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import structlog
from aiohttp import web
from pydantic import SecretStr

from dispatchai.settings import Settings
from dispatchai.telnyx.client import RetryPolicy, TelnyxClient
from dispatchai.telnyx.commands import (
    AlreadyEnded,
    AlreadyStreaming,
    Answer,
    Command,
    Done,
    Hangup,
    NotAnswered,
    Outcome,
    Rejected,
    Speak,
    StreamingStart,
    Unavailable,
    achieved,
)

KEY = "KEY0123456789-very-secret"
FAST = RetryPolicy(first_delay_s=0.001, connect_s=0.5, total_s=0.5, budget_s=5.0)
ANSWER = Answer("v3:T02ll/N Dk1", "c-1")

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(code: int, error: str | None = None, **headers: str) -> Reply:
    async def reply(_: web.Request) -> web.StreamResponse:
        body = {"data": {"result": "ok"}} if error is None else {"errors": [{"code": error, "title": "A title"}]}
        return web.json_response(body, status=code, headers={name.replace("_", "-"): v for name, v in headers.items()})

    return reply


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@dataclass
class Carrier:
    """Answers each request with the next of `replies`, and repeats the last one."""

    url: str = ""
    replies: list[Reply] = field(default_factory=lambda: [status(200)])
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.raw_path, request.headers["Authorization"], await request.read()))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return await reply(request)


@pytest.fixture
async def carrier() -> AsyncIterator[Carrier]:
    carrier = Carrier()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", carrier.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    carrier.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
    yield carrier
    await runner.cleanup()


async def run(carrier: Carrier, command: Command = ANSWER, policy: RetryPolicy = FAST) -> Outcome:
    async with TelnyxClient(carrier.url, SecretStr(KEY), policy=policy) as client:
        return await client.run(command)


async def test_a_command_is_one_authorized_post_with_its_parameters(carrier: Carrier) -> None:
    assert await run(carrier) == Done(1)
    ((path, authorization, body),) = carrier.requests
    assert path == "/v2/calls/v3:T02ll%2FN%20Dk1/actions/answer"
    assert authorization == f"Bearer {KEY}"
    assert json.loads(body) == {"command_id": "c-1", "send_silence_when_idle": True}


@pytest.mark.parametrize(
    ("command", "path", "names"),
    [
        (
            StreamingStart("v3:a", "c", "wss://h/ws", "token"),
            "streaming_start",
            {"command_id", "stream_url", "stream_track", "stream_codec", "stream_auth_token"},
        ),
        (Speak("v3:a", "c", "Hello", "female", "en-US"), "speak", {"command_id", "payload", "voice", "language"}),
        (Hangup("v3:a", "c"), "hangup", {"command_id"}),
    ],
)
async def test_each_command_has_the_carriers_parameter_names(
    carrier: Carrier, command: Command, path: str, names: set[str]
) -> None:
    assert isinstance(await run(carrier, command), Done)
    assert carrier.requests[0][0] == f"/v2/calls/v3:a/actions/{path}"
    assert json.loads(carrier.requests[0][2]).keys() == names


@pytest.mark.parametrize(
    "failing", [status(500), status(503), status(408), status(429, "10011"), status(422, "90041"), cut, never]
)
async def test_a_temporary_failure_is_retried_with_the_same_command_id(carrier: Carrier, failing: Reply) -> None:
    carrier.replies = [failing, status(200)]
    assert await run(carrier) == Done(2)
    first, second = (body for _, _, body in carrier.requests)
    assert first == second
    assert json.loads(second)["command_id"] == "c-1"


async def test_tries_are_bounded(carrier: Carrier) -> None:
    carrier.replies = [status(502)]
    assert await run(carrier) == Unavailable(5, "502")
    assert len(carrier.requests) == 5


async def test_a_carrier_that_does_not_listen_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v2"
        outcome = await run(Carrier(url))
    assert isinstance(outcome, Unavailable)
    assert outcome.attempts == 5


async def test_the_wait_that_the_carrier_asks_for_is_kept(carrier: Carrier) -> None:
    carrier.replies = [status(429, "10011", x_ratelimit_reset="0"), status(503, Retry_After="0"), status(200)]
    assert await run(carrier, policy=RetryPolicy(first_delay_s=60.0)) == Done(3)


@pytest.mark.parametrize(
    "headers",
    [{"x_ratelimit_reset": "3600"}, {"Retry_After": "3600"}, {"Retry_After": "Wed, 01 Jan 2200 00:00:00 GMT"}],
)
async def test_a_wait_beyond_the_budget_is_reported_at_once(carrier: Carrier, headers: dict[str, str]) -> None:
    carrier.replies = [status(429, "10011", **headers)]
    outcome = await run(carrier)
    assert isinstance(outcome, Unavailable)
    assert outcome.attempts == 1
    assert outcome.retry_after_s is not None and outcome.retry_after_s >= 3600


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (status(422, "90018"), AlreadyEnded()),
        (status(422, "90034"), NotAnswered()),
        (status(422, "90020"), NotAnswered()),
        (status(422, "90045"), AlreadyStreaming()),
        (status(401, "10009"), Rejected(401, "10009", "A title")),
        (status(404, "10005"), Rejected(404, "10005", "A title")),
        (status(422, "90017"), Rejected(422, "90017", "A title")),
        (status(307, Location="http://127.0.0.1:1/"), Rejected(307, "", "")),
    ],
)
async def test_a_final_reply_is_not_retried(carrier: Carrier, reply: Reply, outcome: Outcome) -> None:
    carrier.replies = [reply]
    assert await run(carrier) == outcome
    assert len(carrier.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errors":[]}', b'{"errors":[{"code":null}]}', b"x" * 10**6])
async def test_a_refusal_without_a_readable_error_is_still_a_refusal(carrier: Carrier, body: bytes) -> None:
    async def reply(_: web.Request) -> web.StreamResponse:
        return web.Response(status=400, body=body)

    carrier.replies = [reply]
    assert await run(carrier) == Rejected(400, "", "")


@pytest.mark.parametrize("control_id", ["", ".", ".."])
async def test_a_command_that_names_no_call_is_not_sent(carrier: Carrier, control_id: str) -> None:
    assert isinstance(await run(carrier, Hangup(control_id, "c")), Rejected)
    assert carrier.requests == []


async def test_the_key_is_in_no_log_and_no_outcome(carrier: Carrier) -> None:
    with structlog.testing.capture_logs() as lines:
        outcomes = []
        for reply in (cut, status(500), status(401, "10009")):
            carrier.replies = [reply]
            outcomes.append(await run(carrier))
    assert lines
    assert KEY not in repr(lines) + repr(outcomes)


async def test_outcomes_and_retries_are_counted_by_action(carrier: Carrier) -> None:
    async with TelnyxClient(carrier.url, SecretStr(KEY), policy=FAST) as client:
        for replies in ([status(200)], [status(500), status(200)], [status(422, "90018")]):
            carrier.replies = list(replies)
            await client.run(ANSWER)
        await client.run(Hangup("v3:a", "c"))
    assert client.counts.as_json() == {
        "retries": {"answer": 1},
        "answer": {"AlreadyEnded": 1, "Done": 2},
        "hangup": {"AlreadyEnded": 1},
    }


async def test_a_closed_client_sends_nothing(carrier: Carrier) -> None:
    client = TelnyxClient(carrier.url, SecretStr(KEY))
    await client.close()
    assert isinstance(await client.run(ANSWER), Unavailable)
    assert carrier.requests == []


def test_a_command_is_achieved_when_its_aim_is_reached() -> None:
    hangup, stream = Hangup("v3:a", "c"), StreamingStart("v3:a", "c", "wss://h/ws")
    assert achieved(ANSWER, Done(3))
    assert achieved(hangup, AlreadyEnded()) and not achieved(ANSWER, AlreadyEnded())
    assert achieved(stream, AlreadyStreaming()) and not achieved(hangup, AlreadyStreaming())
    assert not achieved(stream, NotAnswered())


async def test_without_a_key_commands_go_to_the_simulated_carrier(carrier: Carrier) -> None:
    settings = Settings(_env_file=None, simulated_carrier_port=int(carrier.url.split(":")[2].split("/")[0]))
    async with TelnyxClient.from_settings(settings) as client:
        assert await client.run(ANSWER) == Done(1)
    assert carrier.requests[0][1] == "Bearer KEY-simulated"
