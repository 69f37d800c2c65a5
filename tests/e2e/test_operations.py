"""Claims for who runs the program: what it counts, what it never tells, how it stops, what it does without Kafka."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import aiokafka
import numpy as np
import pytest
import pytest_asyncio
from faust.types import TP
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from dispatchai.app import SPEECH, WORKER
from dispatchai.audio.g711 import decode
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.reading import true_ends
from dispatchai.kafka.topics import Topics
from dispatchai.records import CallPacket
from dispatchai.simulator import CallReport, PlacedCall, SimulatedAccount, SimulatedCarrier, Timing, load
from dispatchai.simulator.recording import CallerAudio
from dispatchai.speech.engines import RECORDINGS
from dispatchai.speech.scripted import digest, load_script, voiced_runs
from tests.deploy.monitoring import metrics_asked_for
from tests.support.recorded_run import Packets
from tests.support.system import System, read_until

CALLED = "+15550100911"
CALLER = "+15557340912"
"""A number that nothing else has, nor any part of it that identifies somebody."""

PHRASE = "quixotic zeppelin marmalade"
"""Words that nothing else has."""

PATIENCE_S = 60.0
"""For a machine that does other things too: nothing is timed here."""

PROCESSES = ("gateway", "console", "worker", "speech")
STREAMS = 4

Scrape = Mapping[str, Sequence[Sample]]


async def scrape(http: aiohttp.ClientSession, url: str) -> Scrape:
    """What a process shows to Prometheus, by the names of the samples."""
    async with http.get(f"{url}/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    samples: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        assert family.documentation, f"{family.name} is not explained"
        for sample in family.samples:
            samples[sample.name].append(sample)
        if not family.samples:
            samples[family.name if family.type != "counter" else f"{family.name}_total"] = []
    return samples


def value(scraped: Scrape, name: str, **labels: str) -> float:
    """The sum of the samples of `name` that have `labels`."""
    return sum(sample.value for sample in scraped[name] if labels.items() <= sample.labels.items())


async def until_shown(
    http: aiohttp.ClientSession, url: str, name: str, least: float, most: float = math.inf, **labels: str
) -> None:
    """Wait until a process shows a number from `least` to `most`."""
    async with asyncio.timeout(PATIENCE_S):
        while not least <= value(await scrape(http, url), name, **labels) <= most:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)


# ---- what is seen of one call --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observed:
    """A run with one call in it, as its operator sees it."""

    output: str
    scraped: Mapping[str, Scrape]
    packet: CallPacket
    report: CallReport


async def poison(connection: KafkaConnection, gateway_url: str, http: aiohttp.ClientSession) -> None:
    """Give every reader something to complain of that holds PHRASE and CALLER."""
    content = f"{PHRASE} {CALLER}".encode()
    async with aiokafka.AIOKafkaProducer(**connection.producer_options()) as producer:
        for topic in ("call-events", "audio-frames", "signals", "transcripts", "assessments", "dispatch-actions"):
            await producer.send_and_wait(topic, content, key=content)
    for body in (content, json.dumps({"data": {"event_type": PHRASE, "payload": {"from": CALLER}}}).encode()):
        async with http.post(gateway_url + WEBHOOK_PATH, data=body, headers={"telnyx-signature-ed25519": PHRASE}) as r:
            assert r.status == 401
    async with http.get(f"{gateway_url}/{PHRASE}/{CALLER}") as response:
        assert response.status == 404


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    system = System.on(None, tmp_path_factory.mktemp("observed"), SPEECH_ENGINE="scripted", LOG_LEVEL="DEBUG")
    process = await system.run("up")
    assert process.stdout is not None
    output = await read_until(process, "Ctrl-C stops everything")
    rest = asyncio.create_task(process.stdout.read())  # a pipe that nobody reads would stop the system
    state_dir = Path(system.environment["STATE_DIR"])
    run = json.loads((state_dir / "run.json").read_text())
    connection = KafkaConnection(run["bootstrap_servers"], embedded=True)
    account = SimulatedAccount.load_or_create(state_dir)
    urls = {
        "gateway": system.gateway_url,
        "console": system.console_url,
        "worker": system.worker_url,
        "speech": f"http://127.0.0.1:{system.environment['SPEECH_PORT']}",
    }
    try:
        async with (
            aiohttp.ClientSession() as http,
            SimulatedCarrier(account, run["carrier_port"], run["gateway_url"], timing=Timing(speed=2.0)) as carrier,
            Packets(connection) as packets,
        ):
            call = carrier.place_call(load(RECORDINGS / "kitchen_fire.wav"), CALLER, CALLED)
            call_id = call.leg.call_session_id
            await until_shown(http, urls["console"], "dispatchai_calls_live", 1)
            async with http.post(
                f"{urls['console']}/api/v1/calls/{call_id}/actions",
                json={"kind": "SPEAK", "text": PHRASE, "actor": "dispatcher"},
                headers={"X-Action-Id": "an-action-of-the-test"},
            ) as response:
                assert response.status in (200, 202), await response.text()
            await poison(connection, urls["gateway"], http)
            report = await call.finished()
            assert not await packets.wait_for([call_id], PATIENCE_S)
            await until_shown(http, urls["worker"], "dispatchai_dead_letters_total", 6)
            scraped = {name: await scrape(http, url) for name, url in urls.items()}
            packet = packets.last[call_id].packet
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            output += (await rest).decode()
            await process.wait()
    yield Observed(output, scraped, packet, report)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_metric_of_dashboard_and_alerts_is_shown_by_some_process(observed: Observed) -> None:
    shown = {name for scraped in observed.scraped.values() for name in scraped}
    assert metrics_asked_for() - shown == set()


async def test_what_is_shown_of_a_call_is_what_happened(observed: Observed) -> None:
    gateway, worker = observed.scraped["gateway"], observed.scraped["worker"]
    sent = sum(stream.chunks for stream in observed.report.streams)
    assert value(gateway, "dispatchai_gateway_frames_total") == sent
    assert value(gateway, "dispatchai_gateway_frames_missing_total") == 0
    assert value(gateway, "dispatchai_gateway_refusals_total") == 2
    # START, END and the poison record beside the frames.
    assert value(worker, "dispatchai_batch_records_sum", agent="signals", topic="audio-frames") == sent + 3
    assert value(worker, "dispatchai_stage_seconds_count", stage="frame_to_signal") > 0
    assert value(worker, "dispatchai_stage_seconds_count", stage="webhook_to_live") == 1
    assert value(worker, "dispatchai_stage_seconds_count", stage="hangup_to_packet") == 1
    assert value(gateway, "dispatchai_stage_seconds_count", stage="webhook_answer") == value(
        gateway, "dispatchai_gateway_webhooks_total"
    )
    assert value(worker, "dispatchai_commands_total", action="answer", outcome="Done") == 1
    for name in PROCESSES:
        assert value(observed.scraped[name], "dispatchai_kafka_reachable") == 1


async def test_labels_hold_neither_calls_nor_callers(observed: Observed) -> None:
    call_id = observed.report.leg.call_session_id
    labels = {
        text
        for scraped in observed.scraped.values()
        for item in scraped.values()
        for sample in item
        for text in sample.labels.values()
    }
    for secret in (call_id, CALLER.removeprefix("+1"), PHRASE):
        assert not [text for text in labels if secret in text]
    assert len(labels) < 300


async def test_no_log_line_holds_what_was_said_or_who_called(observed: Observed) -> None:
    """At DEBUG, with poison in every topic: no log line holds any of it, not even those that report it."""
    assert observed.packet.from_number == CALLER, "the call was not the marked one"
    sentences = [text.strip() for text in re.split("[.!?]", observed.packet.nlp.transcript) if text.strip()]
    assert len(sentences) > 2
    assert "dead_letter" in observed.output
    assert observed.report.leg.call_session_id in observed.output, "calls are named by their ids"
    for secret in (CALLER, CALLER.removeprefix("+1"), CALLER[-7:], PHRASE, *PHRASE.split(), *sentences):
        assert secret.lower() not in observed.output.lower(), secret


# ---- how it stops ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Running:
    """A process of the system, and all that it said."""

    process: asyncio.subprocess.Process
    output: asyncio.Task[bytes]

    async def terminate(self) -> int:
        """SIGTERM. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def started(system: System, *names: str) -> AsyncIterator[dict[str, Running]]:
    """The processes `names`, ready. Those that still run at the end are killed."""
    running: dict[str, Running] = {}
    try:
        for name in names:
            process = await system.run(name)
            assert process.stdout is not None
            running[name] = Running(process, asyncio.create_task(process.stdout.read()))
        async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE_S):
            for name in names:
                await until_ready(http, url_of(system, name))
        yield running
    finally:
        for each in running.values():
            if each.process.returncode is None:
                each.process.kill()
            print((await each.output).decode())  # pytest shows it with a failure


