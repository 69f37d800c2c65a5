"""Checks of the settings alone: keys, public URLs and the file that they come from. They send no request."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from pydantic import ValidationError
from yarl import URL

from dispatchai.cli.doctor.http_probe import url_of
from dispatchai.cli.doctor.result import Check, Result, fail, ok, skipped, warn
from dispatchai.gateway.app import MEDIA_PATH, WEBHOOK_PATH
from dispatchai.process.loopback import LOCAL_NAMES
from dispatchai.settings import Settings, Verification
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.signatures import public_key

SIMILAR: Final = 0.8
"""Ratio of difflib above which an unknown name counts as a misspelt setting."""

_SET_IT: Final = "set it in the environment or in .env; .env.example explains each setting"


def settings_failed(error: ValidationError) -> tuple[Result, ...]:
    """A result for each wrong setting. Values are left out: they may be secrets."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return tuple(
        fail(
            Check.SETTINGS,
            ": ".join(
                filter(None, ["_".join(map(str, problem["loc"])).upper(), problem["msg"].removeprefix("Value error, ")])
            ),
            _SET_IT,
        )
        for problem in problems
    )


def check_env_file(path: Path) -> Result:
    """Whether a settings file can be read, only by this user, and has no misspelt name."""
    try:
        mode = path.stat().st_mode
        names = list(dotenv_values(path, interpolate=False))
    except FileNotFoundError:
        return skipped(Check.ENV_FILE, f"there is no {path}: settings come from the environment")
    except (OSError, UnicodeDecodeError) as error:
        return fail(Check.ENV_FILE, f"{path} cannot be read: {error}", "make it a UTF-8 file that this user can read")
    known = [name.upper() for name in Settings.model_fields]
    unknown = [name for name in names if name.upper() not in known]
    for name in unknown:
        if similar := difflib.get_close_matches(name.upper(), known, n=1, cutoff=SIMILAR):
            return warn(
                Check.ENV_FILE, f"{path} sets {name}, which is not a setting", f"did you mean {similar[0]}? Rename it"
            )
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return warn(Check.ENV_FILE, f"every user of this machine can read or write {path}", f"chmod o-rwx {path}")
    return ok(Check.ENV_FILE, f"{path} sets {len(names) - len(unknown)} settings")


