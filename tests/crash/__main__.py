"""Run seeds of the crash test, one after the other or several at once.

    python -m tests.crash --seeds 1-50 --broker apache [--victims workers,speech,broker] [--at-once 2] [--write]

Ends with 1 if a seed failed. Its folder contains the logs of all processes, the schedule and the differences.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from dispatchai.engine.app import use_uvloop
from dispatchai.records import CallPacket
from tests.crash.run import Options, Outcome, end_with_parent, run, run_alone
from tests.crash.schedule import LINES, UNDISTURBED, Group, Kind
from tests.crash.unsafe import RULES
from tests.crash.verdict import Problem
from tests.support.paths import DOCS
from tests.support.report import machine, table, write_section

PAGE: Final = DOCS / "guarantees.md"

KINDS_SHOWN: Final = 20

REFERENCE_SEED: Final = "undisturbed"


def seeds(text: str) -> list[int]:
    """``1-50`` or ``3,7,9`` as numbers. Raises ValueError."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


NOT_EMBEDDED: Final = frozenset({Group.BROKER, Group.NETWORK})
"""Not for the embedded broker, which keeps everything in memory and has one listener."""


def groups(text: str, broker: str) -> frozenset[Group]:
    """The groups of ``all``, without those that the embedded broker cannot have, or of a list of names."""
    if text == "all":
        return frozenset(Group) - (NOT_EMBEDDED if broker == "embedded" else frozenset())
    return frozenset(Group(name.strip()) for name in text.split(","))


