"""Which version is next, of many."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.simulation.endpoint_world import CONFIG, endpoint_manifest, version_manifest

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus, Outcome
from finetune_api.modelversion import ModelVersion
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.facts import with_outcome
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.choose import choose

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("outcome", ["Rejected", "RolledBack", "Superseded"])
def test_a_version_is_not_tried_again_when_the_status_has_forgotten_what_became_of_it(outcome: Outcome) -> None:
    """A version a day: the status remembers so many outcomes only, and all ModelVersions are there."""
    manifests = [version_manifest(f"v{number}") for number in range(150)]
    for number, each in enumerate(manifests):
        created = (BEGAN + timedelta(days=number)).isoformat()
        each["metadata"] |= {"uid": f"uid-{number}", "creationTimestamp": created}
    versions = tuple(map(ModelVersion.model_validate, manifests))
    status = ModelEndpointStatus()
    for number, version in enumerate(versions[:-1]):
        now = BEGAN + timedelta(days=number, hours=3)
        status = with_outcome(status, version.metadata, outcome=outcome, reason="worse", now=now)
    now = BEGAN + timedelta(days=150)
    endpoint = ModelEndpoint.model_validate(endpoint_manifest()).model_copy(update={"status": status})
    observed = ObservedEndpoint(
        endpoint=endpoint,
        now=now,
        config=CONFIG,
        versions=versions,
        gateways=Gateways(names=(), reports=(), now=now),
    )
    chosen = choose(observed)
    assert (chosen.version, chosen.passed_over) == (versions[-1], ())
    after = with_outcome(status, versions[-1].metadata, outcome=outcome, reason="worse", now=now)
    observed = ObservedEndpoint(
        endpoint=endpoint.model_copy(update={"status": after}),
        now=now,
        config=CONFIG,
        versions=versions,
        gateways=Gateways(names=(), reports=(), now=now),
    )
    assert choose(observed).version is None
