"""The door's authority: what it signs verifies, and clients never meet a certificate that they cannot check."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from finetune_operator.kube.certificates import (
    AUTHORITY_LIFETIME,
    SERVING_LIFETIME,
    SUCCESSION_AHEAD,
    SUCCESSOR_AHEAD,
    Authority,
    KeyPair,
    maintained,
    new_authority,
    new_serving,
)
from finetune_operator.kube.doorway import load_certificate

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NAMES = ("finetune-door.finetune-system.svc", "127.0.0.1")


async def handshake(*, serving: KeyPair, trust: str, name: str, strict: bool = True) -> None:
    """A TLS connection to a server on loopback. Raises ssl.SSLError."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_certificate(context=server_context, pair=serving)
    client_context = ssl.create_default_context(cadata=trust)
    if strict:
        client_context.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 does by itself

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context, server_hostname=name)
        writer.close()


@pytest.mark.parametrize("name", NAMES)
async def test_clients_that_trust_the_authority_connect(name: str) -> None:
    now = datetime.now(UTC)
    authority = new_authority(now=now)
    serving = new_serving(authority=authority, names=NAMES, now=now)
    await handshake(serving=serving, trust=authority.certificate, name=name)


async def test_another_name_or_another_authority_is_refused() -> None:
    now = datetime.now(UTC)
    authority, other = new_authority(now=now), new_authority(now=now)
    serving = new_serving(authority=authority, names=NAMES, now=now)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname"):
        await handshake(serving=serving, trust=authority.certificate, name="kubernetes.default.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(serving=serving, trust=other.certificate, name=NAMES[0])


def test_the_authority_signs_certificates_and_nothing_else() -> None:
    certificate = x509.load_pem_x509_certificate(new_authority(now=NOW).certificate.encode())
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_lifetimes() -> None:
    authority = new_authority(now=NOW)
    assert authority.not_after == NOW + AUTHORITY_LIFETIME
    assert new_serving(authority=authority, names=NAMES, now=NOW).not_after == NOW + SERVING_LIFETIME


def test_an_authority_is_made_once_and_then_kept() -> None:
    first = maintained(authority=None, now=NOW)
    assert maintained(authority=first, now=NOW + timedelta(days=1000)) is first


def test_a_successor_is_known_a_year_before_it_signs() -> None:
    end = NOW + AUTHORITY_LIFETIME
    first = maintained(authority=None, now=NOW)
    announced = maintained(authority=first, now=end - SUCCESSOR_AHEAD + timedelta(days=1))
    assert announced.current == first.current
    assert announced.successor is not None
    assert announced.bundle == first.current.certificate + announced.successor.certificate
    assert maintained(authority=announced, now=end - SUCCESSION_AHEAD - timedelta(days=1)) is announced
    succeeded = maintained(authority=announced, now=end - SUCCESSION_AHEAD + timedelta(days=1))
    assert succeeded == Authority(current=announced.successor)
    assert timedelta(days=365) <= SUCCESSOR_AHEAD - SUCCESSION_AHEAD


async def test_whoever_learned_of_the_successor_trusts_what_it_signs() -> None:
    now = datetime.now(UTC)
    announced = Authority(current=new_authority(now=now), successor=new_authority(now=now))
    assert announced.successor is not None
    for signer in (announced.current, announced.successor):
        serving = new_serving(authority=signer, names=NAMES, now=now)
        await handshake(serving=serving, trust=announced.bundle, name=NAMES[0])


def test_an_operator_that_slept_through_it_starts_anew() -> None:
    late = NOW + AUTHORITY_LIFETIME + timedelta(days=1)
    first = maintained(authority=None, now=NOW)
    assert maintained(authority=first, now=late).current.not_after == late + AUTHORITY_LIFETIME
