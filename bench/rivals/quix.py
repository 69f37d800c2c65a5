"""The job on Quix Streams: one record is one call of a stateful function, its state in RocksDB with a changelog.

BENCH_QUIX_STATE chooses how the state is kept: `frame` reads and writes it with each frame, as the library intends;
`signal` keeps it in memory and writes it with each signal, which is faster and not enough for exact recovery. Runs in
an environment of its own, because the library pins versions of packages that the program uses too.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, Final

from quixstreams import Application
from quixstreams.state import State

from bench.rivals.job import APP_ID, BOOTSTRAP, COMMIT_S, QUIX_STATE, Caller
from dispatchai.kafka.topics import Topic

_FIELDS: Final = tuple(name for name in Caller.__slots__ if name != "signals")


def main() -> None:
    """Run until SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-quix-") as folder:
        app = Application(
            broker_address=os.environ[BOOTSTRAP],
            consumer_group=os.environ[APP_ID],
            auto_offset_reset="earliest",
            commit_interval=COMMIT_S,
            state_dir=folder,
            loglevel="WARNING",
            consumer_extra_config={"session.timeout.ms": 10_000, "fetch.wait.max.ms": 20},
        )
        frames = app.topic(Topic.AUDIO_FRAMES, key_deserializer="bytes", value_deserializer="bytes")
        signals = app.topic(Topic.SIGNALS, key_serializer="bytes", value_serializer="bytes")
        callers: dict[bytes, Caller] = {}

        def by_signal(value: bytes, key: bytes, timestamp: int, headers: Any, state: State) -> list[bytes]:
            caller = callers.get(key)
            if caller is None:
                caller = callers[key] = Caller()
            made = caller.apply(value)
            if made:
                state.set_bytes("state", caller.snapshot())
            return made

        def by_frame(value: bytes, key: bytes, timestamp: int, headers: Any, state: State) -> list[bytes]:
            stored = state.get("state")
            caller = Caller(*stored) if stored else Caller()
            made = caller.apply(value)
            state.set("state", [getattr(caller, name) for name in _FIELDS])
            return made

        function = by_frame if os.environ[QUIX_STATE] == "frame" else by_signal
        app.dataframe(frames).apply(function, stateful=True, expand=True, metadata=True).to_topic(signals)
        app.run()


if __name__ == "__main__":
    main()
