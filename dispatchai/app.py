"""Builds the applications, a worker and a speech process: which parts run together, and how they are connected."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import faust.web
import orjson
from aiohttp import web
from prometheus_client import Info

from agents import calls, orphaned_states, ranking, signals, speech, triage
from dispatchai.calls.config import CallControlConfig
from dispatchai.console import actions
from dispatchai.console import metrics as console_metrics
from dispatchai.console.topic_feed import Feed
from dispatchai.console.web import mount
from dispatchai.engine.app import App, create_app
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process import health
from dispatchai.records import to_json
from dispatchai.settings import Settings
from dispatchai.speech import metrics as speech_metrics
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.client import TelnyxClient
from dispatchai.telnyx.metrics import CommandCollector
from dispatchai.triage.rules import Rules

WORKER: Final = "dispatchai-worker"
SPEECH: Final = "dispatchai-speech"

STREAM_TOKEN_VALID_S: Final = 4 * 3600
"""How long a stream's token is valid: the carrier may reconnect with it for as long as the longest call lasts."""


def worker_app(settings: Settings, *, port: int | None = None) -> App:
    """A worker: the agents calls, signals, triage and ranking, and the views. `port` overrides CONSOLE_PORT.

    Raises RulesError and TopicsFileError, with the file and the line.
    """
    connection = settings.kafka()
    rules = Rules.load(settings.rules_file)
    partitions = Topics.load(settings.topics_file).partitions
    app = create_app(
        WORKER,
        connection,
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host=settings.console_host,
        web_port=settings.console_port if port is None else port,
        data_dir=_data_dir(settings, "worker"),
        stall_limit_s=settings.stuck_after_s,
    )
    client = TelnyxClient.from_settings(settings)
    secret = stream_tokens.stream_secret(
        settings.stream_token_secret.get_secret_value(), settings.telnyx_api_key.get_secret_value()
    )

    def token_for(call_id: str, call_control_id: str) -> str:
        if secret is None:
            return ""
        subject = stream_tokens.Subject(call_control_id, call_id)
        return stream_tokens.issue(secret, subject, int(time.time()) + STREAM_TOKEN_VALID_S)

    tables: dict[str, KeyedStates[Any] | signals.SignalStates] = {
        calls.NAME: calls.make(
            app, partitions, config=CallControlConfig.from_settings(settings), client=client, token_for=token_for
        ),
        signals.NAME: signals.make(app, partitions),
        triage.NAME: (triaged := triage.make(app, partitions, rules)),
    }
    orphaned_states.make(app, triaged, is_orphaned=lambda state: state.call is None, after_s=settings.call_expiry_s)
    ranking.make(app)
    app.on_close.append(client.close)

    feed = Feed(connection, max_finals=settings.console_finished_max)
    app.background(feed.start)
    app.on_close.append(feed.stop)
    mount(app.web.web_app, feed, checks=app.checks)
    app.metrics.checks({"views": lambda: feed.ready, **app.checks})
    app.metrics.registry.register(console_metrics.Exposed(feed))
    app.metrics.registry.register(CommandCollector(client.counts))
    Info("dispatchai_rules", "The rules by which this worker triages.", registry=app.metrics.registry).info(
        {"version": rules.version}
    )
    _metrics(app)
    writer = actions.ActionWriter(connection)
    app.on_close.append(writer.close)
    app.web.web_app.add_routes(
        actions.routes(feed, writer, hosts=settings.console_host_names, can_transfer=bool(settings.human_line))
    )
    for name, states in tables.items():
        _table_view(app, name, states)
    return app


def speech_app(settings: Settings) -> App:
    """A speech process: the speech agent and its recogniser."""
    partitions = Topics.load(settings.topics_file).partitions
    app = create_app(
        SPEECH,
        settings.kafka(),
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host=settings.console_host,
        web_port=settings.speech_port,
        data_dir=_data_dir(settings, "speech"),
        stall_limit_s=settings.stuck_after_s,
    )
    made = speech.make(app, partitions, settings)
    checks = {**app.checks, "recognizer": made.is_listening}
    app.web.web_app.add_routes(health.routes(checks))
    app.metrics.checks(checks)
    app.metrics.registry.register(speech_metrics.Exposed(made.recognizer))
    _metrics(app)
    _table_view(app, speech.NAME, made.states)
    return app


def _data_dir(settings: Settings, name: str) -> Path:
    """The folder that Faust needs, created if it is missing. Nothing in it outlives the process."""
    folder = settings.state_dir / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _metrics(app: App) -> None:
    app.web.web_app.add_routes([web.get("/metrics", app.metrics.show)])


def _table_view(app: App, name: str, states: KeyedStates[Any] | signals.SignalStates) -> None:
    """`/tables/<agent>/{call_id}`: the live state of an agent for one call, from whichever worker holds it."""

    @app.page(f"/tables/{name}/{{call_id}}", name=f"table-{name}")
    @app.table_route(app.tables[name], match_info="call_id")
    async def view(self: faust.web.View, request: faust.web.Request, call_id: str) -> faust.web.Response:
        state = states.get(call_id)
        if state is None:
            body = {"error": {"code": "unknown_call", "message": f"the {name} agent holds no state of this call"}}
            return self.bytes(orjson.dumps(body), content_type="application/json", status=404)
        return self.bytes(orjson.dumps(to_json(state)), content_type="application/json")
