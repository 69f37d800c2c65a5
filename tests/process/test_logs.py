"""No log line holds the content of a variable: it may be what a caller said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispatchai.process.logs import LogFormat

FAIL = """
import sys
import structlog
from dispatchai.process.logs import LogFormat, configure

def fail(words):
    raise ValueError("it failed")

configure(LogFormat(sys.argv[1]), "DEBUG", "test")
try:
    fail("my door code is " + str(4700 + 11))
except ValueError as error:
    structlog.get_logger("test").error("failed", exc_info=error)
"""


@pytest.mark.parametrize("log_format", LogFormat)
def test_a_traceback_shows_places_and_no_values(log_format: LogFormat) -> None:
    ran = subprocess.run([sys.executable, "-c", FAIL, log_format], capture_output=True, text=True, check=True)
    assert "it failed" in ran.stderr
    assert "4711" not in ran.stderr
