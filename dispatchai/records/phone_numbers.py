"""How a caller's number is masked wherever it is shown to more people than need it.

Decides how much of a number is left. The console's JSON and `dispatchai dead-letters` decide where to mask.
"""

from __future__ import annotations

from typing import Final

MASK: Final = "•"

SHOWN_DIGITS: Final = 3
"""Digits that are left: enough to tell two callers apart when somebody reads the numbers aloud."""


def masked(number: str | None) -> str | None:
    """The last three digits after a bullet: ``+15551234567`` is ``•567``. A number that short is hidden entirely."""
    if number is None:
        return None
    return MASK + (number[-SHOWN_DIGITS:] if len(number) > SHOWN_DIGITS else "")
