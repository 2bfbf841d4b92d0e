"""Opens the door while this process leads: certificate, address, upkeep.

The Service of the door has no selector. The leader writes its own address into the Service's EndpointSlice, in one
write that replaces its predecessor's: clients never reach a replica that does not lead, both replicas stay Ready, and
the operator needs no right to change pods (docs/decisions/door-endpoint.md).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web

from finetune_operator.core.ports import FIELD_MANAGER, Door, InvalidError, UnavailableError
from finetune_operator.kube.api import APPLY_PATCH, Api
from finetune_operator.kube.certificates import SERVING_LIFETIME, Authority, KeyPair, new_serving
from finetune_operator.kube.door import serving
from finetune_operator.kube.trust import Trust

log = logging.getLogger(__name__)

SERVICE = "finetune-door"
_PORT_NAME = "https"
_UPKEEP_SECONDS = 300.0
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """Where the door is. `address` is the pod's IP; empty: no EndpointSlice is written."""

    namespace: str
    address: str = ""
    host: str | None = None
    port: int = 8443

    @property
    def url(self) -> str:
        """The door's address for pods."""
        return f"https://{SERVICE}.{self.namespace}.svc"

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the certificate is good for."""
        return tuple(f"{SERVICE}.{self.namespace}{suffix}" for suffix in ("", ".svc", ".svc.cluster.local"))


class Doorway:
    """The open door. `door` is what runs are told of it."""

    def __init__(self, *, api: Api, settings: DoorSettings) -> None:
        self._api = api
        self._settings = settings
        self._trust = Trust(api=api, namespace=settings.namespace)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._authority: Authority | None = None
        self._certificate: KeyPair | None = None

    @property
    def door(self) -> Door | None:
        """Address and authority; None before the door was open."""
        if self._authority is None:
            return None
        return Door(url=self._settings.url, ca_bundle=self._authority.bundle)

    @asynccontextmanager
    async def open(self, *, application: web.Application) -> AsyncIterator[int]:
        """Serve and be found while the context is open; gives the port. Waits for the apiserver as long as it takes."""
        await self._insist(self._renew)
        settings = self._settings
        async with serving(application=application, host=settings.host, port=settings.port, tls=self._context) as port:
            await self._insist(self._publish)
            yield port

    async def keep(self) -> None:
        """Renew what ends, restore what somebody deleted. Runs until cancelled."""
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            try:
                await self._renew()
                await self._publish()
            except (InvalidError, UnavailableError) as error:
                log.warning("upkeep of the door: %s", error)

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await step()
            except UnavailableError as error:
                log.warning("cannot open the door yet: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _renew(self) -> None:
        """Take the authority as it is now, and serve with a certificate of it that is not near its end."""
        authority = await self._trust.ensure()
        now = datetime.now(UTC)
        fresh = self._certificate is not None and self._certificate.not_after - now > SERVING_LIFETIME / 3
        if authority == self._authority and fresh:
            return
        self._certificate = new_serving(authority=authority.current, names=self._settings.names, now=now)
        load_certificate(context=self._context, pair=self._certificate)
        self._authority = authority

    async def _publish(self) -> None:
        """Make the door's Service lead here."""
        settings = self._settings
        if not settings.address:
            return
        manifest = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": SERVICE,
                "namespace": settings.namespace,
                "labels": {
                    "kubernetes.io/service-name": SERVICE,
                    "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER,
                },
            },
            "addressType": f"IPv{ip_address(settings.address).version}",
            "endpoints": [{"addresses": [settings.address], "conditions": {"ready": True}}],
            "ports": [{"name": _PORT_NAME, "port": settings.port, "protocol": "TCP"}],
        }
        await self._api.request(
            method="PATCH",
            path=f"/apis/discovery.k8s.io/v1/namespaces/{settings.namespace}/endpointslices/{SERVICE}",
            query=[("fieldManager", FIELD_MANAGER), ("force", "true")],
            body=manifest,
            content_type=APPLY_PATCH,
        )


def load_certificate(*, context: ssl.SSLContext, pair: KeyPair) -> None:
    """Serve new connections with this certificate. The library reads it from a file, gone when this returns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tls.pem"
        path.touch(mode=0o600)
        path.write_text(pair.certificate + pair.key)
        context.load_cert_chain(path)
