"""What should exist for an endpoint, from the facts that were recorded: servers, gateway, routes.

Pure: says what to create and to apply, leaving out what is there already as it should be. Where a name is taken by an
object of somebody else, that object is left alone, and with it all that would work with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpointStatus, ServedVersion
from finetune_api.routes import ROUTES_KEY, Routes
from finetune_operator.core.controller import ChildRef, ref_of
from finetune_operator.core.ownership import whose
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.names import (
    analysis_name,
    gateway_name,
    metadata_of,
    owned,
    routes_name,
    server_name,
    servers_name,
)
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.choose import accepted, order_of
from finetune_operator.endpoint.rollout.plan import read_plan
from finetune_operator.endpoint.rollout.routing import routes_of, same_content
from finetune_operator.endpoint.serving.gateway import (
    gateway_manifests,
    is_rendered_from,
    recorded,
    without_restarts,
)
from finetune_operator.endpoint.serving.guards import server_budget, server_policy
from finetune_operator.endpoint.serving.manifests import render_revision, rendered, scaled
from finetune_operator.endpoint.settling import Settling, covers, settled


@dataclass(frozen=True, kw_only=True)
class Children:
    """What to do about an endpoint's children, in this order."""

    create: tuple[Manifest, ...] = ()
    """Create-only: the revisions that hold what servers and the gateway were rendered to."""
    apply: tuple[Manifest, ...] = ()
    contested: tuple[str, ...] = ()
    """What somebody else changed of them not long ago, in words."""
    look_again: tuple[datetime, ...] = ()


NO_CHILDREN = Children()
DEFAULT_HISTORY = 10


def children_of(observed: ObservedEndpoint) -> Children:
    """The children that are missing, or not as they should be."""
    status = observed.endpoint.status
    create: list[Manifest] = []
    wanted: list[Manifest] = []
    for served in _served(status):
        if server_taken(observed, version_uid=served.uid):
            continue
        revision = observed.children.get(("ControllerRevision", served.revision))
        if revision is None:
            version = observed.version(served.uid)
            if version is None:
                continue  # nothing to render from; what runs goes on to run
            revision = render_revision(endpoint=observed.endpoint, version=version, config=observed.config)
            create.append(revision)
        manifests = scaled(rendered(revision), replicas=observed.endpoint.spec.serving.replicas or 1)
        wanted += [owned(each, endpoint=observed.endpoint) for each in manifests]
        wanted.append(server_budget(endpoint=observed.endpoint, version_uid=served.uid))
    if _served(status) or observed.routes is not None:
        if observed.config.server_network_policy:
            wanted.append(server_policy(endpoint=observed.endpoint, config=observed.config))
        record, gateway = _gateway(observed)
        create += record
        wanted += gateway
        wanted += _kept(observed)
    free = [each for each in wanted if (each["kind"], each["metadata"]["name"]) not in observed.foreign]
    found = [settled(wanted=each, live=observed.child(each), now=observed.now) for each in free]
    found.append(_routes(observed))
    return Children(
        create=tuple(create),
        apply=tuple(each.apply for each in found if each.apply is not None),
        contested=tuple(each.contested for each in found if each.contested is not None),
        look_again=tuple(each.look_again for each in found if each.look_again is not None),
    )


def server_taken(observed: ObservedEndpoint, *, version_uid: str) -> tuple[str, ...]:
    """Objects of others under the names of a version's servers, in words."""
    name = server_name(endpoint=observed.endpoint.metadata.name, version_uid=version_uid)
    return tuple(whose(each) for (_, found), each in sorted(observed.foreign.items()) if found == name)


def retired(observed: ObservedEndpoint) -> tuple[ChildRef, ...]:
    """The servers that may go: no route leads to them, every gateway knows, and nothing is in flight to them."""
    status = observed.endpoint.status
    if status.stable is None and observed.routes is not None:
        return ()  # a restored endpoint that is not adopted yet
    served = {each.uid for each in _served(status)}
    routed = set(observed.routes.variants) if observed.routes is not None else set()
    gone: list[ChildRef] = []
    for uid, server in observed.servers.items():
        if uid in served or uid in routed:
            continue
        if observed.is_followed and observed.gateways.in_flight(uid) == 0:
            gone += server.refs
    return tuple(gone)


def unwanted(observed: ObservedEndpoint) -> tuple[ChildRef, ...]:
    """The policy of the servers, where the operator shall make none any more: it would go on to keep others out; and
    the record of a gateway that was rendered from another spec."""
    endpoint = observed.endpoint
    policy = observed.children.get(("NetworkPolicy", servers_name(endpoint.metadata.name)))
    record = observed.children.get(("ControllerRevision", gateway_name(endpoint.metadata.name)))
    surplus = [policy] if policy is not None and not observed.config.server_network_policy else []
    surplus += [record] if record is not None and not is_rendered_from(record, endpoint=endpoint) else []
    return tuple(map(ref_of, surplus))


