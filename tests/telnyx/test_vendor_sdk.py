"""The vendor's SDK agrees with the parameters of the commands that are sent, and verifies the signatures of the
simulated carrier."""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from pydantic import SecretStr, TypeAdapter, ValidationError
from telnyx import AsyncTelnyx
from telnyx.lib.webhook_verification import WebhookVerificationError, verify_webhook_signature
from telnyx.types.calls import (
    ActionAnswerParams,
    ActionHangupParams,
    ActionSpeakParams,
    ActionStartRecordingParams,
    ActionStartStreamingParams,
    ActionTransferParams,
)

from dispatchai.simulator import CallerAudio, SimulatedAccount, SimulatedCarrier, Timing
from dispatchai.telnyx.client import TelnyxClient
from dispatchai.telnyx.commands import (
    COMMANDS,
    Answer,
    Command,
    Done,
    Hangup,
    RecordStart,
    Speak,
    StreamingStart,
    Transfer,
)

CONTROL_ID = "v3:T02ll/Nd-k1"
PATIENCE_S = 30.0

CASES: list[tuple[Command, Any, str]] = [
    (Answer(CONTROL_ID, "c-1"), ActionAnswerParams, "answer"),
    (StreamingStart(CONTROL_ID, "c-2", "wss://h.example/ws", "token"), ActionStartStreamingParams, "start_streaming"),
    (RecordStart(CONTROL_ID, "c-3", "mp3"), ActionStartRecordingParams, "start_recording"),
    (RecordStart(CONTROL_ID, "c-3", "wav"), ActionStartRecordingParams, "start_recording"),
    (Speak(CONTROL_ID, "c-4", "Hello", "female", "en-US"), ActionSpeakParams, "speak"),
    (Transfer(CONTROL_ID, "c-5", "+15550100999"), ActionTransferParams, "transfer"),
    (Hangup(CONTROL_ID, "c-6"), ActionHangupParams, "hangup"),
]


def test_every_command_is_checked_against_the_sdk() -> None:
    assert {type(command) for command, _, _ in CASES} == set(COMMANDS.values())


@pytest.mark.parametrize(("command", "params", "_method"), CASES)
def test_a_body_has_the_sdks_required_parameters_only_known_ones_and_valid_values(
    command: Command, params: Any, _method: str
) -> None:
    body = command.body()
    known = typing.get_type_hints(params, include_extras=True)
    assert body.keys() <= known.keys()
    assert params.__required_keys__ <= body.keys()
    for name, value in body.items():
        TypeAdapter(typing.get_type_hints(params)[name]).validate_python(value, strict=True)


def test_the_check_of_values_can_fail() -> None:
    hints = typing.get_type_hints(ActionStartRecordingParams)
    with pytest.raises(ValidationError):
        TypeAdapter(hints["format"]).validate_python("ogg", strict=True)


@asynccontextmanager
async def recording_server() -> AsyncIterator[tuple[str, list[tuple[str, str, str, Any]]]]:
    """A server that accepts every request and records its method, path, authorization and body."""
    seen: list[tuple[str, str, str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, request.raw_path, request.headers["Authorization"], await request.json()))
        return web.json_response({"data": {"result": "ok"}})

    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v2", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("command", "_params", "method"), CASES)
async def test_the_client_sends_what_the_sdk_sends(command: Command, _params: Any, method: str) -> None:
    async with recording_server() as (url, seen):
        async with TelnyxClient(url, SecretStr("KEY-of-the-test")) as client:
            assert await client.run(command) == Done(1)
        async with AsyncTelnyx(api_key="KEY-of-the-test", base_url=url, max_retries=0) as vendor:
            send = getattr(vendor.calls.actions, method)
            parameters: dict[str, Any] = dict(command.body())
            reply = await send(CONTROL_ID, **parameters)
    assert reply.data.result == "ok"
    ours, theirs = seen
    assert ours == theirs


async def test_the_sdk_verifies_what_the_simulated_carrier_signs(tmp_path: Path) -> None:
    account = SimulatedAccount.load_or_create(tmp_path)
    received: list[tuple[bytes, CIMultiDict[str]]] = []
    enough = asyncio.Event()

    async def webhook(request: web.Request) -> web.Response:
        received.append((await request.read(), CIMultiDict(request.headers)))
        if json.loads(received[-1][0])["data"]["event_type"] == "call.hangup":
            enough.set()
        return web.Response()

    application = web.Application()
    application.router.add_post("/api/v1/call/incoming", webhook)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        gateway = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with SimulatedCarrier(account, 0, gateway, timing=Timing(answer_s=0.05)) as carrier:
            await carrier.place_call(CallerAudio("a.wav", b"\xff" * 160), "+15550101001", "+15550100911").finished()
            async with asyncio.timeout(PATIENCE_S):
                await enough.wait()
    finally:
        await runner.cleanup()
    assert [json.loads(body)["data"]["event_type"] for body, _ in received] == ["call.initiated", "call.hangup"]
    # With text, and awaited: the SDK's unwrap uses the repr of bytes, and verifies nothing until it is awaited.
    async with AsyncTelnyx(api_key="KEY-of-the-test", public_key=account.public_key) as vendor:
        unwrap: Any = vendor.webhooks.unwrap
        for body, headers in received:
            verify_webhook_signature(body, headers, account.public_key)
            event = await unwrap(body.decode(), headers=headers)
            assert event.data.event_type == json.loads(body)["data"]["event_type"]
    stranger = SimulatedAccount.stranger().public_key
    for body, headers in received:
        for forged, key in ((body + b" ", account.public_key), (body, stranger)):
            with pytest.raises(WebhookVerificationError):
                verify_webhook_signature(forged, headers, key)
