"""The options that the commands of the measurements share, and where their tables are written."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dispatchai.engine.app import use_uvloop
from tests.support.report import write_section

Measure = Callable[[argparse.Namespace], Coroutine[Any, Any, str]]
"""Measures as the options say; returns the section of the page."""


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of the command `python -m <module>`; `description` is the module's text, whose first line it shows."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=(description or "").partition("\n")[0])
    made.add_argument("--apache", action="store_true", help="Apache Kafka, from the jars of the tests (Java, Maven)")
    made.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    return made


def run(module: str, arguments: argparse.Namespace, measure: Measure) -> None:
    """Measure, print the section and, if the arguments ask for it, write it into the page."""
    use_uvloop()
    text = asyncio.run(measure(arguments))
    print(text)
    if arguments.write:
        write_section(module, text)
