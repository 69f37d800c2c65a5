"""Python's garbage collector, set so that it does not hold up the event loop.

A full collection looks at every object that can hold others. Of the modules of a process there are some 300,000, which
takes a tenth of a second; with 1000 live calls there was one each second, and each was 5 % of the frames late.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 5_000
"""New objects that are still there after which the youngest are looked at; Python's 700 are made by one fetch."""

OLDER_AFTER: Final = 10
"""So many collections of one generation make one of the next."""


def settle() -> None:
    """What this process holds by now stays and is looked at no more. To be called when it has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, OLDER_AFTER, OLDER_AFTER)
