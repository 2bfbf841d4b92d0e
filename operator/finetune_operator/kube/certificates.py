"""The door's certificate authority and its serving certificates: made here, so that the door needs no other software.

All functions are pure: time and names come in, PEM text goes out. EC keys on P-256. The extensions are those that
RFC 5280 asks for, since Python 3.13 and later verify strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SUCCESSOR_AHEAD = timedelta(days=730)
"""A successor is published this long before the authority ends ..."""
SUCCESSION_AHEAD = timedelta(days=365)
"""... and signs from this long before the end. In between, every run that is still going has learned of it."""
SERVING_LIFETIME = timedelta(days=90)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: str
    key: str

    @property
    def not_after(self) -> datetime:
        """When the certificate ends (UTC)."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Who signs the door's certificates: now, and (when that is near its end) next."""

    current: KeyPair
    successor: KeyPair | None = None

    @property
    def bundle(self) -> str:
        """The certificates that a client must trust, PEM."""
        return self.current.certificate + (self.successor.certificate if self.successor else "")


def maintained(*, authority: Authority | None, now: datetime) -> Authority:
    """The authority that should exist now: the same object where nothing is to be done."""
    if authority is None:
        return Authority(current=new_authority(now=now))
    left = authority.current.not_after - now
    if left < SUCCESSION_AHEAD and authority.successor is not None:
        return Authority(current=authority.successor)
    if left <= timedelta(0):
        return Authority(current=new_authority(now=now))
    if left < SUCCESSOR_AHEAD and authority.successor is None:
        return Authority(current=authority.current, successor=new_authority(now=now))
    return authority


def new_authority(*, now: datetime) -> KeyPair:
    """A self-signed authority that signs serving certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"finetune-operator door {now:%Y-%m-%d}")])
    certificate = (
        _builder(subject=name, issuer=name, key=key, now=now, lifetime=AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate=certificate, key=key)


def new_serving(*, authority: KeyPair, names: tuple[str, ...], now: datetime) -> KeyPair:
    """A serving certificate for these DNS names and IP addresses."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = serialization.load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the door's authority has a key of another type than EC; delete its Secret to make a new one")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator door")])
    certificate = (
        _builder(subject=subject, issuer=issuer.subject, key=key, now=now, lifetime=SERVING_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative_name(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(certificate=certificate, key=key)


def _builder(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pair(*, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )
