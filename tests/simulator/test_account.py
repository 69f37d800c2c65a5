"""Claims about the account at the simulated carrier."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from dispatchai.simulator import AccountError, SimulatedAccount


def test_the_account_is_created_once_and_kept_secret(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, second = SimulatedAccount.load_or_create(state), SimulatedAccount.load_or_create(state)
    assert first.public_key == second.public_key
    assert first.sign("1", b"body") == second.sign("1", b"body")
    assert first.api_key == "KEY-simulated"
    assert first.stream_token_secret == second.stream_token_secret
    assert len(first.stream_token_secret) == 64
    assert stat.S_IMODE((state / "carrier.key").stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["carrier.key"]


def test_programs_that_create_the_account_at_the_same_time_agree(tmp_path: Path) -> None:
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(SimulatedAccount.load_or_create(tmp_path).public_key))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_broken_key_is_explained(tmp_path: Path) -> None:
    (tmp_path / "carrier.key").write_text("nothing")
    with pytest.raises(AccountError, match=r"carrier\.key holds no key: delete it"):
        SimulatedAccount.load_or_create(tmp_path)
