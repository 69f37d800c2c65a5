"""An upgrade of Faust or aiokafka that the engine does not fit is refused at the start, with the versions that work."""

from __future__ import annotations

import aiokafka
import faust
import pytest

from dispatchai.engine import aiokafka_internals, faust_internals
from dispatchai.engine.errors import UnsupportedVersionError


class Library:
    """A class of a library: `_made` is set by its constructor, `_method` defined."""

    def __init__(self) -> None:
        self._made = 1

    def _method(self) -> None:
        pass


class Derived(Library):
    """Inherits the parts."""


def test_the_locked_versions_fit() -> None:
    aiokafka_internals.check()
    faust_internals.check()


def test_another_version_is_named_with_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiokafka, "__version__", "0.99.0")
    with pytest.raises(UnsupportedVersionError, match=r"aiokafka 0\.99\.0 is installed.*pip install 'aiokafka==0\.14"):
        aiokafka_internals.check()
    monkeypatch.setattr(faust, "__version__", "1.0.0")
    with pytest.raises(UnsupportedVersionError, match=r"faust-streaming 1\.0\.0 is installed"):
        faust_internals.check()


@pytest.mark.parametrize("owner", [Library, Derived])
def test_a_part_that_is_gone_is_named(owner: type) -> None:
    aiokafka_internals.check_library("library", "1", ("1",), ((owner, ("_made", "_method")),))
    with pytest.raises(UnsupportedVersionError, match=rf"library 1: {owner.__name__} has no _gone"):
        aiokafka_internals.check_library("library", "1", ("1",), ((owner, ("_made", "_gone")),))
