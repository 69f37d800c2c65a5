"""A child process that does not outlive its parent, not even one killed with SIGKILL.

Decides how a child is started, watched and stopped, on Linux and macOS alike. Between parent and child stands a
reaper (`dispatchai.process.reaper`), which ends the child when the parent is gone. Callers decide what is run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dispatchai.process import reaper
from dispatchai.process.errors import ProcessError

DEFAULT_GRACE_S: Final = 16.0
"""Seconds between SIGTERM and SIGKILL. A worker flushes its producer and leaves its group in less than five."""

_REAPER_MARGIN_S: Final = 5.0
"""How much longer than the grace the reaper may take before this process kills it and its child."""

_OUTPUT_DRAIN_S: Final = 1.0
"""How long the output may stay open after the child's end: a descendant outside its group can hold it open."""

_LONGEST_LINE: Final = 65_536
"""Bytes of one line of output. A longer line is passed on in pieces."""


class ChildError(ProcessError):
    """The command could not be started. The message says why."""


def wrap_in_reaper(argv: Sequence[str | Path], *, grace_s: float = DEFAULT_GRACE_S, status_fd: int = -1) -> list[str]:
    """The command line that runs `argv` under a reaper.

    Start it with a pipe as standard input and ``start_new_session=True``; the reaper stops `argv` when the pipe is
    closed. For code without an event loop; `Child` does all of this.
    """
    # -I -S: no site packages, no environment, no working directory on the path. The reaper needs none of them.
    interpreter = [sys.executable, "-I", "-S", str(Path(reaper.__file__))]
    return [*interpreter, str(status_fd), str(grace_s), *(str(argument) for argument in argv)]


class Child:
    """One command as a child process. Start it once, then wait for its end or stop it.

    The child gets an empty standard input and a session of its own: Ctrl-C at the terminal reaches only this process,
    which stops its children in its own order. `on_line` is called with each line of the child's output (standard
    output and error together, without the newline, undecodable bytes replaced) and must not raise; without it the
    child inherits this process's output. `grace_s` is the time from SIGTERM to SIGKILL when this process is gone.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        grace_s: float = DEFAULT_GRACE_S,
    ) -> None:
        self._argv = argv
        self._env = env
        self._cwd = cwd
        self._on_line = on_line
        self._grace_s = grace_s
        self._lifeline: int | None = None
        self._reaper_pid: int | None = None
        self._pid: int | None = None
        self._returncode: int | None = None
        self._end: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int:
        """Process id of the command itself. Raises RuntimeError before `start`."""
        if self._pid is None:
            raise RuntimeError("the child was not started")
        return self._pid

    @property
    def returncode(self) -> int | None:
        """Exit code of the command, -N where signal N ended it; None while it runs."""
        return self._returncode

    async def start(self) -> None:
        """Start the command. Returns when it runs; raises ChildError if it cannot be run."""
        if self._end is not None:
            raise RuntimeError("a child is started once")
        life_read, self._lifeline = os.pipe()
        status_read, status_write = os.pipe()
        # Not asyncio's PIPE: its wait() returns only once all processes that inherited the pipe have closed it.
        output_read, output_write = os.pipe() if self._on_line else (None, None)
        try:
            process = await asyncio.create_subprocess_exec(
                *wrap_in_reaper(self._argv, grace_s=self._grace_s, status_fd=status_write),
                stdin=life_read,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(status_write,),
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        except BaseException:
            _close(status_read, output_read)
            self._close_lifeline()
            raise
        finally:
            _close(life_read, status_write, output_write)
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        watching = self._watch(process, status_read, output_read, started)
        self._end = asyncio.create_task(watching, name=f"child {self._argv[0]}")
        try:
            self._pid = await asyncio.shield(started)
        except BaseException:  # cancelled or not started: nothing may be left either way
            self._close_lifeline()
            await asyncio.shield(self._end)
            raise

    async def wait(self) -> int:
        """Wait for the command's end. Returns its exit code, -N where signal N ended it."""
        if self._end is None:
            raise RuntimeError("the child was not started")
        return await asyncio.shield(self._end)

    async def stop(self, grace_s: float | None = None) -> int:
        """Ask the command to end (SIGTERM), kill it and its group after `grace_s` seconds, wait for its end.

        Returns the exit code. A second call waits for the same end. Does nothing to a child that has ended.
        """
        if self._end is None:
            raise RuntimeError("the child was not started")
        grace_s = self._grace_s if grace_s is None else grace_s
        if self._lifeline is not None and not self._end.done():
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, str(grace_s).encode())
        self._close_lifeline()
        try:
            async with asyncio.timeout(grace_s + _REAPER_MARGIN_S):
                return await asyncio.shield(self._end)
        except TimeoutError:
            # The reaper is stopped or stuck. Its session holds nothing but itself.
            self._kill_group()
            if self._reaper_pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._reaper_pid, signal.SIGKILL)
            return await asyncio.shield(self._end)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _kill_group(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    async def _watch(
        self, process: Process, status_read: int, output_read: int | None, started: asyncio.Future[int]
    ) -> int:
        """Follow the reaper to its end. The only owner of its pipes and of `returncode`."""
        self._reaper_pid = process.pid
        output = None if output_read is None else asyncio.create_task(self._forward(output_read))
        # Only the reaper holds the other end of the status pipe: when it closes, the reaper has ended or is ending.
        exit_code = await self._follow_status(status_read, started)
        if exit_code is None:
            # The reaper was killed, or could not start the command. The command must not outlive it.
            self._kill_group()
        reaper_code = await process.wait()
        if not started.done():
            started.set_exception(ChildError(f"the reaper of {self._argv[0]} ended with {reaper_code}"))
        if output is not None:
            await asyncio.wait([output], timeout=_OUTPUT_DRAIN_S)
            output.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await output
        self._reaper_pid = None
        self._close_lifeline()
        self._returncode = reaper_code if exit_code is None else exit_code
        return self._returncode

    async def _follow_status(self, status_read: int, started: asyncio.Future[int]) -> int | None:
        """Read the reaper's reports until it closes the pipe. Returns the exit code, None if none was reported."""
        exit_code: int | None = None
        async with _reading(status_read) as reader:
            async for line in reader:
                match line.decode(errors="replace").rstrip("\n").split(" ", 1):
                    case ["pid", number]:
                        self._pid = int(number)
                        started.set_result(self._pid)
                    case ["exit", number]:
                        exit_code = int(number)
                    case ["error", text]:
                        started.set_exception(ChildError(f"cannot start: {text}"))
        return exit_code

    async def _forward(self, output_read: int) -> None:
        """Pass on the output line by line until all its writers have closed it."""
        assert self._on_line is not None  # noqa: S101 - this task exists only with it
        rest = b""
        async with _reading(output_read) as reader:
            while chunk := await reader.read(_LONGEST_LINE):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines.append(rest)
                    rest = b""
                for line in lines:
                    self._on_line(line.decode(errors="replace"))
        if rest:
            self._on_line(rest.decode(errors="replace"))


@asynccontextmanager
async def _reading(descriptor: int) -> AsyncIterator[asyncio.StreamReader]:
    """The pipe as a stream, which is closed at the end of the block."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        yield reader
    finally:
        transport.close()


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
