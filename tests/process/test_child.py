"""No child outlives its parent, however the parent ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dispatchai.process.child import Child, ChildError, wrap_in_reaper

PYTHON = [sys.executable, "-I", "-S", "-c"]

WAIT_FOR_EVER = "import signal; print('up', flush=True); signal.pause()"

DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT_FOR_EVER}"


class Lines:
    """The output of a child, and a way to wait for the next line."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, line: str) -> None:
        self._queue.put_nowait(line)

    async def next(self) -> str:
        return await asyncio.wait_for(self._queue.get(), 30)

    def rest(self) -> list[str]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]


@asynccontextmanager
async def running(*argv: str, grace_s: float = 10) -> AsyncIterator[tuple[Child, Lines]]:
    lines = Lines()
    async with Child([*PYTHON, *argv], on_line=lines, grace_s=grace_s) as child:
        yield child, lines


class Presence:
    """Waits until the last of some processes is gone: each holds a named pipe open as long as it lives."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.hold = f"held = open({str(path)!r}, 'w');"

    async def all_gone(self) -> None:
        """Wait for it. To be called when the processes hold the pipe."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._read, "rb", buffering=0)
        )
        try:
            await asyncio.wait_for(reader.read(), 30)
        finally:
            transport.close()


@pytest.fixture
def presence(tmp_path: Path) -> Presence:
    return Presence(tmp_path / "presence")


async def test_the_exit_code_and_all_output_arrive() -> None:
    lines = Lines()
    child = Child([*PYTHON, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"], on_line=lines)
    await child.start()
    assert await child.wait() == 7
    assert child.returncode == 7
    assert sorted(lines.rest()) == ["err", "out"]


async def test_a_line_longer_than_any_buffer_arrives_in_pieces_and_whole() -> None:
    lines = Lines()
    async with Child([*PYTHON, "print('x' * 300_000); print('end')"], on_line=lines) as child:
        await child.wait()
    *pieces, last = lines.rest()
    assert "".join(pieces) == "x" * 300_000
    assert last == "end"


async def test_a_command_that_does_not_exist_is_reported_by_name() -> None:
    with pytest.raises(ChildError, match="/no/such/command"):
        await Child(["/no/such/command"]).start()


async def test_a_death_by_signal_is_distinguished_from_an_exit() -> None:
    async with running(WAIT_FOR_EVER) as (child, lines):
        await lines.next()
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL


async def test_stop_lets_the_child_finish_in_order() -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), sys.exit(0)));"
        + WAIT_FOR_EVER
    )
    async with running(code) as (child, lines):
        await lines.next()
        assert await child.stop() == 0
        assert await lines.next() == "bye"
        assert await child.stop() == 0, "stopping what has ended changes nothing"


async def test_a_child_deaf_to_sigterm_is_killed_after_the_grace() -> None:
    async with running(DEAF) as (child, lines):
        await lines.next()
        assert await child.stop(grace_s=0.05) == -signal.SIGKILL


async def test_a_frozen_child_is_killed_after_the_grace() -> None:
    async with running(DEAF) as (child, lines):
        await lines.next()
        os.kill(child.pid, signal.SIGSTOP)
        assert await child.stop(grace_s=0.05) == -signal.SIGKILL


async def test_a_cancelled_stop_does_not_keep_the_child_alive() -> None:
    async with running(DEAF, grace_s=0.2) as (child, lines):
        await lines.next()
        stopping = asyncio.create_task(child.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        assert await child.wait() == -signal.SIGKILL


async def test_what_a_child_leaves_behind_ends_with_it(presence: Presence) -> None:
    grandchild = presence.hold + DEAF
    code = (
        f"import subprocess, sys; p = subprocess.Popen({[*PYTHON, grandchild]!r}, stdout=subprocess.PIPE);"
        "p.stdout.readline(); print('done')"
    )
    async with running(code) as (child, lines):
        assert await lines.next() == "done"
        assert await child.wait() == 0
        await presence.all_gone()


async def test_a_descendant_that_left_holding_the_output_does_not_delay_the_end() -> None:
    escaped = "import signal; signal.pause()"
    code = f"import subprocess; print(subprocess.Popen({[*PYTHON, escaped]!r}, start_new_session=True).pid)"
    async with running(code) as (child, lines):
        descendant = int(await lines.next())
        try:
            assert await asyncio.wait_for(child.wait(), 30) == 0
        finally:
            os.kill(descendant, signal.SIGKILL)


async def test_a_child_ends_when_its_parent_is_killed(presence: Presence) -> None:
    parent = (
        "import asyncio\n"
        "from dispatchai.process.child import Child\n"
        "async def main():\n"
        f"    child = Child({[*PYTHON, presence.hold + DEAF]!r}, on_line=lambda line: print(line, flush=True),"
        " grace_s=0.05)\n"
        "    await child.start()\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"up\n"
    finally:
        process.kill()
        await process.wait()
    await presence.all_gone()


async def test_a_child_ends_when_only_its_reaper_is_killed(presence: Presence) -> None:
    async with running("import os; print(os.getppid(), flush=True);" + presence.hold + DEAF) as (child, lines):
        reaper = int(await lines.next())
        await lines.next()
        os.kill(reaper, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        await presence.all_gone()


async def test_a_frozen_reaper_does_not_keep_its_child_alive(
    presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatchai.process.child._REAPER_MARGIN_S", 0.05)
    async with running("import os; print(os.getppid(), flush=True);" + presence.hold + DEAF) as (child, lines):
        reaper = int(await lines.next())
        await lines.next()
        os.kill(reaper, signal.SIGSTOP)
        await child.stop(grace_s=0.05)
        await presence.all_gone()


async def test_ctrl_c_at_the_terminal_reaches_the_parent_alone() -> None:
    async with running(WAIT_FOR_EVER) as (child, lines):
        await lines.next()
        assert os.getsid(child.pid) != os.getsid(0), "another session: the terminal's signals do not reach it"
        assert os.getpgid(child.pid) != os.getpgrp()


async def test_a_child_reads_nothing_from_the_terminal() -> None:
    async with running("import sys; print(repr(sys.stdin.read()))") as (child, lines):
        assert await child.wait() == 0
        assert await lines.next() == "''"


def test_code_without_an_event_loop_has_the_same_protection() -> None:
    process = subprocess.Popen(
        wrap_in_reaper([*PYTHON, WAIT_FOR_EVER], grace_s=5),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    output, _ = process.communicate(timeout=30)  # closes the pipe that keeps the child alive
    assert output == ""
    assert process.returncode == 128 + signal.SIGTERM
