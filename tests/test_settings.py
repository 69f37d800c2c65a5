"""What can be set is documented, and what is set wrongly is refused at the start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from dispatchai.settings import Settings
from tests.support.paths import ROOT

EXAMPLE = ROOT / ".env.example"

ENTRY = re.compile(r"^# (?P<text>\S.*)\n#(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)$", re.MULTILINE)
"""A documented setting: one line of comment, one line commented out."""


def entries() -> dict[str, re.Match[str]]:
    found = list(ENTRY.finditer(EXAMPLE.read_text(encoding="utf-8")))
    names = [entry["name"] for entry in found]
    assert len(names) == len(set(names)), "a setting is documented once"
    return dict(zip(names, found, strict=True))


def test_the_example_documents_exactly_the_settings_in_their_order() -> None:
    assert list(entries()) == [name.upper() for name in Settings.model_fields]


def test_the_example_says_of_each_setting_what_the_code_says() -> None:
    documented = {name: entry["text"] for name, entry in entries().items()}
    assert documented == {name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_the_example_has_the_sections_of_the_code_and_no_other_heading() -> None:
    source = (ROOT / "dispatchai" / "settings.py").read_text(encoding="utf-8")
    sections = re.findall(r"^    # (.+)\n    \w+: ", source, re.MULTILINE)
    assert re.findall(r"^## (.+)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE) == sections


def test_the_examples_values_are_the_defaults(tmp_path: Path) -> None:
    """Uncommenting all of it changes nothing."""
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={entry['value']}\n" for name, entry in entries().items()))
    assert Settings(_env_file=env) == Settings()


def test_nothing_in_the_example_is_set() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_names_of_tunables_have_their_unit() -> None:
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    counts = ("_port", "_processes", "_factor", "_max")
    for name in numbers:
        assert name.endswith(("_h", "_s", "_ms", "_bytes", *counts)), name


def test_no_secret_is_in_a_repr() -> None:
    secrets = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert {"telnyx_api_key", "telnyx_webhook_secret", "kafka_sasl_password"} <= set(secrets)
    hidden: dict[str, Any] = dict.fromkeys(secrets, "correct horse battery")
    settings = Settings(**hidden, kafka_sasl_username="u")
    assert "correct horse" not in repr(settings)
    assert "correct horse" not in settings.model_dump_json()


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = tmp_path / "env"
    env.write_text("GATEWAY_PORT=8001\nCONSOLE_PORT=8002\n")
    monkeypatch.setenv("GATEWAY_PORT", "9001")
    settings = Settings(_env_file=env)
    assert (settings.gateway_port, settings.console_port) == (9001, 8002)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_USERNAME"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "kafka_security_protocol"),
        ({"WS_PUBLIC_URL": "https://example.org/ws"}, "WS_PUBLIC_URL"),
        ({"HTTP_PUBLIC_URL": "example.org"}, "HTTP_PUBLIC_URL"),
        ({"GATEWAY_PORT": "70000"}, "gateway_port"),
        ({"CALL_DEADLINE_S": "0"}, "call_deadline_s"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    values: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=complaint):
        Settings()


def test_a_refusal_does_not_show_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "correct horse")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "correct horse" not in str(caught.value)


def test_kafkas_settings_reach_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SASL_USERNAME": "gateway",
        "KAFKA_SASL_PASSWORD": "correct horse",
        "KAFKA_SSL_CA_FILE": "/ca.pem",
        "KAFKA_SSL_CERT_FILE": "/cert.pem",
        "KAFKA_SSL_KEY_FILE": "/key.pem",
    }.items():
        monkeypatch.setenv(name, value)
    connection = Settings().kafka()
    assert connection.servers == ("a:9092", "b:9092")
    assert connection.security_protocol == "SASL_SSL"
    assert connection.sasl_mechanism == "SCRAM-SHA-256"
    assert (connection.sasl_username, connection.sasl_password) == ("gateway", "correct horse")
    assert connection.ssl_ca_file == Path("/ca.pem")
    assert (connection.ssl_cert_file, connection.ssl_key_file) == (Path("/cert.pem"), Path("/key.pem"))


def test_the_clusters_password_is_not_sent_to_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "gateway")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "correct horse")
    connection = Settings().kafka("127.0.0.1:4711")
    assert not connection.uses_sasl
    assert connection.sasl_password == ""


def test_without_an_address_there_is_no_connection() -> None:
    with pytest.raises(ValueError, match="no Kafka address"):
        Settings().kafka()


@pytest.mark.parametrize(
    "url",
    [
        "http://api.telnyx.com/v2",
        "http://10.0.0.7:6068/v2",
        "http://127.0.0.1@telnyx.example.org/v2",
        "http://localhost.example.org/v2",
        "ftp://127.0.0.1/v2",
        "api.telnyx.com/v2",
        "",
    ],
)
def test_the_api_key_is_sent_without_tls_to_this_machine_only(url: str) -> None:
    with pytest.raises(ValidationError, match="TELNYX_API_URL must begin with https://"):
        Settings(telnyx_api_url=url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:6068/v2", "http://[::1]:6068/v2", "http://localhost:1/v2"])
def test_the_simulated_carrier_needs_no_tls(url: str) -> None:
    assert Settings(telnyx_api_url=url).telnyx_api_url == url


@pytest.mark.parametrize(
    "values",
    [
        {"call_expiry_s": 599},
        {"call_expiry_s": 1700, "webhook_tolerance_s": 900},
        {"call_expiry_s": 1700, "telnyx_webhook_secret": SecretStr("a secret")},
    ],
)
def test_a_call_is_remembered_for_as_long_as_its_webhooks_are_accepted(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="CALL_EXPIRY_S is too short"):
        Settings(**values)
