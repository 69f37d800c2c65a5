"""Quantiles and tables, and the page that shows them: each measurement has a marked section of docs/performance.md.

Changes no other line of the page.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tests.support.paths import DOCS

PAGE: Final = DOCS / "performance.md"

_TITLE: Final = "# Performance\n\nEach section is written by the command that it names.\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quantile(values: Iterable[float], part: float) -> float:
    """The smallest of `values` that `part` of them (0 to 1) do not exceed; NaN if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, min(len(ordered), math.ceil(len(ordered) * part)) - 1)]


def quantiles_ms(values_s: Iterable[float], parts: Sequence[float] = (0.5, 0.99)) -> str:
    """Quantiles of times in seconds, written in milliseconds."""
    ordered = sorted(values_s)
    if not ordered:
        return "none"
    return f"{' · '.join(f'{quantile(ordered, part) * 1000:,.1f}' for part in parts)} ms"


def milliseconds(times_s: Iterable[float]) -> str:
    """Times in whole milliseconds, side by side."""
    return " / ".join(f"{time_s * 1000:.0f}" for time_s in times_s)


def machine() -> str:
    """The machine of the measurement, in one line."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"load average at its end {os.getloadavg()[0]:.1f}"
    )


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the section `name` of `page`, or add it at the end. Creates the page if it is missing."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{first}\n{text.strip()}\n{last}"
    whole = page.read_text(encoding="utf-8") if page.exists() else _TITLE
    if first in whole and last in whole:
        before, _, rest = whole.partition(first)
        _, _, after = rest.partition(last)
        whole = f"{before}{section}{after}"
    else:
        whole = f"{whole.rstrip()}\n\n{section}\n"
    page.parent.mkdir(exist_ok=True)
    page.write_text(whole, encoding="utf-8")
