"""The signals job written for one frame at a time, for processors that hand over one record at a time.

It is the cheapest form found for such a processor: fields instead of dataclasses, one numpy call for the loudness of
a frame, plain numbers for the rest. It is written apart from `dispatchai.audio.signals`, and held to it: the signals of
all rivals are compared byte for byte. Imports nothing of Kafka.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from dispatchai.audio.g711 import TABLES
from dispatchai.audio.loudness import ALPHA, DECAY, FULL_SCALE, GAIN, VOICED_RMS
from dispatchai.audio.signals import SIGNAL_EVERY_MS, TRANSITION_APART_MS
from dispatchai.records.codec import decode_fields, encode_fields

BOOTSTRAP: Final = "BENCH_BOOTSTRAP_SERVERS"
EMBEDDED: Final = "BENCH_BROKER_IS_EMBEDDED"
APP_ID: Final = "BENCH_APP_ID"
"""Environment variables of a rival. The last names its consumer group and is the prefix of its changelog."""

QUIX_STATE: Final = "BENCH_QUIX_STATE"
"""Environment variable that says how the rival on Quix Streams keeps its state: `frame` or `signal`."""

COMMIT_S: Final = 1.0
"""How often every rival commits its offsets."""

_SQUARES: Final = TABLES["PCMU"].astype(np.int64) ** 2


def changelog(app_id: str) -> str:
    """The topic of the snapshots of a rival that does not choose its name itself."""
    return f"{app_id}-signals-changelog"


def loudness(payload: bytes) -> float:
    """Loudness of a frame of PCMU, 1.0 = full scale."""
    return math.sqrt(int(_SQUARES[np.frombuffer(payload, dtype=np.uint8)].sum()) / len(payload)) / FULL_SCALE


@dataclass(slots=True)
class Caller:
    """State of one call with one stream."""

    stream_id: str = ""
    next_sequence: int = 1
    ended: bool = False
    ema: float = 0.0
    distress: float = 0.0
    voiced: bool = False
    rms: float = 0.0
    captured_at: int = 0
    position_samples: int = 0
    signalled_at_samples: int = 0
    signalled_voiced: bool = False
    audio_ms: float = 0.0
    voiced_ms: float = 0.0
    voiced_frames: int = 0
    distress_sum: float = 0.0
    distress_max: float = 0.0
    missing_frames: int = 0
    frames: int = 0
    signals: list[bytes] = field(default_factory=list)
    """The signals of the last record; a snapshot is due if there are any."""

    def apply(self, value: bytes, measure: Callable[[bytes], float] = loudness) -> list[bytes]:
        """Apply a record; returns its signals. `measure` gives the loudness of a payload."""
        _, frame = decode_fields(value)
        self.signals = []
        self.captured_at = frame["captured_at"]
        if not self.stream_id:
            self.stream_id = frame["stream_id"]
            self._signal("START", 0)
        match frame["kind"]:
            case "FRAME" if self.ended or frame["sequence"] < self.next_sequence:
                pass
            case "FRAME":
                self._audio(frame["sequence"], frame["sample_rate"], len(frame["payload"]), measure(frame["payload"]))
            case "END" if not self.ended:
                self.missing_frames += max(0, frame["sequence"] - self.next_sequence)
                self.next_sequence = frame["sequence"]
                self.ended = True
                self._signal("END", frame["sequence"])
        return self.signals

    def _audio(self, sequence: int, sample_rate: int, samples: int, rms: float) -> None:
        self.missing_frames += sequence - self.next_sequence
        self.next_sequence = sequence + 1
        duration_ms = samples * 1000.0 / sample_rate
        self.ema = ALPHA * rms + (1.0 - ALPHA) * self.ema
        self.distress = max(min(1.0, GAIN * max(0.0, rms - self.ema)), DECAY * self.distress)
        self.voiced = rms >= VOICED_RMS
        self.rms = rms
        self.frames += 1
        self.audio_ms += duration_ms
        if self.voiced:
            self.voiced_ms += duration_ms
            self.voiced_frames += 1
            self.distress_sum += self.distress
        self.distress_max = max(self.distress_max, self.distress)
        self.position_samples += samples
        since_ms = (self.position_samples - self.signalled_at_samples) * 1000.0 / sample_rate
        turned = self.voiced != self.signalled_voiced
        if since_ms >= SIGNAL_EVERY_MS or (turned and since_ms >= TRANSITION_APART_MS):
            self.signalled_at_samples = self.position_samples
            self.signalled_voiced = self.voiced
            self._signal("UPDATE", sequence)

    def _signal(self, kind: str, sequence: int) -> None:
        self.signals.append(
            encode_fields(
                "Signal",
                {
                    "stream_id": self.stream_id,
                    "sequence": sequence,
                    "captured_at": self.captured_at,
                    "kind": kind,
                    "audio_ms": round(self.audio_ms),
                    "voiced_ms": round(self.voiced_ms),
                    "voiced": self.voiced and kind != "END",
                    "rms": self.rms,
                    "loudness_distress": self.distress,
                    "loudness_distress_max": self.distress_max,
                    "loudness_distress_mean": self.distress_sum / self.voiced_frames if self.voiced_frames else 0.0,
                    "missing_frames": self.missing_frames,
                },
            )
        )

    def snapshot(self) -> bytes:
        """The state as the program's own agent writes it."""
        return encode_fields(
            "SignalState",
            {
                "streams": [{name: getattr(self, name) for name in _STREAM_FIELDS}],
                **{name: getattr(self, name) for name in _CALL_FIELDS},
            },
        )


_STREAM_FIELDS: Final = (
    *("stream_id", "next_sequence", "ended", "ema", "distress", "voiced", "rms", "captured_at"),
    *("position_samples", "signalled_at_samples", "signalled_voiced"),
)
_CALL_FIELDS: Final = (
    *("audio_ms", "voiced_ms", "voiced_frames", "distress_sum", "distress_max"),
    *("missing_frames", "frames"),
)
