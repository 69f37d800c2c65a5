"""Every name in a code span of the documents exists: modules, classes, functions, settings, topics, metrics, paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.documents import PAGES, inline, read
from tests.project.names import unknown_in
from tests.support.paths import ROOT

NOW = [page for page in PAGES if page not in {ROOT / "CHANGELOG.md", ROOT / "tests/data/README.md"}]
"""Without the page that also names what is gone, and the one whose names belong to other projects."""


@pytest.mark.parametrize("page", NOW, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_exists(page: Path) -> None:
    unknown = {name for span in inline(read(page)) for name in unknown_in(span)}
    assert unknown == set(), "rename them here, or add names that others own to OF_OTHERS"


@pytest.mark.parametrize(
    "span",
    [
        "ends_by_reading",
        "engine/no_such_module.py",
        "scripts/no-such-folder/*.yaml",
        "NoSuchClass",
        "no_such_function()",
        "Settings.no_such_method",
        "dispatchai.engine.no_such_module",
        "NO_SUCH_SETTING=1",
        "no-such-topic",
        "dispatchai_no_such_metric_total",
        "GET /api/v1/no-such-address",
        "python -m bench.no_such_bench",
        "rate(dispatchai_no_such_metric_bucket[5m])",
    ],
)
def test_a_name_that_does_not_exist_is_found(span: str) -> None:
    assert unknown_in(span)


@pytest.mark.parametrize(
    "span",
    [
        "engine/write_lease.py",
        "schemas/*.avsc",
        "Settings",
        "version_of",
        "SPEECH_ENGINE=scripted",
        "call-events",
        "call.hangup",
        "dispatchai_ready",
        "GET /api/v1/queue",
        "python -m evals.triage --write",
    ],
)
def test_a_name_that_exists_is_known(span: str) -> None:
    assert unknown_in(span) == []
