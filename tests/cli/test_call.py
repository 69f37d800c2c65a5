"""Claims about `dispatchai call`: what it shows, what it prints and when it succeeds."""

from __future__ import annotations

import asyncio
import io
import json
import re
import ssl
import stat
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispatchai.cli.call import EXIT_INCOMPLETE, EXIT_OK, Elsewhere, call
from dispatchai.cli.errors import UnusableError
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.run_info import RunInfo, RunInfoError
from dispatchai.settings import Settings
from dispatchai.simulator import CallReport, Faults, PlacedCall, SimulatedAccount, SimulatedCarrier, Timing
from tests.cli.doctor.support import answering, serving
from tests.support.kafka.certificates import make_pems
from tests.support.platform import Platform

PACKET = {
    "risk": {"level": "CRITICAL", "score": 0.95},
    "nlp": {"category": "EMS", "transcript": "He is not breathing"},
    "ranking": {"priority": 1, "weight": 950, "created_at": "2026-03-03T19:53:16Z"},
    "summary": "Cardiac arrest: not breathing.",
}
FAST = Timing(speed=100.0, answer_s=2.0, stream_s=2.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Bench:
    """A platform, a state folder that names it, and what the command wrote."""

    def __init__(self, platform: Platform, state_dir: Path, carrier_port: int) -> None:
        self.platform = platform
        self.state_dir = state_dir
        self.settings = Settings(_env_file=None, state_dir=state_dir, telnyx_api_key="")
        self.carrier_port = carrier_port
        self.out: io.StringIO = io.StringIO()
        self.err = io.StringIO()

    def wav(self, name: str = "caller.wav", seconds: float = 0.4) -> Path:
        data = bytes([0x7F]) * round(8000 * seconds)
        path = self.state_dir / name
        path.write_bytes(
            b"RIFF\0\0\0\0WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 7, 1, 8000, 8000, 1, 8)
            + b"data"
            + struct.pack("<I", len(data))
            + data
        )
        return path

    async def call(self, *files: Path, **options: Any) -> int:
        return await call(
            files, **{"settings": self.settings, "timing": FAST, "out": self.out, "err": self.err, **options}
        )

    async def refusal(self, *files: Path, **options: Any) -> str:
        """Why the command cannot begin, which ends it with code 2."""
        with pytest.raises(UnusableError) as caught:
            await self.call(*files, **options)
        assert caught.value.exit_code == 2
        return str(caught.value)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    account = SimulatedAccount.load_or_create(tmp_path)
    async with Platform(account.public_key) as platform:
        # A free port, as the running program would have named it.
        async with SimulatedCarrier(account, 0, platform.url) as carrier:
            port = carrier.port
        platform.commands_to(f"http://127.0.0.1:{port}/v2")
        RunInfo(
            gateway_url=platform.url,
            ws_url=f"ws{platform.url[4:]}/ws",
            console_url=platform.url,
            carrier_port=port,
            bootstrap_servers="127.0.0.1:9092",
        ).save(tmp_path)
        yield Bench(platform, tmp_path, port)


async def test_a_call_shows_its_stages_and_prints_its_packet(bench: Bench) -> None:
    bench.platform.packets["*"] = PACKET
    assert await bench.call(bench.wav()) == EXIT_OK
    text = bench.out.getvalue()
    stages = [
        "ringing",
        "answered",
        "streaming 0/0 s",
        "hung up",
        "hung up (caller), waiting for the packet",
        "packet:",
    ]
    positions = [text.index(stage) for stage in stages]
    assert positions == sorted(positions)
    assert "\x1b" not in text
    assert re.search(r"^1 +CRITICAL +0\.95 +EMS +caller\.wav +Cardiac arrest: not breathing\.$", text, re.MULTILINE)
    assert json.loads(text[text.index("\n{") :])["nlp"]["transcript"] == "He is not breathing"
    assert bench.err.getvalue() == ""


async def test_several_files_are_simultaneous_calls_of_different_callers_ranked_at_the_end(bench: Bench) -> None:
    bench.platform.packets["*"] = PACKET
    files = [bench.wav(f"{name}.wav", seconds=20) for name in ("noise", "arrest")]

    def weigh(_: Any) -> None:
        for webhook in bench.platform.webhooks:
            if "from" not in webhook.payload:
                continue
            weight = 100 if webhook.payload["from"] == "+15550101234" else 900
            bench.platform.packets[webhook.payload["call_session_id"]] = {**PACKET, "ranking": {"weight": weight}}

    bench.platform.on_media = weigh
    timing = Timing(speed=20.0)
    assert await bench.call(*files, from_number="+15550101234", timing=timing, as_json=True) == EXIT_OK
    callers = {w.payload["from"] for w in bench.platform.webhooks if w.type == "call.initiated"}
    assert callers == {"+15550101234", "+15550101001"}
    types = bench.platform.types()
    assert types.index("call.hangup") > len(types) - 1 - types[::-1].index("call.initiated")
    packets = json.loads(bench.out.getvalue())
    assert [packet["ranking"]["weight"] for packet in packets] == [900, 100]
    assert "ringing" in bench.err.getvalue()


async def test_on_a_bad_line_each_call_reports_what_was_sent(bench: Bench) -> None:
    bench.platform.packets["*"] = PACKET
    faults = Faults(seed=2, frame_losses=0.2, missing_stop=True, command_failures=1.0)
    assert await bench.call(bench.wav(seconds=2), faults=faults, as_json=True) == EXIT_OK
    heard = len(bench.platform.sockets[0].media)
    assert 0 < heard < 100
    line = f"caller.wav: {heard} frames sent, {100 - heard} lost; streams: closed;"
    assert line in bench.err.getvalue()
    assert "6 requests for 3 effects of commands" in bench.err.getvalue()
    assert len(json.loads(bench.out.getvalue())) == 1


async def test_on_a_terminal_each_call_has_one_line_that_is_rewritten(bench: Bench) -> None:
    bench.platform.packets["*"] = PACKET
    bench.out = Terminal()
    assert await bench.call(bench.wav()) == EXIT_OK
    assert "\x1b[1F" in bench.out.getvalue()


async def test_without_a_packet_the_command_fails_and_says_so(bench: Bench) -> None:
    assert await bench.call(bench.wav(), packet_wait_s=0.3) == EXIT_INCOMPLETE
    assert "not final 0.3 s after the call" in bench.err.getvalue()
    assert ": LIVE)" in bench.err.getvalue()


async def test_one_call_without_answer_fails_the_command_and_not_the_other_call(bench: Bench) -> None:
    bench.platform.packets["*"] = PACKET
    first: list[str] = []

    def only_the_first(commands: tuple[Any, ...]) -> tuple[Any, ...]:
        first.extend(command.call_control_id for command in commands)
        return tuple(command for command in commands if command.call_control_id == first[0])

    bench.platform.commands_for = only_the_first
    files = [bench.wav("a.wav"), bench.wav("b.wav")]
    timing = Timing(speed=100.0, answer_s=0.2)
    assert await bench.call(*files, timing=timing, as_json=True) == EXIT_INCOMPLETE
    assert len(json.loads(bench.out.getvalue())) == 1
    assert "b.wav: the gateway answered 200 but no `answer` command came" in bench.err.getvalue()


async def test_interrupting_the_command_hangs_up(bench: Bench) -> None:
    task = asyncio.create_task(bench.call(bench.wav(seconds=60), timing=Timing(speed=1.0)))
    await bench.platform.until(lambda: bench.platform.has_heard(1))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.platform.types()[-1] == "call.hangup"


async def test_a_taken_port_is_explained(bench: Bench) -> None:
    account = SimulatedAccount.load_or_create(bench.state_dir)
    async with SimulatedCarrier(account, bench.carrier_port, bench.platform.url):
        refused = await bench.refusal(bench.wav())
    assert "another `dispatchai call` is running" in refused
    assert bench.platform.webhooks == []


async def test_no_running_program_is_explained(bench: Bench) -> None:
    async with Platform(SimulatedAccount.load_or_create(bench.state_dir).public_key) as gone:
        url = gone.url
    RunInfo.remove(bench.state_dir)
    settings = bench.settings.model_copy(update={"gateway_port": int(url.rsplit(":", 1)[1])})
    refused = await bench.refusal(bench.wav(), settings=settings)
    assert f"no gateway answers at {url}: is `dispatchai up` running?" in refused


async def test_a_named_gateway_that_does_not_answer_is_not_looked_for_here(bench: Bench) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    elsewhere = Elsewhere(gateway_url=nowhere, carrier="0", signing_key=bench.state_dir / "smoke.pem")
    refused = await bench.refusal(bench.wav(), elsewhere=elsewhere)
    assert "no gateway answers" in refused
    assert "dispatchai up" not in refused
    # The guide calls it the line to set.
    assert "TELNYX_PUBLIC_KEY_NEXT=" in bench.err.getvalue()


async def test_a_certificate_that_is_not_trusted_is_named(bench: Bench, tmp_path: Path) -> None:
    pems = make_pems(tmp_path / "pems")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pems.server)
    async with serving(answering(200), tls) as port:
        refused = await bench.refusal(
            bench.wav(), elsewhere=Elsewhere(gateway_url=f"https://127.0.0.1:{port}", carrier="0")
        )
    assert f"the certificate at https://127.0.0.1:{port} is not trusted" in refused
    assert "dispatchai up" not in refused


