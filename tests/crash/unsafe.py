"""The program with one of the engine's rules taken out, to show that the crash test notices.

    python -m tests.crash.unsafe no-lease worker

runs `dispatchai worker` without the rule. Nothing that ships can do this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from faust.types import TP

from dispatchai.engine import aiokafka_internals
from dispatchai.engine.commits import Coverage
from dispatchai.engine.late_writes import FencedTopics
from dispatchai.engine.positions import Admission, Positions, Verdict
from dispatchai.engine.snapshots import SnapshotStore
from dispatchai.engine.write_lease import Lease


def _take(_positions: Positions, _tp: TP, first: int, _last: int) -> Admission:
    return Admission(Verdict.TAKE, first)


async def _nothing(*_: object) -> None:
    """Instead of a background task."""


_ALWAYS: Final = property(lambda _: True)

RULES: Final[Mapping[str, tuple[tuple[Any, str, Any], ...]]] = {
    "stock-commits": ((Coverage, "floor", lambda *_: None),),
    "no-position-guard": (
        (Positions, "admit", _take),
        (Positions, "confirm", lambda *_: {}),
        (Positions, "sought", lambda *_: {}),
    ),
    "no-epochs": ((SnapshotStore, "is_fenced", lambda *_: False), (FencedTopics, "run", _nothing)),
    "no-lease": (
        (Lease, "valid", _ALWAYS),
        (Lease, "open", _ALWAYS),
        (aiokafka_internals, "drop_unsent", lambda _: 0),
    ),
}
"""For each rule the replacement of the code that enforces it. The rules: offsets are committed no further than
snapshots cover; positions are checked after a rebalance; the last owner's record wins; a process writes only with a
lease."""


@contextmanager
def without(rule: str) -> Iterator[None]:
    """Take `rule` out of the engine inside this context."""
    with ExitStack() as patches:
        for owner, name, replacement in RULES[rule]:
            patches.enter_context(patch.object(owner, name, replacement))
        yield


def main() -> None:
    """Run a command of the program without a rule."""
    from dispatchai.cli.main import main as dispatchai

    rule, *arguments = sys.argv[1:]
    with without(rule):
        dispatchai(arguments)


if __name__ == "__main__":
    main()
