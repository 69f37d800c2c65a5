"""All checks together, and what the command prints."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Limits, Result, Verdict
from dispatchai.cli.main import main
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.settings import Settings, SpeechEngine
from tests.cli.doctor.support import (
    QUICK,
    free_ports,
    telnyx,
    the,
)


async def test_the_speech_model_that_ships_loads() -> None:
    assert (await doctor.check_speech_model(Settings(), QUICK)).verdict is Verdict.OK


async def test_a_speech_model_that_takes_too_long_is_given_up() -> None:
    assert "not loaded" in (await doctor.check_speech_model(Settings(), Limits(speech_s=0.01))).seen


async def test_every_check_is_made_once_and_each_fault_says_what_to_do(tmp_path: Path) -> None:
    settings = free_ports(tmp_path, speech_engine=SpeechEngine.SCRIPTED, kafka_bootstrap_servers="127.0.0.1:1")
    results = await doctor.examine(settings, (tmp_path / "none",), QUICK)
    made = [result.check for result in results]
    assert made == sorted(made, key=list(Check).index)
    # What needs a Kafka that answers is not looked at without one.
    assert set(Check) - set(made) == {Check.BROKERS, Check.TOPICS, Check.DURABILITY}
    for result in results:
        assert bool(result.todo) == (result.verdict in (Verdict.WARN, Verdict.FAIL)), result


async def test_a_broken_run_file_is_a_fault(tmp_path: Path) -> None:
    settings = free_ports(tmp_path, speech_engine=SpeechEngine.SCRIPTED)
    settings.state_dir.mkdir()
    (settings.state_dir / "run.json").write_text("{")
    results = await doctor.examine(settings, (), QUICK)
    assert the(list(results), Check.STATE_DIR).verdict is Verdict.FAIL


async def test_no_secret_is_in_a_result(tmp_path: Path) -> None:
    """Every secret and every key is one that something refuses, and the results quote none of them."""
    env = tmp_path / "env"
    env.write_text("TELNYX_APIKEY=hunter22-file\n")
    async with telnyx([]) as url:
        settings = free_ports(
            tmp_path,
            telnyx_api_key=SecretStr("hunter22 key"),
            telnyx_public_key="hunter22",
            telnyx_webhook_secret=SecretStr("hunter22-webhook"),
            stream_token_secret=SecretStr("hunter22-of-the-stream"),
            kafka_bootstrap_servers="127.0.0.1:1",
            kafka_sasl_username="gateway",
            kafka_sasl_password=SecretStr("hunter22-kafka"),
            kafka_security_protocol="SASL_PLAINTEXT",
            telnyx_api_url=url,
            http_public_url="http://user:hunter22@127.0.0.1:1",
            ws_public_url="ws://user:hunter22@127.0.0.1:1/ws",
            speech_engine=SpeechEngine.SCRIPTED,
        )
        results = await doctor.examine(settings, (env,), QUICK)
    assert doctor.exit_code(results) == 1
    assert "hunter22" not in doctor.render(results, colours=True) + doctor.as_json(results)


def test_the_table_has_colours_on_a_terminal_alone() -> None:
    results = [Result(Check.KAFKA, Verdict.FAIL, "away", "start it"), Result(Check.CLOCK, Verdict.OK, "right")]
    plain = doctor.render(results, colours=False)
    assert "\x1b" not in plain
    assert plain.splitlines()[1].strip() == "-> start it"
    assert "\x1b[" in doctor.render(results, colours=True)


def test_the_command_gives_json_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = tmp_path / "env"
    names = ("GATEWAY_PORT", "CONSOLE_PORT", "WORKER_PORT", "SPEECH_PORT", "SIMULATED_CARRIER_PORT")
    ports = {name: free_port() for name in names}
    lines = [f"{name}={value}" for name, value in ports.items()]
    env.write_text("\n".join([*lines, f"STATE_DIR={tmp_path}", "SPEECH_ENGINE=scripted", ""]))
    env.chmod(0o600)
    ran = CliRunner().invoke(main, ["doctor", "--json", "--env-file", str(env)])
    report = orjson.loads(ran.stdout)
    assert (ran.exit_code, report["ok"]) == (0, True), ran.output
    assert {"check": "env-file", "verdict": "OK", "seen": f"{env} sets 7 settings", "todo": ""} in report["results"]

    monkeypatch.setenv("WS_PUBLIC_URL", "https://api.example.org/ws")
    ran = CliRunner().invoke(main, ["doctor", "--json", "--env-file", str(env)])
    report = orjson.loads(ran.stdout)
    assert (ran.exit_code, report["ok"], [result["check"] for result in report["results"]]) == (1, False, ["settings"])
    assert "wss://" in report["results"][0]["seen"]
