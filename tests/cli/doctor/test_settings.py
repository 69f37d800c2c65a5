"""Keys, public URLs and the settings file: each fault is found by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Result, Verdict
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.settings import Settings, Verification
from tests.cli.doctor.support import (
    API_KEY,
    PUBLIC_KEY,
    configured,
    faults,
    the,
)


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "seen"),
    [
        ({"telnyx_api_key": SecretStr("")}, Check.API_KEY, Verdict.SKIPPED, "not set"),
        ({"telnyx_api_key": SecretStr(f"{API_KEY}\n")}, Check.API_KEY, Verdict.FAIL, "characters"),
        ({"telnyx_api_key": SecretStr(f'"{API_KEY}"')}, Check.API_KEY, Verdict.FAIL, "quotes"),
        ({"telnyx_api_key": SecretStr("KEY...")}, Check.API_KEY, Verdict.FAIL, "characters"),
        ({"telnyx_api_key": SecretStr("v2_secret_0123")}, Check.API_KEY, Verdict.WARN, "begin with KEY"),
        ({}, Check.API_KEY, Verdict.OK, "form"),
        ({}, Check.WEBHOOK_KEY, Verdict.OK, "TELNYX_PUBLIC_KEY is an Ed25519 key"),
        ({"telnyx_public_key": ""}, Check.WEBHOOK_KEY, Verdict.FAIL, "every webhook"),
        ({"telnyx_public_key": API_KEY}, Check.WEBHOOK_KEY, Verdict.FAIL, "like the API key"),
        ({"telnyx_public_key": "ab" * 32}, Check.WEBHOOK_KEY, Verdict.FAIL, "hexadecimal"),
        ({"telnyx_public_key": "-----BEGIN PUBLIC KEY-----"}, Check.WEBHOOK_KEY, Verdict.FAIL, "PEM"),
        ({"telnyx_public_key": PUBLIC_KEY[:-4]}, Check.WEBHOOK_KEY, Verdict.FAIL, "not base64 of 32 bytes"),
        (
            {"telnyx_public_key": "", "telnyx_webhook_secret": SecretStr("only the secret")},
            Check.WEBHOOK_KEY,
            Verdict.WARN,
            "Telnyx signs with a key",
        ),
        (
            {"webhook_verification": Verification.OFF, "http_public_url": "", "ws_public_url": ""},
            Check.WEBHOOK_KEY,
            Verdict.FAIL,
            "invent calls",
        ),
        ({}, Check.STREAM_TOKEN, Verdict.OK, "derived from TELNYX_API_KEY"),
        ({"telnyx_api_key": SecretStr("")}, Check.STREAM_TOKEN, Verdict.WARN, "refuses every media socket"),
    ],
)
def test_a_key_is_checked_by_its_form(changes: dict[str, Any], check: Check, verdict: Verdict, seen: str) -> None:
    result = the(doctor.check_keys(configured(**changes)), check)
    assert (result.verdict, seen in result.seen) == (verdict, True), result


def test_a_second_key_for_rotation_is_checked_too() -> None:
    results = doctor.check_keys(configured(telnyx_public_key_next="not a key"))
    assert [result.verdict for result in results if result.check is Check.WEBHOOK_KEY] == [Verdict.OK, Verdict.FAIL]


@pytest.mark.parametrize(
    ("changes", "verdict", "seen"),
    [
        ({}, Verdict.OK, "api.example.org"),
        ({"http_public_url": ""}, Verdict.FAIL, "HTTP_PUBLIC_URL is not set"),
        ({"ws_public_url": ""}, Verdict.FAIL, "WS_PUBLIC_URL is not set"),
        ({"http_public_url": "http://api.example.org"}, Verdict.FAIL, "without TLS"),
        ({"ws_public_url": "ws://api.example.org/ws"}, Verdict.FAIL, "without TLS"),
        ({"ws_public_url": "wss://api.example.org"}, Verdict.FAIL, "does not end with /ws"),
        ({"ws_public_url": "wss://api.example.org/ws?token=1"}, Verdict.FAIL, "a query"),
        ({"ws_public_url": "wss://media.example.org/ws"}, Verdict.WARN, "different hosts"),
        ({"http_public_url": "https://localhost"}, Verdict.FAIL, "this machine"),
        ({"http_public_url": "https://127.0.0.1:8443"}, Verdict.FAIL, "this machine"),
        ({"http_public_url": "https://10.1.2.3"}, Verdict.FAIL, "this machine or network"),
        ({"http_public_url": "https://gateway"}, Verdict.FAIL, "not a full name"),
        ({"http_public_url": f"https://api.example.org{WEBHOOK_PATH}"}, Verdict.WARN, "belongs in the Portal"),
    ],
)
def test_a_public_url_must_be_one_that_the_carrier_can_use(
    changes: dict[str, Any], verdict: Verdict, seen: str
) -> None:
    results = doctor.check_urls(configured(**changes))
    assert any(result.verdict is verdict and seen in result.seen for result in results), faults(results)


def test_without_an_api_key_a_local_url_is_no_failure() -> None:
    settings = Settings(http_public_url="http://localhost:8000", ws_public_url="ws://localhost:8000/ws")
    assert {result.verdict for result in doctor.check_urls(settings)} == {Verdict.WARN}


def test_a_password_in_a_url_is_reported_without_it() -> None:
    results = doctor.check_urls(configured(http_public_url="https://me:hunter22@api.example.org"))
    assert "password" in faults(results)
    assert "hunter22" not in faults(results)


def test_a_misspelt_name_in_the_file_is_found(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text("TELNYX_APIKEY=KEYsecret\nPATH_OF_ANOTHER_PROGRAM=1\n")
    env.chmod(0o600)
    result = doctor.check_env_file(env)
    assert (result.verdict, "TELNYX_API_KEY" in result.todo) == (Verdict.WARN, True)
    assert "KEYsecret" not in result.seen + result.todo


def test_a_file_that_everybody_can_read_is_found(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text("LOG_LEVEL=INFO\n")
    env.chmod(0o644)
    assert doctor.check_env_file(env).verdict is Verdict.WARN
    env.chmod(0o640)
    assert doctor.check_env_file(env) == Result(Check.ENV_FILE, Verdict.OK, f"{env} sets 1 settings")
    env.write_bytes(b"\xff\xfe")
    assert doctor.check_env_file(env).verdict is Verdict.FAIL
