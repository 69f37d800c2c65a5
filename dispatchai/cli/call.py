"""`dispatchai call`: places simulated calls to the running system and shows their packets.

Decides which addresses are used, what is shown and the exit code. The simulated carrier makes the calls.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import quote

import aiohttp
import orjson

from dispatchai.cli.errors import UnusableError
from dispatchai.cli.printing import printable, printable_json
from dispatchai.process.run_info import RunInfo, RunInfoError
from dispatchai.settings import Settings
from dispatchai.simulator import (
    NO_FAULTS,
    AccountError,
    AudioFileError,
    CallerAudio,
    CallReport,
    Faults,
    PortTakenError,
    Progress,
    SimulatedAccount,
    SimulatedCarrier,
    Stage,
    Timing,
    load,
)
from dispatchai.simulator.account import KEY_FILE
from dispatchai.telnyx.client import SIMULATED_API_KEY

LOOPBACK: Final = "127.0.0.1"

EXIT_OK: Final = 0
EXIT_INCOMPLETE: Final = 1
"""A call failed, or its packet did not come."""

CALLED_NUMBER: Final = "+15550100911"
CALLER_NUMBERS: Final = "+1555010{:04d}"
"""Numbers of the range that is reserved for fiction, filled with 1001 and up: one for each call."""

BETWEEN_CALLS_S: Final = 0.5
"""Real callers do not dial in the same millisecond; half a second also makes the list grow visibly."""

PACKET_POLL_S: Final = 0.25
PACKET_WAIT_S: Final = 60.0
"""Twice the default of CALL_DEADLINE_S, after which a packet is final even if something is missing."""

REQUEST_S: Final = 3.0
PLAIN_STEP_S: Final = 5
"""Without a terminal: seconds of speech between two lines of progress."""

_NUMBER = re.compile(r"\+[1-9]\d{1,14}|sips?:\S{1,250}")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the running system listens."""

    gateway_url: str
    console_url: str
    carrier_port: int
    carrier_host: str = LOOPBACK


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Addresses and keys of processes that run by themselves. What is None is as in a local run."""

    gateway_url: str | None = None
    """URL of the gateway, or of the proxy before it."""
    carrier: str | None = None
    """``[HOST:]PORT`` at which the carrier serves commands: that of the worker's TELNYX_API_URL."""
    signing_key: Path | None = None
    """PEM file of the key that signs webhooks; the gateway has its public key."""

    @property
    def named(self) -> bool:
        """Whether anything is named."""
        return self != Elsewhere()


@dataclass(frozen=True, slots=True)
class _Result:
    """How one file's call went: its packet, as the console returns it, and what failed, or why there is no packet."""

    file: str
    packet: dict[str, Any] | None
    failure: str | None
    report: CallReport


