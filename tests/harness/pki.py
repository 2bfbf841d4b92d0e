"""Keys and certificates of an environment: one CA, a serving certificate, and client certificates that are the users.

A user is a client certificate (common name = user name, organisations = groups), so a test can mint one at any time
without a restart of the apiserver. Elliptic-curve keys: a millisecond each.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=365)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """PEM bytes."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The environment's certificate authority; its files lie in `folder`."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """Make the CA and the key that signs service-account tokens."""
        folder.mkdir(parents=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("finetune-test-ca", ())
        certificate = (
            _builder(subject=name, issuer=name, key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        _write(folder / "ca.key", _private(key))
        _write(folder / "service-accounts.key", _private(ec.generate_private_key(ec.SECP256R1())))
        return cls(folder=folder)

    @property
    def certificate(self) -> Path:
        """The CA's certificate."""
        return self.folder / "ca.crt"

    @property
    def service_account_key(self) -> Path:
        """Signs and verifies service-account tokens."""
        return self.folder / "service-accounts.key"

    def client(self, *, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A user's certificate."""
        return self._issue(subject=_name(user, groups), usage=ExtendedKeyUsageOID.CLIENT_AUTH, alternatives=())

    def server(self, *, name: str, alternatives: Sequence[str]) -> tuple[Path, Path]:
        """Certificate and key files of a server reachable under these DNS names and IP addresses."""
        pair = self._issue(subject=_name(name, ()), usage=ExtendedKeyUsageOID.SERVER_AUTH, alternatives=alternatives)
        return self.write(name=name, pair=pair)

    def write(self, *, name: str, pair: KeyPair) -> tuple[Path, Path]:
        """Put a pair into files; returns certificate and key."""
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        _write(files[0], pair.certificate)
        _write(files[1], pair.key)
        return files

    def kubeconfig(self, path: Path, *, server: str, user: str, groups: Sequence[str] = ()) -> Path:
        """Write a self-contained kubeconfig for a new certificate of `user`. JSON is YAML."""
        pair = self.client(user=user, groups=groups)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "finetune-test",
            "clusters": [
                {
                    "name": "finetune-test",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": _encoded(self.certificate.read_bytes()),
                    },
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _encoded(pair.certificate),
                        "client-key-data": _encoded(pair.key),
                    },
                }
            ],
            "contexts": [{"name": "finetune-test", "context": {"cluster": "finetune-test", "user": user}}],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(content, indent=1).encode())
        return path

    def _issue(self, *, subject: x509.Name, usage: x509.ObjectIdentifier, alternatives: Sequence[str]) -> KeyPair:
        authority = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        signer = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), password=None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject=subject, issuer=authority.subject, key=key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if alternatives:
            names = [_alternative(text) for text in alternatives]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        return KeyPair(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_private(key))


def _builder(*, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
    )


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The traditional format ("EC PRIVATE KEY") is what every component reads.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
