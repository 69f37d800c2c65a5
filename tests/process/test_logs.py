"""Log lines name what failed and leak none of what was processed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispatchai.process.logs import LogFormat

FAIL = """
import sys
import structlog
from dispatchai.process.logs import LogFormat, configure

configure(LogFormat(sys.argv[1]), "INFO", "worker")

def fail():
    caller = "+15550101" + "001"
    raise ValueError(len(caller))

try:
    fail()
except ValueError:
    structlog.get_logger("room").exception("step_failed", place="signals[3]@7")
"""


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_a_traceback_shows_the_lines_of_code_and_no_variables(log_format: LogFormat) -> None:
    pytest.importorskip("rich", reason="structlog prints variables only where rich is installed")
    ran = subprocess.run(
        [sys.executable, "-c", FAIL, log_format], check=True, capture_output=True, text=True, encoding="utf-8"
    )
    assert "step_failed" in ran.stderr
    assert "ValueError: 12" in ran.stderr
    assert "+15550101001" not in ran.stderr
