"""The wheel holds all that the program needs and runs outside the checkout; the sdist builds the same wheel."""

from __future__ import annotations

import os
import shutil
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
from dispatchai.triage.rules import Rules
event = CallEvent("id", "call.initiated", 1, 2, "", None, None, 1, b"")
assert decode(encode(event)) == event
Topics.load(), Rules.load()
assert (data_path("dispatchai/console/page") / "index.html").exists()
assert len(list(RECORDINGS.glob("*.wav"))) == 3
print(dispatchai.__file__, agents.__file__)
"""


def build(target: str, source: Path, folder: Path) -> Path:
    """Build `target` of the project in `source` into `folder`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = folder.iterdir()
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(build("wheel", ROOT, tmp_path / "wheels")) as archive:
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


def test_the_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    shutil.unpack_archive(build("sdist", ROOT, tmp_path / "sdists"), tmp_path / "sources", filter="data")
    (source,) = (tmp_path / "sources").iterdir()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "docs", "schemas"} <= {path.name for path in source.iterdir()}
    wheel = names(build("wheel", source, tmp_path / "from-sdist"))
    assert wheel == names(build("wheel", ROOT, tmp_path / "from-checkout"))
    assert {"dispatchai/py.typed", "agents/py.typed"} <= wheel
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)
