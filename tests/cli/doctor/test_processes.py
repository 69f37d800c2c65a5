"""The processes of this machine are recognised by their health pages."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Verdict
from dispatchai.process.run_info import RunInfo
from tests.cli.doctor.support import (
    Handler,
    answering,
    free_ports,
    serving,
    the,
)


async def test_nothing_running_leaves_the_ports_free(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    results = await doctor.check_processes(http, free_ports(tmp_path), None)
    assert [result.verdict for result in results] == [Verdict.SKIPPED] * 4 + [Verdict.OK]


async def test_a_run_that_does_not_answer_is_a_fault(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    settings = free_ports(tmp_path)
    run = RunInfo(
        gateway_url=f"http://127.0.0.1:{settings.gateway_port}",
        ws_url="",
        console_url=f"http://127.0.0.1:{settings.console_port}",
        carrier_port=1,
        bootstrap_servers="127.0.0.1:1",
    )
    results = await doctor.check_processes(http, settings, run)
    processes = (Check.GATEWAY, Check.CONSOLE, Check.WORKER, Check.SPEECH)
    assert [the(results, check).verdict for check in processes] == [Verdict.FAIL] * 4


@pytest.mark.parametrize(
    ("handler", "verdict", "seen"),
    [
        (answering(200, {"status": "ready"}), Verdict.OK, "ready at"),
        (
            answering(503, {"status": "unready", "kafka": {"reachable": False}}),
            Verdict.FAIL,
            "Kafka cannot be reached",
        ),
        (
            answering(503, {"status": "unready", "kafka": {"reachable": True, "missing_topics": ["audio-frames"]}}),
            Verdict.FAIL,
            "topics are missing: audio-frames",
        ),
        (
            answering(503, {"status": "unready", "checks": {"views": True, "processing": False}}),
            Verdict.FAIL,
            "not ready: processing",
        ),
        (answering(200), Verdict.FAIL, "another program answers"),
        (answering(404, {"detail": "Not Found"}), Verdict.FAIL, "another program answers"),
    ],
)
async def test_a_process_is_known_by_its_health(
    handler: Handler, verdict: Verdict, seen: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serving(handler) as port:
        settings = free_ports(tmp_path, gateway_port=port)
        result = the(await doctor.check_processes(http, settings, None), Check.GATEWAY)
    assert (result.verdict, seen in result.seen) == (verdict, True), result


async def test_a_port_held_by_what_speaks_no_http_is_reported(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as other:
        settings = free_ports(tmp_path, console_port=other.sockets[0].getsockname()[1])
        result = the(await doctor.check_processes(http, settings, None), Check.CONSOLE)
    assert (result.verdict, "CONSOLE_PORT" in result.todo) == (Verdict.FAIL, True)


def test_a_taken_port_of_the_simulated_carrier_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = doctor.check_carrier_port(free_ports(tmp_path, simulated_carrier_port=taken.getsockname()[1]))
    assert (result.verdict, "SIMULATED_CARRIER_PORT" in result.todo) == (Verdict.WARN, True)
