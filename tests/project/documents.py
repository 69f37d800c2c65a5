"""The project's pages of Markdown, and their parts: code, prose, links, anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

README: Final = ROOT / "README.md"

PAGES: Final = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests/data/README.md"]
"""Every page for readers of the repository."""

_FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)

_WRITTEN: Final = re.compile(
    r"<!-- (?P<name>[\w. ]+): begin -->.*?<!-- (?P=name): end -->|<!-- begin: .*? -->.*?<!-- end -->", re.DOTALL
)
"""What a command writes into a page, between its marks."""


def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def fenced(text: str, *languages: str) -> list[str]:
    """The code blocks of `text` in one of `languages`."""
    return [block["text"] for block in _FENCE.finditer(text) if block["language"] in languages]


def without_blocks(text: str) -> str:
    """`text` with empty lines in place of its code blocks."""
    return _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)


def inline(text: str) -> list[str]:
    """The code spans of `text` outside of its code blocks."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def code(page: Path) -> list[str]:
    """Every code span and every line of a shell block of a page."""
    text = read(page)
    return [*inline(text), *(line for block in fenced(text, "sh", "console", "bash") for line in block.splitlines())]


def anchors(page: Path) -> set[str]:
    """The fragments by which code hosts name the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Each relative link and picture of a page: the file or folder that it leads to, and its fragment or ''."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(read(page))):
        if not re.match(r"[a-z]+:", target):
            name, _, fragment = target.partition("#")
            yield (page.parent / name).resolve() if name else page, fragment


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that an author wraps: no block, table row, lone link, or line of a command."""
    text = _WRITTEN.sub(lambda written: "\n" * written[0].count("\n"), without_blocks(read(page)))
    for number, line in enumerate(text.splitlines(), 1):
        if not re.match(r"\s*\||\s*([*-] )?!?\[[^\]]*\]\([^)]*\)[.,;:]?$", line):
            yield number, line
