"""Restored objects: routes without a status. Adopt what serves; never bootstrap over it."""

from __future__ import annotations

import json

from finetune_api.modelendpoint import ModelEndpointStatus, ServedVersion
from finetune_api.routes import Routes
from finetune_operator.attempts.manifests import RUN_KEY
from finetune_operator.core.times import whole_second
from finetune_operator.endpoint.facts import served, with_outcome
from finetune_operator.endpoint.names import server_name
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.proof import doubted


def adopted(observed: ObservedEndpoint) -> ModelEndpointStatus | None:
    """A status in which the version that most clients are sent to is stable; None where it cannot be told.

    A restore gives objects new UIDs. Servers that run are adopted under the UID that they were made for, whatever
    became of the ModelVersion; else they are made anew from the ModelVersion with this UID or else this name.
    """
    routes = observed.routes
    if routes is None:
        return None
    stable = _running(observed, routes=routes) or _recorded(observed, routes=routes)
    if stable is None:
        return None
    status = _settled_others(observed, routes=routes, stable=stable)
    reason = "adopted from restored routes"
    status = status.model_copy(update={"stable": doubted(stable, reason)})
    return with_outcome(status, stable, outcome="Promoted", reason=reason, now=observed.now, proven=False)


def _stable_of(routes: Routes) -> str:
    """UID of the version that most clients are sent to."""
    weights = routes.rules[-1].weights
    return routes.stable or max(sorted(weights), key=lambda uid: weights[uid])


def _running(observed: ObservedEndpoint, *, routes: Routes) -> ServedVersion | None:
    """What runs, as its own orders say."""
    uid = _stable_of(routes)
    revision = server_name(endpoint=observed.endpoint.metadata.name, version_uid=uid)
    orders = observed.children.get(("ConfigMap", revision))
    if uid not in observed.servers or orders is None or ("ControllerRevision", revision) not in observed.children:
        return None
    try:
        digest = str(json.loads(orders["data"][RUN_KEY])["artifact"]["digest"])
    except (ValueError, KeyError, TypeError):
        return None
    now = whole_second(observed.now)
    return ServedVersion(name=routes.variants[uid].name, uid=uid, digest=digest, revision=revision, since=now)


def _recorded(observed: ObservedEndpoint, *, routes: Routes) -> ServedVersion | None:
    """What a ModelVersion says of it."""
    uid = _stable_of(routes)
    name = routes.variants[uid].name
    version = observed.version(uid) or next((each for each in observed.versions if each.metadata.name == name), None)
    return served(observed, version) if version is not None else None


def _settled_others(observed: ObservedEndpoint, *, routes: Routes, stable: ServedVersion) -> ModelEndpointStatus:
    """What became of the other versions was lost with the status: one that was rejected must not be tried again.

    A candidate that the routes name was under way, and may begin anew.
    """
    status = observed.endpoint.status
    under_way = {variant.name for variant in routes.variants.values()} - {stable.name}
    for version in observed.versions:
        metadata = version.metadata
        if metadata.uid == stable.uid or metadata.name in under_way:
            continue
        same = metadata.name == stable.name
        reason = "serves already, under the UID it had before the restore" if same else "restored without its history"
        status = with_outcome(status, metadata, outcome="Superseded", reason=reason, now=observed.now)
    return status
