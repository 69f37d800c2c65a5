"""Calls as the ranking agent writes them, for the tests of the views and for looking at the page.

`python -m tests.console.samples [PORT]` serves the page with calls in progress, on an embedded broker.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from aiohttp import web
from aiokafka import AIOKafkaProducer

from dispatchai.console import Feed, mount
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topics
from dispatchai.records import (
    AudioSummary,
    CallPacket,
    CallStatus,
    Category,
    Emotion,
    Evidence,
    LiveCall,
    Nlp,
    PacketStatus,
    Part,
    Ranking,
    Risk,
    RiskLevel,
    Service,
    encode,
)

SECOND = 1_000_000
BASE = 1_772_567_551 * SECOND
"""2026-03-03T19:52:31Z."""

PRIORITIES = {
    RiskLevel.CRITICAL: 1,
    RiskLevel.HIGH: 2,
    RiskLevel.MEDIUM: 3,
    RiskLevel.UNKNOWN: 3,
    RiskLevel.LOW: 4,
}


def level_of(score: float) -> RiskLevel:
    """A level for a score, roughly as triage gives it."""
    for bound, level in ((0.8, RiskLevel.CRITICAL), (0.55, RiskLevel.HIGH), (0.3, RiskLevel.MEDIUM)):
        if score >= bound:
            return level
    return RiskLevel.LOW


def ranking(weight: int, created_at: int, level: RiskLevel) -> Ranking:
    """The ranking of a sample."""
    return Ranking(priority=PRIORITIES[level], weight=weight, created_at=created_at)


def live_call(
    call_id: str,
    *,
    transcript: str = "",
    partial: str = "",
    parts: tuple[Part, ...] = (),
    level: RiskLevel | None = None,
    category: Category = Category.UNKNOWN,
    services: tuple[Service, ...] = (),
    tags: tuple[str, ...] = (),
    unknowns: tuple[str, ...] = (),
    summary: str = "Listening…",
    emotion: str = "UNKNOWN",
    distress: float = 0.0,
    voiced: bool = False,
    started_at: int = BASE,
    updated_at: int = BASE,
    weight: int | None = None,
    status: CallStatus = CallStatus.ACTIVE,
    from_number: str | None = "+15551234567",
) -> LiveCall:
    """A call in progress."""
    score = round(sum(part.points for part in parts), 4)
    level = level or (level_of(score) if parts else RiskLevel.UNKNOWN)
    return LiveCall(
        call_id=call_id,
        updated_at=updated_at,
        call_control_id=f"v3:{call_id}",
        status=status,
        from_number=from_number,
        to_number="+15559876543",
        started_at=started_at,
        answered_at=started_at + SECOND,
        ended_at=None,
        hangup_cause=None,
        degraded=None,
        transcript=transcript,
        partial=partial,
        audio=AudioSummary(distress / 2, min(1.0, distress * 1.2), distress, voiced, 8.5, 12.0, 0),
        emotion=Emotion(emotion, distress, "negative" if distress > 0.4 else "neutral"),
        category=category,
        services=services,
        tags=tags,
        risk=Risk(level, score),
        parts=parts,
        unknowns=unknowns,
        summary=summary,
        rules_version="1",
        ranking=ranking(round(1000 * score) if weight is None else weight, started_at, level),
    )


def final_packet(live: LiveCall, *, version: int = 1, ended_at: int | None = None) -> CallPacket:
    """The packet of `live` after its hangup."""
    ended_at = live.updated_at if ended_at is None else ended_at
    started_at = live.started_at or ended_at
    return CallPacket(
        call_id=live.call_id,
        version=version,
        complete=True,
        status=PacketStatus.OPEN,
        duration_seconds=round((ended_at - started_at) / SECOND),
        from_number=live.from_number,
        to_number=live.to_number,
        call_control_id=live.call_control_id,
        started_at=live.started_at,
        answered_at=live.answered_at,
        ended_at=ended_at,
        hangup_cause="normal_clearing",
        degraded=live.degraded,
        audio=live.audio,
        nlp=Nlp(f"{live.transcript} {live.partial}".strip(), live.emotion, live.category, live.tags),
        services=live.services,
        risk=live.risk,
        parts=live.parts,
        unknowns=live.unknowns,
        summary=live.summary,
        ranking=replace(live.ranking, created_at=ended_at),
        rules_version=live.rules_version,
    )


@dataclass(frozen=True, slots=True)
class Story:
    """What one sample caller says and what triage makes of it by the end."""

    call_id: str
    number: str
    said: tuple[str, ...]
    parts: tuple[tuple[int, Part], ...]
    """Each part with the number of utterances after which it is there."""
    category: Category
    services: tuple[Service, ...]
    tags: tuple[str, ...]
    unknowns: tuple[str, ...]
    summary: str
    emotion: str
    distress: float

    def after(self, words: int, started_at: int, now: int) -> LiveCall:
        """The call when `words` words have been said."""
        finals: list[str] = []
        partial = ""
        left = words
        for text in self.said:
            split = text.split()
            if left >= len(split):
                finals.append(text)
                left -= len(split)
            else:
                partial = " ".join(split[:left])
                break
        heard = len(finals)
        parts = tuple(part for after, part in self.parts if heard >= after)
        known = heard >= 1 and bool(parts)
        return live_call(
            self.call_id,
            transcript=" ".join(finals),
            partial=partial,
            parts=parts,
            category=self.category if known else Category.UNKNOWN,
            services=self.services if known else (),
            tags=self.tags if known else (),
            unknowns=self.unknowns,
            summary=self.summary if known else "Listening…",
            emotion=self.emotion if heard else "UNKNOWN",
            distress=self.distress * (0.7 + 0.3 * (words % 3) / 2) if words else 0.0,
            voiced=bool(partial),
            started_at=started_at,
            updated_at=now,
            from_number=self.number,
        )


def part(name: str, points: float, reason: str, *words: str) -> Part:
    """One part with its evidence."""
    return Part(name, points, reason, tuple(Evidence(text, "u1", 1200, 2400) for text in words))


STORIES = (
    Story(
        "428c31b6-cardiac",
        "+15551234567",
        (
            "My husband collapsed in the kitchen.",
            "He is not breathing and I cannot find a pulse.",
            "We are at 41 Oak Street, the white house.",
            "Please tell me what to do, I have started pushing on his chest.",
        ),
        (
            (2, part("not_breathing", 0.6, "the patient is not breathing", "not breathing")),
            (2, part("no_pulse", 0.25, "no pulse was found", "cannot find a pulse")),
            (1, part("collapse", 0.1, "a person collapsed", "collapsed")),
        ),
        Category.EMS,
        (Service.EMS,),
        ("CARDIAC_ARREST", "UNCONSCIOUS"),
        ("age of the patient",),
        "Cardiac arrest: husband collapsed, not breathing, no pulse. 41 Oak Street.",
        "CALM",
        0.15,
    ),
    Story(
        "91fe0a52-fire",
        "+15552003118",
        (
            "There's a fire in my kitchen!",
            "The curtains are burning, there is smoke everywhere!",
            "My kids are upstairs, please hurry, please!",
        ),
        (
            (1, part("structure_fire", 0.4, "a fire inside a building", "fire in my kitchen")),
            (3, part("people_trapped", 0.2, "people may be unable to get out", "kids are upstairs")),
            (2, part("voice", 0.12, "the voice is strained: distress 0.82")),
        ),
        Category.FIRE,
        (Service.FIRE, Service.EMS),
        ("STRUCTURE_FIRE", "CHILDREN", "SMOKE"),
        ("address", "whether everybody is out"),
        "Kitchen fire with smoke, children upstairs.",
        "HIGHLY_DISTRESSED",
        0.86,
    ),
    Story(
        "b77d90c3-noise",
        "+15558449020",
        (
            "This is the third time this week that I have to call you people.",
            "My neighbour is playing that music again and it's past midnight!",
            "Somebody has to come and shut it down right now.",
        ),
        (
            (1, part("noise", 0.05, "a complaint about noise", "playing that music")),
            (2, part("voice", 0.08, "the voice is raised: distress 0.61")),
        ),
        Category.POLICE,
        (Service.POLICE,),
        ("NOISE_COMPLAINT",),
        ("address",),
        "Noise complaint: loud music at the neighbour's, third call this week.",
        "ANGRY",
        0.61,
    ),
)


async def put(producer: AIOKafkaProducer, records: Iterable[tuple[str, str, LiveCall | CallPacket | None]]) -> None:
    """Write (topic, call_id, record or tombstone) and wait until the broker has them."""
    for topic, call_id, record in records:
        await producer.send_and_wait(topic, None if record is None else encode(record), key=call_id.encode())


async def play(connection: KafkaConnection) -> None:
    """Play the stories again and again, beside some calls that are over."""
    async with AIOKafkaProducer(**connection.client_options(), acks="all") as producer:
        now = time.time_ns() // 1000
        shooting = live_call(
            "0c5d7f10-shots",
            transcript="Someone's been shot, we need help now. He ran out towards the car park.",
            parts=(
                part("shots_fired", 0.7, "shots were fired", "been shot"),
                part("weapon_present", 0.15, "an armed person is near", "ran out towards the car park"),
                part("voice", 0.1, "the voice is strained: distress 0.91"),
            ),
            category=Category.EMS,
            services=(Service.EMS, Service.POLICE),
            tags=("ACTIVE_SHOOTER", "TRAUMA", "VIOLENCE"),
            unknowns=("address", "number of injured"),
            summary="Shooting: one person hit, the shooter left on foot.",
            emotion="HIGHLY_DISTRESSED",
            distress=0.91,
            started_at=now - 200 * SECOND,
            from_number="+15550112233",
        )
        fall = live_call(
            "77aa21de-fall",
            transcript="My mother fell on the stairs, her hip hurts and she can't get up. Green Lane 5.",
            parts=(
                part("fall", 0.3, "a fall with an injury", "fell on the stairs"),
                part("age", 0.08, "an old person"),
            ),
            category=Category.EMS,
            services=(Service.EMS,),
            tags=("FALL", "ELDERLY"),
            summary="Fall on stairs, hip pain, awake. Green Lane 5.",
            emotion="TENSE",
            distress=0.3,
            started_at=now - 500 * SECOND,
            from_number="+15550119876",
        )
        theft = live_call(
            "e01b44aa-bike",
            transcript="Hello, my bicycle was stolen from in front of the library.",
            parts=(part("theft", 0.1, "a theft that is over", "bicycle was stolen"),),
            category=Category.POLICE,
            services=(Service.POLICE,),
            tags=("THEFT",),
            unknowns=("when it happened",),
            summary="Bicycle stolen in front of the library.",
            emotion="CALM",
            started_at=now - 900 * SECOND,
            from_number=None,
        )
        for call, ended in ((shooting, 140), (fall, 420), (theft, 860)):
            await put(producer, [("dispatch-queue", call.call_id, final_packet(call, ended_at=now - ended * SECOND))])
        while True:
            started = [time.time_ns() // 1000 - 3 * SECOND + index * SECOND for index in range(len(STORIES))]
            for words in range(60):
                now = time.time_ns() // 1000
                for story, at in zip(STORIES, started, strict=True):
                    await put(producer, [("live-calls", story.call_id, story.after(words, at, now))])
                await asyncio.sleep(0.4)


async def serve(port: int) -> None:
    """Serve the page on loopback until interrupted."""
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        await apply(connection, Topics.load(), replication=1)
        async with Feed(connection) as feed:
            app = web.Application()
            mount(app, feed)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            print(f"http://127.0.0.1:{port}/", flush=True)
            try:
                await play(connection)
            finally:
                await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8099))
