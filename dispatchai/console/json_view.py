"""The JSON of the views: a thin layer over the records.

Decides names, and which numbers are masked. Lists carry only the last three digits of a caller's number; the view of
one call carries the whole call-back number.
"""

from __future__ import annotations

from typing import Any

from dispatchai.console.queue_view import Entry
from dispatchai.records import CallPacket, CallStatus, LiveCall, to_json
from dispatchai.records.phone_numbers import masked

Json = dict[str, Any]


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
        "nlp": {name: live[name] for name in ("transcript", "emotion", "category", "tags")},
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
    """Everything that is known about one call, with the whole call-back number."""
    return {
        "call_id": entry.call_id,
        "status": entry.status,
        "live": None if entry.live is None else live_call(entry.live, full_number=True),
        "packet": None if entry.stored is None else packet(entry.stored.packet, full_number=True),
    }
