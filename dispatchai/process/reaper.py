"""The reaper: runs one command and ends it once the parent of the reaper is gone, for whatever reason.

Decides when the command is stopped, and leaves nothing of its process group behind. `dispatchai.process.child` starts
it. Run as a file by a bare interpreter: it imports only the standard library and starts in a few hundredths of a
second.

    python reaper.py STATUS_FD GRACE_S COMMAND [ARGUMENT...]

Standard input is the lifeline: a pipe whose other end the parent holds. The kernel delivers its end of file even when
the parent is killed with SIGKILL. The reaper then sends SIGTERM to the command, and after the grace SIGKILL to its
process group. A number written to the lifeline before that replaces GRACE_S. The reaper writes to STATUS_FD (-1 for
none) the lines ``pid N``, then ``exit N`` (negative for a signal), or ``error TEXT`` if the command could not be
started.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

EXIT_NOT_STARTED = 127
"""Exit code when the command could not be started, as in shells."""

_LONGEST_GRACE_TEXT = 64
"""Bytes of the lifeline that are read: a number."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _report(status_fd: int, line: str) -> None:
    if status_fd >= 0:
        with contextlib.suppress(OSError):  # the parent may be gone
            os.write(status_fd, f"{line}\n".encode())


def _kill_group(group: int) -> None:
    # macOS answers EPERM for a group in which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _grace(text: bytes, default: float) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return default


def main(arguments: list[str]) -> int:
    """Run the command to its end. Returns its exit code, 128 + N where signal N ended it."""
    status_fd, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]

    # Signals wake the select below through this pipe, so that none is missed between a check and a wait.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    asked_to_stop = False

    def on_stop(_signal: int, _frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    for number in _STOP_SIGNALS:
        signal.signal(number, on_stop)

    try:
        # A process group of its own can be killed as a whole, without this process.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603
    except OSError as error:
        _report(status_fd, f"error {error.strerror}: {command[0]}")
        return EXIT_NOT_STARTED
    _report(status_fd, f"pid {process.pid}")

    lifeline: list[int] = [0]
    grace_text = b""
    kill_at: float | None = None
    while process.poll() is None:
        left_s = None if kill_at is None else kill_at - time.monotonic()
        if left_s is not None and left_s <= 0:
            _kill_group(process.pid)
            process.wait()
            break
        readable, _, _ = select.select([wake_read, *lifeline], [], [], left_s)
        if wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 512)
        if 0 in readable:
            chunk = os.read(0, 512)
            grace_text = (grace_text + chunk)[:_LONGEST_GRACE_TEXT]
            if not chunk:
                lifeline = []
                asked_to_stop = True
        if asked_to_stop and kill_at is None:
            kill_at = time.monotonic() + _grace(grace_text, grace_s)
            process.terminate()

    _kill_group(process.pid)  # processes that the command left behind
    _report(status_fd, f"exit {process.returncode}")
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
