"""One HTTP request of the doctor: its answer, or why there is none and what to do. Not who should have answered."""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

BODY_MAX_BYTES: Final = 1_048_576
"""Of an answer: the longest is a list of 250 call-control applications, about 1 kB each."""

LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain"})
"""Names by which a machine calls itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `body` is its JSON, None where it has none."""

    status: int
    headers: Mapping[str, str]
    body: Any
    asked_at_s: float
    took_s: float

    @property
    def code(self) -> str:
        """The gateway's error code; empty in an answer that is not the gateway's."""
        match self.body:
            case {"error": {"code": str() as code, "hint": str()}}:
                return code
            case _:
                return ""

    @property
    def server(self) -> str:
        """Who answered, as far as it tells."""
        name = self.headers.get("Server", "")
        return f" by {name}" if name.isprintable() and 0 < len(name) < 40 else ""


@dataclass(frozen=True, slots=True)
class Unreached:
    """No HTTP answer: why, and what to do."""

    seen: str
    todo: str
    refused: bool = False
    """Nothing listens there."""


async def ask(
    http: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
) -> Answer | Unreached:
    """One request; redirects are not followed. Its exceptions become what they mean."""
    asked_at_s, started = time.time(), time.monotonic()
    try:
        async with http.request(method, url, headers=headers, data=data, allow_redirects=False) as reply:
            took_s = time.monotonic() - started
            raw = b"" if reply.status == 101 else await reply.content.read(BODY_MAX_BYTES)
            status, answered = reply.status, reply.headers.copy()
    except aiohttp.ClientConnectorCertificateError as error:
        return _certificate_fault(error.certificate_error, url)
    except aiohttp.ClientSSLError as error:
        reason = ssl_reason(error.os_error) if isinstance(error.os_error, ssl.SSLError) else "handshake failed"
        return Unreached(
            f"no TLS at {url.host}:{url.port}: {reason}",
            "the port may speak plain HTTP: let the proxy terminate TLS there (nginx: listen 443 ssl)",
        )
    except aiohttp.ClientConnectorDNSError:
        return Unreached(
            f"the name {url.host} is not known", "add its address to the DNS; a tunnel has a new name at each start"
        )
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)
        why = "refused" if refused else error.os_error.strerror or "failed"
        return Unreached(
            f"the connection to {url.host}:{url.port} is {why}" if refused else f"{url.host}:{url.port}: {why}",
            "start the proxy or the tunnel, and open the port in the firewall",
            refused=refused,
        )
    except TimeoutError:
        return Unreached(
            f"no answer from {url.host}:{url.port} in time", "look for a firewall that drops the packets, or a proxy "
            "that waits for the gateway"
        )  # fmt: skip
    except (aiohttp.ClientError, OSError) as error:
        return Unreached(
            f"{url.host}:{url.port} ended the connection ({type(error).__name__})",
            "the port may speak TLS where http:// was asked for, or no HTTP at all",
        )
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    return Answer(status, answered, body, asked_at_s, took_s)


def _certificate_fault(error: Exception, url: URL) -> Unreached:
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
    lower = why.lower()
    if "expired" in lower:
        todo = "renew the certificate and reload the proxy"
    elif "hostname mismatch" in lower or "not valid for" in lower or "ip address mismatch" in lower:
        todo = f"get a certificate for {url.host}, or use the name that it has"
    else:
        todo = "serve a certificate of a public authority with its whole chain (fullchain.pem): Telnyx trusts no other"
    return Unreached(f"the certificate of {url.host} is not believed: {why}", todo)


def ssl_reason(error: ssl.SSLError) -> str:
    """OpenSSL's short reason, such as "wrong version number"."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def url_of(text: str) -> URL | None:
    """`text` as a URL, or None if it is none."""
    try:
        return URL(text)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, as far as its text tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOCAL_NAMES
