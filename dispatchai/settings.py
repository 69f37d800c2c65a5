"""The settings of all processes. A value comes from the environment, else from `.env` in the working directory, else
from the default here.

Decides names, defaults and which values are refused. `.env.example` repeats the descriptions; a test keeps it equal.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dispatchai.kafka.connection import Compression, KafkaConnection
from dispatchai.process.logs import LogFormat
from dispatchai.process.loopback import is_loopback

TELNYX_API_URL = "https://api.telnyx.com/v2"

HMAC_REMEMBERED_S: Final = 1800.0
"""How long calls must be remembered where HMAC signs webhooks: twice as long as an event may be redelivered, see
`telnyx.signatures`."""

HUMAN_LINE = re.compile(r"\+[1-9][0-9]{6,14}|sips?:[^\s@<>]+@[^\s@<>]+")
"""E.164 (ITU-T, at most 15 digits) or a SIP URI (RFC 3261)."""


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SecurityProtocol(StrEnum):
    """How clients connect to Kafka."""

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
    """The recogniser that transcribes callers."""

    MOONSHINE = "moonshine"
    SCRIPTED = "scripted"


class RecordFormat(StrEnum):
    """The carrier's file format for recordings."""

    MP3 = "mp3"
    WAV = "wav"


class Settings(BaseSettings):
    """Everything that can be set. The names in the environment are the field names in capitals."""

    # An error must not print the values that were given: some are passwords.
    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Kafka
    kafka_bootstrap_servers: str = Field(
        "", description="Kafka's addresses: host:port[,host:port]. Empty starts an embedded broker."
    )
    kafka_is_embedded: bool = Field(
        False, description="Whether the broker is the embedded one. `dispatchai up` sets it for its processes."
    )
    kafka_security_protocol: SecurityProtocol = Field(
        SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
    kafka_sasl_username: str = Field("", description="User name for SASL.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="Password for SASL.")
    kafka_ssl_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority that signed the brokers' certificates. Empty: the system's.",
    )
    kafka_ssl_cert_file: Path | None = Field(None, description="PEM file of this client's certificate, for mutual TLS.")
    kafka_ssl_key_file: Path | None = Field(None, description="PEM file of this client's private key, for mutual TLS.")
    kafka_compression: Compression = Field(
        Compression.ZSTD,
        description="How producers compress records: none, gzip, snappy, lz4 or zstd.",
    )
    kafka_replication_factor: int = Field(1, ge=1, description="Replicas of each topic; 3 on a cluster.")

    # Telnyx
    telnyx_api_key: SecretStr = Field(
        SecretStr(""),
        description="API key with Call Control permission (KEY...). Empty sends commands to `dispatchai call` instead.",
    )
    telnyx_public_key: str = Field("", description="Base64 of the Ed25519 key with which Telnyx signs webhooks.")
    telnyx_public_key_next: str = Field("", description="A second public key that is also accepted, for rotation.")
    telnyx_webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret of the HMAC-SHA256 header telnyx-signature-sha256, if a proxy signs webhooks with it.",
    )
    webhook_verification: Verification = Field(
        Verification.ON, description="on, or off to try things out on one machine: with off anyone can invent calls."
    )
    stream_token_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret of the media sockets' tokens, 16 characters or more. Empty derives it from TELNYX_API_KEY.",
    )
    telnyx_api_url: str = Field(TELNYX_API_URL, description="URL to which call-control commands are sent.")
    http_public_url: str = Field("", description="https:// URL under which Telnyx reaches the gateway.")
    ws_public_url: str = Field("", description="wss:// URL, ending in /ws, to which Telnyx streams a caller's voice.")
    webhook_tolerance_s: int = Field(
        300,
        ge=1,
        le=900,
        description="How far a webhook's timestamp may differ from this machine's clock, in seconds; 900 at most.",
    )
    webhook_max_bytes: int = Field(262_144, ge=1024, description="Largest webhook body, in bytes.")
    media_message_max_bytes: int = Field(65_536, ge=1024, description="Largest media message, in bytes.")
    media_ahead_s: float = Field(
        60.0,
        ge=1,
        description="Seconds of audio that a stream may bring faster than speech. Then its socket is read no faster.",
    )
    l16_byte_order: ByteOrder = Field(
        ByteOrder.LITTLE, description="Byte order of L16 audio, little or big, if the audio itself does not show it."
    )

    # The call
    greeting: str = Field(
        "This is Dispatch AI. I'm listening. Please describe your emergency.",
        description="What the caller hears first. Empty for no greeting.",
    )
    greeting_voice: str = Field("female", description="Telnyx voice of the greeting.")
    greeting_language: str = Field("en-US", description="Language of the greeting.")
    help_prompt: str = Field(
        "Help is being arranged. Please stay on the line.",
        description="What the caller hears when a dispatcher speaks without a text. Empty for nothing.",
    )
    human_line: str = Field(
        "",
        description="Where a dispatcher's transfer goes: +15551234567 or sip:desk@example.com. Empty for nowhere.",
    )
    record_calls: bool = Field(
        False,
        description="Record calls at the carrier, each side on its own channel. Informing callers is up to you.",
    )
    record_format: RecordFormat = Field(RecordFormat.MP3, description="Format of the recordings: mp3 or wav.")
    stream_restarts_max: int = Field(
        5, ge=0, description="How often a call's audio stream is restarted after it failed."
    )
    call_deadline_s: float = Field(
        30.0, gt=0, description="Seconds after the hangup at which a packet becomes final even if something is missing."
    )
    call_expiry_s: float = Field(
        3600.0, gt=0, description="Seconds after the recorded deadline at which the state of a call is given up."
    )
    call_longest_s: float = Field(
        14_400.0, gt=0, description="Seconds after which a call without a hangup is given up."
    )

    queue_keep_h: float = Field(
        24.0, gt=0, description="Hours after a call's end at which its packet leaves the queue once somebody closed it."
    )
    queue_keep_open_h: float = Field(
        72.0, gt=0, description="The same while nobody has closed it. Every packet stays in the topic packets."
    )

    # Processes
    gateway_host: str = Field("127.0.0.1", description="Address on which the gateway listens.")
    gateway_port: int = Field(8000, ge=0, le=65_535, description="Port of webhooks and media.")
    gateway_tunnel_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Loopback port of webhooks and media alone, for a tunnel. 0 for none; `dispatchai dev` sets it.",
    )
    console_host: str = Field(
        "127.0.0.1",
        description="Address on which the page and REST listen, and the health pages of workers and speech processes.",
    )
    console_port: int = Field(6066, ge=0, le=65_535, description="Port of the page and REST.")
    console_hosts: str = Field(
        "",
        description="Names and addresses, comma separated, under which page and health pages are asked besides this "
        "machine's own.",
    )
    console_finished_max: int = Field(
        5_000, ge=1, description="Finished calls that the page and REST keep, the newest. Older ones are in the topic."
    )
    worker_port: int = Field(6069, ge=0, le=65_535, description="Port of a worker's health page, metrics and tables.")
    speech_port: int = Field(6067, ge=0, le=65_535, description="Port of the speech process's health page.")
    simulated_carrier_port: int = Field(
        6068,
        ge=0,
        le=65_535,
        description="Port on which `dispatchai call` serves call control while TELNYX_API_KEY is empty.",
    )
    http_connections_max: int = Field(
        5_000, ge=1, description="Open HTTP connections of a process. A new one then takes the place of one that waits."
    )
    state_dir: Path = Field(
        Path(".dispatchai"), description="Folder of the files by which the commands on this machine find each other."
    )
    rules_file: Path | None = Field(
        None,
        description="The rules of triage. Empty: those that ship with the program. `dispatchai rules check` reads it.",
    )
    topics_file: Path | None = Field(
        None, description="The list of topics. Empty: the topics.yaml that ships with the program."
    )
    doctor_workers: str = Field(
        "",
        description="Pages of all workers for `dispatchai doctor`: host:port, comma separated. Empty: this machine's.",
    )
    stuck_after_s: float = Field(
        30.0,
        gt=0,
        description="Seconds without progress, while records wait, after which a process ends to be restarted.",
    )
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="console or json.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    # Speech
    speech_engine: SpeechEngine = Field(SpeechEngine.MOONSHINE, description="The recogniser: moonshine.")
    speech_processes: int = Field(1, ge=1, le=64, description="Recogniser processes. One carries about four calls.")
    speech_update_ms: int = Field(1000, ge=200, description="How often a partial text is renewed, in ms of audio.")

    @property
    def carrier_is_simulated(self) -> bool:
        """Whether commands go to `dispatchai call` on this machine instead of Telnyx."""
        return not self.telnyx_api_key.get_secret_value()

    @property
    def console_names(self) -> frozenset[str]:
        """CONSOLE_HOST and the names of CONSOLE_HOSTS, in lower case."""
        items = (self.console_host, *self.console_hosts.split(","))
        return frozenset(name for item in items if (name := item.strip().lower()))

    @property
    def doctor_worker_addresses(self) -> tuple[str, ...]:
        """The addresses of DOCTOR_WORKERS, each ``host:port``."""
        return tuple(address for item in self.doctor_workers.split(",") if (address := item.strip()))

    def kafka(self, bootstrap_servers: str | None = None) -> KafkaConnection:
        """How to connect to the configured Kafka or, with `bootstrap_servers`, to the embedded broker at that address.

        The credentials belong to the configured cluster, so they are not sent to another address. Raises ValueError
        without any address.
        """
        if bootstrap_servers is not None and bootstrap_servers != self.kafka_bootstrap_servers:
            return KafkaConnection(bootstrap_servers, embedded=True, compression=self.kafka_compression)
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
            compression=self.kafka_compression,
        )

    @field_validator(
        *("kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file", "rules_file", "topics_file"), mode="before"
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """An empty variable means no file. Without this it would mean the working directory."""
        return None if value == "" else value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value not in _LEVELS:
            raise ValueError(f"must be one of {', '.join(_LEVELS)}")
        return value

    @field_validator("doctor_workers")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for item in value.split(","):
            host, _, port = item.strip().rpartition(":")
            if item.strip() and not (host and port.isdigit() and 0 < int(port) <= 65_535):
                raise ValueError("must be host:port[,host:port]")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and not self.kafka_sasl_username:
            raise ValueError("KAFKA_SECURITY_PROTOCOL uses SASL: set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
        if self.webhook_verification is Verification.OFF and self.http_public_url:
            raise ValueError("WEBHOOK_VERIFICATION=off is not allowed with HTTP_PUBLIC_URL: the gateway is public")
        if 0 < len(self.stream_token_secret.get_secret_value()) < 16:
            raise ValueError("STREAM_TOKEN_SECRET is too short: give at least 16 characters")
        if self.ws_public_url and not self.ws_public_url.startswith(("ws://", "wss://")):
            raise ValueError("WS_PUBLIC_URL must begin with wss:// (or ws:// on this machine), not with http")
        api = urlsplit(self.telnyx_api_url)
        if api.scheme != "https" and not (api.scheme == "http" and is_loopback(api.hostname or "")):
            raise ValueError(
                "TELNYX_API_URL must begin with https:// (or http:// on this machine): the API key is sent to it. "
                f"Unset it for Telnyx, {TELNYX_API_URL}"
            )
        if self.call_expiry_s < 2 * self.webhook_tolerance_s or (
            self.telnyx_webhook_secret.get_secret_value() and self.call_expiry_s < HMAC_REMEMBERED_S
        ):
            raise ValueError(
                "CALL_EXPIRY_S is too short: a call must be remembered while its webhooks could be sent again. "
                f"Give at least twice WEBHOOK_TOLERANCE_S, and {HMAC_REMEMBERED_S:g} with TELNYX_WEBHOOK_SECRET"
            )
        if self.human_line and not HUMAN_LINE.fullmatch(self.human_line):
            raise ValueError("HUMAN_LINE must be a number such as +15551234567 or an address such as sip:desk@host")
        if self.http_public_url and not self.http_public_url.startswith(("http://", "https://")):
            raise ValueError("HTTP_PUBLIC_URL must begin with https:// (or http:// on this machine)")
        return self


@cache
def settings() -> Settings:
    """The settings of this process. They are read once."""
    return Settings()


class _LogFormatAlone(BaseSettings):
    """The one setting that decides how the errors of the others are written."""

    model_config = Settings.model_config

    log_format: LogFormat = LogFormat.CONSOLE


def log_format_alone() -> LogFormat:
    """LOG_FORMAT while other settings are wrong; for people if it is wrong itself."""
    try:
        return _LogFormatAlone().log_format
    except ValidationError:
        return LogFormat.CONSOLE
