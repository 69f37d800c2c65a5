"""The local engine in its processes: the texts that it hears, and what happens when a process or its parent dies."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatchai.speech import moonshine
from dispatchai.speech.errors import RecognizerError
from dispatchai.speech.moonshine import MoonshineRecognizer
from dispatchai.speech.recognizer import (
    AudioFormat,
    Ended,
    Event,
    Failed,
    Hypothesis,
    Progress,
    StreamKey,
)
from tests.speech.audio import chunks, recording

PCMU = AudioFormat("PCMU", 8000)
LONG_S = 60.0
"""Limit of waits that end at once if the product works."""


def process_ids() -> list[int]:
    """The ids of the speech processes that are alive."""
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


@contextlib.asynccontextmanager
async def started(processes: int = 1) -> AsyncIterator[MoonshineRecognizer]:
    recognizer = MoonshineRecognizer(processes, update_ms=1000)
    await recognizer.start()
    try:
        yield recognizer
    finally:
        await recognizer.close()


async def until_over(recognizer: MoonshineRecognizer, streams: int) -> dict[str, list[Event]]:
    """The events by call, until `streams` streams have ended or failed."""
    by_call: dict[str, list[Event]] = {}
    async with asyncio.timeout(LONG_S):
        async for event in recognizer.events():
            by_call.setdefault(event.key.call_id, []).append(event)
            streams -= isinstance(event, Ended | Failed)
            if not streams:
                return by_call
    raise AssertionError("the events ended")


def finals(events: list[Event]) -> list[Hypothesis]:
    return [event for event in events if isinstance(event, Hypothesis) and event.final]


async def test_the_recordings_are_understood_and_no_call_changes_the_text_of_another() -> None:
    names = ("cardiac_arrest", "kitchen_fire", "noise_complaint")
    async with started() as recognizer:
        assert recognizer.name == "moonshine/tiny-en"
        sizes = dict(zip(names, (160, 4000, 777), strict=True))
        for name in names:
            stream = recognizer.open(StreamKey(name, "1"), PCMU, start_ms=0)
            for part in chunks(recording(name), sizes[name]):
                stream.feed(part)
            stream.finish()
        together = await until_over(recognizer, len(names))
        later = recognizer.open(StreamKey("alone", "1"), PCMU, start_ms=60_000)
        later.feed(recording("kitchen_fire"))
        later.finish()
        alone = (await until_over(recognizer, 1))["alone"]

    text = {name: " ".join(f.text for f in finals(events)).lower() for name, events in together.items()}
    for decisive in ("ambulance", "husband has collapsed", "unconscious", "not breathing"):
        assert decisive in text["cardiac_arrest"]
    for decisive in ("kitchen is on fire", "flames", "smoke", "spreading"):
        assert decisive in text["kitchen_fire"]
    for decisive in ("noise complaint", "loud music", "angry"):
        assert decisive in text["noise_complaint"]
    for events in together.values():
        covered = [event.covered_ms for event in events if isinstance(event, Progress)]
        assert covered == sorted(covered)
        for before, after in zip(finals(events), finals(events)[1:], strict=False):
            assert before.end_ms <= after.start_ms
    shifted = [(f.text, f.start_ms + 60_000, f.end_ms + 60_000) for f in finals(together["kitchen_fire"])]
    assert [(f.text, f.start_ms, f.end_ms) for f in finals(alone)] == shifted


async def test_a_killed_process_fails_its_streams_and_is_replaced() -> None:
    async with started() as recognizer:
        [before] = process_ids()
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        stream.feed(recording("cardiac_arrest"))
        os.kill(before, signal.SIGKILL)
        events = (await until_over(recognizer, 1))["call"]
        assert events[-1] == Failed(StreamKey("call", "1"), True, "process died")
        stream.feed(b"\xff" * 160)  # has no effect

        again = recognizer.open(StreamKey("call", "1"), PCMU)
        again.feed(recording("cardiac_arrest")[: 8 * 9000])
        again.finish()
        heard = finals((await until_over(recognizer, 1))["call"])
        assert "not breathing" in " ".join(final.text for final in heard)
        assert process_ids() != [before]


async def test_a_frozen_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as recognizer:
        monkeypatch.setattr(moonshine, "HUNG_S", 0.2)
        monkeypatch.setattr(moonshine, "STOP_TIMEOUT_S", 0.1)
        [process_id] = process_ids()
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        os.kill(process_id, signal.SIGSTOP)
        stream.feed(b"\xff" * 16_000)
        # The read that waits now began with the old bound: an event ends it.
        os.kill(process_id, signal.SIGCONT)
        recognizer.open(StreamKey("other", "1"), PCMU).finish()
        await until_over(recognizer, 1)
        os.kill(process_id, signal.SIGSTOP)
        stream.feed(b"\xff" * 16_000)
        events = (await until_over(recognizer, 1))["call"]
        assert events[-1] == Failed(StreamKey("call", "1"), True, "process died")


async def test_ctrl_c_in_the_terminal_does_not_end_the_processes() -> None:
    async with started() as recognizer:
        os.kill(process_ids()[0], signal.SIGINT)
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        stream.finish()
        assert isinstance((await until_over(recognizer, 1))["call"][-1], Ended)


async def test_a_cancelled_stream_has_no_more_events_and_closing_ends_events_and_processes() -> None:
    async with started(2) as recognizer:
        ids = process_ids()
        assert len(ids) == 2
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        stream.feed(recording("cardiac_arrest"))
        stream.cancel()
        assert stream.backlog_ms == 0
    assert [event async for event in recognizer.events()] == []
    for process_id in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


async def test_room_waits_until_the_backlog_was_heard() -> None:
    async with started() as recognizer:
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        stream.feed(b"\xff" * 8 * 60_000)
        assert stream.backlog_ms == 60_000
        async with asyncio.timeout(LONG_S):
            await recognizer.room()
        assert stream.backlog_ms <= 30_000


async def test_too_much_unheard_audio_fails_the_stream_and_not_the_process() -> None:
    async with started() as recognizer:
        stream = recognizer.open(StreamKey("call", "1"), PCMU)
        stream.feed(b"\xff" * 8 * 700_000)
        assert (await until_over(recognizer, 1))["call"] == [Failed(StreamKey("call", "1"), True, "backlog")]


async def test_an_engine_that_does_not_become_ready_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moonshine, "START_TIMEOUT_S", 0.05)
    with pytest.raises(RecognizerError):
        await MoonshineRecognizer(1, 1000).start()


def test_formats_that_the_engine_cannot_hear_are_refused() -> None:
    recognizer = MoonshineRecognizer(1, 1000)
    assert recognizer.accepts(AudioFormat("PCMA", 8000))
    assert recognizer.accepts(AudioFormat("L16", 16_000))
    assert not recognizer.accepts(AudioFormat("G722", 8000))
    with pytest.raises(ValueError, match="G722"):
        recognizer.open(StreamKey("call", "1"), AudioFormat("G722", 8000))


PARENT = """
import asyncio
import multiprocessing
from dispatchai.speech.moonshine import MoonshineRecognizer

async def main():
    recognizer = MoonshineRecognizer(1, 1000)
    await recognizer.start()
    print(multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_processes_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != parent.pid
        parent.kill()
        # The child holds the parent's standard output too: its end of file is the child's end. Without it this hangs.
        assert parent.stdout.read() == b""
