"""Checks of the processes on this machine: healthy, or not running with their ports free."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from yarl import URL

from dispatchai.cli.doctor.files import check_rules_of_workers, rules_of
from dispatchai.cli.doctor.http_probe import Answer, NoAnswer, probe
from dispatchai.cli.doctor.result import Check, Result, Verdict, fail, ok, skipped, warn
from dispatchai.process import health
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - recognised, not bound
"""Address at which this machine reaches a process that listens on all addresses."""


async def check_processes(http: aiohttp.ClientSession, settings: Settings, run: RunInfo | None) -> list[Result]:
    """Whether gateway, console, worker and speech process are healthy on this machine, or their ports are free; and
    whether all workers of DOCTOR_WORKERS are healthy and triage by the same rules."""
    gateway = _base(settings.gateway_host, settings.gateway_port)
    console = _base(settings.console_host, settings.console_port)
    worker = _base(settings.console_host, settings.worker_port)
    speech = _base(settings.console_host, settings.speech_port)
    if run is not None:
        gateway, console = URL(run.gateway_url), URL(run.console_url)
    workers = [URL(f"http://{address}") for address in settings.doctor_worker_addresses]
    here = [] if workers else [worker]
    results = await asyncio.gather(
        _process(http, Check.GATEWAY, gateway, "GATEWAY_PORT", expected=run is not None),
        _process(http, Check.CONSOLE, console, "CONSOLE_PORT", expected=run is not None),
        *(_process(http, Check.WORKER, one, "WORKER_PORT", expected=run is not None) for one in here),
        *(_elsewhere(http, one) for one in workers),
        _process(http, Check.SPEECH, speech, "SPEECH_PORT", expected=run is not None),
    )
    asked = [*here, *workers]
    rules = dict(zip(asked, await asyncio.gather(*(rules_of(http, one) for one in asked)), strict=True))
    return [*results, *check_rules_of_workers(settings, rules), check_carrier_port(settings)]


async def _elsewhere(http: aiohttp.ClientSession, base: URL) -> Result:
    """Whether a worker of DOCTOR_WORKERS is healthy; one that is named is expected to run."""
    result = await _process(http, Check.WORKER, base, "DOCTOR_WORKERS", expected=False)
    if result.verdict is not Verdict.SKIPPED:
        return result
    return fail(Check.WORKER, f"does not answer at {base}", "start it, or take it out of DOCTOR_WORKERS")


def _base(host: str, port: int) -> URL:
    return URL.build(scheme="http", host=_ANY.get(host, host), port=port)


async def _process(http: aiohttp.ClientSession, check: Check, base: URL, setting: str, *, expected: bool) -> Result:
    answer = await probe(http, "GET", base / "health" / "ready")
    match answer:
        case NoAnswer(refused=True) if expected:
            return fail(check, f"does not answer at {base} although `dispatchai up` runs here", "see its log")
        case NoAnswer(refused=True):
            return skipped(check, f"not running here; port {base.port} is free")
        case NoAnswer():
            return fail(check, answer.seen, f"another program may use the port: stop it, or set {setting}")
        case Answer(status=200, body={"status": health.READY}):
            return ok(check, f"ready at {base}")
        case Answer(status=503, body={"status": health.UNREADY} as body):
            return fail(check, f"runs at {base} and is not ready: {_unready(body)}", _UNREADY_TODO)
        case _:
            return fail(
                check,
                f"another program answers at {base} ({answer.status}{answer.server})",
                f"stop it, or set {setting} to a free port",
            )


_UNREADY_TODO: Final = (
    "a process is ready some seconds after its start; if it is not, see `kafka`, `topics` and its log"
)


def _unready(body: Mapping[str, Any]) -> str:
    """What a health page reports as missing. Only names of checks and topics are repeated."""
    match body:
        case {"kafka": {"reachable": False}}:
            return "Kafka cannot be reached"
        case {"kafka": {"missing_topics": [_, *_] as missing}} | {"missing_topics": [_, *_] as missing}:
            return f"topics are missing: {', '.join(map(str, missing))}"
        case {"kafka": {"problem": str() as problem}}:
            return problem
        case {"checks": dict() as checks}:
            return ", ".join(sorted(str(name) for name, holds in checks.items() if not holds)) or "no reason given"
        case _:
            return "no reason given"


def check_carrier_port(settings: Settings) -> Result:
    """Whether `dispatchai call` can serve call control."""
    check, port = Check.CARRIER_PORT, settings.simulated_carrier_port
    if not settings.carrier_is_simulated:
        return skipped(check, "TELNYX_API_KEY is set: the carrier is not simulated")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return warn(
                check,
                f"port {port} cannot be used ({error.strerror}): `dispatchai call` or another program uses it",
                "wait for it, or set SIMULATED_CARRIER_PORT to a free port",
            )
    return ok(check, f"port {port} is free for `dispatchai call`")
