"""The file by which the other commands on this machine find a running `dispatchai up`: where its processes listen.

Decides the format of `run.json` in the state folder.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from dispatchai.process.errors import ProcessError

RUN_FILE: Final = "run.json"


class RunInfoError(ProcessError):
    """The file exists and cannot be used. The message names it and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Addresses of a run."""

    gateway_url: str
    """http://host:port of the webhooks."""
    ws_url: str
    """ws://host:port/ws of the media."""
    console_url: str
    """http://host:port of the page and REST."""
    carrier_port: int
    """Port on which the worker expects the simulated carrier."""
    bootstrap_servers: str
    """host:port of Kafka."""

    @classmethod
    def load(cls, state_dir: Path) -> Self | None:
        """Read `state_dir`/run.json; None where there is none. Raises RunInfoError."""
        path = state_dir / RUN_FILE
        try:
            content: Any = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunInfoError(f"cannot read {path}: {error.strerror}") from error
        except orjson.JSONDecodeError as error:
            raise RunInfoError(f"{path} is broken: stop `dispatchai up`, delete it and start again") from error
        match content:
            case {
                "gateway_url": str() as gateway_url,
                "ws_url": str() as ws_url,
                "console_url": str() as console_url,
                "carrier_port": int() as carrier_port,
                "bootstrap_servers": str() as bootstrap_servers,
            }:
                return cls(
                    gateway_url=gateway_url,
                    ws_url=ws_url,
                    console_url=console_url,
                    carrier_port=carrier_port,
                    bootstrap_servers=bootstrap_servers,
                )
            case _:
                raise RunInfoError(f"{path} was written by another version: restart `dispatchai up`")

    def save(self, state_dir: Path) -> None:
        """Write `state_dir`/run.json atomically: a reader sees the old file or the new one. Raises OSError."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=RUN_FILE, dir=state_dir)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2))
            Path(name).replace(state_dir / RUN_FILE)
        finally:
            Path(name).unlink(missing_ok=True)

    @staticmethod
    def remove(state_dir: Path) -> None:
        """Delete `state_dir`/run.json, if there is one."""
        (state_dir / RUN_FILE).unlink(missing_ok=True)
