"""Settings of all processes: from the environment, then from `.env` in the working directory, then the defaults here.

`.env.example` documents each one; a test holds it to this file.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.process.logs import LogFormat

TELNYX_API_URL = "https://api.telnyx.com/v2"

HUMAN_LINE = re.compile(r"\+[1-9][0-9]{6,14}|sips?:[^\s@<>]+@[^\s@<>]+")
"""E.164 (ITU-T, at most 15 digits) or a SIP URI (RFC 3261)."""


class SecurityProtocol(StrEnum):
    """How clients talk to Kafka."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class ByteOrder(StrEnum):
    """Which byte of a sample comes first."""

    LITTLE = "little"
    BIG = "big"


class Verification(StrEnum):
    """Whether signatures are checked."""

    ON = "on"
    OFF = "off"


class SpeechEngine(StrEnum):
    """Which recogniser turns voice into text."""

    MOONSHINE = "moonshine"
    SCRIPTED = "scripted"


class RecordFormat(StrEnum):
    """How the carrier writes a recording."""

    MP3 = "mp3"
    WAV = "wav"


class Settings(BaseSettings):
    """Everything that can be set. Names in the environment are the field names in capitals."""

    # A refusal must not print what it was given: it holds passwords.
    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Kafka
    kafka_bootstrap_servers: str = Field("", description="host:port[,host:port]; empty starts an embedded broker")
    kafka_is_embedded: bool = Field(
        False, description="set by `dispatchai up` for its processes: the broker is the embedded one"
    )
    kafka_security_protocol: SecurityProtocol = Field(
        SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    kafka_sasl_username: str = Field("", description="user of SASL")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="password of SASL")
    kafka_ssl_ca_file: Path | None = Field(None, description="PEM file of the authority that signed the brokers' keys")
    kafka_ssl_cert_file: Path | None = Field(None, description="PEM file of this client's certificate, for mutual TLS")
    kafka_ssl_key_file: Path | None = Field(None, description="PEM file of this client's private key, for mutual TLS")
    kafka_replication_factor: int = Field(1, ge=1, description="copies of each topic; 3 on a cluster")

    # Telnyx
    telnyx_api_key: SecretStr = Field(SecretStr(""), description="API key with Call Control permission (KEY...)")
    telnyx_public_key: str = Field("", description="base64 Ed25519 key that Telnyx signs webhooks with")
    telnyx_public_key_next: str = Field("", description="a second key that is accepted too, for rotation")
    telnyx_webhook_secret: SecretStr = Field(
        SecretStr(""), description="secret of the HMAC-SHA256 header telnyx-signature-sha256, where a proxy signs so"
    )
    webhook_verification: Verification = Field(
        Verification.ON, description="on, or off to try things out on one machine: then anyone can invent calls"
    )
    stream_token_secret: SecretStr = Field(
        SecretStr(""),
        description="secret of the media sockets' tokens, 16 characters or more; empty derives it from TELNYX_API_KEY",
    )
    telnyx_api_url: str = Field(TELNYX_API_URL, description="where call-control commands are sent")
    http_public_url: str = Field("", description="https://... under which Telnyx reaches the gateway")
    ws_public_url: str = Field("", description="wss://.../ws under which Telnyx streams to the gateway")
    webhook_tolerance_s: int = Field(300, ge=1, description="how far a webhook's timestamp may be off, in seconds")
    webhook_max_bytes: int = Field(262_144, ge=1024, description="largest webhook body, in bytes")
    media_message_max_bytes: int = Field(65_536, ge=1024, description="largest media message, in bytes")
    l16_byte_order: ByteOrder = Field(
        ByteOrder.LITTLE, description="little or big: byte order of L16 audio where the audio itself does not tell"
    )

    # The call
    greeting: str = Field(
        "This is Dispatch AI. I'm listening. Please describe your emergency.",
        description="what the caller hears first; empty for none",
    )
    greeting_voice: str = Field("female", description="Telnyx voice of the greeting")
    greeting_language: str = Field("en-US", description="language of the greeting")
    help_prompt: str = Field(
        "Help is being arranged. Please stay on the line.",
        description="what the caller hears when a dispatcher speaks without giving words; empty for none",
    )
    human_line: str = Field(
        "", description="+15551234567 or sip:desk@example.com, where a dispatcher's transfer goes; empty for nowhere"
    )
    record_calls: bool = Field(
        False,
        description="record calls at the carrier, each side on a channel of its own; telling callers is up to you",
    )
    record_format: RecordFormat = Field(RecordFormat.MP3, description="format of the recordings: mp3 or wav")
    stream_restarts_max: int = Field(
        5, ge=0, description="how often a call's audio stream is started again after it failed"
    )
    call_deadline_s: float = Field(
        30.0, gt=0, description="seconds after a hangup until its packet is made final without what is missing"
    )
    call_expiry_s: float = Field(
        3600.0, gt=0, description="seconds after the deadline of a call was written until its state is given up"
    )
    call_longest_s: float = Field(
        14_400.0, gt=0, description="seconds after which a call that was never hung up is given up"
    )

    # Processes
    gateway_host: str = Field("127.0.0.1", description="address that the gateway listens on")
    gateway_port: int = Field(8000, ge=0, le=65_535, description="port of webhooks and media")
    console_host: str = Field("127.0.0.1", description="address that the worker's page and REST listen on")
    console_port: int = Field(6066, ge=0, le=65_535, description="port of the page and REST of the first worker")
    console_hosts: str = Field(
        "", description="host names, comma separated, besides this machine's own that dispatchers reach the page under"
    )
    console_finished_max: int = Field(
        5_000, ge=1, description="finished calls that the page and REST keep, the newest; older ones are in the topic"
    )
    speech_port: int = Field(6067, ge=0, le=65_535, description="port of the speech process's health page")
    simulated_carrier_port: int = Field(
        6068,
        ge=0,
        le=65_535,
        description="port on which `dispatchai call` serves call control when no Telnyx key is set",
    )
    state_dir: Path = Field(Path(".dispatchai"), description="folder of what a run leaves for the other commands")
    stuck_after_s: float = Field(
        30.0,
        gt=0,
        description="seconds without progress, though records wait, after which a process ends to be started again",
    )
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="console or json")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    # Speech
    speech_engine: SpeechEngine = Field(SpeechEngine.MOONSHINE, description="moonshine")
    speech_processes: int = Field(1, ge=1, le=64, description="processes that recognise; one carries about four calls")
    speech_update_ms: int = Field(1000, ge=200, description="how often a partial text is renewed, in ms of audio")

    @property
    def carrier_is_simulated(self) -> bool:
        """Whether commands go to `dispatchai call` on this machine and not to Telnyx."""
        return not self.telnyx_api_key.get_secret_value()

    @property
    def console_host_names(self) -> frozenset[str]:
        """The names of CONSOLE_HOSTS, in lower case."""
        return frozenset(name for item in self.console_hosts.split(",") if (name := item.strip().lower()))

    def kafka(self, bootstrap_servers: str | None = None) -> KafkaConnection:
        """How to reach Kafka: the configured one, or with `bootstrap_servers` that one (the embedded broker).

        Credentials belong to the configured cluster, so an address given here is reached without any. Raises
        ValueError when neither names an address.
        """
        if bootstrap_servers is not None and bootstrap_servers != self.kafka_bootstrap_servers:
            return KafkaConnection(bootstrap_servers, embedded=True)
        return KafkaConnection(
            bootstrap_servers=self.kafka_bootstrap_servers,
            embedded=self.kafka_is_embedded,
            security_protocol=self.kafka_security_protocol.value,
            sasl_mechanism=self.kafka_sasl_mechanism,
            sasl_username=self.kafka_sasl_username,
            sasl_password=self.kafka_sasl_password.get_secret_value(),
            ssl_ca_file=self.kafka_ssl_ca_file,
            ssl_cert_file=self.kafka_ssl_cert_file,
            ssl_key_file=self.kafka_ssl_key_file,
        )

    @field_validator("kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """An empty variable is no file; without this it would be the working directory."""
        return None if value == "" else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and not self.kafka_sasl_username:
            raise ValueError("KAFKA_SECURITY_PROTOCOL asks for SASL: set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
        if self.webhook_verification is Verification.OFF and self.http_public_url:
            raise ValueError("WEBHOOK_VERIFICATION=off is not allowed with HTTP_PUBLIC_URL: the gateway is public")
        if 0 < len(self.stream_token_secret.get_secret_value()) < 16:
            raise ValueError("STREAM_TOKEN_SECRET is too short: give at least 16 characters")
        if self.ws_public_url and not self.ws_public_url.startswith(("ws://", "wss://")):
            raise ValueError("WS_PUBLIC_URL must begin with wss:// (or ws:// on this machine), not with http")
        if self.human_line and not HUMAN_LINE.fullmatch(self.human_line):
            raise ValueError("HUMAN_LINE must be a number such as +15551234567 or an address such as sip:desk@host")
        if self.http_public_url and not self.http_public_url.startswith(("http://", "https://")):
            raise ValueError("HTTP_PUBLIC_URL must begin with https:// (or http:// on this machine)")
        return self


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
