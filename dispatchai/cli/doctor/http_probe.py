"""One HTTP request of the doctor: its answer, or why there is none and what to do.

The checks decide who should have answered.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

BODY_MAX_BYTES: Final = 1_048_576
"""How much is read of an answer. The longest is a list of 250 call-control applications, about 1 kB each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `body` is its JSON, None if it has none."""

    status: int
    headers: Mapping[str, str]
    body: Any
    asked_at_s: float
    took_s: float

    @property
    def code(self) -> str:
        """The gateway's error code. Empty if the answer is not the gateway's."""
        match self.body:
            case {"error": {"code": str() as code, "hint": str()}}:
                return code
            case _:
                return ""

    @property
    def server(self) -> str:
        """Which software answered, if it says so: `` by NAME``."""
        name = self.headers.get("Server", "")
        return f" by {name}" if name.isprintable() and 0 < len(name) < 40 else ""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why there is no HTTP answer, and what to do."""

    seen: str
    todo: str
    refused: bool = False
    """Whether nothing listens there."""


async def probe(
    http: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
) -> Answer | NoAnswer:
    """Send one request, without following redirects. Exceptions become the fault that they mean."""
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
        return NoAnswer(
            f"no TLS at {url.host}:{url.port}: {reason}",
            "the port may serve plain HTTP: let the proxy terminate TLS there (nginx: listen 443 ssl)",
        )
    except aiohttp.ClientConnectorDNSError:
        return NoAnswer(
            f"the name {url.host} is not known", "add its address to the DNS; a tunnel gets a new name at each start"
        )
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)
        why = "refused" if refused else error.os_error.strerror or "failed"
        return NoAnswer(
            f"the connection to {url.host}:{url.port} is {why}" if refused else f"{url.host}:{url.port}: {why}",
            "start the proxy or the tunnel, and open the port in the firewall",
            refused=refused,
        )
    except TimeoutError:
        return NoAnswer(
            f"no answer from {url.host}:{url.port} in time", "look for a firewall that drops packets, or a proxy that "
            "waits for the gateway"
        )  # fmt: skip
    except (aiohttp.ClientError, OSError) as error:
        return NoAnswer(
            f"{url.host}:{url.port} ended the connection ({type(error).__name__})",
            "the port may expect TLS although the URL says http://, or not serve HTTP at all",
        )
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    return Answer(status, answered, body, asked_at_s, took_s)


def _certificate_fault(error: Exception, url: URL) -> NoAnswer:
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
    lower = why.lower()
    if "expired" in lower:
        todo = "renew the certificate and reload the proxy"
    elif "hostname mismatch" in lower or "not valid for" in lower or "ip address mismatch" in lower:
        todo = f"get a certificate for {url.host}, or use the name in the certificate"
    else:
        todo = "serve a certificate of a public authority with its whole chain (fullchain.pem): Telnyx trusts no other"
    return NoAnswer(f"the certificate of {url.host} is not trusted: {why}", todo)


def ssl_reason(error: ssl.SSLError) -> str:
    """OpenSSL's short reason, such as "wrong version number"."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def url_of(text: str) -> URL | None:
    """`text` as a URL, or None if it is not one."""
    try:
        return URL(text)
    except ValueError:
        return None