async def test_an_event_that_a_gateway_missed_costs_no_packet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.platform.packets["*"] = PACKET
    finished = PlacedCall.finished

    async def missed(placed: PlacedCall) -> CallReport:
        report = await finished(placed)
        return replace(report, undelivered=("streaming.failed",), failure="the gateway never accepted streaming.failed")

    monkeypatch.setattr(PlacedCall, "finished", missed)
    assert await bench.call(bench.wav()) == EXIT_OK
    assert "He is not breathing" in bench.out.getvalue()
    assert "caller.wav: the gateway never accepted streaming.failed" in bench.err.getvalue()


async def test_a_broken_file_stops_the_command_before_anybody_is_called(bench: Bench) -> None:
    broken = bench.state_dir / "broken.wav"
    broken.write_text("hello")
    refused = await bench.refusal(bench.wav(), broken)
    assert "broken.wav is not a WAV file" in refused
    assert bench.platform.webhooks == []


@pytest.mark.parametrize("number", ["911", "+1 555", "+", "anonymous"])
async def test_a_number_that_is_none_is_refused(bench: Bench, number: str) -> None:
    refused = await bench.refusal(bench.wav(), from_number=number)
    assert "is not a caller's number" in refused


async def test_with_a_telnyx_key_no_simulated_call_is_placed(bench: Bench) -> None:
    settings = Settings(_env_file=None, state_dir=bench.state_dir, telnyx_api_key="KEY-real-secret")
    refused = await bench.refusal(bench.wav(), settings=settings)
    assert "TELNYX_API_KEY is set" in refused
    assert "real-secret" not in refused + bench.err.getvalue()


