"""Claims about the views over HTTP: a real server, a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faust
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from dispatchai.console import Entry, Feed, FeedState, json_view, mount, topic_feed
from dispatchai.console import web as web_module
from dispatchai.console.topic_feed import FeedCounts
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.records import CallStatus, RiskLevel, encode
from tests.console.conftest import Client
from tests.console.samples import BASE, SECOND, STORIES, final_packet, live_call, put

PATIENCE_S = 30.0
"""Far above what anything here takes; a test that waits so long has failed."""

CallId = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    number: int | None
    data: Any


async def events_of(response: Any) -> AsyncIterator[Event]:
    """The events of a text/event-stream as a browser would read them."""
    name, number, data = "message", None, ""
    async for raw in response.content:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        match field:
            case "event":
                name = value
            case "id":
                number = int(value)
            case "data":
                data += value
            case "" if raw == b"\n" and data:
                yield Event(name, number, json.loads(data))
                name, number, data = "message", None, ""


@asynccontextmanager
async def event_stream(client: Client, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with asyncio.timeout(PATIENCE_S), client.get("/api/v1/events", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield events_of(response)


async def until(events: AsyncIterator[Event], wanted: Callable[[Event], bool]) -> list[Event]:
    """The events up to the first that is `wanted`."""
    seen: list[Event] = []
    async for event in events:
        seen.append(event)
        if wanted(event):
            return seen
    raise AssertionError(f"the stream ended after {[event.name for event in seen]}")


def about(event: Event, call_id: str) -> bool:
    return isinstance(event.data, dict) and event.data.get("call_id") == call_id


async def read(client: Client, path: str) -> Any:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        return await response.json()


async def once(feed: Feed, seen: Callable[[], Any]) -> Any:
    """What `seen` returns as soon as it is something: asked at each update, and now and then for what makes none."""
    subscription, _ = await feed.subscribe()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := seen()):
                with contextlib.suppress(TimeoutError):
                    assert await subscription.next(0.1) is not None
                await feed.current()
            return found
    finally:
        subscription.close()


async def shown(feed: Feed, *call_ids: str, final: bool = False) -> None:
    """Return when the feed shows each of the calls (with a packet, if `final`)."""
    view = await feed.current()

    def all_there() -> bool:
        entries = [view.get(call_id) for call_id in call_ids]
        return all(entry is not None and (not final or entry.packet is not None) for entry in entries)

    await once(feed, all_there)


async def test_a_ringing_call_is_shown_in_the_names_of_the_guide(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    ringing = call_id("ringing")
    call = live_call(ringing, status=CallStatus.RINGING)
    await put(producer, [("live-calls", ringing, call)])
    await shown(feed, ringing)

    live = (await read(client, "/debug/live_calls/?limit=500"))[ringing]
    assert (
        live.items()
        >= {
            "call_id": ringing,
            "call_control_id": f"v3:{ringing}",
            "from_masked": "•567",
            "to": "+15559876543",
            "started_at": "2026-03-03T19:52:31.000000Z",
            "status": "RINGING",
            "transcript_live": "",
            "risk_level": "UNKNOWN",
            "risk_score": 0.0,
            "distress": 0.0,
            "max_distress": 0.0,
        }.items()
    )
    (entry,) = [entry for entry in await read(client, "/debug/list_queue?limit=500") if entry["id"] == ringing]
    assert entry.items() >= {"status": "LIVE", "risk_level": "UNKNOWN", "summary": "Listening…"}.items()


async def test_a_final_packet_has_every_field_of_the_guide(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    done = call_id("done")
    live = replace(STORIES[0].after(99, BASE, BASE + 45 * SECOND), call_id=done)
    await put(producer, [("dispatch-queue", done, final_packet(live))])
    await shown(feed, done)

    (packet,) = [entry for entry in await read(client, "/debug/list_queue/?limit=500") if entry["call_id"] == done]
    assert packet["duration_seconds"] == 45
    assert packet["audio"].keys() >= {"distress_score", "distress_max", "voiced_seconds"}
    assert packet["nlp"].keys() == {"transcript", "emotion", "category", "tags", "transcript_omitted"}
    assert packet["nlp"]["emotion"].keys() == {"label", "intensity", "sentiment"}
    assert packet["nlp"]["category"] == "EMS"
    assert packet["risk"] == {"level": "CRITICAL", "score": 0.95}
    assert packet["ranking"] == {"priority": 1, "weight": 950, "created_at": "2026-03-03T19:53:16.000000Z"}
    assert (packet["final"], packet["status"]) == (True, "OPEN")


async def test_lists_mask_the_number_and_the_single_call_shows_it_for_calling_back(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    live_id, done_id = call_id("live"), call_id("done")
    number = "+15557654321"
    call = live_call(live_id, from_number=number)
    packet = final_packet(live_call(done_id, from_number=number))
    await put(producer, [("live-calls", live_id, call), ("dispatch-queue", done_id, packet)])
    await shown(feed, live_id, done_id)

    for path in ("/debug/live_calls/", "/debug/list_queue/", "/api/v1/queue", "/api/v1/calls"):
        async with client.get(path, params={"limit": "500"}) as response:
            text = await response.text()
        assert live_id in text
        assert number not in text
    async with event_stream(client) as events:
        slices = await until(events, lambda event: event.name == "snapshot" and event.data["last"])
    assert number not in json.dumps([event.data for event in slices])

    live = await read(client, f"/api/v1/calls/{live_id}")
    assert (live["status"], live["live"]["from_number"], live["packet"]) == ("LIVE", number, None)
    done = await read(client, f"/api/v1/calls/{done_id}")
    assert (done["status"], done["live"], done["packet"]["from_number"]) == ("FINAL", None, number)


async def test_an_unknown_call_is_a_404_that_says_so_in_json(client: Client) -> None:
    for path in ("/api/v1/calls/never-heard-of", "/api/v1/calls/a%2F..%2Fb"):
        async with client.get(path) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "unknown_call"


async def test_a_limit_that_is_none_is_refused(client: Client) -> None:
    for limit in ("0", "-1", "501", "1e3", "", "٣", "9" * 5000):
        for path in ("/api/v1/queue", "/api/v1/calls", "/debug/live_calls/", "/debug/list_queue/"):
            async with client.get(path, params={"limit": limit}) as response:
                assert response.status == 400
                assert response.content_type == "application/json"
                assert (await response.json())["error"]["code"] == "bad_limit"


async def test_live_calls_and_packets_stand_in_one_order(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    now = time.time_ns() // 1000
    wanted = [call_id("first-final"), call_id("second-live"), call_id("third-live"), call_id("fourth-final")]
    weights = [1000, 990, 500, 20]
    for name, weight in reversed(list(zip(wanted, weights, strict=True))):
        live = live_call(name, weight=weight, started_at=now, updated_at=now, level=RiskLevel.HIGH)
        if name in (wanted[0], wanted[3]):
            await put(producer, [("dispatch-queue", name, final_packet(live))])
        else:
            await put(producer, [("live-calls", name, live)])
    await shown(feed, *wanted)
    queue = (await read(client, "/api/v1/queue?limit=500"))["queue"]
    assert [entry["call_id"] for entry in queue if entry["call_id"] in wanted] == wanted
    calls = (await read(client, "/api/v1/calls?limit=500"))["calls"]
    assert [call["call_id"] for call in calls if call["call_id"] in wanted] == wanted[1:3]
    assert len((await read(client, "/api/v1/queue?limit=2"))["queue"]) == 2


async def test_an_event_stream_reports_a_call_from_its_first_ring_to_its_purge(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    story_id = call_id("story")
    story = replace(STORIES[1], call_id=story_id)
    last = story.after(99, BASE, BASE + 9 * SECOND)
    async with event_stream(client) as events:
        before = await until(events, lambda event: event.name == "snapshot" and event.data["last"])
        assert before[0].data["first"]
        assert all(entry["call_id"] != story_id for event in before for entry in event.data["entries"])

        numbers: list[int] = [before[-1].number or 0]
        heard: list[str] = []
        for words in (0, 3, 7, 12):
            call = story.after(words, BASE, BASE + words * SECOND)
            await put(producer, [("live-calls", story_id, call)])
            event = (await until(events, lambda event: event.name == "call" and about(event, story_id)))[-1]
            heard.append(f"{event.data['nlp']['transcript']} {event.data['partial']}".strip())
            numbers.append(event.number or 0)
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(heard))
        assert [len(text.split()) for text in heard] == [0, 3, 7, 12]

        await put(producer, [("dispatch-queue", story_id, final_packet(last)), ("live-calls", story_id, None)])
        event = (await until(events, lambda event: event.name == "packet" and about(event, story_id)))[-1]
        assert event.data["final"]
        numbers.append(event.number or 0)
        await put(producer, [("dispatch-queue", story_id, None)])
        event = (await until(events, lambda event: event.name == "remove" and about(event, story_id)))[-1]
        numbers.append(event.number or 0)
        assert numbers == sorted(set(numbers))


async def test_a_reader_that_comes_back_gets_a_snapshot_whatever_it_saw_last(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    kept = call_id("kept")
    await put(producer, [("live-calls", kept, live_call(kept))])
    await shown(feed, kept)
    for last in ("1", "999999999999", "not a number"):
        async with event_stream(client, **{"Last-Event-ID": last}) as events:
            slices = await until(events, lambda event: event.name == "snapshot" and event.data["last"])
        assert kept in {entry["call_id"] for event in slices for entry in event.data["entries"]}


async def test_what_cannot_be_read_is_skipped_and_counted_and_hides_no_other_call(
    feed: Feed,
    client: Client,
    producer: AIOKafkaProducer,
    call_id: CallId,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = call_id("good"), call_id("bad")
    spoken = "my door code is 4711"
    skipped = feed.counts.skipped
    with capture_logs() as logs:
        await put(producer, [("live-calls", bad, live_call(bad))])
        await shown(feed, bad)
        for topic in ("live-calls", "dispatch-queue"):
            await producer.send_and_wait(topic, spoken.encode(), key=bad.encode())
            await producer.send_and_wait(topic, encode(live_call(good))[:-3], key=call_id(f"cut-{topic}").encode())
        await producer.send_and_wait("dispatch-queue", encode(final_packet(live_call(good))), key=bad.encode())
        await producer.send_and_wait("dispatch-queue", b"", key=b"\xff\xfe")
        absurd, over = call_id("absurd"), call_id("over")
        of_absurd_times = partial(live_call, started_at=-(2**63), updated_at=2**63 - 1)
        await put(producer, [("live-calls", absurd, of_absurd_times(absurd))])
        await put(producer, [("dispatch-queue", over, final_packet(of_absurd_times(over)))])
        await put(producer, [("live-calls", good, live_call(good))])
        await once(feed, lambda: feed.counts.skipped >= skipped + 6)
        await shown(feed, good, absurd, over)

    assert feed.state is FeedState.LIVE
    calls = {call["call_id"] for call in (await read(client, "/api/v1/calls?limit=500"))["calls"]}
    assert {good, bad, absurd} <= calls
    assert {absurd, over} <= {entry["id"] for entry in (await read(client, "/api/v1/queue?limit=500"))["queue"]}
    assert (await read(client, "/health/ready"))["views"]["skipped"] == skipped + 6
    assert "record_skipped" in {line["event"] for line in logs}
    assert spoken not in repr(logs) + caplog.text


async def test_an_entry_that_cannot_be_shown_says_so_and_hides_no_other(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, over = call_id("good"), call_id("bad"), call_id("over")
    forms = dict(json_view.FORMS)

    def damaged(form: str, entry: Entry) -> dict[str, Any]:
        shown = forms[form](entry)
        return {**shown, "risk": {"level": "LOW", "score": math.nan}} if entry.call_id in (bad, over) else shown

    for form in forms:
        monkeypatch.setitem(json_view.FORMS, form, partial(damaged, form))
    before = feed.counts.not_shown
    await put(producer, [("live-calls", name, live_call(name, from_number="+15550001111")) for name in (bad, good)])
    await put(producer, [("dispatch-queue", over, final_packet(live_call(over)))])
    await shown(feed, good, bad, over)
    async with event_stream(client) as events:
        slices = await until(events, lambda event: event.name == "snapshot" and event.data["last"])
    listed = {entry["call_id"]: entry for event in slices for entry in event.data["entries"]}
    for path, name in (("/api/v1/queue", "queue"), ("/api/v1/calls", "calls")):
        body = await read(client, f"{path}?limit=500")
        listed |= {f"{name} {entry['call_id']}": entry for entry in body[name]}
    wanted = {good, bad, over, *(f"queue {name}" for name in (good, bad, over)), f"calls {bad}", f"calls {good}"}
    assert wanted <= listed.keys()
    for name, entry in listed.items():
        if entry["call_id"] in (good, bad, over):
            assert entry.get("not_shown", False) is (entry["call_id"] != good), name
            assert ("cannot be shown" in entry["summary"]) is (entry["call_id"] != good), name
    assert listed[bad].keys() <= {*listed[good], "not_shown", "version", "complete"}
    assert feed.counts.not_shown == before + 3, "made once: a live call in two forms, a packet in one"
    assert (await read(client, f"/api/v1/calls/{bad}"))["live"]["from_number"] == "+15550001111"


async def test_a_number_that_json_does_not_have_is_none_of_the_answers(call_id: CallId) -> None:
    live = live_call(call_id("nan"))
    for score in (math.nan, math.inf, -math.inf):
        entry = Entry("nan", replace(live, risk=replace(live.risk, score=score)), None)
        for form in json_view.FORMS:
            counts = FeedCounts()
            shown = json.loads(json_view.text(entry, form, counts))
            assert (shown["not_shown"], shown["risk"]["score"], counts.not_shown) == (True, 0.0, 1)


async def test_two_feeds_show_the_same_calls(
    feed: Feed, broker: KafkaConnection, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    names = [call_id(f"shared-{index}") for index in range(20)]
    await put(producer, [("live-calls", name, live_call(name)) for name in names[:10]])
    await put(producer, [("dispatch-queue", name, final_packet(live_call(name))) for name in names[10:]])
    async with Feed(broker) as other:
        await other.wait_ready()
        # What was on the topics before a feed began is in its view when it says that it is ready.
        view = await other.current()
        assert all(view.get(name) for name in names)
        await shown(feed, *names)


async def test_every_response_forbids_foreign_scripts_frames_sniffing_and_caching(client: Client) -> None:
    for path in ("/", "/static/main.js", "/static/console.css", "/api/v1/queue", "/health/live", "/nowhere"):
        async with client.get(path, headers={"Origin": "https://elsewhere.example"}) as response:
            await response.read()
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_page_asks_for_nothing_from_elsewhere_and_lists_no_folder(client: Client) -> None:
    for path in ("/", "/static/main.js", "/static/view.js", "/static/model.js", "/static/console.css"):
        async with client.get(path) as response:
            assert response.status == 200
            text = await response.text()
        assert "https://" not in text
        assert "innerHTML" not in text
    for path in ("/static/", "/static/../web.py", "/static/%2e%2e/web.py"):
        async with client.get(path) as response:
            assert response.status in (403, 404)


async def test_shutdown_ends_open_event_streams(feed: Feed) -> None:
    app = web.Application()
    mount(app, feed)
    server = TestServer(app)
    async with TestClient(server) as client, client.get("/api/v1/events") as response:
        await response.content.readuntil(b"event: snapshot")
        async with asyncio.timeout(PATIENCE_S):
            await app.shutdown()
            rest = await response.content.read()
        assert rest.endswith(b"\n\n")


async def test_without_kafka_the_process_lives_is_not_ready_and_says_so() -> None:
    async with Feed(KafkaConnection(f"127.0.0.1:{free_port()}")) as feed:
        app = web.Application()
        mount(app, feed)
        async with TestClient(TestServer(app)) as client:
            async with client.get("/health/live") as response:
                assert response.status == 200
            async with client.get("/health/ready") as response:
                assert response.status == 503
                body = await response.json()
            assert body["checks"] == {"views": False}
            assert body["views"]["state"] == "STARTING"
            async with event_stream(client) as events:
                first = (await until(events, lambda event: event.name == "snapshot"))[-1]
            assert (first.data["state"], first.data["entries"]) == ("STARTING", [])


async def test_readiness_asks_what_else_must_hold(feed: Feed) -> None:
    app = web.Application()
    recovered = False
    mount(app, feed, checks={"tables_recovered": lambda: recovered})
    async with TestClient(TestServer(app)) as client:
        async with client.get("/health/ready") as response:
            assert response.status == 503
            assert (await response.json())["checks"] == {"views": True, "tables_recovered": False}
        recovered = True
        async with client.get("/health/ready") as response:
            assert response.status == 200


async def test_on_a_faust_worker_the_page_is_at_the_root(feed: Feed) -> None:
    worker = faust.App("console-test", broker="kafka://127.0.0.1:1", web_tables_enabled=False, web_router_enabled=False)
    mount(worker.web.web_app, feed)
    async with TestClient(TestServer(await worker.web.wsgi())) as client:
        async with client.get("/") as response:
            assert response.content_type == "text/html"
            assert "DispatchAI" in await response.text()
        assert (await read(client, "/health/ready"))["status"] == "ready"


async def test_many_readers_share_what_is_made_once_of_each_change(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty pages that open and reload, and twenty lists, cost no more shaping than one."""
    names = [call_id(f"shared-{number}") for number in range(40)]
    made: Counter[str] = Counter()
    queue = json_view.FORMS["queue"]

    def counted(entry: Entry) -> dict[str, Any]:
        made[entry.call_id] += 1
        return queue(entry)

    monkeypatch.setitem(json_view.FORMS, "queue", counted)
    await put(producer, [("live-calls", name, live_call(name)) for name in names])
    await shown(feed, *names)

    async def load() -> set[str]:
        async with event_stream(client) as events:
            slices = await until(events, lambda event: event.name == "snapshot" and event.data["last"])
        listed = {entry["call_id"] for entry in (await read(client, "/debug/list_queue"))}
        return {entry["call_id"] for event in slices for entry in event.data["entries"]} & listed

    for _ in range(2):
        seen = await asyncio.gather(*(load() for _ in range(10)))
        assert all(set(names) <= one for one in seen)
    assert {made[name] for name in names} == {1}
    async with event_stream(client) as events, event_stream(client) as others:
        for stream in (events, others):
            await until(stream, lambda event: event.name == "snapshot" and event.data["last"])
        await put(producer, [("live-calls", names[0], live_call(names[0], summary="It burns."))])
        for stream in (events, others):
            await until(stream, lambda event: about(event, names[0]) and event.data["summary"] == "It burns.")
    assert made[names[0]] == 2


