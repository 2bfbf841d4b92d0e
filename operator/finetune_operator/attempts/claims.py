"""The PersistentVolumeClaims behind pvc:// URIs, and where they are mounted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finetune_api.base import ApiModel
from finetune_api.run import Locations
from finetune_operator.core.config import OperatorConfig


class Claim(ApiModel):
    """A PersistentVolumeClaim that a pod mounts."""

    name: str
    writable: bool


def claims_behind(*, read: Iterable[str], written: Iterable[str] = ()) -> list[Claim]:
    """The claims behind pvc:// URIs by name, writable where something is written."""
    writable = {_claim_of(uri) for uri in written} - {None}
    names = {claim for uri in read if (claim := _claim_of(uri)) is not None} | writable
    return [Claim(name=name, writable=name in writable) for name in sorted(name for name in names if name)]


def _claim_of(uri: str) -> str | None:
    return uri.removeprefix("pvc://").split("/", 1)[0] if uri.startswith("pvc://") else None


def claim_volumes(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The volumes of a pod."""
    return [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim.name, **_read_only(claim)}}
        for number, claim in enumerate(claims)
    ]


def claim_mounts(claims: Sequence[Claim], *, config: OperatorConfig) -> list[dict[str, Any]]:
    """The volumeMounts of a container."""
    return [
        {"name": f"claim-{number}", "mountPath": _mount_path(claim, config=config), **_read_only(claim)}
        for number, claim in enumerate(claims)
    ]


def locations(*, run: str, cache: str, claims: Sequence[Claim], config: OperatorConfig) -> Locations:
    """Where a container finds and puts things, for its run file."""
    return Locations(
        run=run,
        cache=cache,
        allowed_roots=list(config.allowed_roots),
        mounts={claim.name: _mount_path(claim, config=config) for claim in claims},
    )


def _mount_path(claim: Claim, *, config: OperatorConfig) -> str:
    return f"{config.claim_mount_root}/{claim.name}"


def _read_only(claim: Claim) -> dict[str, bool]:
    return {} if claim.writable else {"readOnly": True}