# run.json

RUN = RunInfo(
    gateway_url="http://a", ws_url="ws://a/ws", console_url="http://b", carrier_port=1, bootstrap_servers="c:1"
)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert RunInfo.load(tmp_path / "state") is None
    RUN.save(tmp_path / "state")
    assert RunInfo.load(tmp_path / "state") == RUN
    path = tmp_path / "state" / "run.json"
    assert [each.name for each in path.parent.iterdir()] == ["run.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    RunInfo.remove(tmp_path / "state")
    RunInfo.remove(tmp_path / "state")
    assert RunInfo.load(tmp_path / "state") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"gateway_url": "http://a"}'])
def test_a_run_that_cannot_be_read_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunInfoError, match=r"run\.json .*`dispatchai up`"):
        RunInfo.load(tmp_path)


async def test_processes_that_run_by_themselves_are_called_with_addresses_and_keys_of_their_own(
    bench: Bench, tmp_path: Path
) -> None:
    """No file of a local run is there: the gateway has the key's public half, the worker the carrier's address."""
    key, port = tmp_path / "smoke.pem", free_port()
    account = SimulatedAccount.from_file(key)
    settings = Settings(_env_file=None, state_dir=tmp_path / "none", telnyx_api_key="KEY-of-the-worker")
    async with Platform(account.public_key) as platform:
        platform.packets["*"] = PACKET
        platform.commands_to(f"http://127.0.0.1:{port}/v2", "KEY-of-the-worker")
        elsewhere = Elsewhere(platform.url, f"127.0.0.1:{port}", key)
        assert (
            await bench.call(bench.wav(), settings=settings, console_url=platform.url, elsewhere=elsewhere) == EXIT_OK
        )
    assert account.public_key in bench.err.getvalue()
    assert not (tmp_path / "none").exists()


async def test_an_address_of_the_carrier_that_is_none_is_named(bench: Bench) -> None:
    refusal = await bench.refusal(bench.wav(), elsewhere=Elsewhere("http://127.0.0.1:1", "here:"))
    assert "give PORT or HOST:PORT" in refusal
