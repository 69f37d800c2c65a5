"""Tests that are left out where something they need is missing, and how that is said."""

from __future__ import annotations

import os
from typing import Final, NoReturn

import pytest

LEFT_OUT: Final = " left out: "


def leave_out(what: str, reason: str, required_by: str) -> NoReturn:
    """Skip a test for want of `what`, and say so in the summary. In CI, or with `required_by` set to 1, fail it."""
    if os.environ.get("CI") or os.environ.get(required_by) == "1":
        pytest.fail(f"{what} is required here: {reason}", pytrace=False)
    pytest.skip(f"{what}{LEFT_OUT}{reason}")
