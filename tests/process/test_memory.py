"""The memory that a process keeps, seen in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

RETURNED = """
from pathlib import Path
from dispatchai.process import memory

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

memory.settle()
start = resident()
read = [bytes(2000) for _ in range(8000)]
kept = [read[number] for number in range(0, 8000, 100)]
del read
freed = resident()
memory.release_freed()
print(freed - start, resident() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory by these settings")
def test_freed_memory_goes_back_to_the_system_when_asked() -> None:
    ran = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, ran.stdout.split())
    assert before > 14_000_000, "freed memory is kept for the next fetches"
    assert after < 4_000_000
