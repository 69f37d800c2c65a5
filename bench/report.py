"""Puts the table of a measurement into its own marked section of docs/performance.md. Touches no other line."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"

_TITLE: Final = "# Performance\n\nEach section is written by the command that it names.\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What the numbers were measured on, in one line."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"load average at its end {os.getloadavg()[0]:.1f}"
    )


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the section `name` of `page`, or put it at the end; make the page where it is missing."""
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