async def main(given: argparse.Namespace) -> int:
    """Run the seeds. Returns the exit code."""
    victims = groups(given.victims, given.broker)
    apache = given.broker == "apache"
    if not apache and victims & NOT_EMBEDDED:
        raise SystemExit(f"with the embedded broker --victims must not name: {', '.join(sorted(NOT_EMBEDDED))}")
    references: dict[int, dict[str, CallPacket]] = {}
    if Group.GATEWAY not in victims:
        for number in sorted({seed % LINES for seed in given.seeds if seed != UNDISTURBED}):
            references[number] = await _undisturbed(number, given, apache=apache)
    loop = asyncio.get_running_loop()

    async def run_one(seed: int) -> Outcome:
        folder = given.trace / f"{given.broker}-seed-{seed}"
        options = Options(seed, victims, apache, folder, given.calls, given.unsafe)
        reference = references.get(seed % LINES) if seed != UNDISTURBED else None
        outcome = await loop.run_in_executor(pool, run_alone, options, reference)
        print(line(outcome), flush=True)
        if not outcome.verdict.good:
            print("\n".join(f"    {text}" for text in summary(outcome.verdict.problems)))
            print(f"    trace in {folder}", flush=True)
        elif not given.keep:
            shutil.rmtree(folder)
        return outcome

    # Each in a process of its own: the work of one must not delay the carrier of another.
    with ProcessPoolExecutor(given.at_once, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        results = await asyncio.gather(*map(run_one, given.seeds), return_exceptions=True)
    outcomes = [result for result in results if isinstance(result, Outcome)]
    text = section(outcomes, given)
    print(f"\n{text}")
    broken = [(seed, one) for seed, one in zip(given.seeds, results, strict=True) if isinstance(one, BaseException)]
    for seed, error in broken:
        print(f"seed {seed:3d} did not run to its end:", *traceback.format_exception(error), sep="\n")
    if given.write:
        write_section(f"crash {given.broker} {given.victims}", text, PAGE)
    return 0 if not broken and all(outcome.verdict.good for outcome in outcomes) else 1


async def _undisturbed(line_number: int, given: argparse.Namespace, *, apache: bool) -> dict[str, CallPacket]:
    """The packets of an undisturbed run, with the line of the seeds that are equivalent to `line_number`."""
    folder = given.trace / f"{given.broker}-{REFERENCE_SEED}-{line_number}"
    shutil.rmtree(folder, ignore_errors=True)
    outcome = await run(Options(line_number, frozenset(), apache, folder, given.calls))
    if not outcome.verdict.good:
        raise RuntimeError("\n".join([f"undisturbed, trace in {folder}:", *summary(outcome.verdict.problems)]))
    print(f"undisturbed run of line {line_number}: {len(outcome.packets)} packets", flush=True)
    return outcome.packets


def summary(problems: Sequence[Problem]) -> Iterator[str]:
    """A line for each kind of problem: how often it was found, and the first one."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    for number, found in enumerate(kinds.values()):
        if number == KINDS_SHOWN:
            yield f"and {len(kinds) - KINDS_SHOWN} other kinds"
            return
        yield f"{len(found)} x {found[0]}"


def line(outcome: Outcome) -> str:
    """The outcome of a seed, in one line."""
    struck = Counter(strike.kind for strike in outcome.strikes)
    what = ", ".join(f"{struck[kind]} {kind}" for kind in Kind if struck[kind]) or "undisturbed"
    frames = outcome.recorded.frames if outcome.recorded else 0
    ended = f", {len(outcome.exits)} ended by themselves" if outcome.exits else ""
    result = "equal" if outcome.verdict.good else f"{len(outcome.verdict.problems)} DIFFERENCES"
    return (
        f"seed {outcome.seed:3d}  {result}  {len(outcome.packets)} packets, {frames:,} frames; {what}{ended}; "
        f"settled after {outcome.settled_s:.0f} s, {outcome.seconds:.0f} s in all"
    )


def section(outcomes: Sequence[Outcome], given: argparse.Namespace) -> str:
    """The table of a run of many seeds."""
    struck = Counter((strike.victim.rstrip("-123"), strike.kind) for each in outcomes for strike in each.strikes)
    notes = sum((each.verdict.notes for each in outcomes), Counter())
    good = sum(each.verdict.good for each in outcomes)
    names = sorted({victim for victim, _ in struck})
    frames = sum(each.recorded.frames for each in outcomes if each.recorded)
    rows = [[name, *(str(struck[name, kind] or "") for kind in Kind)] for name in names]
    broker = {"apache": "Apache Kafka", "embedded": "embedded broker"}[given.broker]
    unsafe = f", `--unsafe {given.unsafe}`" if given.unsafe else ""
    about = (
        f"{good} of {len(outcomes)} seeds equal ({broker}, victims {given.victims}{unsafe}): "
        f"{sum(len(each.packets) for each in outcomes):,} packets, {frames:,} frames recorded. {machine()}."
    )
    seen = [f"{count:,} {what}" for what, count in sorted(notes.items()) if count]
    seen += [f"{sum(len(each.exits) for each in outcomes)} processes ended by themselves and were started again"]
    return "\n\n".join([about, table(["", *Kind], rows), f"Seen, without consequence: {'; '.join(seen)}."])


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=seeds, default=[1], metavar="1-50", help="0 is an undisturbed run (default 1)")
    parser.add_argument("--broker", choices=["apache", "embedded"], default="apache", help="default %(default)s")
    parser.add_argument(
        "--victims",
        default="all",
        metavar="GROUP,...",
        help=f"from {', '.join(Group)} (default all; the embedded broker and its network are never hit)",
    )
    parser.add_argument("--calls", type=int, default=12, help="calls of a run (default %(default)s)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at the same time (default 1)")
    parser.add_argument("--unsafe", choices=list(RULES), help="take a rule out of the engine")
    parser.add_argument("--keep", action="store_true", help="keep the folders of good seeds too")
    parser.add_argument(
        "--trace",
        type=Path,
        default=Path(tempfile.gettempdir()) / "dispatchai-crash",
        help="where a failing seed leaves its folder (default %(default)s)",
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/guarantees.md")
    return parser


if __name__ == "__main__":
    use_uvloop()
    sys.exit(asyncio.run(main(arguments().parse_args())))
