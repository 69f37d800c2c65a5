"""Every error of the command line says what was wrong, where, and what to do, without a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dispatchai.kafka.embedded_broker import free_port


def run(folder: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit code and output of `dispatchai` with `arguments`, run in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [sys.executable, "-m", "dispatchai", *arguments],
        cwd=folder,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "says"),
    [
        (("up",), {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, 2, "set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        (("up",), {"GATEWAY_PORT": "99999"}, 2, "GATEWAY_PORT: Input should be less than or equal to 65535"),
        (("gateway",), {}, 2, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (("worker",), {}, 2, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (("topics", "show"), {}, 2, "no `dispatchai up` is running here"),
        (("call", "missing.wav"), {}, 2, "missing.wav"),
        (("demo",), {"TELNYX_API_KEY": "KEY1"}, 2, "TELNYX_API_KEY is set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_setting_or_argument_is_named(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], code: int, says: str
) -> None:
    returned, output = run(tmp_path, *arguments, **settings)
    assert says in output
    assert "Traceback" not in output
    assert returned == code


@pytest.mark.parametrize("arguments", [("up",), ("topics", "show")], ids=" ".join)
def test_a_kafka_that_is_not_there_is_named_with_what_to_check(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{free_port()}"
    code, output = run(tmp_path, *arguments, KAFKA_BOOTSTRAP_SERVERS=address)
    assert f"no Kafka answers at {address}" in output
    assert "KAFKA_SECURITY_PROTOCOL" in output
    assert "Traceback" not in output
    assert code == 1


def test_a_secret_in_a_refused_configuration_is_not_printed(tmp_path: Path) -> None:
    _, output = run(tmp_path, "up", KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_SASL_PASSWORD="hunter2-secret")
    assert "hunter2-secret" not in output


BROKEN_RULES = "version: '1'\nlevels:\n  CRITICAL: 2\n"
BROKEN_TOPICS = "partitions: none\n"


@pytest.mark.parametrize(
    ("arguments", "name", "content", "line"),
    [
        (("worker",), "RULES_FILE", BROKEN_RULES, 3),
        (("rules", "check"), "RULES_FILE", BROKEN_RULES, 3),
        (("worker",), "TOPICS_FILE", BROKEN_TOPICS, 1),
        (("speech",), "TOPICS_FILE", BROKEN_TOPICS, 1),
        (("topics", "show"), "TOPICS_FILE", BROKEN_TOPICS, 1),
        (("topics", "apply"), "TOPICS_FILE", BROKEN_TOPICS, 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_broken_file_is_named_with_its_line_and_ends_a_process_for_good(
    tmp_path: Path, arguments: tuple[str, ...], name: str, content: str, line: int
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    code, output = run(tmp_path, *arguments, KAFKA_BOOTSTRAP_SERVERS=address, **{name: str(file)})
    assert f"{file}:{line}: " in output
    assert "Traceback" not in output
    assert code == 2


@pytest.mark.parametrize("name", ["RULES_FILE", "TOPICS_FILE", "KAFKA_SSL_CA_FILE"])
def test_a_file_that_is_missing_ends_a_process_for_good(tmp_path: Path, name: str) -> None:
    settings = {name: str(tmp_path / "none"), "KAFKA_SECURITY_PROTOCOL": "SSL"}
    code, output = run(tmp_path, "worker", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", **settings)
    assert "Traceback" not in output
    assert code == 2


@pytest.mark.parametrize(
    ("process", "settings"),
    [
        ("gateway", {"KAFKA_BOOTSTRAP_SERVERS": "broker"}),
        ("worker", {"KAFKA_BOOTSTRAP_SERVERS": "broker"}),
        ("worker", {"LOG_LEVEL": "LOUD"}),
        ("worker", {"STATE_DIR": "/proc/none"}),
        ("speech", {"STATE_DIR": "/proc/none"}),
    ],
)
def test_what_no_restart_mends_ends_a_process_with_2(tmp_path: Path, process: str, settings: dict[str, str]) -> None:
    code, output = run(tmp_path, process, **{"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", **settings})
    assert "Traceback" not in output
    assert code == 2


def test_rules_that_can_be_read_are_named_with_their_version(tmp_path: Path) -> None:
    code, output = run(tmp_path, "rules", "check")
    assert code == 0
    assert "rules.yaml: version 2026.1+" in output


@pytest.mark.parametrize(
    ("process", "setting"), [("console", "CONSOLE_PORT"), ("worker", "WORKER_PORT"), ("speech", "SPEECH_PORT")]
)
def test_a_port_that_is_taken_ends_a_process_so_that_it_is_started_again(
    tmp_path: Path, process: str, setting: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = run(tmp_path, process, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", **{setting: str(port)})
    assert f"cannot listen on 127.0.0.1:{port}" in output
    assert f"set {setting} to a free port" in output
    assert code == 1


@pytest.mark.parametrize("process", ["console", "worker"])
def test_an_address_that_this_machine_does_not_have_ends_a_process_for_good(tmp_path: Path, process: str) -> None:
    code, output = run(tmp_path, process, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", CONSOLE_HOST="192.0.2.1")
    assert "cannot listen on 192.0.2.1:" in output
    assert code == 2


def test_what_ends_a_process_is_one_line_of_json_where_logs_are_json(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN_RULES, encoding="utf-8")
    settings = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "RULES_FILE": str(file), "LOG_FORMAT": "json"}
    code, output = run(tmp_path, "worker", **settings)
    assert code == 2
    (line,) = [json.loads(line) for line in output.splitlines()]
    assert line["exit_code"] == 2
    assert f"{file}:3: " in line["error"]


def test_a_wrong_setting_is_one_line_of_json_where_logs_are_json(tmp_path: Path) -> None:
    code, output = run(tmp_path, "worker", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", LOG_FORMAT="json", LOG_LEVEL="LOUD")
    assert code == 2
    (line,) = [json.loads(line) for line in output.splitlines()]
    assert (line["event"], line["level"], line["process"]) == ("command_failed", "critical", "worker")
    assert "LOG_LEVEL: " in line["error"]
