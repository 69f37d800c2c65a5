"""A name that a caller, or a telephone system, gives itself costs no call: whatever is in it, the call is recorded."""

from __future__ import annotations

import orjson
import pytest

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import exchange, post, ready
from tests.support.gateway import SECRET, event, hmac_headers, new_call, occurred

NAME = b'"NAME"'
NAMES = {
    "half a surrogate pair": b'"J\\udc00"',
    "Latin-1": b'"J\xe9r\xf4me"',
    "bytes": b'"\xff\xfe\x00"'.replace(b"\x00", b"\\u0000"),
    "cut within a character": "Jérôm€".encode()[:-1].join((b'"', b'"')),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_a_name_that_is_no_text_costs_no_call(embedded: KafkaConnection, name: bytes) -> None:
    call = event(new_call(), occurred_at=occurred())
    call["data"]["payload"]["caller_id_name"] = "NAME"
    body = orjson.dumps(call).replace(NAME, name)
    async with ready(embedded, settings={"TELNYX_WEBHOOK_SECRET": SECRET}) as running:
        answer = await exchange(running.port, post(body, hmac_headers(body)))
    # After 400 the carrier does not send it again: nobody would answer the call.
    assert answer.startswith(b"HTTP/1.1 200 ")