def outdated(observed: ObservedEndpoint) -> tuple[ChildRef, ...]:
    """Records beyond spec.revisionHistoryLimit, oldest first: of versions that are settled and not served. The newest
    that was promoted besides the stable one stays: it is what a rollback goes back to. Artifacts are kept."""
    status, endpoint = observed.endpoint.status, observed.endpoint
    limit = endpoint.spec.revision_history_limit
    keep, names = {each.uid for each in _served(status)}, {each.name for each in _served(status)}
    former = next(
        (each.uid for each in reversed(status.versions) if each.outcome == "Promoted" and each.uid not in keep), ""
    )
    settled = {each.uid for each in status.versions}
    old = sorted(
        (
            version
            for version in observed.versions
            if version.metadata.uid not in {*keep, former}
            and version.metadata.name not in names
            and version.spec.endpoint_ref is not None
            and version.spec.endpoint_ref.name == endpoint.metadata.name
            and (version.metadata.uid in settled or not (accepted(version) or version.spec.evaluation.held))
            and version.metadata.name != endpoint.spec.version
        ),
        key=order_of,
    )
    surplus = old[: max(0, len(old) - (DEFAULT_HISTORY if limit is None else limit))]
    return tuple(ref_of(version.to_dict()) for version in surplus)


def _served(status: ModelEndpointStatus) -> list[ServedVersion]:
    return [each for each in (status.stable, status.candidate, status.previous) if each is not None]


def _gateway(observed: ObservedEndpoint) -> tuple[list[Manifest], list[Manifest]]:
    """What to record, and what to apply. All of it or nothing: a pod must not run under somebody else's account, nor an
    account get somebody else's rights."""
    endpoint, name = observed.endpoint, gateway_name(observed.endpoint.metadata.name)
    *manifests, deployment = gateway_manifests(endpoint=endpoint, config=observed.config, door=observed.door)
    record = observed.children.get(("ControllerRevision", name))
    names = {("ControllerRevision", name), *((each["kind"], each["metadata"]["name"]) for each in manifests)}
    if not names.isdisjoint(observed.foreign) or ("Deployment", name) in observed.foreign:
        return [], []
    if record is not None and not is_rendered_from(record, endpoint=endpoint):
        return [], manifests  # the record goes first
    if record is not None:
        return [], [*manifests, *(owned(each, endpoint=endpoint) for each in rendered(record))]
    live = observed.children.get(("Deployment", name))
    if live is not None and is_rendered_from(live, endpoint=endpoint):
        # Made by an operator that kept no record: this one would render another pod.
        replicas, template = deployment["spec"]["replicas"], without_restarts(live["spec"]["template"])
        deployment = {**deployment, "spec": {**live["spec"], "replicas": replicas, "template": template}}
    return [recorded(deployment)], [*manifests, deployment]


def _kept(observed: ObservedEndpoint) -> Iterable[Manifest]:
    """Routes and statistics as they are, as ours: those of a restored endpoint have no owner."""
    name = observed.endpoint.metadata.name
    for component, each in (("routes", routes_name(name)), ("analysis", analysis_name(name))):
        live = observed.children.get(("ConfigMap", each))
        metadata = metadata_of(endpoint=observed.endpoint, name=each, component=component)
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        if live is not None and not covers(live=live["metadata"], wanted=metadata):  # an earlier object's of this name
            yield {**manifest, "data": live.get("data") or {}}


def _routes(observed: ObservedEndpoint) -> Settling:
    """The routes ConfigMap with the next epoch, where the recorded facts call for other routes, or somebody else has
    written there."""
    status = observed.endpoint.status
    plan = read_plan(status.plan) if status.plan else None
    if isinstance(plan, str):
        return Settling()  # a plan that cannot be read: the routes are left alone
    wanted = routes_of(observed, status=status, plan=plan, epoch=observed.next_epoch)
    name = routes_name(observed.endpoint.metadata.name)
    if wanted is None or ("ConfigMap", name) in observed.foreign or not _may_be_routed(observed, wanted):
        return Settling()
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata_of(endpoint=observed.endpoint, name=name, component="routes"),
        "data": {ROUTES_KEY: json.dumps(wanted.to_dict(), indent=1, sort_keys=True)},
    }
    return settled(
        wanted=manifest,
        live=observed.child(manifest),
        now=observed.now,
        content=wanted.model_copy(update={"epoch": 1}).to_dict(),
        same=observed.routes is not None and not observed.overtaken and same_content(wanted, observed.routes),
    )


def _may_be_routed(observed: ObservedEndpoint, wanted: Routes) -> bool:
    """Nobody is sent to a version that was never ready, or whose names are others'. What is routed to already may be
    unready for a while."""
    known = set(observed.routes.variants) if observed.routes is not None else set()
    new = set(wanted.variants) - known
    return all(
        (server := observed.servers.get(uid)) is not None
        and server.ready
        and not server_taken(observed, version_uid=uid)
        for uid in new
    )