async def until_ready(http: aiohttp.ClientSession, url: str, *, status: int = 200) -> None:
    """Wait until /health/ready answers with `status`."""
    while True:
        with suppress(aiohttp.ClientError):
            async with http.get(f"{url}/health/ready") as response:
                if response.status == status:
                    return
        await asyncio.sleep(0.1)


def url_of(system: System, name: str) -> str:
    return f"http://127.0.0.1:{system.environment[f'{name.upper()}_PORT']}"


@asynccontextmanager
async def system_on(connection: KafkaConnection, folder: Path, **settings: str) -> AsyncIterator[System]:
    """A system on a broker of its own, with the simulated carrier's keys."""
    await apply(connection, Topics.load(), replication=1)
    account = SimulatedAccount.load_or_create(folder)
    yield System.on(
        connection,
        folder,
        SPEECH_ENGINE="scripted",
        TELNYX_PUBLIC_KEY=account.public_key,
        STREAM_TOKEN_SECRET=account.stream_token_secret,
        **settings,
    )


async def uncommitted(connection: KafkaConnection, group: str, topics: Sequence[str]) -> dict[str, int]:
    """How many records of each topic `group` would read when it starts again, where there are any."""
    consumer = aiokafka.AIOKafkaConsumer(group_id=group, **connection.client_options(), enable_auto_commit=False)
    await consumer.start()
    try:
        behind: dict[str, int] = defaultdict(int)
        for topic in topics:
            places = [TP(topic, number) for number in range(Topics.load().partitions)]
            ends = await true_ends(connection, await consumer.end_offsets(places))
            for place, end in ends.items():
                behind[topic] += end - (await consumer.committed(aiokafka.TopicPartition(*place)) or 0)
        return {topic: count for topic, count in behind.items() if count}
    finally:
        await consumer.stop()


