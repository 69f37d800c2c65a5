"""The documents hang together, what they name exists (commands, settings, dependencies), their examples are true."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
import uuid
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from packaging.requirements import Requirement

from dispatchai.cli.main import main
from dispatchai.console.json_view import packet as shaped_packet
from dispatchai.gateway.app import MEDIA_PATH, WEBHOOK_PATH
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from dispatchai.records import encode
from dispatchai.settings import SecurityProtocol, Settings
from tests.console.samples import final_packet, live_call
from tests.project.documents import PAGES, README, anchors, code, fenced, inline, links, prose, read
from tests.support.paths import ROOT

BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

NOT_BUILT = {"DEEPGRAM_API_KEY"}
"""Names that look like settings, of which the documents say that they have no effect."""

SCREENSHOT_MAX_BYTES = 400_000
SCREENSHOT_SIZE = (1280, 800)

LINE_MAX_CHARS = 120

NOT_YET_WRAPPED = {"operations.md", "deploy.md", "dead-letters.md", "simulated-carrier.md"}
"""Pages whose prose is still to be wrapped. To be emptied."""


@BY_NAME
def test_every_relative_link_and_picture_leads_somewhere(page: Path) -> None:
    for file, fragment in links(page):
        assert file.is_relative_to(ROOT), file
        assert file.exists(), file
        assert not fragment or fragment in anchors(file), f"{file}#{fragment}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = {README}, [README]
    while ahead:
        for file, _ in links(ahead.pop()):
            if file.suffix == ".md" and file not in reached:
                reached.add(file)
                ahead.append(file)
    assert set(PAGES) - {ROOT / "tests/data/README.md"} <= reached


@BY_NAME
def test_prose_is_wrapped(page: Path) -> None:
    if page.name in NOT_YET_WRAPPED:
        return
    assert [number for number, line in prose(page) if len(line) > LINE_MAX_CHARS] == []


@BY_NAME
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {match[1] for piece in code(page) if (match := re.match(r"make ([a-z-]+)", piece))}
    assert named <= targets


def commands(page: Path) -> Iterator[list[str]]:
    for piece in code(page):
        if match := re.match(r"(?:\S*/)?dispatchai ([^#]+)", piece):
            yield shlex.split(match[1])


@BY_NAME
def test_every_command_and_option_exists(page: Path) -> None:
    for words in commands(page):
        command: click.Command = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name = words.pop(0)
            assert name in command.commands, f"dispatchai has no command {name}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        assert {word for word in words if word.startswith("--")} <= known, (command.name, words)


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_every_setting_exists(name: str) -> None:
    settings = {field.upper() for field in Settings.model_fields}
    assert not settings & NOT_BUILT, "it is built: say so in the documents"
    named = {
        word for piece in code(ROOT / name) for word in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", piece)
    }
    assert named - settings - NOT_BUILT - set(SecurityProtocol) == set()


def test_every_dependency_has_its_line_and_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    wanted = {Requirement(name).name for name in names}
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8").partition("## Beside Python")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \| (.*) \| ([^|]+) \|$", text, re.MULTILINE)
    lines = {name: licence.strip() for name, _, _, licence in rows}
    assert len(rows) == len(lines), "a dependency has one line"
    assert set(lines) == wanted
    for name, licence in lines.items():
        stated = importlib.metadata.metadata(name).json.get("license_expression")
        assert licence == stated if stated else licence, name


def test_the_architecture_lists_every_topic_and_changelog() -> None:
    named = set(inline((ROOT / "docs/architecture.md").read_text(encoding="utf-8")))
    assert {spec.name for spec in Topics.load().every_topic()} <= named


def test_the_readme_lists_every_address_of_page_and_gateway_and_no_other() -> None:
    rooms = [ROOT / "dispatchai/app.py", ROOT / "dispatchai/process/health.py"]
    sources = [*rooms, *(ROOT / "dispatchai/console").glob("*.py")]
    literals = [re.findall(r'web\.(?:get|post)\("([^"]*)"', path.read_text(encoding="utf-8")) for path in sources]
    served = {WEBHOOK_PATH, MEDIA_PATH, "/tables/{agent}/{call_id}", *(path for paths in literals for path in paths)}
    named = set(re.findall(r"(?:GET|POST) (/[^\s`?]*)", "\n".join(inline(read(README)))))
    assert {path.rstrip("/") for path in named} == {path.rstrip("/") for path in served}


def test_the_readmes_packet_has_the_fields_of_a_packet_and_its_parts_add_up() -> None:
    (text,) = fenced(read(README), "jsonc")
    shown = json.loads(re.sub(r" +// .*$", "", text, flags=re.MULTILINE).replace(", …}", "}"))
    real = shaped_packet(final_packet(live_call("call")), full_number=True)
    assert list(shown) == list(real)
    for name, value in real.items():
        if isinstance(value, dict):
            assert list(shown[name]) == list(value), name
    assert sum(round(part["points"] * 10_000) for part in shown["parts"]) == round(shown["risk"]["score"] * 10_000)


async def test_the_readmes_consumer_prints_packets_and_tombstones(broker: KafkaConnection, tmp_path: Path) -> None:
    (text,) = fenced(read(README), "python")
    script = tmp_path / "consumer.py"
    script.write_text(text, encoding="utf-8")
    topic = f"packets-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(**broker.client_options(), acks="all") as producer:
        packet = final_packet(live_call("kitchen", transcript="My kitchen is on fire."))
        await producer.send_and_wait(topic, encode(packet), key=b"kitchen")
        await producer.send_and_wait(topic, None, key=b"kitchen")
    consumer = await asyncio.create_subprocess_exec(
        sys.executable, script, broker.bootstrap_servers, topic, cwd=ROOT, stdout=PIPE
    )
    assert consumer.stdout is not None
    try:
        async with asyncio.timeout(60):
            first, second = [(await consumer.stdout.readline()).decode() for _ in range(2)]
    finally:
        consumer.kill()
        await consumer.wait()
    assert first.startswith("kitchen {'call_id': 'kitchen', 'version': 1,")
    assert "My kitchen is on fire." in first
    assert second == "kitchen None\n"


def test_the_screenshot_is_of_the_stated_size() -> None:
    picture = (ROOT / "docs/images/page.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == SCREENSHOT_SIZE
    assert len(picture) < SCREENSHOT_MAX_BYTES


def test_the_drawing_names_every_agent_and_every_topic_that_calls_travel() -> None:
    drawing = ElementTree.parse(ROOT / "docs/images/road.svg")  # noqa: S314 - a file of this project
    names = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    agents = {path.stem for path in (ROOT / "agents").glob("*.py")} - {
        "__init__",
        *("orphaned_states", "queue_purge"),
    }  # they clean up, and no call travels through them
    assert agents <= names
    assert set(Topics.load().topics) - {"dispatch-actions", "dead-letters"} <= names
