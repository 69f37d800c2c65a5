"""Builds the applications, a worker and a speech process: which parts run together, and how they are connected."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import faust.web
import orjson
from aiohttp import ClientError, web
from faust.web.exceptions import ServiceUnavailable
from prometheus_client import Info

from agents import calls, orphaned_states, queue_purge, ranking, signals, speech, triage
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import EventType, derived_id, own_event
from dispatchai.engine.app import App, create_app
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process import health
from dispatchai.process.clock import now_micros
from dispatchai.records import DecodeError, encode, to_json
from dispatchai.settings import Settings
from dispatchai.speech import metrics as speech_metrics
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.client import TelnyxClient
from dispatchai.telnyx.metrics import CommandCollector
from dispatchai.triage.purging import KeepFor
from dispatchai.triage.rules import Rules

WORKER: Final = "dispatchai-worker"
SPEECH: Final = "dispatchai-speech"


def worker_app(settings: Settings) -> App:
    """A worker: the agents calls, signals, triage, ranking and queue_purge.

    Raises RulesError and TopicsFileError, with the file and the line.
    """
    rules = Rules.load(settings.rules_file)
    partitions = Topics.load(settings.topics_file).partitions
    app = create_app(
        WORKER,
        settings.kafka(),
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host=settings.console_host,
        web_names=settings.console_names,
        web_port=settings.worker_port,
        data_dir=_data_dir(settings, "worker"),
        stall_limit_s=settings.stuck_after_s,
        http_connections_max=settings.http_connections_max,
    )
    client = TelnyxClient.from_settings(settings)
    secret = stream_tokens.stream_secret(
        settings.stream_token_secret.get_secret_value(), settings.telnyx_api_key.get_secret_value()
    )

    def token_for(call_id: str, call_control_id: str) -> str:
        if secret is None:
            return ""
        subject = stream_tokens.Subject(call_control_id, call_id)
        return stream_tokens.issue(secret, subject, int(time.time()) + stream_tokens.VALID_S)

    tables: dict[str, KeyedStates[Any] | signals.SignalStates] = {
        calls.NAME: calls.make(
            app, partitions, config=CallControlConfig.from_settings(settings), client=client, token_for=token_for
        ),
        signals.NAME: signals.make(app, partitions),
        triage.NAME: (triaged := triage.make(app, partitions, rules)),
    }
    app.emitter.on_set_aside = partial(_report_too_large, app)
    orphaned_states.make(app, triaged, is_orphaned=lambda state: state.call is None, after_s=settings.call_expiry_s)
    ranking.make(app)
    keep = KeepFor(closed_s=3600 * settings.queue_keep_h, open_s=3600 * settings.queue_keep_open_h)
    queue_purge.make(app, keep)
    app.on_close.append(client.close)

    _pages(app, app.checks)
    app.metrics.registry.register(CommandCollector(client.counts))
    Info("dispatchai_rules", "The rules by which this worker triages.", registry=app.metrics.registry).info(
        {"version": rules.version}
    )
    for name, states in tables.items():
        _table_view(app, name, states)
    return app


async def _report_too_large(app: App, topic: str, call_id: str, partition: int | None) -> None:
    """Record for the call that a record of it was too large, so that it is shown as degraded."""
    if partition is None:
        return
    now = now_micros()
    event = own_event(
        EventType.RECORD_REFUSED,
        derived_id(f"{EventType.RECORD_REFUSED}/{call_id}/{topic}"),
        occurred_at=now,
        received_at=now,
        call_control_id="",
        payload=None,
    )
    await app.emitter.send(Topic.CALL_EVENTS, call_id.encode(), encode(event), partition=partition)


def speech_app(settings: Settings) -> App:
    """A speech process: the speech agent and its recogniser."""
    partitions = Topics.load(settings.topics_file).partitions
    app = create_app(
        SPEECH,
        settings.kafka(),
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host=settings.console_host,
        web_names=settings.console_names,
        web_port=settings.speech_port,
        data_dir=_data_dir(settings, "speech"),
        stall_limit_s=settings.stuck_after_s,
        http_connections_max=settings.http_connections_max,
    )
    made = speech.make(app, partitions, settings)
    checks = {**app.checks, "recognizer": made.is_listening}
    _pages(app, checks)
    app.metrics.registry.register(speech_metrics.Exposed(made.recognizer))
    _table_view(app, speech.NAME, made.states)
    return app


def _data_dir(settings: Settings, name: str) -> Path:
    """The folder that Faust needs, created if it is missing. Nothing in it outlives the process."""
    folder = settings.state_dir / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _pages(app: App, checks: Mapping[str, Callable[[], bool]]) -> None:
    """The health pages, and the metrics, which show the checks too."""
    pages = health.routes(checks, ready_details=app.details)
    app.web.web_app.add_routes([*pages, web.get("/metrics", app.metrics.show)])
    app.metrics.checks(checks)


def _table_view(app: App, name: str, states: KeyedStates[Any] | signals.SignalStates) -> None:
    """`/tables/<agent>/{call_id}`: the live state of an agent for one call, from whichever worker holds it."""

    def error(view: faust.web.View, status: int, code: str, message: str) -> faust.web.Response:
        body = {"error": {"code": code, "message": message}}
        return view.bytes(orjson.dumps(body), content_type="application/json", status=status)

    @app.table_route(app.tables[name], match_info="call_id")
    async def held_here(self: faust.web.View, request: faust.web.Request, call_id: str) -> faust.web.Response:
        try:
            state = states.get(call_id)
        except DecodeError as unreadable:
            return error(self, 500, "unreadable_state", str(unreadable))
        if state is None:
            return error(self, 404, "unknown_call", f"the {name} agent holds no state of this call")
        return self.bytes(orjson.dumps(to_json(state)), content_type="application/json")

    @app.page(f"/tables/{name}/{{call_id}}", name=f"table-{name}")
    async def view(self: faust.web.View, request: faust.web.Request, call_id: str) -> faust.web.Response:
        try:
            found: faust.web.Response = await held_here(self, request, call_id)
        except (ServiceUnavailable, ClientError, TimeoutError):
            # Partitions are being assigned, or the worker that has this one does not answer.
            return error(self, 503, "no_owner", f"no worker that holds the {name} agent's states of this call answers")
        return found