def spoken(audio: CallerAudio) -> str:
    """What the scripted recogniser hears in all of `audio`."""
    script = load_script(RECORDINGS / "script.json")
    samples = np.concatenate([decode("PCMU", audio.frame(index)) for index in range(audio.frames)])
    return " ".join(script[digest(run)] for run in voiced_runs(samples, 8000))


async def until_quiet(http: aiohttp.ClientSession, urls: Sequence[str]) -> None:
    """Wait until nothing is unread, and nothing more was written that somebody reads between two looks."""
    before: list[float] = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            scrapes = [await scrape(http, url) for url in urls]
            lag = sum(value(each, "dispatchai_partition_lag_records") for each in scrapes)
            sent = [
                value(each, "dispatchai_records_sent_total", topic=topic)
                for each in scrapes
                for topic in READ_BY_WORKER
            ]
            if lag == 0 and sent == before:
                return
            before = sent
            await asyncio.sleep(1.0)


READ_BY_WORKER = ("call-events", "audio-frames", "signals", "transcripts", "assessments", "dispatch-actions")


async def terminate(processes: Mapping[str, Running], *names: str) -> list[int]:
    """Terminate these processes at once. Returns their exit codes."""
    return list(await asyncio.gather(*(processes[name].terminate() for name in names)))


