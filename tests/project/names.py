"""Which names the documents may use in code spans: those of this tree, and a list of those that others own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import yaml

from tests.support.paths import ROOT

PACKAGES: Final = ("dispatchai", "agents", "bench", "evals", "scripts", "tests/crash")
"""Where the code is whose names the documents use."""

DATA: Final = ("topics.yaml", "docker-compose.yml", "dispatchai/triage/rules.yaml", "evals/triage_lines.yaml")

PLAIN: Final = ("Makefile", ".ci/run", ".env.example", "pyproject.toml", "deploy")
"""Files and folders of which every word counts as a name."""

BASES: Final = (ROOT, ROOT / "dispatchai", ROOT / "docs")
"""Folders that a path may be relative to."""

OF_OTHERS: Final = frozenset(
    {
        # Kafka, its clients, Faust
        *("InitProducerId", "ApiVersions", "acks", "getmany", "take", "processing_guarantee", "faust.Record"),
        *("min.insync.replicas", "unclean.leader.election.enable", "auto.create.topics.enable"),
        *("default.replication.factor", "offsets.topic.replication.factor", "advertised.listeners", "retention.ms"),
        "IdentityReplicationPolicy",
        # Telnyx, HTTP, nginx, systemd
        *("len", "Upgrade", "Connection", "MemoryDenyWriteExecute", "worker_shutdown_timeout"),
        # Python, its tools and packages that are no dependencies
        *("except", "silero-vad", "apache2-utils", "ss"),
        # Folders of an installation, and files that a run or a failed test leaves
        *(".dispatchai/run.json", "strikes.log", "records.txt", "outcome.json", "/opt/dispatchai/NEW"),
        # Stand-ins in instructions
        *("agents/NAME.py", "tests/agents/test_NAME.py", "FILE.wav", "origin.header.NAME", "_ms", "_s", "_db"),
        # Users that deploy/kafka/acls.sh puts together, and a setting of which the documents say that it is not built
        *("dispatchai-retry", "dispatchai-review", "dispatchai-topics", "DEEPGRAM_API_KEY"),
    }
)
"""Names that the documents use and this tree does not define. A name that was ours and is gone does not belong here."""

_COMMANDS: Final = re.compile(
    r"(?:\S*/)?(?:make|dispatchai|pip|docker|curl|kcat|nginx|systemctl|systemd-analyze|pre-commit|kafka-[\w-]+\.sh)\s"
)
"""What begins so is a command line: `test_docs.py` checks those of make and dispatchai, the others are not ours."""

_MODULE: Final = re.compile(r"(?:\S*/)?python -m ([\w.]+)")
_ADDRESS: Final = re.compile(r"(?:(?:GET|POST) )?(/[\w{}/-]*)(?:\?.*)?$")
_PATH: Final = re.compile(
    r"[\w.*@-]+(?:/[\w.*@-]*)+|[\w*@.-]+\.(?:py|yaml|yml|md|toml|lock|avsc|json|conf|sh|txt|log|wav)"
)
_NAME: Final = re.compile(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_*][\w-]*)*")
_PLACE: Final = re.compile(r"([\w-]+)(?:/\d+){1,2}")
"""A record or partition: topic/partition/offset."""
_STAND_IN: Final = re.compile(r"<[^<>]*>")
_INSTALLED: Final = ("/etc/", "/var/", "/opt/")
_METRIC_ENDS: Final = re.compile(r"_(?:total|bucket|count|sum)$")


def _in_code(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
                yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
            case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name):
                yield name
            case ast.Constant(value=str(text)):
                yield text


def _in_data(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, item in value.items():
                yield str(key)
                yield from _in_data(item)
        case list():
            for item in value:
                yield from _in_data(item)
        case str():
            yield value


@cache
def known() -> frozenset[str]:
    """Names and texts of the code, keys and values of the data files, words of the plain files, parts of paths."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= {path.stem, path.parent.name, *_in_code(ast.parse(path.read_text(encoding="utf-8")))}
    for path in (ROOT / "schemas").glob("*.avsc"):
        found |= {*_in_data(json.loads(path.read_text(encoding="utf-8")))}
    for name in DATA:
        found |= {*_in_data(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))}
    for name in PLAIN:
        for path in [ROOT / name, *(ROOT / name).rglob("*")]:
            if path.is_file():
                found |= {path.name, *re.findall(r"[\w.@-]*\w", path.read_text(encoding="utf-8"))}
    return frozenset(found)


@cache
def addresses() -> frozenset[str]:
    """Paths that some process serves over HTTP."""
    sources = [path for path in (ROOT / "dispatchai").rglob("*.py") if "simulator" not in path.parts]
    literals = re.findall(r'"(/[\w{}/-]*)"', "\n".join(path.read_text(encoding="utf-8") for path in sources))
    return frozenset({path.rstrip("/") for path in literals} | {"/tables/{agent}/{call_id}"})


def _path_exists(path: str) -> bool:
    if place := _PLACE.fullmatch(path):
        return place[1] in known()
    return any(next(base.glob(path.rstrip("/")), None) is not None for base in BASES)


def _module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def _name_exists(name: str) -> bool:
    """Whether `name`, dotted or not, with `*` for any ending, is ours: as a whole, or each of its parts."""
    ours = known()
    if "*" in name:
        return any(one.startswith(name.partition("*")[0]) for one in ours)
    forms = {name, name.lower(), name.replace("-", "_"), _METRIC_ENDS.sub("", name)}
    if forms & ours or _module_exists(name):
        return True
    # A name that the program puts together: "signature_" and "stale".
    if any(name.startswith(one) and name.removeprefix(one) in ours for one in ours if re.fullmatch(r"[a-z]{3,}_", one)):
        return True
    first, _, rest = name.partition(".")
    return bool(rest) and _name_exists(first) and _name_exists(rest)


def unknown_in(span: str) -> list[str]:
    """The names in a code span that are neither this tree's nor in `OF_OTHERS`."""
    span = span.replace("\\|", "|").strip()
    if span in OF_OTHERS or span in known() or _COMMANDS.match(f"{span} "):
        return []
    if module := _MODULE.match(span):
        return [] if _module_exists(module[1]) or module[1] == "pytest" else [module[1]]
    if span.startswith(_INSTALLED):
        return []
    if address := _ADDRESS.match(span):
        path = address[1].rstrip("/")
        return [] if any(f"{one}/".startswith(f"{path}/") for one in addresses()) else [path]
    names = []
    # What is set to or said with a name is free: `NAME=value`, `--option value`, and texts in quotes.
    rest = re.sub(
        r'"[^"]*"|\'[^\']*\'|=\S*|(?<!\S)--?[a-z][\w-]*(?: \S+)?|(?:https?|wss?)://\S+', " ", _STAND_IN.sub("X", span)
    )
    for path in _PATH.findall(rest):
        rest = rest.replace(path, " ")
        if path not in OF_OTHERS and not _path_exists(path) and not _name_exists(path):
            names.append(path)
    whole = _NAME.fullmatch(rest.strip().removesuffix("()"))
    # Of a longer text only what no prose has: a name with an underscore, a dot or a capital inside.
    words = [whole[0]] if whole else [one for one in _NAME.findall(rest) if re.search(r"\w[_.]\w|[a-z][A-Z]", one)]
    return names + [one for one in words if one not in OF_OTHERS and not _name_exists(one)]
