"""Media leaves room for everything else that a gateway does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dispatchai.gateway.fair_queue import Turns


@dataclass(slots=True)
class Clock:
    """Seconds, moved by the work."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True, eq=False)
class Socket:
    """So many pieces of media, each a millisecond's work."""

    name: str
    pieces: int
    clock: Clock
    log: list[str]
    last: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> bool:
        self.clock.now += 0.001
        self.log.append(self.name)
        self.pieces -= 1
        if not self.pieces:
            self.last.set()
        return self.pieces > 0


async def test_sockets_take_turns_and_everything_else_comes_between_two_of_the_loop() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(turn_s=0.0035, clock=clock)
    busy, light = Socket("busy", 9, clock, log), Socket("light", 1, clock, log)
    turns.add(busy)
    turns.add(light)
    while not busy.last.is_set():
        log.append("|")
        await asyncio.sleep(0)
    taken = "".join(log).replace("busy", "b").replace("light", "l")
    # The one with little to do does not wait behind the other; no turn is longer than four pieces.
    assert taken == "|blbb|bbbb|bb"


async def test_work_that_fails_stops_no_other() -> None:
    clock, log = Clock(), list[str]()
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    class Failing:
        def take(self) -> bool:
            raise ValueError("a mistake")

    turns = Turns(clock=clock)
    good = Socket("good", 2, clock, log)
    turns.add(Failing())
    turns.add(good)
    await good.last.wait()
    assert log == ["good", "good"]
    assert len(failures) == 1
