"""Certificates for a TLS listener on loopback: an authority, a server and a client, valid for one day."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Pems:
    """Files of TLS, in PEM: an authority, and what it signed. `server` holds the key, then its certificate."""

    authority: Path
    server: Path
    client_certificate: Path
    client_key: Path


def make_pems(folder: Path) -> Pems:
    """New keys, certified for 127.0.0.1 for a day."""
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority_key = ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> bytes:
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(loopback, critical=False)
            .sign(authority_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pems = Pems(folder / "authority.pem", folder / "server.pem", folder / "client.pem", folder / "client-key.pem")
    pems.authority.write_bytes(certificate("authority", authority_key, is_authority=True))
    pems.server.write_bytes(pem(server_key) + certificate("server", server_key, is_authority=False))
    pems.client_certificate.write_bytes(certificate("client", client_key, is_authority=False))
    pems.client_key.write_bytes(pem(client_key))
    return pems
