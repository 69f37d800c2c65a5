"""Text that comes from outside, as a command prints it: in records, in answers of other processes, in files.

Decides which characters reach a terminal. Escape sequences would move its cursor or set its title, and marks of
direction reorder a line, so that it says something else than its text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final

REPLACEMENT: Final = "\ufffd"

_JSON_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\n]")


def printable(text: str) -> str:
    """`text` in one line: each character that is not visible is replaced, and each kind of space is a space.

    These are the control characters (C0 and C1, with line breaks), marks of direction, characters of no width, lone
    surrogates and those that Unicode has not assigned.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _instead_of(one) for one in text)


def printable_lines(text: str) -> str:
    """`text` as `printable` makes it, with its line feeds."""
    return "\n".join(printable(line) for line in text.split("\n"))


def printable_json(value: Any) -> str:
    """`value` as indented JSON, in which escapes stand for what is not printable: it is read back as it was."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _JSON_UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def _instead_of(character: str) -> str:
    return " " if unicodedata.category(character) == "Zs" else REPLACEMENT


def _escaped(character: str) -> str:
    # Outside of texts JSON has no such character, and json.dumps escapes one alone as it does within a text.
    return json.dumps(character)[1:-1]
