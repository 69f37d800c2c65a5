"""Attacks with files and paths: what is too deep, too long or too large is refused in a line, without a traceback."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dispatchai.console import Feed, mount
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.triage.rules_file import RulesFile
from dispatchai.yaml_model import YamlFileError, read_yaml

ABSURD = {
    "list in list": b"[" * 5_000,
    "mapping in mapping": b"a: " + b"{a: " * 3_000 + b"1" + b"}" * 3_000,
    "indented": b"\n".join(b" " * depth + b"a:" for depth in range(2_000)),
    "number of many digits": b"version: " + b"9" * 6_000,
    "negative number of many digits": b"levels: {CRITICAL: -" + b"9" * 6_000 + b"}",
}


@pytest.mark.parametrize("raw", ABSURD.values(), ids=ABSURD)
def test_an_absurd_file_is_refused_with_its_line(raw: bytes) -> None:
    with pytest.raises(YamlFileError, match=r"rules\.yaml:\d+: "):
        read_yaml(raw, RulesFile, "rules.yaml")


async def test_a_path_that_is_too_long_is_no_error_of_the_console() -> None:
    app = web.Application()
    mount(app, Feed(KafkaConnection("127.0.0.1:9")))
    async with TestClient(TestServer(app)) as client:
        for path in ("a" * 300, "a" * 4_000, "/".join(["a"] * 2_000)):
            answer = await client.get(f"/static/{path}")
            assert 400 <= answer.status < 500
