"""How a process holds its memory, so that neither Python's garbage collector nor the operating system hold it up.

A full collection looks at every object that can hold others. Of the modules of a process there are some 300,000, which
takes a tenth of a second; with 1000 live calls there was one each second, and each was 5 % of the frames late.

And what one fetch brings is as much memory as the last one's, which has just been freed. By default the C library gives
large pieces back at once, and each page of the next costs a fault, 3 µs on a virtual machine: half the time that it
takes to parse a record.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

YOUNG_OBJECTS: Final = 5_000
"""New objects that are still there after which the youngest are looked at; Python's 700 are made by one fetch."""

OLDER_AFTER: Final = 10
"""So many collections of one generation make one of the next."""

KEPT_BYTES: Final = 32 * 1024 * 1024
"""So much freed memory is kept, at most, for what comes next: some fetches of a worker that is far behind."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3), from its malloc.h."""


def settle() -> None:
    """What this process holds by now stays and is looked at no more. To be called when it has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, OLDER_AFTER, OLDER_AFTER)
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
