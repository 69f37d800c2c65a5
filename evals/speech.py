"""Word error rate, latency and cost of the local recogniser on the shipped recordings: `python -m evals.speech`.

The recordings are streamed in real time as 20 ms PCMU frames, all at once, like simultaneous calls. `--write` puts the
table into `docs/speech.md`, between its marks.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import statistics
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from dispatchai.audio.g711 import encode_mulaw
from dispatchai.settings import settings
from dispatchai.speech.moonshine import MoonshineRecognizer
from dispatchai.speech.recognizer import AudioFormat, Ended, Failed, Hypothesis, StreamKey

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "speech.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

FRAME: Final = 160
"""Bytes of a 20 ms PCMU frame at 8 kHz."""

NUMBERS: Final = {"forty two": "42", "nineteen": "19", "twelve": "12"}
"""Numbers of the recordings in the form in which both texts are compared."""


@dataclass(slots=True)
class Heard:
    """The texts that were heard of one recording."""

    name: str
    said: list[str]
    audio: bytes
    finals: list[str] = field(default_factory=list)
    partials: int = 0
    first_partial_s: float | None = None
    final_latencies_s: list[float] = field(default_factory=list)


def words(text: str) -> list[str]:
    """The words to compare: lower case, no punctuation, numbers in digits, British spellings as American."""
    plain = " ".join(re.findall(r"[a-z0-9']+", text.lower().replace("-", " ")))
    for spoken, digits in NUMBERS.items():
        plain = plain.replace(spoken, digits)
    return plain.replace("neighbours", "neighbors").replace("can not", "cannot").split()


def errors(said: list[str], heard: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def recordings() -> list[Heard]:
    """The shipped recordings, with the words that are said in them."""
    found = []
    for path in sorted((ROOT / "scripts" / "recordings").glob("*.yaml")):
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))["lines"]
        with wave.open(str(ROOT / "dispatchai" / "recordings" / f"{path.stem}.wav")) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        found.append(Heard(path.stem, [line["text"] for line in lines], encode_mulaw(samples)))
    return found


async def listen(calls: list[Heard], processes: int, update_ms: int) -> tuple[str, float]:
    """Stream all of `calls` at once in real time. Returns the engine's name and the CPU seconds of its processes."""
    recognizer = MoonshineRecognizer(processes, update_ms)
    await recognizer.start()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def speak(call: Heard) -> None:
        stream = recognizer.open(StreamKey(call.name, "1"), AudioFormat("PCMU", 8000))
        for number, at in enumerate(range(0, len(call.audio), FRAME), 1):
            await asyncio.sleep(max(0.0, began + number * 0.02 - loop.time()))  # the carrier's pace
            stream.feed(call.audio[at : at + FRAME])
        stream.finish()

    async def collect() -> None:
        by_name, open_streams = {call.name: call for call in calls}, len(calls)
        async for event in recognizer.events():
            call, now_s = by_name[event.key.call_id], loop.time() - began
            match event:
                case Hypothesis(final=True) if event.text:
                    call.finals.append(event.text)
                    call.final_latencies_s.append(now_s - event.end_ms / 1000)
                case Hypothesis(final=False) if event.text:
                    call.partials += 1
                    call.first_partial_s = call.first_partial_s or now_s
                case Ended():
                    open_streams -= 1
                case Failed():
                    raise SystemExit(f"{call.name}: {event.reason}")
            if not open_streams:
                return

    try:
        await asyncio.gather(collect(), *(speak(call) for call in calls))
    finally:
        await recognizer.close()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return recognizer.name, usage.ru_utime + usage.ru_stime


def table(calls: list[Heard], engine: str, cpu_s: float, processes: int, update_ms: int) -> str:
    """The measurements as Markdown."""
    lines = [
        f"{engine}, {len(calls)} calls at once in real time, {processes} process(es), partials every {update_ms} ms.",
        "",
        "| recording | s | words | word error rate | partials | first text, s | final behind, s: median / worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for call in calls:
        said, heard = words(" ".join(call.said)), words(" ".join(call.finals))
        latencies = call.final_latencies_s
        lines.append(
            f"| {call.name} | {len(call.audio) / 8000:.1f} | {len(said)} | {errors(said, heard) / len(said):.3f} "
            f"| {call.partials} | {call.first_partial_s or 0:.1f} "
            f"| {statistics.median(latencies):.2f} / {max(latencies):.2f} |"
        )
    audio_s = sum(len(call.audio) for call in calls) / 8000
    lines += ["", f"CPU, loading of the models included: {cpu_s:.1f} s for {audio_s:.1f} s of audio.", "", "Heard:", ""]
    lines += [f"* {call.name}: {' / '.join(call.finals)}" for call in calls]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; with `--write` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speech.md")
    arguments = parser.parse_args()
    calls, processes, update_ms = recordings(), settings().speech_processes, settings().speech_update_ms
    engine, cpu_s = asyncio.run(listen(calls, processes, update_ms))
    text = table(calls, engine, cpu_s, processes, update_ms)
    print(text)
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
