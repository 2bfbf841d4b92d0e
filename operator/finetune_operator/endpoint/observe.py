"""Gathers what `endpoint.decide` needs to know about one endpoint: lists of what has our labels, reads by name of the
rest."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from finetune_api.base import first_problem
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.routes import ROUTES_KEY, Routes
from finetune_operator.attempts.observed import AttemptKey, bucket
from finetune_operator.attempts.pods import read_containers
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import ref_of
from finetune_operator.core.names import ENDPOINT_LABEL, OWNED_LABEL
from finetune_operator.core.ownership import is_left, is_owned, pods_of
from finetune_operator.core.ports import Cluster, Door, Kind, Manifest, ObservationSource
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.state import AnalysisState, state_from_dict
from finetune_operator.endpoint.finish import ANALYSIS_KEY
from finetune_operator.endpoint.names import (
    COMPARISON_LABEL,
    COMPONENT_LABEL,
    GATEWAY,
    VERSION_UID_LABEL,
    analysis_name,
    comparison_name,
    gateway_name,
    routes_name,
    server_name,
    servers_name,
)
from finetune_operator.endpoint.observed import ObservedComparison, ObservedEndpoint
from finetune_operator.endpoint.serving.servers import server_of

log = logging.getLogger(__name__)

_GATEWAY_KINDS: tuple[Kind, ...] = (
    "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "ControllerRevision", "PodDisruptionBudget", "Deployment",
)  # fmt: skip
_SERVER_KINDS: tuple[Kind, ...] = ("ControllerRevision", "ConfigMap", "Service", "PodDisruptionBudget", "Deployment")


async def observe_endpoint(
    *,
    cluster: Cluster,
    endpoint: ModelEndpoint,
    now: datetime,
    config: OperatorConfig,
    observations: ObservationSource,
    door: Door | None,
    server_url: Callable[[str, str], str],
) -> ObservedEndpoint:
    """One endpoint and the world around it. Raises UnavailableError."""
    namespace, name = endpoint.metadata.namespace, endpoint.metadata.name
    mine = {OWNED_LABEL: "ModelEndpoint", ENDPOINT_LABEL: name}  # by name: a restored endpoint has another UID
    deployments, replica_sets, jobs, pods, versions = await asyncio.gather(
        cluster.list(kind="Deployment", namespace=namespace, labels=mine),
        cluster.list(kind="ReplicaSet", namespace=namespace, labels=mine),
        cluster.list(kind="Job", namespace=namespace, labels=mine),
        cluster.list(kind="Pod", namespace=namespace, labels=mine),
        cluster.list(kind="ModelVersion", namespace=namespace, labels={ENDPOINT_LABEL: name}),
    )
    for other in _named_versions(endpoint) - {each["metadata"]["name"] for each in versions}:
        versions += [each] if (each := await cluster.get(kind="ModelVersion", namespace=namespace, name=other)) else []
    versions = [each for each in versions if not each["metadata"].get("deletionTimestamp")]
    candidate = endpoint.status.candidate

    def is_ours(each: Manifest) -> bool:
        return is_owned(each, uid=endpoint.metadata.uid) or is_left(each, endpoint=name)

    jobs = [each for each in jobs if is_owned(each, uid=endpoint.metadata.uid)]
    listed = {("Deployment", each["metadata"]["name"]): each for each in deployments if is_ours(each)}
    servers = [each for each in listed.values() if _label(each, COMPONENT_LABEL) != GATEWAY]
    wanted = _names(endpoint=endpoint, servers=servers, jobs=jobs) - set(listed)
    found = await asyncio.gather(
        *(cluster.get(kind=kind, namespace=namespace, name=each) for kind, each in sorted(wanted))
    )
    named = {(each["kind"], each["metadata"]["name"]): each for each in found if each is not None}
    children = listed | {key: each for key, each in named.items() if is_ours(each)}
    routes, problem = _routes(children.get(("ConfigMap", routes_name(name))))
    gateway = children.get(("Deployment", gateway_name(name)))
    pods_of_ours = partial(pods_of, pods=pods, replica_sets=replica_sets)
    return ObservedEndpoint(
        endpoint=endpoint,
        now=now,
        config=config,
        door=door,
        versions=tuple(_versions(versions)),
        candidate_deleted=candidate is not None and candidate.uid not in {each["metadata"]["uid"] for each in versions},
        servers={
            version: server_of(
                version_uid=version,
                deployment=deployment,
                pods=pods_of_ours(deployment),
                refs=tuple(
                    ref_of(child)
                    for (_, child_name), child in sorted(children.items())
                    if child_name == deployment["metadata"]["name"]
                ),
            )
            for deployment in servers
            if (version := _label(deployment, VERSION_UID_LABEL))
            and deployment["metadata"]["name"] == server_name(endpoint=name, version_uid=version)
        },
        server_urls={
            each: server_url(namespace, server_name(endpoint=name, version_uid=each)) for each in _served(endpoint)
        },
        gateways=Gateways(
            names=tuple(
                sorted(pod["metadata"]["name"] for pod in pods_of_ours(gateway) if _is_living_gateway(pod))
                if gateway is not None
                else ()
            ),
            reports=observations.reports(namespace=namespace, endpoint=name),
            now=now,
        ),
        gateway=server_of(version_uid="", deployment=gateway, pods=pods_of_ours(gateway), container=GATEWAY)
        if gateway is not None
        else None,
        routes=routes,
        routes_problem=problem,
        analysis=_analysis(children.get(("ConfigMap", analysis_name(name)))),
        comparisons=_comparisons(
            jobs=jobs, pods=pods, children=children, endpoint=name, owner_uid=endpoint.metadata.uid
        ),
        children=children,
        foreign={key: each for key, each in named.items() if key not in children},
    )


def _names(*, endpoint: ModelEndpoint, servers: list[Manifest], jobs: list[Manifest]) -> set[tuple[Kind, str]]:
    """What to read by name: the operator has no right to list it, or no label finds it, since it is somebody else's."""
    name = endpoint.metadata.name
    uids = {*_served(endpoint), *(_label(server, VERSION_UID_LABEL) for server in servers)} - {""}
    found: list[tuple[Kind, str]] = [("ConfigMap", routes_name(name)), ("ConfigMap", analysis_name(name))]
    found += [("NetworkPolicy", servers_name(name)), ("Service", name)]
    found += [*((kind, gateway_name(name)) for kind in _GATEWAY_KINDS)]
    found += [("ConfigMap", job["metadata"]["name"]) for job in jobs]
    for uid in sorted(uids):
        found += [(kind, server_name(endpoint=name, version_uid=uid)) for kind in _SERVER_KINDS]
    return set(found)


