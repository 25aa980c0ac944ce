"""Certificates of a run, made on the spot: one authority, one certificate a party, good for a day.

Every connection is TLS 1.3 and checks both ends: that the authority of this run signed the other's certificate, and
whose name it carries. Private keys are in files that their owner alone can read.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise ImportError("certificates need cryptography: pip install 'p2penv[private]'") from error

EARLY, VALID = timedelta(minutes=5), timedelta(days=1)
AUTHORITY, CERTIFICATE, KEY = "authority.pem", "certificate.pem", "key.pem"


class Authority:
    """Signs the certificates of one run; its key stays in memory."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2penv run")])
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._name = name
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)  # signs certificates
        self.certificate = (
            _builder(name, name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str, folder: Path) -> None:
        """Make a party's key and certificate and write them, and the authority's certificate, to its folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)  # signs handshakes
        both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        certificate = (
            _builder(subject, self._name, key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(both_ends, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(folder / AUTHORITY, self.certificate.public_bytes(pem))
        write(folder / CERTIFICATE, certificate.public_bytes(pem))
        write(folder / KEY, secret)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + VALID)
    )


def private(path: str, flags: int) -> int:
    """Opens a file that, if it is new, only its owner can read."""
    return os.open(path, flags, 0o600)


def write(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read.

    Raises:
        FileExistsError: it is there, perhaps readable by others.
    """
    with open(path, "xb", opener=private) as file:
        file.write(data)


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a party accepts and opens connections with."""
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / AUTHORITY)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        made.append(context)
    return made[0], made[1]


def name_of(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Whose certificate the other end of a connection has shown."""
    shown: Any = connection.getpeercert() or {}
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    if len(names) != 1:
        raise ssl.SSLCertVerificationError(f"certificate must carry one name, got {names}")
    return str(names[0])
