"""Checks of the public URLs as Telnyx uses them: the webhook and the media socket.

Both must refuse a request that does not prove where it comes from.
"""

from __future__ import annotations

from typing import Final

import aiohttp
from yarl import URL

from dispatchai.cli.doctor.http_probe import Answer, NoAnswer, probe, url_of
from dispatchai.cli.doctor.result import Check, Result, fail, ok, skipped, warn
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.settings import Settings
from dispatchai.telnyx.signatures import Refusal

CARRIER_PATIENCE_S: Final = 2.0
"""Telnyx sends a webhook again if there is no answer in this time. Source: Telnyx webhook delivery rules."""

PROBE_BODY: Final = b'{"probe":"dispatchai doctor"}'
"""A gateway that verifies nothing sends this to `dead-letters`, because it names no call."""

SIGNATURE_CODE: Final = "signature_"
"""Prefix of the gateway's error codes for a webhook without a valid signature."""

_HANDSHAKE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""A handshake without a token. The key is the sample of RFC 6455, section 1.3."""


async def check_webhook(http: aiohttp.ClientSession, settings: Settings) -> Result:
    """Whether the gateway answers under HTTP_PUBLIC_URL: it must refuse a webhook without a signature."""
    check = Check.WEBHOOK
    if not settings.http_public_url:
        return skipped(check, "HTTP_PUBLIC_URL is not set")
    url = _probed(settings.http_public_url.rstrip("/") + WEBHOOK_PATH)
    if url is None:
        return skipped(check, "HTTP_PUBLIC_URL cannot be used: see public-urls")
    answer = await probe(http, "POST", url, data=PROBE_BODY, headers={"Content-Type": "application/json"})
    if isinstance(answer, NoAnswer):
        return fail(check, answer.seen, answer.todo)
    match answer.status:
        case 401 if answer.code == f"{SIGNATURE_CODE}{Refusal.NOT_CONFIGURED}":
            return fail(check, "the gateway has no key and refuses every webhook", "set its TELNYX_PUBLIC_KEY")
        case 401 if answer.code.startswith(SIGNATURE_CODE):
            if answer.took_s > CARRIER_PATIENCE_S:
                return warn(
                    check,
                    f"the gateway answered after {answer.took_s:.1f} s; Telnyx waits {CARRIER_PATIENCE_S:g} s",
                    "look for a slow proxy or tunnel",
                )
            return ok(check, f"the gateway answers at {url} and refuses an unsigned webhook")
        case 200 | 400 if answer.code or answer.body == {"result": "stored"}:
            return fail(
                check,
                "the gateway accepts webhooks without a signature: anyone can invent calls",
                "unset WEBHOOK_VERIFICATION, set TELNYX_PUBLIC_KEY and restart the gateway",
            )
    return fail(check, *_foreign_answer(answer, url))


async def check_media(http: aiohttp.ClientSession, settings: Settings) -> Result:
    """Whether the gateway answers under WS_PUBLIC_URL: it must refuse a socket without a token."""
    check = Check.MEDIA
    if not settings.ws_public_url:
        return skipped(check, "WS_PUBLIC_URL is not set")
    url = _probed(settings.ws_public_url)
    if url is None:
        return skipped(check, "WS_PUBLIC_URL cannot be used: see public-urls")
    url = url.with_scheme({"ws": "http", "wss": "https"}[url.scheme])
    answer = await probe(http, "GET", url, headers=_HANDSHAKE)
    if isinstance(answer, NoAnswer):
        return fail(check, answer.seen, answer.todo)
    match answer.status, answer.code:
        case 403, "token":
            return ok(check, "the gateway answers the handshake and refuses a socket without a token")
        case 101, _:
            return fail(
                check,
                "a socket without a token is accepted: anyone can send audio, or this is not the gateway",
                "unset WEBHOOK_VERIFICATION, set TELNYX_PUBLIC_KEY and restart the gateway",
            )
        case 426, "upgrade_required":
            return fail(
                check,
                "the proxy does not pass on the websocket upgrade",
                'nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; '
                'proxy_set_header Connection "upgrade"',
            )  # fmt: skip
        case 503, "unavailable":
            return fail(check, "the gateway answers but has no Kafka", "see kafka and topics")
    return fail(check, *_foreign_answer(answer, url))


def _probed(text: str) -> URL | None:
    """The URL, if a request to it is useful and discloses no password."""
    url = url_of(text)
    return url if url is not None and url.host and not (url.user or url.password) else None


def _foreign_answer(answer: Answer, url: URL) -> tuple[str, str]:
    """What it means that another program answered, and what to do."""
    tunnel = answer.headers.get("ngrok-error-code")
    if tunnel is not None and tunnel.isprintable():
        return (
            f"ngrok has no such tunnel, or nothing behind it ({tunnel[:40]})",
            "start `make dev`, and put the URL that it prints into the Portal",
        )
    match answer.status:
        case status if 300 <= status < 400:
            return f"{url} is redirected ({status})", "use the URL where it leads: Telnyx may not follow it"
        case 401 | 403:
            return (
                f"{answer.status}{answer.server}, and not by the gateway: a proxy in front of it asks for a login",
                "let the webhook and /ws through without one: a signature and a token protect them",
            )
        case 404 | 405:
            return (
                f"{answer.status}{answer.server} at {url}: the gateway is not behind this path",
                f"let the proxy pass {url.path} to the gateway unchanged",
            )
        case 413:
            return "413: the proxy accepts no body of this size", "nginx: client_max_body_size 256k"
        case 502 | 504 | 521 | 522 | 523 | 530:
            return (
                f"{answer.status}{answer.server}: the proxy or the tunnel runs, the gateway behind it is not running",
                "start the gateway; compare the proxy's address with GATEWAY_HOST and GATEWAY_PORT",
            )
        case 503:
            return f"503{answer.server}, and not by the gateway", "see the log of the proxy"
        case status:
            return f"{status}{answer.server}: not an answer of the gateway", f"find out what serves {url}"