async def test_a_page_that_opens_between_two_pushes_misses_no_change(
    feed: Feed, producer: AIOKafkaProducer, call_id: CallId
) -> None:
    """A shared snapshot and the later updates together hold each change, whenever a subscriber came."""
    changing = call_id("changing")
    at_most = 40
    for number in range(at_most):
        first, _ = await feed.subscribe()
        await put(producer, [("live-calls", changing, live_call(changing, summary=f"number {number}"))])
        second, snapshot = await feed.subscribe()
        shown_at_first = next((one for one in snapshot.entries if one.call_id == changing), None)
        async with asyncio.timeout(PATIENCE_S):
            entry = shown_at_first
            while entry is None or entry.live is None or entry.live.summary != f"number {number}":
                update = await second.next(PATIENCE_S)
                assert update is not None
                entry = next((one.entry for one in update.changes if one.call_id == changing), entry)
        first.close()
        second.close()


async def test_readers_above_the_bound_are_asked_to_come_again(
    feed: Feed, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_feed, "MAX_SUBSCRIBERS", feed.subscribers + 1)
    monkeypatch.setattr(web_module, "LISTS_AT_ONCE", 0)
    refused = feed.counts.refused_readers
    async with event_stream(client) as events:
        await until(events, lambda event: event.name == "snapshot" and event.data["last"])
        wanted = {"/api/v1/events": "too_many_subscribers", "/api/v1/queue": "busy", "/debug/live_calls": "busy"}
        for path, code in wanted.items():
            async with client.get(path) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, code)
                assert int(response.headers["Retry-After"]) > 0
        assert feed.counts.refused_readers == refused + 3
        async with client.get("/health/live") as response:
            assert response.status == 200


async def test_a_reader_that_does_not_read_is_disconnected_and_holds_up_nobody(
    feed: Feed, client: Client, producer: AIOKafkaProducer, call_id: CallId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_module, "LIST_S", 0.5)
    monkeypatch.setattr(web_module, "WRITE_S", 0.5)
    names = [call_id(f"long-{number}") for number in range(60)]
    words = "help " * 20_000
    await put(producer, [("live-calls", name, live_call(name, transcript=words)) for name in names])
    await shown(feed, *names)
    before = feed.subscribers
    readers = []
    for path in ("/api/v1/queue?limit=500", "/api/v1/events"):
        reader, writer = await asyncio.open_connection(client.host, client.port, limit=1024)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        readers.append((reader, writer))
    for reader, _ in readers:
        await reader.readuntil(b"\r\n\r\n")
        async with client.get("/health/live") as response:
            assert response.status == 200
    async with asyncio.timeout(PATIENCE_S):
        while feed.subscribers > before:  # noqa: ASYNC110 - in memory
            await asyncio.sleep(0.05)
    for reader, writer in readers:
        got = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while chunk := await reader.read(65_536):
                    got += len(chunk)
        assert got < len(words) * len(names), "it was cut off"
        writer.close()
