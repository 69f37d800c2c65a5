"""What a live call costs, by the number of calls and of workers: `python -m bench.scaling --apache`.

Each line is a run of `bench.signals`, reported by other figures.
"""

from __future__ import annotations

import argparse
import sys

from bench import command
from bench.signals import BROKER, Measured, measure
from tests.support.kafka.measured import broker
from tests.support.report import machine, quantiles_ms, table


def row(measured: Measured) -> list[str]:
    """A line of the table."""
    each = measured.worker_cores / measured.live
    return [
        f"{measured.live:,}",
        f"{measured.workers}",
        f"{measured.worker_cores / measured.frames_per_s * 1e6:.1f}",
        f"{each * 1000:.2f}",
        f"{1 / each:,.0f}",
        f"{measured.worker_cores:.2f}",
        f"{measured.worker_memory_bytes / 1e6:.0f}",
        quantiles_ms(measured.made_s),
        f"{measured.cores[BROKER]:.2f}",
        "load generator" if measured.is_limited_by_load else "; ".join(measured.problems) or "no",
    ]


async def _measure(arguments: argparse.Namespace) -> str:
    rows = []
    for count in arguments.workers:
        for live in arguments.live:
            async with broker(apache=arguments.apache) as kafka:
                rows.append(row(await measure(kafka, live, arguments.seconds, whole=arguments.whole, count=count)))
            print(" · ".join(rows[-1]), file=sys.stderr, flush=True)
    header = [
        *("live calls", "workers", "worker, µs a frame", "worker, ms a second and call", "calls a core"),
        *("workers, cores", "workers, MB", "frame → signal, p50 · p99", "broker, cores", "held up by"),
    ]
    where = "the whole worker" if arguments.whole else "the signals agent"
    about = (
        f"`python -m bench.scaling{' --apache' if arguments.apache else ''}{' --whole' if arguments.whole else ''}`: "
        f"runs of {arguments.seconds:g} s as in `bench.signals`, at {where}. Broker and load generator run on the same "
        f"machine ({machine()}), so a second worker shares its cores: what it adds is what the work costs twice, not "
        f"what two machines would carry."
    )
    return "\n".join([f"## Cost of a live call, {kafka.name}", "", about, "", table(header, rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.scaling", __doc__)
    parser.add_argument("--live", type=int, nargs="+", default=[100, 500, 1000, 2000], help="numbers of live calls")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each is measured (default %(default)s)")
    parser.add_argument("--whole", action="store_true", help="the whole worker, with the calls' events")
    command.run("bench.scaling", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