def check_state_dir(folder: Path) -> Result:
    """Whether a run can write its files into the state folder."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return fail(Check.STATE_DIR, f"{folder} is not writable", "set STATE_DIR to a folder that this user can write")
    return ok(Check.STATE_DIR, f"{folder} is writable")


def check_keys(settings: Settings) -> list[Result]:
    """Whether keys and secrets are set and have the right form."""
    return [_api_key(settings), *_webhook_keys(settings), _stream_token(settings)]


def _api_key(settings: Settings) -> Result:
    key = settings.telnyx_api_key.get_secret_value()
    if not key:
        return skipped(Check.API_KEY, "TELNYX_API_KEY is not set: `dispatchai call` plays the carrier")
    portal = "copy it again from the Portal, API Keys"
    if not key.isascii() or not key.isprintable() or re.search(r"[\s\"'<>]", key) or "..." in key:
        return fail(Check.API_KEY, "TELNYX_API_KEY has characters that no key has, such as spaces or quotes", portal)
    if not key.startswith("KEY"):
        return warn(Check.API_KEY, "TELNYX_API_KEY does not begin with KEY, as Telnyx's do", portal)
    return ok(Check.API_KEY, f"TELNYX_API_KEY has the form of a key ({len(key)} characters)")


def _webhook_keys(settings: Settings) -> list[Result]:
    check = Check.WEBHOOK_KEY
    real = not settings.carrier_is_simulated
    if settings.webhook_verification is Verification.OFF:
        seen = "WEBHOOK_VERIFICATION=off: anyone who reaches the gateway can invent calls"
        return [(fail if real else warn)(check, seen, "unset it, and set TELNYX_PUBLIC_KEY (Portal, Keys, Public Key)")]
    results = []
    keys = {"TELNYX_PUBLIC_KEY": settings.telnyx_public_key, "TELNYX_PUBLIC_KEY_NEXT": settings.telnyx_public_key_next}
    for name, text in keys.items():
        if not text:
            continue
        try:
            public_key(text)
        except ValueError:
            results.append(
                fail(check, f"{name} is not a public key: {_what_it_is(text)}", "give the base64 of 32 bytes")
            )
        else:
            results.append(ok(check, f"{name} is an Ed25519 key"))
    secret = settings.telnyx_webhook_secret.get_secret_value()
    if any(keys.values()):
        return results
    if secret and real:
        return [
            warn(
                check,
                "only TELNYX_WEBHOOK_SECRET is set, but Telnyx signs with a key (telnyx-signature-ed25519): "
                "only webhooks of a proxy that signs with the secret are accepted",
                "set TELNYX_PUBLIC_KEY: Portal, Keys, Public Key",
            )
        ]
    if secret:
        return [ok(check, "TELNYX_WEBHOOK_SECRET is set (telnyx-signature-sha256)")]
    if real or settings.http_public_url:
        return [
            (fail if real else warn)(
                check,
                "neither TELNYX_PUBLIC_KEY nor TELNYX_WEBHOOK_SECRET is set: a gateway with these settings refuses "
                "every webhook with 401",
                "set TELNYX_PUBLIC_KEY: Portal, Keys, Public Key",
            )
        ]
    return [skipped(check, "no key is set: `dispatchai up` uses the simulated carrier's")]


def _what_it_is(text: str) -> str:
    """What the text is in place of a public key, without repeating it."""
    text = text.strip()
    if text.startswith("-----BEGIN"):
        return "it is a PEM block"
    if text.startswith("KEY"):
        return "it begins like the API key, which is another setting"
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return "it is hexadecimal"
    return f"{len(text)} characters, but not base64 of 32 bytes"


def _stream_token(settings: Settings) -> Result:
    try:
        secret = stream_tokens.stream_secret(
            settings.stream_token_secret.get_secret_value(), settings.telnyx_api_key.get_secret_value()
        )
    except ValueError as error:
        return fail(Check.STREAM_TOKEN, str(error), _SET_IT)
    if secret is None:
        if settings.http_public_url:
            return warn(
                Check.STREAM_TOKEN,
                "neither STREAM_TOKEN_SECRET nor TELNYX_API_KEY is set: a gateway with these settings refuses every "
                "media socket",
                "give gateway and worker the same STREAM_TOKEN_SECRET",
            )
        return skipped(Check.STREAM_TOKEN, "no secret is set: `dispatchai up` uses the simulated carrier's")
    if settings.stream_token_secret.get_secret_value():
        return ok(Check.STREAM_TOKEN, "STREAM_TOKEN_SECRET is set; gateway and worker need the same one")
    return ok(Check.STREAM_TOKEN, "derived from TELNYX_API_KEY; gateway and worker need the same one")


def check_urls(settings: Settings) -> list[Result]:
    """Whether Telnyx can use the public URLs."""
    check = Check.PUBLIC_URLS
    real = not settings.carrier_is_simulated
    given = {"HTTP_PUBLIC_URL": settings.http_public_url, "WS_PUBLIC_URL": settings.ws_public_url}
    missing = [name for name, url in given.items() if not url]
    if missing and not real:
        if len(missing) == len(given):
            return [skipped(check, "no public URL is set: the gateway serves this machine only")]
        return [warn(check, f"{missing[0]} is not set, and the other is", "set both, or neither")]
    if missing:
        return [
            fail(check, f"{name} is not set: Telnyx cannot reach the gateway", _URL_EXAMPLES[name]) for name in missing
        ]
    results = []
    hosts = set()
    # Without an API key Telnyx does not use the URLs yet, so a fault is only a warning.
    fault = fail if real else warn
    for name, text in given.items():
        url = url_of(text)
        if url is None or url.host is None:
            results.append(fail(check, f"{name} is not a URL", _URL_EXAMPLES[name]))
            continue
        hosts.add((url.host, url.port))
        if url.user or url.password:
            results.append(fail(check, f"{name} contains a user name or a password", "leave them out"))
        if url.query_string or url.fragment:
            results.append(fail(check, f"{name} has a query or a fragment", _URL_EXAMPLES[name]))
        if url.scheme not in ("https", "wss"):
            results.append(fault(check, f"{name} begins with {url.scheme}://, without TLS", _URL_EXAMPLES[name]))
        if why := _not_public(url.host):
            results.append(
                fault(check, f"{name}: {url.host} is {why}", "use the name under which the Internet reaches it")
            )
        results.extend(_path_faults(name, url, fault))
    if len(hosts) > 1:
        results.append(
            warn(
                check,
                "HTTP_PUBLIC_URL and WS_PUBLIC_URL name different hosts or ports",
                "this is right only if the gateway has a proxy for each",
            )
        )
    return results or [ok(check, f"https and wss at {next(iter(hosts))[0]}")]


_URL_EXAMPLES: Final = {
    "HTTP_PUBLIC_URL": "such as HTTP_PUBLIC_URL=https://api.example.org (`make dev` sets it for a tunnel)",
    "WS_PUBLIC_URL": "such as WS_PUBLIC_URL=wss://api.example.org/ws (`make dev` sets it for a tunnel)",
}


def _path_faults(name: str, url: URL, fault: Callable[[Check, str, str], Result]) -> Iterable[Result]:
    path = url.path.rstrip("/")
    if name == "WS_PUBLIC_URL" and not path.endswith(MEDIA_PATH):
        yield fault(Check.PUBLIC_URLS, f"{name} does not end with {MEDIA_PATH}", _URL_EXAMPLES[name])
    if name == "HTTP_PUBLIC_URL" and path.endswith(WEBHOOK_PATH):
        yield warn(
            Check.PUBLIC_URLS,
            f"{name} contains the path of the webhooks, which belongs in the Portal",
            f"leave {WEBHOOK_PATH} out",
        )


def _not_public(host: str) -> str:
    """Why the Internet cannot reach `host`, judging by the text alone; empty if it can."""
    if host in LOCAL_NAMES or host.endswith((".localhost", ".local", ".internal")):
        return "a name of this machine or network"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "" if "." in host else "not a full name"
    return "" if address.is_global else "an address of this machine or network"
