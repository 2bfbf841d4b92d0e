"""Restored objects: routes without a status. Adopt what serves; never bootstrap over it."""

from __future__ import annotations

from finetune_api.modelendpoint import ModelEndpointStatus, ServedVersion
from finetune_operator.endpoint.facts import with_outcome
from finetune_operator.endpoint.names import server_name
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.job.times import whole_second


def adopted(observed: ObservedEndpoint) -> ModelEndpointStatus | None:
    """A status in which the version that most clients are sent to is stable; None where it cannot be told.

    A restore in another cluster gives objects new UIDs, so a version is found by UID or else by name.
    """
    routes = observed.routes
    if routes is None:
        return None
    weights = routes.rules[-1].weights
    chosen = routes.stable or max(sorted(weights), key=lambda uid: weights[uid])
    name = routes.variants[chosen].name
    version = observed.version(chosen) or next((each for each in observed.versions if each.metadata.name == name), None)
    if version is None:
        return None
    uid, now = version.metadata.uid, whole_second(observed.now)
    stable = ServedVersion(
        name=version.metadata.name,
        uid=uid,
        digest=version.spec.artifact.digest,
        revision=server_name(endpoint=observed.endpoint.metadata.name, version_uid=uid),
        since=now,
    )
    status = observed.endpoint.status.model_copy(update={"stable": stable})
    return with_outcome(
        status, name=stable.name, uid=uid, outcome="Promoted", reason="adopted from restored routes", now=now
    )