async def test_processes_stopped_in_mid_call_end_with_0_and_owe_nothing(tmp_path: Path) -> None:
    async with (
        EmbeddedBroker() as broker,
        system_on(broker.connection, tmp_path) as system,
        aiohttp.ClientSession() as http,
        AsyncExitStack() as stack,
    ):
        gateway = await stack.enter_async_context(started(system, "gateway"))
        carrier = SimulatedCarrier(
            SimulatedAccount.load_or_create(tmp_path),
            int(system.environment["SIMULATED_CARRIER_PORT"]),
            system.gateway_url,
            timing=Timing(answer_s=PATIENCE_S, stream_s=PATIENCE_S),
        )
        await stack.enter_async_context(carrier)
        packets = await stack.enter_async_context(Packets(broker.connection))
        async with started(system, "console", "worker", "speech") as first:
            audio = load(RECORDINGS / "cardiac_arrest.wav")
            calls: list[PlacedCall] = [
                carrier.place_call(audio, f"+1555010{number:04d}", CALLED) for number in range(STREAMS)
            ]
            page = await stack.enter_async_context(http.get(f"{system.console_url}/api/v1/events"))
            await until_shown(http, url_of(system, "speech"), "dispatchai_recognizer_streams", STREAMS)
            await until_shown(http, system.worker_url, "dispatchai_snapshots_total", STREAMS, table="signals")
            assert await terminate(first, "console", "worker", "speech") == [0, 0, 0]
            with suppress(aiohttp.ClientError):
                async with asyncio.timeout(PATIENCE_S):
                    await page.read()
        async with started(system, "worker", "speech") as second:
            reports = [await call.finished() for call in calls]
            call_ids = [report.leg.call_session_id for report in reports]
            assert await packets.wait_for(call_ids, PATIENCE_S) == set()
            await packets.drain()
            assert [report.failure for report in reports] == [None] * STREAMS
            found = [packets.last[call_id].packet for call_id in call_ids]
            assert {packet.audio.missing_frames for packet in found} == {0}
            assert {packet.audio.audio_seconds for packet in found} == {audio.frames * 0.02}
            assert {packet.nlp.transcript for packet in found} == {spoken(audio)}
            # Calls are live again when all stop, the gateway first: what it took is then still processed.
            for number in range(STREAMS):
                carrier.place_call(audio, f"+1555020{number:04d}", CALLED)
            await until_shown(http, url_of(system, "speech"), "dispatchai_recognizer_streams", STREAMS)
            assert await gateway["gateway"].terminate() == 0
            await until_quiet(http, [url_of(system, name) for name in ("worker", "speech")])
            assert await terminate(second, "worker", "speech") == [0, 0]
        assert await uncommitted(broker.connection, WORKER, READ_BY_WORKER) == {}
        assert await uncommitted(broker.connection, SPEECH, ("audio-frames", "call-events")) == {}


async def test_all_processes_outlive_a_kafka_that_goes_away_and_say_that_they_are_not_ready(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        broker = EmbeddedBroker()
        await broker.start()
        stack.push_async_callback(broker.stop)
        system = await stack.enter_async_context(system_on(broker.connection, tmp_path, STUCK_AFTER_S="2"))
        running = await stack.enter_async_context(started(system, *PROCESSES))
        await broker.stop()
        async with asyncio.timeout(PATIENCE_S):
            for name in PROCESSES:
                await until_ready(http, url_of(system, name), status=503)
        # A sign of life of the event loop is counted six times in STUCK_AFTER_S: four times that long.
        for name in PROCESSES:
            counted = value(await scrape(http, url_of(system, name)), "dispatchai_loop_delay_seconds_count")
            await until_shown(http, url_of(system, name), "dispatchai_loop_delay_seconds_count", counted + 24)
            assert value(await scrape(http, url_of(system, name)), "dispatchai_kafka_reachable") == 0
        assert {name: each.process.returncode for name, each in running.items()} == dict.fromkeys(PROCESSES)
