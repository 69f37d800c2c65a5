"""Media leaves room for everything else that a gateway does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dispatchai.gateway.fair_queue import FairQueue


@dataclass(slots=True)
class Clock:
    """Seconds, advanced by the work."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True, eq=False)
class Socket:
    """A number of pieces of media, each a millisecond's work."""

    name: str
    pieces: int
    clock: Clock
    log: list[str]
    last: asyncio.Event = field(default_factory=asyncio.Event)

    def process_piece(self) -> bool:
        self.clock.now += 0.001
        self.log.append(self.name)
        self.pieces -= 1
        if not self.pieces:
            self.last.set()
        return self.pieces > 0


async def test_sockets_share_each_slice_and_other_callbacks_run_between_two_slices() -> None:
    clock, log = Clock(), list[str]()
    queue = FairQueue(slice_s=0.0035, clock=clock)
    busy, light = Socket("busy", 9, clock, log), Socket("light", 1, clock, log)
    queue.add(busy)
    queue.add(light)
    while not busy.last.is_set():
        log.append("|")
        await asyncio.sleep(0)
    taken = "".join(log).replace("busy", "b").replace("light", "l")
    # The socket with little to do does not wait behind the other; no slice is longer than four pieces.
    assert taken == "|blbb|bbbb|bb"


async def test_work_that_fails_stops_no_other_work() -> None:
    clock, log = Clock(), list[str]()
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    class Failing:
        def process_piece(self) -> bool:
            raise ValueError("a mistake")

    queue = FairQueue(clock=clock)
    good = Socket("good", 2, clock, log)
    queue.add(Failing())
    queue.add(good)
    await good.last.wait()
    assert log == ["good", "good"]
    assert len(failures) == 1
