"""Only a start after a crash, a kill or an error counts: a planned restart alerts nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dispatchai.process.starts import FILE, Starts


def test_a_start_after_an_end_in_order_is_clean_and_one_after_a_crash_is_not(tmp_path: Path) -> None:
    for _ in range(3):
        planned = Starts.begin(tmp_path, "worker-6066")
        planned.ended()
    assert planned.unclean == 0
    counts = [Starts.begin(tmp_path, "worker-6066").unclean for _ in range(3)]  # each is killed
    assert counts == [0, 1, 2]
    last = Starts.begin(tmp_path, "worker-6066")
    last.ended()
    after = Starts.begin(tmp_path, "worker-6066")
    assert (last.unclean, after.unclean) == (3, 3), "the count is kept, so that Prometheus sees it rise"
    assert Starts.begin(tmp_path, "worker-6076").unclean == 0


def test_the_count_is_a_metric(tmp_path: Path) -> None:
    Starts.begin(tmp_path, "gateway-8000")
    registry = CollectorRegistry()
    Starts.begin(tmp_path, "gateway-8000").show(registry)
    assert b"dispatchai_unclean_starts_total 1.0" in generate_latest(registry)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"running": 1, "unclean": -1}'])
def test_a_file_that_cannot_be_used_counts_from_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE.format(name="speech-6067", host=socket.gethostname())).write_bytes(content)
    assert Starts.begin(tmp_path, "speech-6067").unclean == 0


def test_a_folder_that_cannot_be_written_does_not_keep_a_process_from_starting() -> None:
    Starts.begin(Path("/proc/none"), "gateway-8000").ended()