def _named_versions(endpoint: ModelEndpoint) -> set[str]:
    """ModelVersions that matter also where they were made for another endpoint: they are pinned, or they were."""
    under_way = (endpoint.status.stable, endpoint.status.candidate)
    return {endpoint.spec.version or "", *(each.name for each in under_way if each is not None)} - {""}


def _served(endpoint: ModelEndpoint) -> list[str]:
    """UIDs of the versions that the status names."""
    status = endpoint.status
    return [each.uid for each in (status.stable, status.candidate, status.previous) if each is not None]


def _versions(manifests: Iterable[Manifest]) -> Iterable[ModelVersion]:
    for manifest in manifests:
        try:
            yield ModelVersion.model_validate(manifest)
        except ValidationError as error:
            log.warning("ModelVersion %s cannot be read and is left out: %s", manifest["metadata"]["name"], error)


def _routes(manifest: Manifest | None) -> tuple[Routes | None, str | None]:
    """The routes, or why they cannot be read."""
    if manifest is None:
        return None, None
    try:
        return Routes.model_validate_json((manifest.get("data") or {}).get(ROUTES_KEY, "")), None
    except ValidationError as error:
        name, problem = manifest["metadata"]["name"], first_problem(error, root=ROUTES_KEY)
        return None, (
            f"ConfigMap {name} cannot be read ({problem}); gateways keep what they have: install the "
            "operator that wrote it, or restore or delete the ConfigMap"
        )


def _analysis(manifest: Manifest | None) -> AnalysisState | None:
    """The state of the live statistics; one that cannot be read begins anew, which only costs samples."""
    if manifest is None:
        return None
    try:
        return state_from_dict(json.loads((manifest.get("data") or {}).get(ANALYSIS_KEY, "")))
    except ValueError as error:
        log.warning("ConfigMap %s: %s; counting begins anew", manifest["metadata"]["name"], error)
        return None


def _comparisons(
    *,
    jobs: list[Manifest],
    pods: list[Manifest],
    children: Mapping[tuple[str, str], Manifest],
    endpoint: str,
    owner_uid: str,
) -> dict[str, ObservedComparison]:
    """Jobs and pods of comparisons by their key, as those of a run's stage by theirs."""
    found: dict[str, ObservedComparison] = {}
    for key in sorted({_label(each, COMPARISON_LABEL) for each in (*jobs, *pods)} - {""}):
        mine = [each for each in jobs if _label(each, COMPARISON_LABEL) == key]
        attempts = bucket(
            jobs=mine,
            pods=[each for each in pods if _label(each, COMPARISON_LABEL) == key],
            owner_uid=owner_uid,
            name_of=partial(_comparison_name, endpoint, key),
            recorded={},
        )
        maps = [children.get(("ConfigMap", each["metadata"]["name"])) for each in mine]
        refs = [ref_of(each) for each in (*maps, *mine) if each and not each["metadata"].get("deletionTimestamp")]
        if attempts:
            found[key] = ObservedComparison(
                attempts={number: attempt for (_, number), attempt in attempts.items()}, refs=tuple(refs)
            )
    return found


def _comparison_name(endpoint: str, key: str, attempt: AttemptKey) -> str:
    return comparison_name(endpoint=endpoint, key=key, attempt=attempt[1])


def _is_living_gateway(pod: Manifest) -> bool:
    """It may have requests in flight: it runs, or is being ended."""
    phase = (pod.get("status") or {}).get("phase")
    running = read_containers(pod, main=GATEWAY).main.running
    return phase == "Running" and running


def _label(manifest: Mapping[str, Any], name: str) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(name, ""))
