"""How every client of the program connects to Kafka: one value, converted into the options of each client library.

Decides addresses, TLS and SASL. `settings` decides where the values come from.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from aiokafka.helpers import create_ssl_context

TRANSPORT_SCHEME: Final = "dispatchai"
"""URL scheme under which the program's Faust transport is registered (entry point group `faust.transports`)."""

_TLS: Final = frozenset({"SSL", "SASL_SSL"})
_SASL: Final = frozenset({"SASL_PLAINTEXT", "SASL_SSL"})
_PROTOCOLS: Final = frozenset({"PLAINTEXT"}) | _TLS | _SASL
_MECHANISMS: Final = frozenset({"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"})


class Compression(StrEnum):
    """How producers compress their batches. Consumers read all of them, whatever is set."""

    NONE = "none"
    GZIP = "gzip"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Addresses and credentials of one Kafka cluster.

    `bootstrap_servers` is ``host:port[,host:port]``. Raises ValueError for an address, a protocol or a combination
    that no client can use. The password is in no repr, and so in no log.
    """

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    embedded: bool = False
    """Whether this is the embedded broker, which has neither idempotent producers nor an exact high watermark."""
    compression: Compression = Compression.ZSTD

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("no Kafka address: give host:port[,host:port]")
        for server in self.servers:
            host, colon, port = server.rpartition(":")
            if not colon or not host or not port.isdigit() or not 0 < int(port) <= 65_535:
                raise ValueError(f"not a Kafka address: {server!r}; give host:port[,host:port]")
        if self.security_protocol not in _PROTOCOLS:
            raise ValueError(f"unknown security protocol {self.security_protocol!r}; known: {sorted(_PROTOCOLS)}")
        if self.uses_sasl and self.sasl_mechanism not in _MECHANISMS:
            raise ValueError(f"unknown SASL mechanism {self.sasl_mechanism!r}; known: {sorted(_MECHANISMS)}")
        if self.uses_sasl and not self.sasl_username:
            raise ValueError(f"{self.security_protocol} needs a SASL user name")
        if self.ssl_key_file is not None and self.ssl_cert_file is None:
            raise ValueError("a TLS key file needs its certificate file")

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses, each ``host:port``."""
        return tuple(server for item in self.bootstrap_servers.split(",") if (server := item.strip()))

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.security_protocol in _TLS

    @property
    def uses_sasl(self) -> bool:
        """Whether the client authenticates by name and password."""
        return self.security_protocol in _SASL

    def ssl_context(self) -> ssl.SSLContext | None:
        """A new TLS context that verifies the brokers' names, or None without TLS.

        Without `ssl_ca_file` the system's authorities are trusted. Raises OSError, with the setting and the path, if a
        file cannot be read, and ssl.SSLError if it contains no PEM.
        """
        if not self.uses_tls:
            return None
        for setting, path in (
            ("KAFKA_SSL_CA_FILE", self.ssl_ca_file),
            ("KAFKA_SSL_CERT_FILE", self.ssl_cert_file),
            ("KAFKA_SSL_KEY_FILE", self.ssl_key_file),
        ):
            if path is not None:
                _check_readable(setting, path)
        context: ssl.SSLContext = create_ssl_context(
            cafile=self.ssl_ca_file, certfile=self.ssl_cert_file, keyfile=self.ssl_key_file
        )
        return context

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for aiokafka's producer, consumer, client and admin client."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context(),
        }
        if self.uses_sasl:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options

    def producer_options(self) -> dict[str, Any]:
        """Keyword arguments of a producer that loses nothing: acknowledged by all replicas and, except on the embedded
        broker, idempotent, so that a retried request neither duplicates nor reorders records."""
        return {
            **self.client_options(),
            "acks": "all",
            "enable_idempotence": not self.embedded,
            "compression_type": self.compression_type,
        }

    @property
    def compression_type(self) -> str | None:
        """The codec of a producer's batches, as aiokafka names it."""
        return None if self.compression is Compression.NONE else self.compression.value

    def faust_options(self) -> dict[str, Any]:
        """Keyword arguments for ``faust.App``: `broker` (URLs of the program's transport) and `broker_credentials`."""
        # Imported here because other processes need no Faust, and the import takes half a second.
        from faust.auth import SASLCredentials, SSLCredentials

        credentials: SASLCredentials | SSLCredentials | None = None
        context = self.ssl_context()
        if self.uses_sasl:
            credentials = SASLCredentials(
                username=self.sasl_username,
                password=self.sasl_password,
                mechanism=self.sasl_mechanism,
                ssl_context=context,
            )
        elif context is not None:
            credentials = SSLCredentials(context)
        return {
            "broker": [f"{TRANSPORT_SCHEME}://{server}" for server in self.servers],
            "broker_credentials": credentials,
        }


def _check_readable(setting: str, path: Path) -> None:
    """Raise OSError if the file cannot be read: OpenSSL names neither the file nor the setting."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise type(error)(f"{setting}={path} cannot be read: {error.strerror}") from error
