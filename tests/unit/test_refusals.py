"""Who refused an object, and what would let it in: in status.next of jobs and endpoints alike.

The words are those of Kubernetes 1.36, Kyverno, Gatekeeper and OpenShift.
"""

from __future__ import annotations

import pytest
from tests.conformance.objects import job_manifest
from tests.simulation.crashing import CrashingCluster
from tests.simulation.world import World

from finetune_operator.core.conditions import Summary, what_holds
from finetune_operator.core.ports import InvalidError, Manifest, NotAllowedError, UnavailableError
from finetune_operator.core.reasons import Reason
from finetune_operator.job.finish import next_of

REFUSALS = {
    "quota": (
        'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1, used: count/jobs.batch=4, '
        "limited: count/jobs.batch=4",
        "room in ResourceQuota small for count/jobs.batch=1",
    ),
    "quota that wants fields": (
        'pods "x-0-kd2fp" is forbidden: failed quota: compute: must specify limits.cpu for: trainer; limits.memory',
        "limits.cpu to be set, as ResourceQuota compute demands",
    ),
    "policy": (
        "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'no-gpu' with binding 'ml' denied request: failed",
        "ValidatingAdmissionPolicy no-gpu to let it in",
    ),
    "Kyverno": (
        'admission webhook "validate.kyverno.svc-fail" denied the request: resource Job/ml/x was blocked: require-team',
        "admission webhook validate.kyverno.svc-fail to let it in",
    ),
    "Gatekeeper": (
        'admission webhook "validation.gatekeeper.sh" denied the request: [must-have-owner] you must provide labels',
        "admission webhook validation.gatekeeper.sh to let it in",
    ),
    "webhook that is away": (
        'Internal error occurred: failed calling webhook "mutate.kyverno.svc-fail": failed to call webhook: Post '
        '"https://kyverno-svc.kyverno.svc:443/mutate": no endpoints available for service "kyverno-svc"',
        "admission webhook mutate.kyverno.svc-fail to answer",
    ),
    "Pod Security": (
        'pods "x-0-kd2fp" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true (container "p")',
        "Pod Security restricted:latest of the namespace to be met",
    ),
    "OpenShift": (
        'pods "x-0-" is forbidden: unable to validate against any security context constraint: [provider '
        "restricted-v2: .spec.securityContext.fsGroup: Invalid value: []int64{65532}: 65532 is not an allowed group]",
        "FINETUNE_RUN_AS_USER",
    ),
    "right": (
        'jobs.batch is forbidden: User "system:serviceaccount:f:op" cannot create resource "jobs" in API group "batch"',
        "system:serviceaccount:f:op to have the right to create jobs",
    ),
    "ending namespace": (
        'jobs.batch "x" is forbidden: unable to create new content in namespace a because it is being terminated',
        "its namespace is being deleted",
    ),
    "priority class": (
        'pods "x" is forbidden: no PriorityClass with name batch was found',
        "PriorityClass batch to exist",
    ),
    "service account": (
        'pods "x-0-" is forbidden: error looking up service account ml/default: serviceaccount "default" not found',
        "ServiceAccount default to exist",
    ),
    "limit range": (
        'pods "x-0-" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, maximum memory usage per',
        "(maximum cpu usage per Container is 1)",
    ),
    "schema": (
        'Job.batch "x" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: "2": must be '
        "less than or equal to cpu limit of 1",
        "spec.template.spec.containers[0].resources.requests to be put right",
    ),
    "somebody unknown": ("no", "whoever runs the cluster to let it in"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_was_refused_says_by_whom_and_what_would_let_it_in(name: str) -> None:
    message, words = REFUSALS[name]
    held = what_holds(Summary(state="Stalled", reason=Reason.CHILD_REFUSED, message=f"Job x: {message}"))
    assert words in held.waits_for[0]
    assert held.then == ["it is asked again by itself, at least every two minutes"]
    if name != "somebody unknown":
        summary = Summary(state="Reconciling", reason=Reason.PODS_NOT_CREATED, message=f"0 of 1 pods: {message}")
        pods = next_of(phase="Queued", summary=summary, until=None, planned=True)
        assert pods is not None
        assert words in pods.waits_for[0]
        assert "kd2fp" not in pods.waits_for[0], "another name at each try would be written at each try"


@pytest.mark.parametrize("error", [InvalidError, NotAllowedError])
async def test_a_job_says_which_of_its_objects_was_refused(error: type[Exception]) -> None:
    """A webhook does not say what it refused."""

    class Refusing(CrashingCluster):
        async def create(self, *, manifest: Manifest) -> Manifest:
            if manifest["kind"] == "Job":
                raise error('admission webhook "w.example.org" denied the request: no')
            return await super().create(manifest=manifest)

    world = World()
    world.restart_operator(cluster=lambda cluster: Refusing(inner=cluster))
    key = await world.submit(job_manifest())
    if error is InvalidError:
        await world.reconcile(key)
    else:
        with pytest.raises(UnavailableError):
            await world.reconciler.reconcile(key)
    status = await world.status(key)
    assert "Job router-prepare-1: admission webhook" in (status.message or "")
    assert status.next is not None
    assert "admission webhook w.example.org to let it in" in status.next.waits_for[0]


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("ImagePullFailing", "the image a/b:1 cannot be pulled; kubelet tries again", "the image a/b:1 to be pushed"),
        ("ContainerConfigInvalid", 'pod p cannot start: secret "hf" not found', 'secret "hf" not found'),
    ],
)
def test_a_container_that_cannot_be_made_names_what_it_lacks(reason: str, message: str, words: str) -> None:
    summary = Summary(state="Reconciling", reason=reason, message=message)
    found = next_of(phase="Training", summary=summary, until=None, planned=True)
    assert found is not None
    assert words in found.waits_for[0]
