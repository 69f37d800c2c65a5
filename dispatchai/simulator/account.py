"""The account at the simulated carrier: the key that signs its webhooks, and the API key of commands.

The key is stored in the state folder, so that the two programs `dispatchai up` and `dispatchai call` share it.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from dispatchai.simulator.errors import SimulatorError
from dispatchai.telnyx.client import SIMULATED_API_KEY

KEY_FILE: Final = "carrier.key"


class AccountError(SimulatorError):
    """The account's key cannot be read or created. The message names the file and says what to do."""


class SimulatedAccount:
    """An Ed25519 key pair and an API key."""

    def __init__(self, key: Ed25519PrivateKey, api_key: str = SIMULATED_API_KEY) -> None:
        self._key = key
        self.api_key = api_key

    @classmethod
    def load_or_create(cls, state_dir: Path) -> Self:
        """The account whose key is in `state_dir`/carrier.key (PKCS 8, PEM, mode 0600), created if it is missing.

        If several programs create it at the same time, one wins and the others load its key. Raises AccountError.
        """
        return cls.from_file(state_dir / KEY_FILE)

    @classmethod
    def from_file(cls, path: Path, api_key: str = SIMULATED_API_KEY) -> Self:
        """The account whose key is in the file `path`, created if it is missing. `api_key` is that of commands.

        Raises AccountError.
        """
        try:
            if not path.exists():
                _create(path)
            path.chmod(0o600)
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise AccountError(f"cannot use {path}: {error.strerror}") from error
        except ValueError as error:
            raise AccountError(f"{path} holds no key: delete it and start `dispatchai up` again") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise AccountError(f"{path} holds no Ed25519 key: delete it and start `dispatchai up` again")
        return cls(key, api_key)

    @classmethod
    def stranger(cls) -> Self:
        """An account whose public key nobody has: its signatures count as forged."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public_key(self) -> str:
        """Base64 of the 32-byte key that verifies webhooks: the value of TELNYX_PUBLIC_KEY."""
        return b64encode(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode("ascii")

    @property
    def stream_token_secret(self) -> str:
        """A secret derived from the key: STREAM_TOKEN_SECRET of a simulated run in which none is set."""
        raw = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return HKDF(SHA256(), length=32, salt=None, info=b"dispatchai simulated stream tokens").derive(raw).hex()

    def sign(self, timestamp: str, body: bytes) -> str:
        """Base64 of the signature over timestamp, ``|`` and the raw body: the header telnyx-signature-ed25519."""
        return b64encode(self._key.sign(timestamp.encode("ascii") + b"|" + body)).decode("ascii")


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Written under another name (with mkstemp's mode 0600), then hard-linked: no reader ever sees half a key, and a
    # link, unlike a rename, does not replace the key of a program that was faster.
    handle, name = tempfile.mkstemp(prefix=KEY_FILE, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
        path.hardlink_to(name)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
