"""The wheel holds all that the program needs: it runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.paths import ROOT

USE_EVERYTHING = """
import dispatchai, agents
from dispatchai.kafka.topics import Topics
from dispatchai.records import CallEvent, decode, encode
from dispatchai.resources import data_path
from dispatchai.speech.engines import RECORDINGS
from dispatchai.triage.rules_file import Rules
event = CallEvent("id", "call.initiated", 1, 2, "", None, None, 1, b"")
assert decode(encode(event)) == event
Topics.load(), Rules.load()
assert (data_path("dispatchai/console/page") / "index.html").exists()
assert len(list(RECORDINGS.glob("*.wav"))) == 3
print(dispatchai.__file__, agents.__file__)
"""


def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    wheels, unpacked = tmp_path / "wheels", tmp_path / "unpacked"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    ran = subprocess.run(
        [sys.executable, "-c", USE_EVERYTHING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert all(path.startswith(str(unpacked)) for path in ran.stdout.split())
