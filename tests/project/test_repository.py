"""What runs the checks elsewhere, the workflow and the hooks, runs what exists, on the versions the package names."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any, Final

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.support.paths import ROOT

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW: Final[dict[str, Any]] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
CLASSIFIERS: Final = frozenset(PROJECT["classifiers"])


def python_versions() -> list[str]:
    """The versions that the classifiers name: 3.11 of `Programming Language :: Python :: 3.11`."""
    return sorted(found[1] for line in CLASSIFIERS if (found := re.fullmatch(r".* :: Python :: (3\.\d+)", line)))


def test_the_package_allows_the_python_versions_that_it_names_and_no_next_one() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    versions = python_versions()
    assert all(version in allowed for version in versions)
    newest = int(versions[-1].partition(".")[2])
    assert f"3.{newest + 1}" not in allowed


def test_ci_runs_the_tests_of_a_change_on_each_python_version() -> None:
    assert WORKFLOW["jobs"]["change"]["strategy"]["matrix"]["python"] == python_versions()


def test_ci_runs_the_script_that_checks_everything() -> None:
    steps = [step.get("run") for step in WORKFLOW["jobs"]["everything"]["steps"]]
    assert ".ci/run" in steps
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("name", [".github/workflows/ci.yml", ".pre-commit-config.yaml", ".ci/run"])
def test_every_make_target_that_is_run_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / name).read_text(encoding="utf-8")
    run = set(re.findall(r"^(?!need)[^#\n]*\bmake (?:--\S+ )*([a-z-]+)", text, re.MULTILINE))
    assert run
    assert run <= targets


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_every_field_of_an_issue_form_has_an_id_of_its_own(path: Any) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in fields)
