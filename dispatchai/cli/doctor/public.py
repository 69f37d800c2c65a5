"""Checks of what Telnyx will meet: the webhook's URL and the media socket, which must refuse what has no proof."""

from __future__ import annotations

from typing import Final

import aiohttp
from yarl import URL

from dispatchai.cli.doctor.asking import Answer, Unreached, ask, url_of
from dispatchai.cli.doctor.result import Check, Result, fail, ok, skipped, warn
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.settings import Settings
from dispatchai.telnyx.signatures import Refusal

CARRIER_PATIENCE_S: Final = 2.0
"""Telnyx sends a webhook again when no answer came in this time. Source: Telnyx webhook delivery rules."""

PROBE_BODY: Final = b'{"probe":"dispatchai doctor"}'
"""Where a gateway verifies nothing, this ends in `dead-letters`: it names no call."""

SIGNATURE_CODE: Final = "signature_"
"""Error codes of the gateway for a webhook that it does not believe begin so."""

_HANDSHAKE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""A handshake without a token. The key is the sample of RFC 6455, section 1.3."""


async def check_webhook(http: aiohttp.ClientSession, settings: Settings) -> Result:
    """Whether the gateway is what answers under HTTP_PUBLIC_URL: it must refuse a webhook without a signature."""
    check = Check.WEBHOOK
    if not settings.http_public_url:
        return skipped(check, "HTTP_PUBLIC_URL is not set")
    url = _probed(settings.http_public_url.rstrip("/") + WEBHOOK_PATH)
    if url is None:
        return skipped(check, "HTTP_PUBLIC_URL cannot be used: see public-urls")
    answer = await ask(http, "POST", url, data=PROBE_BODY, headers={"Content-Type": "application/json"})
    if isinstance(answer, Unreached):
        return fail(check, answer.seen, answer.todo)
    match answer.status:
        case 401 if answer.code == f"{SIGNATURE_CODE}{Refusal.NOT_CONFIGURED}":
            return fail(check, "the gateway has no key and refuses every webhook", "set TELNYX_PUBLIC_KEY for it")
        case 401 if answer.code.startswith(SIGNATURE_CODE):
            if answer.took_s > CARRIER_PATIENCE_S:
                return warn(
                    check,
                    f"the gateway answered after {answer.took_s:.1f} s; Telnyx waits {CARRIER_PATIENCE_S:g} s",
                    "look for a slow proxy or tunnel",
                )
            return ok(check, f"the gateway answers at {url} and refuses what is not signed")
        case 200 | 400 if answer.code or answer.body == {"result": "stored"}:
            return fail(
                check,
                "the gateway takes webhooks without a signature: anyone can invent calls",
                "unset WEBHOOK_VERIFICATION, set TELNYX_PUBLIC_KEY and restart the gateway",
            )
    return fail(check, *_stranger(answer, url))


async def check_media(http: aiohttp.ClientSession, settings: Settings) -> Result:
    """Whether the gateway is what answers under WS_PUBLIC_URL: it must refuse a socket without a token."""
    check = Check.MEDIA
    if not settings.ws_public_url:
        return skipped(check, "WS_PUBLIC_URL is not set")
    url = _probed(settings.ws_public_url)
    if url is None:
        return skipped(check, "WS_PUBLIC_URL cannot be used: see public-urls")
    url = url.with_scheme({"ws": "http", "wss": "https"}[url.scheme])
    answer = await ask(http, "GET", url, headers=_HANDSHAKE)
    if isinstance(answer, Unreached):
        return fail(check, answer.seen, answer.todo)
    match answer.status, answer.code:
        case 403, "token":
            return ok(check, "the gateway answers the handshake and refuses a socket without a token")
        case 101, _:
            return fail(
                check,
                "a socket without a token is let in: anyone can send audio, or this is not the gateway",
                "unset WEBHOOK_VERIFICATION, set TELNYX_PUBLIC_KEY and restart the gateway",
            )
        case 426, "upgrade_required":
            return fail(
                check,
                "the proxy does not hand on the websocket upgrade",
                'nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; '
                'proxy_set_header Connection "upgrade"',
            )  # fmt: skip
        case 503, "unavailable":
            return fail(check, "the gateway answers and has no Kafka", "see kafka and topics")
    return fail(check, *_stranger(answer, url))


def _probed(text: str) -> URL | None:
    """The URL if a request to it says something, and gives no password away."""
    url = url_of(text)
    return url if url is not None and url.host and not (url.user or url.password) else None


def _stranger(answer: Answer, url: URL) -> tuple[str, str]:
    """What an answer that is not the gateway's means, and what to do."""
    tunnel = answer.headers.get("ngrok-error-code")
    if tunnel is not None and tunnel.isprintable():
        return (
            f"ngrok has no such tunnel, or nothing behind it ({tunnel[:40]})",
            "start `make dev`, and put the URL that it prints into the Portal",
        )
    match answer.status:
        case status if 300 <= status < 400:
            return f"{url} is redirected ({status})", "give the URL where it leads to: Telnyx may not follow"
        case 401 | 403:
            return (
                f"{answer.status}{answer.server}, and not by the gateway: something in front asks for a login",
                "let the webhook and /ws through without one: they have signature and token",
            )
        case 404 | 405:
            return (
                f"{answer.status}{answer.server} at {url}: the gateway is not behind this path",
                f"let the proxy hand on {url.path} to the gateway as it is",
            )
        case 413:
            return "413: the proxy takes no body of this size", "nginx: client_max_body_size 256k"
        case 502 | 504 | 521 | 522 | 523 | 530:
            return (
                f"{answer.status}{answer.server}: the proxy or the tunnel is there, and the gateway behind it is not",
                "start the gateway; compare the proxy's address with GATEWAY_HOST and GATEWAY_PORT",
            )
        case 503:
            return f"503{answer.server}, and not by the gateway", "see the log of the proxy"
        case status:
            return f"{status}{answer.server}: not an answer of the gateway", f"see what serves {url}"
