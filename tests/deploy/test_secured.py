"""A cluster that asks for a certificate, a name and a password: everything runs on it, and refusals are reported."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.speech.engines import RECORDINGS
from tests.support.kafka.certificates import make_pems
from tests.support.system import System, packets_in, read_until

COMMAND_S = 120.0


def security(connection: KafkaConnection) -> dict[str, str]:
    """The settings that lead to `connection`."""
    return {
        "KAFKA_SECURITY_PROTOCOL": connection.security_protocol,
        "KAFKA_SASL_MECHANISM": connection.sasl_mechanism,
        "KAFKA_SASL_USERNAME": connection.sasl_username,
        "KAFKA_SASL_PASSWORD": connection.sasl_password,
        "KAFKA_SSL_CA_FILE": str(connection.ssl_ca_file),
        "KAFKA_SSL_CERT_FILE": str(connection.ssl_cert_file),
        "KAFKA_SSL_KEY_FILE": str(connection.ssl_key_file),
    }


def system(connection: KafkaConnection, folder: Path) -> System:
    return System.on(connection, folder, **security(connection), SPEECH_ENGINE="scripted")


async def run_command(system: System, *arguments: str) -> tuple[int | None, str]:
    """Exit code and output of a command."""
    process = await system.run(*arguments)
    async with asyncio.timeout(COMMAND_S):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


def checks(output: str) -> dict[str, dict[str, Any]]:
    report, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])
    return {one["check"]: one for one in report["results"]}


@pytest.mark.timeout(400)
async def test_a_call_goes_through_a_secured_cluster_from_webhook_to_packet(
    secured_kafka: KafkaConnection, tmp_path: Path
) -> None:
    secured = system(secured_kafka, tmp_path)
    code, output = await run_command(secured, "topics", "apply")
    assert code == 0, output

    process = await secured.run("up")
    try:
        await read_until(process, "Ctrl-C stops everything")
        code, output = await run_command(
            secured, "call", str(RECORDINGS / "cardiac_arrest.wav"), "--speed", "4", "--json"
        )
        assert code == 0, output
        (packet,) = packets_in(output)
        assert packet["complete"]
        assert packet["nlp"]["category"] == "EMS"
        assert packet["audio"]["missing_frames"] == 0

        code, output = await run_command(secured, "doctor", "--json")
        results = checks(output)
        assert {results[name]["verdict"] for name in ("kafka", "brokers", "topics")} == {"OK"}, output
        assert "SASL_SSL, user dispatchai" in results["kafka"]["seen"]

        code, output = await run_command(secured, "dead-letters", "list", "--json")
        assert code == 0, output
        assert isinstance(json.loads(output[output.index("[") :]), list)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = await process.communicate()
    assert process.returncode == 0, rest.decode()
    assert secured_kafka.sasl_password not in rest.decode() + output


@pytest.mark.parametrize(
    ("fault", "says", "doctor_says"),
    [
        (
            "password",
            "the user name or the password is refused: compare KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD",
            "the user name or the password is refused",
        ),
        ("authority", "its certificate is not trusted", "its certificate is not trusted"),
        # A broker that does not believe the client's certificate hangs up without a word.
        ("certificate", "KAFKA_SECURITY_PROTOCOL with its SASL and TLS settings", "it ended the connection"),
    ],
)
async def test_a_refusal_is_reported_in_one_line_with_the_setting_to_look_at(
    secured_kafka: KafkaConnection, tmp_path: Path, fault: str, says: str, doctor_says: str
) -> None:
    match fault:
        case "password":
            wrong = dataclasses.replace(secured_kafka, sasl_password="guessed-secret")
        case "authority":
            wrong = dataclasses.replace(secured_kafka, ssl_ca_file=make_pems(tmp_path / "other").authority)
        case _:
            stranger = make_pems(tmp_path / "other")
            wrong = dataclasses.replace(
                secured_kafka, ssl_cert_file=stranger.client_certificate, ssl_key_file=stranger.client_key
            )
    refused = system(wrong, tmp_path)
    (tmp_path / "state").mkdir()
    for command in (("topics", "apply"), ("dead-letters", "list"), ("up",)):
        code, output = await run_command(refused, *command)
        assert code == 1, (command, output)
        (line,) = [line for line in output.splitlines() if line.startswith("dispatchai: ")]
        assert says in line, command
        assert "KAFKA_" in line, command
        assert "Traceback" not in output, command
        assert "guessed-secret" not in output, command
    code, output = await run_command(refused, "doctor", "--json")
    assert code == 1
    assert doctor_says in checks(output)["kafka"]["seen"]
    assert "KAFKA_" in checks(output)["kafka"]["todo"]


@pytest.mark.parametrize("name", ["gateway", "worker", "speech"])
async def test_a_process_that_is_refused_waits_and_says_so(
    secured_kafka: KafkaConnection, tmp_path: Path, name: str
) -> None:
    refused = system(dataclasses.replace(secured_kafka, sasl_password="guessed-secret"), tmp_path)
    process = await refused.run(name)
    try:
        output = await read_until(process, "kafka_unreachable")
        assert "SaslAuthenticationFailed" in output
        assert process.returncode is None, "it goes on trying: credentials are changed while it runs"
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = await process.communicate()
    assert "guessed-secret" not in output + rest.decode()
