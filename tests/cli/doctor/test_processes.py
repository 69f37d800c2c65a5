"""The processes of this machine are recognised by their health pages."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Verdict, files
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.run_info import RunInfo
from dispatchai.triage.rules import Rules
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
            answering(503, {"status": "unready", "checks": {"topics": False}, "missing_topics": ["transcripts"]}),
            Verdict.FAIL,
            "topics are missing: transcripts",
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


def worker(version: str) -> Handler:
    """A worker that is ready and triages by these rules."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=f'dispatchai_rules_info{{version="{version}"}} 1.0\n')
        return web.json_response({"status": "ready"})

    return answer


async def test_every_worker_that_is_named_is_checked(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    async with serving(worker("1+a")) as port:
        gone = free_port()
        settings = free_ports(tmp_path, doctor_workers=f"127.0.0.1:{port}, 127.0.0.1:{gone}")
        results = [
            result for result in await doctor.check_processes(http, settings, None) if result.check is Check.WORKER
        ]
    assert [result.verdict for result in results] == [Verdict.OK, Verdict.FAIL]
    assert f"127.0.0.1:{gone}" in results[1].seen


async def test_workers_with_different_rules_are_seen(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    here = Rules.load().version
    async with serving(worker(here)) as first, serving(worker("1+other")) as second:
        both = free_ports(tmp_path, doctor_workers=f"127.0.0.1:{first},127.0.0.1:{second}")
        different = the(await doctor.check_processes(http, both, None), Check.RULES)
        one = free_ports(tmp_path, doctor_workers=f"127.0.0.1:{first}")
        same = the(await doctor.check_processes(http, one, None), Check.RULES)
        other = free_ports(tmp_path, doctor_workers=f"127.0.0.1:{second}")
        unlike_here = the(await doctor.check_processes(http, other, None), Check.RULES)
    assert (different.verdict, same.verdict, unlike_here.verdict) == (Verdict.WARN, Verdict.OK, Verdict.WARN)
    assert f"1+other at 127.0.0.1:{second}" in different.seen
    assert here in unlike_here.seen


def test_a_file_that_no_process_can_read_is_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("version: [", encoding="utf-8")
    settings = free_ports(tmp_path, rules_file=broken, topics_file=broken)
    for check in (files.check_rules_file, files.check_topics_file):
        result = check(settings)
        assert result.verdict is Verdict.FAIL
        assert f"{broken}:1: " in result.seen
        assert check(free_ports(tmp_path)).verdict is Verdict.OK
