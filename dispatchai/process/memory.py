"""Tunes a process's memory, so that neither Python's garbage collector nor the operating system delays its event loop.

A full collection looks at every object that can refer to others. The modules of a process have some 300,000, which
takes a tenth of a second. With 1000 live calls there was one each second, and each made 5 % of the frames late.

A fetch needs as much memory as the one before, which has just been freed. By default the C library returns large blocks
to the operating system at once, and each page of the next block costs a page fault, 3 µs on a virtual machine: half the
time that it takes to parse a record.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

YOUNG_OBJECTS: Final = 5_000
"""Surviving new objects after which the youngest generation is collected. One fetch makes Python's default of 700."""

OLDER_AFTER: Final = 10
"""Collections of one generation after which the next one is collected."""

KEPT_BYTES: Final = 32 * 1024 * 1024
"""The most freed memory that is kept for the next fetches: enough for several of a worker that is far behind."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3), from its malloc.h."""


def settle() -> None:
    """Take everything that the process holds by now out of garbage collection. To be called once it has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, OLDER_AFTER, OLDER_AFTER)
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def release_freed() -> None:
    """Return freed memory to the operating system now. To be called after a task that is not repeated, such as reading
    a whole topic at the start: it takes some milliseconds."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
