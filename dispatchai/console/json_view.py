"""The JSON of the views: a thin layer over the records.

Decides names, which numbers are masked, and what is shown instead of an entry that cannot be shown. Lists carry only
the last three digits of a caller's number; the view of one call carries the whole call-back number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog

from dispatchai.console.errors import ConsoleError
from dispatchai.console.queue_view import Entry
from dispatchai.console.topic_feed import FeedCounts
from dispatchai.records import CallPacket, CallStatus, LiveCall, to_json
from dispatchai.records.phone_numbers import masked

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Json = dict[str, Any]

NOT_SHOWN: Final = "This call cannot be shown, because its record is damaged. Its caller may need help."
"""The summary of an entry in place of one that cannot be shown."""

UNKNOWN: Final = "UNKNOWN"


class NotJsonError(ConsoleError):
    """A number is NaN or infinite. JSON has neither, and a browser that gets one reads nothing of the answer."""


def live_call(live: LiveCall, *, full_number: bool = False) -> Json:
    """A call in progress: the names of the guide's LIVE_CALLS, then all fields of the record."""
    shaped = to_json(live, omit=("from_number", "to_number"))
    return {
        "call_id": live.call_id,
        "call_control_id": live.call_control_id,
        "from_masked": masked(live.from_number),
        "to": live.to_number,
        **({"from_number": live.from_number} if full_number else {}),
        "transcript_live": f"{live.transcript} {live.partial}".strip(),
        "risk_level": live.risk.level,
        "risk_score": live.risk.score,
        "distress": live.audio.distress_now,
        "max_distress": live.audio.distress_max,
        **{name: value for name, value in shaped.items() if name not in ("call_id", "call_control_id")},
    }


def packet(value: CallPacket, *, full_number: bool = False) -> Json:
    """A packet: the names of the guide's "Final packet structure", with all fields of the record."""
    shaped = to_json(value, omit=("from_number", "to_number"))
    return {
        **shaped,
        "from_masked": masked(value.from_number),
        "to": value.to_number,
        **({"from_number": value.from_number} if full_number else {}),
    }


def queue_entry(entry: Entry) -> Json:
    """One entry of the queue, with the same names for a live call and for a final packet.

    `status` is LIVE for a call in progress and the packet's own status for a final one; `final` distinguishes them.
    `id`, `risk_level` and `summary` are those of the guide's LIVE_QUEUE.
    """
    match entry.shown:
        case CallPacket() as final:
            return {
                "id": entry.call_id,
                "final": True,
                "call_status": CallStatus.ENDED,
                "risk_level": final.risk.level,
                "partial": "",
                **packet(final),
            }
        case LiveCall() as live:
            return _live_entry(live)


def _live_entry(record: LiveCall) -> Json:
    live = to_json(record, omit=("from_number", "to_number"))
    return {
        "id": record.call_id,
        "final": False,
        "call_id": record.call_id,
        "status": "LIVE",
        "call_status": live["status"],
        "risk_level": record.risk.level,
        "from_masked": masked(record.from_number),
        "to": record.to_number,
        "audio": live["audio"],
        "nlp": {name: live[name] for name in ("transcript", "emotion", "category", "tags", "transcript_omitted")},
        "partial": live["partial"],
        **{
            name: live[name]
            for name in (
                "call_control_id",
                "started_at",
                "answered_at",
                "ended_at",
                "hangup_cause",
                "degraded",
                "updated_at",
                "services",
                "risk",
                "parts",
                "unknowns",
                "summary",
                "ranking",
                "rules_version",
            )
        },
    }


def call(entry: Entry) -> Json:
    """Everything that is known about one call, with the whole call-back number.

    A number that JSON does not have becomes null: whoever has to call back needs the rest of a damaged record too.
    """
    return {
        "call_id": entry.call_id,
        "status": entry.status,
        "live": None if entry.live is None else live_call(entry.live, full_number=True),
        "packet": None if entry.stored is None else packet(entry.stored.packet, full_number=True),
    }


def _live_call_of(entry: Entry) -> Json:
    if entry.live is None:
        raise ValueError("the entry holds no call in progress")
    return live_call(entry.live)


FORMS: Final[dict[str, Callable[[Entry], Json]]] = {"queue": queue_entry, "live": _live_call_of}
"""The forms in which lists show an entry."""


def text(entry: Entry, form: str, counts: FeedCounts) -> bytes:
    """The JSON text of `entry` in a form of FORMS, made at the first call and kept with the entry.

    An entry that cannot be shown is replaced by one that says so, under the same id and at the same place: it must not
    hide the others. `counts` counts them.
    """
    made = entry.texts.get(form)
    if made is None:
        try:
            shown = FORMS[form](entry)
            _check(shown)
            made = orjson.dumps(shown)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one entry, the others are shown
            log.error("entry_not_shown", call_id=entry.call_id, error=type(error).__name__)
            counts.not_shown += 1
            made = orjson.dumps(_placeholder(entry, form))
        entry.texts[form] = made
    return made


def _check(value: Any) -> None:
    """Raise NotJsonError if there is a number in `value` that JSON does not have. orjson would write null."""
    match value:
        case float():
            if not math.isfinite(value):
                raise NotJsonError("a number is not finite")
        case dict():
            for item in value.values():
                _check(item)
        case list():
            for item in value:
                _check(item)


def _placeholder(entry: Entry, form: str) -> Json:
    """An entry of the form that says that the call cannot be shown. It has every field that the page needs."""
    is_final = entry.stored is not None
    ranking = entry.ranking
    shown: Json = {
        "call_id": entry.call_id,
        "not_shown": True,
        "status": CallStatus.ACTIVE if form == "live" else "OPEN" if is_final else "LIVE",
        "risk_level": UNKNOWN,
        "summary": NOT_SHOWN,
        "risk": {"level": UNKNOWN, "score": 0.0},
        "ranking": to_json(ranking),
    }
    if form == "live":
        return {**shown, "transcript_live": "", "risk_score": 0.0, "distress": 0.0, "max_distress": 0.0}
    audio = ("distress_score", "distress_max", "distress_now", "voiced_seconds", "audio_seconds")
    return {
        "id": entry.call_id,
        **shown,
        "final": is_final,
        "call_status": CallStatus.ENDED if is_final else CallStatus.ACTIVE,
        "from_masked": None,
        "to": None,
        "version": 0,
        "complete": False,
        "audio": {**dict.fromkeys(audio, 0.0), "voiced": False, "missing_frames": 0},
        "nlp": {
            "transcript": "",
            "transcript_omitted": 0,
            "emotion": {"label": UNKNOWN, "intensity": 0.0, "sentiment": "neutral"},
            "category": UNKNOWN,
            "tags": [],
        },
        "partial": "",
        "services": [],
        "parts": [],
        "unknowns": [],
        "degraded": "not shown",
        "started_at": None,
        "ended_at": None,
        "hangup_cause": None,
    }
