"""Keeps the door's authority in a Secret and publishes what clients must trust in a ConfigMap.

Both are in the operator's namespace, so that replicas and restarts share one authority: a run that learned of it once
can report to every later leader.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_operator.core.ports import (
    FIELD_MANAGER,
    AlreadyExistsError,
    ConflictError,
    Manifest,
    NotFoundError,
    UnavailableError,
)
from finetune_operator.kube.api import APPLY_PATCH, Api
from finetune_operator.kube.certificates import Authority, KeyPair, maintained
from finetune_operator.kube.kinds import PLACES

NAME = "finetune-door-ca"
"""Of the Secret and of the ConfigMap."""
BUNDLE_KEY = "ca.crt"
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The authority of the door, kept in `namespace`."""

    api: Api
    namespace: str

    async def ensure(self) -> Authority:
        """Read the authority, or make, renew and publish it. Raises UnavailableError."""
        for _ in range(_ATTEMPTS):
            secret = await self._read()
            stored = _authority_of(secret=secret) if secret else None
            authority = maintained(authority=stored, now=datetime.now(UTC))
            try:
                if authority is not stored:
                    await self._write(authority=authority, previous=secret)
            except (AlreadyExistsError, ConflictError, NotFoundError):
                continue  # another replica was faster; take what it wrote
            await self._publish(bundle=authority.bundle)
            return authority
        raise UnavailableError(f"Secret {self.namespace}/{NAME} changes faster than it can be written")

    async def _read(self) -> Manifest | None:
        try:
            return await self.api.request(method="GET", path=f"{self._secrets}/{NAME}")
        except NotFoundError:
            return None

    async def _write(self, *, authority: Authority, previous: Manifest | None) -> None:
        metadata: Manifest = {"name": NAME, "namespace": self.namespace}
        if previous is not None:
            metadata["resourceVersion"] = previous["metadata"]["resourceVersion"]
        await self.api.request(
            method="PUT" if previous else "POST",
            path=f"{self._secrets}/{NAME}" if previous else self._secrets,
            body={
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": metadata,
                "type": "Opaque",
                "data": _data_of(authority=authority),
            },
        )

    async def _publish(self, *, bundle: str) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "data": {BUNDLE_KEY: bundle},
        }
        # Of this name in our own namespace there is but ours.
        await self.api.request(
            method="PATCH",
            path=PLACES["ConfigMap"].item(namespace=self.namespace, name=NAME),
            query=[("fieldManager", FIELD_MANAGER), ("force", "true")],
            body=manifest,
            content_type=APPLY_PATCH,
        )

    @property
    def _secrets(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets"


def _data_of(*, authority: Authority) -> dict[str, str]:
    text = {"tls.crt": authority.current.certificate, "tls.key": authority.current.key}
    if authority.successor is not None:
        text |= {"next.crt": authority.successor.certificate, "next.key": authority.successor.key}
    return {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}


def _authority_of(*, secret: Manifest) -> Authority | None:
    """What the Secret holds; None where that is not an authority (somebody emptied it), so that a new one is made."""
    try:
        text = {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
        current = KeyPair(certificate=text["tls.crt"], key=text["tls.key"])
        current.not_after  # noqa: B018 - parses the certificate
    except (KeyError, ValueError, binascii.Error):
        return None
    if "next.crt" not in text or "next.key" not in text:
        return Authority(current=current)
    return Authority(current=current, successor=KeyPair(certificate=text["next.crt"], key=text["next.key"]))
