"""Log lines name what failed, leak none of what was processed, and do not repeat without end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from dispatchai.process.logs import LIMITED_S, LogFormat, configure

FAIL = """
import sys
import structlog
from dispatchai.process.logs import LogFormat, configure

configure(LogFormat(sys.argv[1]), "INFO", "worker")

def fail():
    caller = "+15550101" + "001"
    raise ValueError(len(caller))

try:
    fail()
except ValueError:
    structlog.get_logger("room").exception("step_failed", place="signals[3]@7")
"""


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_a_traceback_shows_the_lines_of_code_and_no_variables(log_format: LogFormat) -> None:
    pytest.importorskip("rich", reason="structlog prints variables only where rich is installed")
    ran = subprocess.run(
        [sys.executable, "-c", FAIL, log_format], check=True, capture_output=True, text=True, encoding="utf-8"
    )
    assert "step_failed" in ran.stderr
    assert "ValueError: 12" in ran.stderr
    assert "+15550101001" not in ran.stderr


def test_a_repeated_line_of_the_client_is_written_once_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("dispatchai.process.log_limit.time.monotonic", lambda: now)
    configure(LogFormat.JSON, "INFO", "test")
    client = logging.getLogger("aiokafka.client")
    for node in range(500):
        client.error("Unable connect to node with id %s: %s", node, "refused")
        client.error("Unable to update metadata from %s", [node])
    now += LIMITED_S["aiokafka"]
    client.error("Unable connect to node with id %s: %s", 7, "refused")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line.get("lines")) for line in lines] == [
        ("Unable connect to node with id 0: refused", None),
        ("Unable to update metadata from [0]", None),
        ("Unable connect to node with id 7: refused", 500),
    ]


def test_lines_of_the_program_and_of_other_libraries_are_not_held_back(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.JSON, "INFO", "test")
    for name in ("dispatchai.gateway", "somebody.else"):
        for _ in range(3):
            logging.getLogger(name).error("again")
    assert len(capsys.readouterr().err.splitlines()) == 6


FAILING = """
import asyncio, threading
from dispatchai.process.logs import LogFormat, configure
configure(LogFormat.JSON, "INFO", "test")
def fail(): raise RuntimeError("no\\nway")
thread = threading.Thread(target=fail, name="helper")
thread.start()
thread.join()
async def main():
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0.01)
    fail()
asyncio.run(main())
"""


def test_an_exception_that_nobody_caught_is_one_line_of_json() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines[::2]] == ["uncaught_exception", "uncaught_exception"]
    assert lines[0]["thread"] == "helper"
    assert lines[1]["logger"] == "asyncio"
    assert lines[2]["error"] == "RuntimeError: no\nway"
    assert all("Traceback" in line["exception"] for line in lines)
    assert done.returncode == 1