async def call(
    files: Sequence[Path],
    *,
    settings: Settings,
    from_number: str | None = None,
    speed: float = 1.0,
    console_url: str | None = None,
    elsewhere: Elsewhere | None = None,
    as_json: bool = False,
    packet_wait_s: float = PACKET_WAIT_S,
    timing: Timing | None = None,
    faults: Faults = NO_FAULTS,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Call with each file at the same time, wait for the final packets, print them and return the exit code.

    `from_number` is the first caller's; the others have numbers of their own. With `speed` above 1 callers speak faster
    than in real time. `console_url` overrides the console of the running system, `elsewhere` the rest of it. With
    `as_json` `out` gets one JSON array of the packets, ranked, and nothing else; progress then goes to `err`. Otherwise
    `out` gets the progress, a ranked table and each packet. `timing` overrides how long a caller waits (its speed
    included). With `faults` a line for each call reports what was sent and lost.

    Raises UnusableError, before anybody is called, if a file, a number, the port or the running system is not usable.
    """
    out = out or sys.stdout
    err = err or sys.stderr
    try:
        elsewhere = elsewhere or Elsewhere()
        target = _target(settings, console_url, elsewhere)
        audios = [load(path) for path in files]
        if not audios:
            raise UnusableError("name at least one WAV file")
        numbers = _numbers(len(audios), from_number)
        account = _account(settings, elsewhere)
        if elsewhere.signing_key is not None:
            print(f"webhooks are signed for TELNYX_PUBLIC_KEY_NEXT={account.public_key}", file=err)
        board = _Board(err if as_json else out, [audio.name for audio in audios])
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_S)) as http:
            await _check_gateway(http, target.gateway_url, local=not elsewhere.named)
            carrier = SimulatedCarrier(
                account,
                target.carrier_port,
                target.gateway_url,
                timing=timing or Timing(speed=speed),
                faults=faults,
                host=target.carrier_host,
            )
            async with carrier, asyncio.TaskGroup() as callers:
                tasks = [
                    callers.create_task(_one_call(index, audio, number, carrier, http, target, board, packet_wait_s))
                    for index, (audio, number) in enumerate(zip(audios, numbers, strict=True))
                ]
    except (AccountError, AudioFileError, PortTakenError, RunInfoError) as error:
        raise UnusableError(str(error)) from error
    results = sorted((task.result() for task in tasks), key=_rank)
    _print(results, out, as_json=as_json)
    if faults != NO_FAULTS:
        for result in results:
            print(printable(f"{result.file}: {_line_report(result.report)}"), file=err if as_json else out)
    for result in results:
        if result.failure is not None:
            print(printable(f"{result.file}: {result.failure}"), file=err)
    return EXIT_OK if all(result.packet is not None for result in results) else EXIT_INCOMPLETE


def _account(settings: Settings, elsewhere: Elsewhere) -> SimulatedAccount:
    """The carrier's keys. Commands have the worker's own API key if it sends them to an address that is named."""
    api_key = SIMULATED_API_KEY
    if elsewhere.carrier is not None and not settings.carrier_is_simulated:
        api_key = settings.telnyx_api_key.get_secret_value()
    return SimulatedAccount.from_file(elsewhere.signing_key or settings.state_dir / KEY_FILE, api_key)


def _carrier_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise UnusableError(f"{text!r} is no address of the carrier: give PORT or HOST:PORT")
    return host or LOOPBACK, int(port)


def _target(settings: Settings, console_url: str | None, elsewhere: Elsewhere) -> _Target:
    if not settings.carrier_is_simulated and elsewhere.carrier is None:
        raise UnusableError(
            "TELNYX_API_KEY is set, so commands go to Telnyx and no simulated call would be answered: "
            "unset it for `dispatchai up` and `dispatchai call`, or let the worker's TELNYX_API_URL name this machine, "
            "and give --carrier"
        )
    run = None if elsewhere.named else RunInfo.load(settings.state_dir)
    if run is not None:
        return _Target(run.gateway_url, console_url or run.console_url, run.carrier_port)
    host, port = LOOPBACK, settings.simulated_carrier_port
    if elsewhere.carrier is not None:
        host, port = _carrier_address(elsewhere.carrier)
    return _Target(
        gateway_url=(elsewhere.gateway_url or f"http://{settings.gateway_host}:{settings.gateway_port}").rstrip("/"),
        console_url=console_url or f"http://{settings.console_host}:{settings.console_port}",
        carrier_port=port,
        carrier_host=host,
    )


def _numbers(count: int, from_number: str | None) -> list[str]:
    numbers = [CALLER_NUMBERS.format(1001 + index) for index in range(count)]
    if from_number is not None:
        if not _NUMBER.fullmatch(from_number):
            raise UnusableError(f"{from_number!r} is not a caller's number: give +15550101234 or sip:name@host")
        numbers = [from_number, *(number for number in numbers if number != from_number)][:count]
        numbers += [CALLER_NUMBERS.format(1001 + count)] * (count - len(numbers))
    return numbers


async def _check_gateway(http: aiohttp.ClientSession, gateway_url: str, *, local: bool) -> None:
    """Raise UnusableError if nothing answers. Any answer will do: the webhooks find every other fault."""
    try:
        async with http.get(f"{gateway_url}/health/live"):
            pass
    except aiohttp.ClientConnectorCertificateError as error:
        cause = error.certificate_error
        why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)
        raise UnusableError(
            f"the certificate at {gateway_url} is not trusted: {why}; the carrier would not trust it either. "
            "For an authority of your own set SSL_CERT_FILE to its PEM file"
        ) from error
    except aiohttp.ClientConnectorSSLError as error:
        raise UnusableError(f"no TLS at {gateway_url}: is it an http:// address?") from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        todo = (
            "is `dispatchai up` running?" if local else "is it the address of the gateway, or of the proxy before it?"
        )
        raise UnusableError(f"no gateway answers at {gateway_url}: {todo}") from error


async def _one_call(
    index: int,
    audio: CallerAudio,
    number: str,
    carrier: SimulatedCarrier,
    http: aiohttp.ClientSession,
    target: _Target,
    board: _Board,
    packet_wait_s: float,
) -> _Result:
    await asyncio.sleep(index * BETWEEN_CALLS_S)
    placed = carrier.place_call(audio, number, CALLED_NUMBER, lambda progress: board.progress(index, progress))
    report = await placed.finished()
    if not report.completed:
        board.show(index, f"failed: {report.failure}")
        return _Result(audio.name, None, report.failure, report)
    board.show(index, f"hung up ({report.hangup_source}), waiting for the packet")
    packet = await _final_packet(http, target.console_url, report.leg.call_session_id, packet_wait_s)
    if isinstance(packet, str):
        board.show(index, f"no packet: {packet}")
        failure = packet if report.failure is None else f"{report.failure}; {packet}"
        return _Result(audio.name, None, failure, report)
    board.show(index, f"packet: {_text(packet, 'risk', 'level')} {_text(packet, 'nlp', 'category')}")
    return _Result(audio.name, packet, report.failure, report)


async def _final_packet(
    http: aiohttp.ClientSession, console_url: str, call_id: str, wait_s: float
) -> dict[str, Any] | str:
    """The call's packet once the console shows it as FINAL, or why there is none after `wait_s`."""
    url = f"{console_url.rstrip('/')}/api/v1/calls/{quote(call_id, safe='')}"
    last = "nothing"
    try:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    async with http.get(url) as reply:
                        content: Any = orjson.loads(await reply.read()) if reply.status == 200 else None
                        last = f"{reply.status}"
                except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
                    content, last = None, type(error).__name__
                match content:
                    case {"status": "FINAL", "packet": dict() as packet}:
                        return packet
                    case {"status": str() as status}:
                        last = status
                # The interface for one call is a plain GET, so the console is polled.
                await asyncio.sleep(PACKET_POLL_S)
    except TimeoutError:
        return f"not final {wait_s:g} s after the call (last answer of the console at {console_url}: {last})"


class _Board:
    """Shows the progress of each call: in a line that is rewritten on a terminal, else in a line for each change."""

    def __init__(self, out: TextIO, names: Sequence[str]) -> None:
        self._out = out
        self._width = max(map(len, names))
        self._names = names
        self._texts = [""] * len(names)
        self._on_terminal = out.isatty()
        self._drawn = False

    def progress(self, index: int, progress: Progress) -> None:
        match progress.stage:
            case Stage.STREAMING:
                spoken = int(progress.spoken_s)
                if self._on_terminal or spoken % PLAIN_STEP_S == 0:
                    self.show(index, f"streaming {spoken}/{round(progress.total_s)} s")
            case Stage.ENDED:
                self.show(index, "hung up")
            case stage:
                self.show(index, stage.value)

    def show(self, index: int, text: str) -> None:
        if text == self._texts[index]:
            return
        self._texts[index] = text
        if not self._on_terminal:
            print(self._line(index), file=self._out, flush=True)
            return
        columns = shutil.get_terminal_size().columns - 1
        lines = "".join(f"{self._line(each)[:columns]}\x1b[K\n" for each in range(len(self._names)))
        home = f"\x1b[{len(self._names)}F" if self._drawn else ""
        self._out.write(home + lines)
        self._out.flush()
        self._drawn = True

    def _line(self, index: int) -> str:
        return printable(f"{self._names[index]:<{self._width}}  {self._texts[index]}")


def _rank(result: _Result) -> tuple[bool, float, str, str]:
    """Sort key: by weight, then age, then id, as in the queue; calls without a packet come last."""
    packet = result.packet
    if packet is None:
        return True, 0.0, "", result.file
    weight = packet.get("ranking", {}).get("weight", 0)
    return False, -weight, _text(packet, "ranking", "created_at"), _text(packet, "call_id")


def _print(results: Sequence[_Result], out: TextIO, *, as_json: bool) -> None:
    packets = [result.packet for result in results if result.packet is not None]
    if as_json:
        print(printable_json(packets), file=out)
        return
    if not packets:
        return
    rows = [("RANK", "LEVEL", "SCORE", "CATEGORY", "FILE", "SUMMARY")]
    rows += [
        (
            str(rank),
            _text(packet, "risk", "level"),
            _text(packet, "risk", "score"),
            _text(packet, "nlp", "category"),
            result.file,
            _text(packet, "summary"),
        )
        for rank, (result, packet) in enumerate(((r, r.packet) for r in results if r.packet is not None), start=1)
    ]
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(file=out)
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)
    for packet in packets:
        print(f"\n{printable_json(packet)}", file=out)


def _line_report(report: CallReport) -> str:
    """What was sent of a call and what was lost, in one line."""
    lost = sum(len(stream.lost) for stream in report.streams)
    ends = ", ".join(stream.end for stream in report.streams) or "none"
    requests = sum(command.requests for command in report.commands)
    effects = sum(command.effects for command in report.commands)
    return (
        f"{report.frames_sent} frames sent, {lost} lost; streams: {ends}; "
        f"{len(report.webhook_answers_s)} webhooks answered; {requests} requests for {effects} effects of commands"
    )


def _text(packet: dict[str, Any], *path: str) -> str:
    """The value at `path` of `packet` as text; empty where it has none."""
    value: Any = packet
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None else str(value)
