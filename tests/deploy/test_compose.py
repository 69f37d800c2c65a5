"""`docker-compose.yml` is valid, and starts what exists with settings that exist."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import click
import jsonschema
import pytest
import yaml

from dispatchai.cli.main import main
from dispatchai.settings import Settings
from tests.support.paths import ROOT

KAFKA_PROPERTIES = {
    "node.id",
    "process.roles",
    "controller.quorum.voters",
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "controller.listener.names",
    "inter.broker.listener.name",
    "log.dirs",
    "auto.create.topics.enable",
    "default.replication.factor",
    "offsets.topic.replication.factor",
    "transaction.state.log.replication.factor",
    "transaction.state.log.min.isr",
    "share.coordinator.state.topic.replication.factor",
    "share.coordinator.state.topic.min.isr",
    "group.initial.rebalance.delay.ms",
}
"""Kafka's own names, as its documentation of broker configuration has them."""

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))

SERVICES: dict[str, Any] = COMPOSE["services"]

OWN = sorted(name for name, service in SERVICES.items() if service["image"] == "dispatchai")


def test_it_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE)
    ]
    assert errors == []


def test_the_check_of_validity_can_fail() -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
    broken = {"services": {"kafka": {"image": "apache/kafka", "restarts": "always"}}}
    assert not jsonschema.Draft202012Validator(schema).is_valid(broken)


def test_the_processes_run_after_the_topics_are_there() -> None:
    assert OWN == ["console", "gateway", "speech", "topics", "worker"]
    for name in ("console", "gateway", "speech", "worker"):
        after = SERVICES[name]["depends_on"]
        assert after["topics"]["condition"] == "service_completed_successfully"
        assert after["kafka"]["condition"] == "service_healthy"
    # Otherwise none of them would start after an upgrade that changes the setting of a topic.
    assert "--allow-drift" in SERVICES["topics"]["command"]


@pytest.mark.parametrize("name", OWN)
def test_every_command_exists(name: str) -> None:
    command: click.Command = main
    for word in SERVICES[name]["command"]:
        if word.startswith("--"):
            assert word in {option for parameter in command.params for option in parameter.opts}
            continue
        assert isinstance(command, click.Group)
        assert word in command.commands, f"dispatchai has no command {word}"
        command = command.commands[word]


@pytest.mark.parametrize("name", OWN)
def test_every_variable_of_a_process_is_a_setting_and_its_value_is_taken(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = SERVICES[name]["environment"]
    known = {setting.upper() for setting in Settings.model_fields}
    assert set(environment) <= known
    for variable, value in environment.items():
        assert isinstance(value, str), f"{variable}: unquoted, YAML would change it"
        monkeypatch.setenv(variable, re.sub(r"^\$\{[A-Z_]+:-\}$", "", value))  # as compose does where it is not set
    settings = Settings()
    assert settings.kafka().servers == ("kafka:9092",)


def test_every_variable_of_kafka_is_one_of_kafkas() -> None:
    variables = {name for name in SERVICES["kafka"]["environment"] if name != "CLUSTER_ID"}
    assert {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in variables} == KAFKA_PROPERTIES


def test_kafka_is_the_version_that_the_tests_run_on() -> None:
    project = ElementTree.parse(ROOT / "tests/support/kafka/pom.xml")  # noqa: S314 - a file of this project
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    (version,) = (
        dependency.findtext("m:version", namespaces=space)
        for dependency in project.iterfind(".//m:dependency", space)
        if dependency.findtext("m:groupId", namespaces=space) == "org.apache.kafka"
    )
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"


def test_every_published_port_is_bound_to_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports), ports


def test_everything_that_stays_up_has_a_health_check() -> None:
    for name, service in SERVICES.items():
        assert "healthcheck" in service or name == "topics", name


@pytest.mark.parametrize(
    ("name", "setting"), [(name, f"{name}_port") for name in ("gateway", "console", "worker", "speech")]
)
def test_a_process_is_published_and_asked_at_the_port_that_is_set(name: str, setting: str) -> None:
    service = SERVICES[name]
    port = service["environment"][setting.upper()]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/health/ready" in " ".join(service["healthcheck"]["test"])
    assert int(port) == Settings.model_fields[setting].default


def test_kafkas_records_and_every_processs_state_are_on_volumes() -> None:
    kafka = SERVICES["kafka"]
    assert kafka["volumes"] == [f"kafka-data:{kafka['environment']['KAFKA_LOG_DIRS']}"]
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_no_process_runs_as_root_or_can_become_it() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    users = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    assert users[-1:] == ["dispatchai"]
    for name in OWN:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["read_only"] is True
        assert "no-new-privileges:true" in SERVICES[name]["security_opt"]


def test_what_the_image_copies_is_not_ignored() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignored, *allowed = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored == "*", "everything is left out but what is named"
    for line in re.findall(r"^COPY ((?!--from).+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source
