"""Why an object is as it is: the reasons of conditions and Events, from which docs/reasons.md is made.

A phase is a reason too while nothing else is to be said, and what a container says of its own end is shown as it is.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Self

from finetune_api.stage_reasons import STAGE_REASONS

_JOB, _ENDPOINT, _BOTH = "job", "endpoint", "both"


class Reason(StrEnum):
    """A reason, what it is said of, and what it means."""

    about: str
    meaning: str

    def __new__(cls, value: str, about: str, meaning: str) -> Self:
        """A member of these three."""
        member = str.__new__(cls, value)
        member._value_, member.about, member.meaning = value, about, meaning
        return member

    # -- nothing can be done ------------------------------------------------------------------------------------------

    NOT_SUPPORTED = "NotSupported", _BOTH, "the spec asks for what this version of the operator cannot do"
    PLAN_UNSUPPORTED = "PlanUnsupported", _BOTH, "another version of the operator planned what is under way"
    TOO_LARGE = "TooLarge", _BOTH, "the spec leaves no room for the status of the object"
    CHILD_REFUSED = "ChildRefused", _BOTH, "the cluster refuses an object that is needed: quota, policy, admission"
    NAME_TAKEN = "NameTaken", _BOTH, "an object of somebody else has a name that is needed"
    INTERNAL_ERROR = "InternalError", _BOTH, "the operator failed, and tries again; its log has more"
    OTHER_INSTANCE = "OtherInstance", _BOTH, "the object is another operator's (status.instance)"
    PAUSED = "Paused", _ENDPOINT, "the annotation finetune.dev/pause is there, or a regression waits for a person"
    SUSPENDED = "Suspended", _JOB, "spec.suspend is true"

    # -- a job before its run -----------------------------------------------------------------------------------------

    PENDING = "Pending", _JOB, "the run is planned, and has no pod yet"
    INVALID_SPEC = "InvalidSpec", _JOB, "fields of the spec do not fit each other"
    URI_NOT_ALLOWED = "UriNotAllowed", _JOB, "a URI is outside the roots that the operator allows"
    CLAIM_NOT_SHARED = "ClaimNotShared", _JOB, "pods on several nodes need a claim whose access mode allows that"
    CLAIM_NOT_FOUND = "ClaimNotFound", _JOB, "a claim of a pvc:// URI does not exist (yet)"
    CONFIG_NOT_FOUND = "ConfigNotFound", _JOB, "the ConfigMap of compute.configRef, or its key, does not exist (yet)"
    CONFIG_INVALID = "ConfigInvalid", _JOB, "what compute.configRef names cannot be used, or contradicts the spec"
    ENDPOINT_NOT_FOUND = "EndpointNotFound", _JOB, "the ModelEndpoint of spec.endpointRef does not exist (yet)"
    ENDPOINT_MISMATCH = "EndpointMismatch", _JOB, "the ModelEndpoint is for another task"
    BASELINE_NOT_FOUND = "BaselineNotFound", _JOB, "the ModelVersion to beat does not exist (yet)"
    PARENT_NOT_FOUND = "ParentNotFound", _JOB, "the ModelVersion of model.uri does not exist (yet)"
    PARENT_MISMATCH = "ParentMismatch", _JOB, "the ModelVersion of model.uri is for another task"
    BASELINE_MISMATCH = "BaselineMismatch", _JOB, "the ModelVersion to beat is for another task"

    # -- a job in its run ---------------------------------------------------------------------------------------------

    QUEUED = "Queued", _JOB, "Kueue has not admitted the Job"
    PODS_NOT_CREATED = "PodsNotCreated", _JOB, "a Job lacks pods: a quota or a policy may refuse them"
    SCHEDULING_GATED = "SchedulingGated", _JOB, "scheduling gates hold a pod back: whoever set them takes them away"
    UNSCHEDULABLE = "Unschedulable", _JOB, "no node has room for a pod, or its volume is not bound"
    STARTING = "Starting", _BOTH, "pods are there, and their containers do not run yet"
    IMAGE_PULL_FAILING = "ImagePullFailing", _JOB, "an image cannot be pulled so far"
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid", _JOB, "a container cannot be made: a Secret may be missing"
    NOT_REPORTING = "NotReporting", _JOB, "training runs, and its reports do not reach the operator"
    STOPPING = "Stopping", _JOB, "something ended the attempt, and its last pods are ending"
    RESTARTING = "Restarting", _JOB, "another attempt follows"
    DEADLINE_EXCEEDED = "DeadlineExceeded", _JOB, "spec.activeDeadlineSeconds is used up"
    OUT_OF_STORAGE = "OutOfStorage", _JOB, "a pod was evicted because it used more disk than its own limits allow"
    INVALID_RESULT = "InvalidResult", _JOB, "a container ended well and left no result that can be read"
    INIT_CONTAINER_FAILED = "InitContainerFailed", _JOB, "an init container failed, so that ours never ran"
    SIDECAR_FAILED = "SidecarFailed", _JOB, "a sidecar failed in a pod of a gang, which ended the others"
    POD_FAILED = "PodFailed", _JOB, "a pod failed before its container began, and nothing says why"

    # -- what came of a comparison ------------------------------------------------------------------------------------

    EVALUATING = "Evaluating", _JOB, "the verdict is there and is being recorded"
    PROVEN = "Proven", _BOTH, "better than the baseline by what is demanded"
    GATE_FAILED = "GateFailed", _BOTH, "worse than the baseline, or not better by what is demanded"
    INCONCLUSIVE = "Inconclusive", _BOTH, "not decided on what was seen; onInconclusive says what follows"
    SUCCEEDED = "Succeeded", _JOB, "the version may be used, and serves where the job has an endpoint"
    REJECTED = "Rejected", _BOTH, "the version was given up before it was promoted"
    ROLLED_BACK = "RolledBack", _BOTH, "the version was given up while it answered clients"
    SUPERSEDED = "Superseded", _BOTH, "a newer version, or another pinned one, took its place"

    # -- an endpoint with nothing under way ---------------------------------------------------------------------------

    NO_GATEWAY_IMAGE = "NoGatewayImage", _ENDPOINT, "the operator has no image for gateways (FINETUNE_GATEWAY_IMAGE)"
    NO_VLLM_IMAGE = "NoVllmImage", _ENDPOINT, "no image for runtime VLLM (FINETUNE_VLLM_IMAGE, FINETUNE_VLLM_CPU_IMAGE)"
    ROUTES_UNREADABLE = "RoutesUnreadable", _ENDPOINT, "the routes cannot be read; nothing is changed"
    CANNOT_ADOPT = "CannotAdopt", _ENDPOINT, "restored routes name versions that do not exist"
    ADOPTED = "Adopted", _ENDPOINT, "what serves was taken over from restored routes"
    NO_VERSION = "NoVersion", _ENDPOINT, "no version was proven yet"
    SERVING = "Serving", _BOTH, "the stable version answers all requests"
    GATEWAY_NOT_READY = "GatewayNotReady", _ENDPOINT, "no gateway is ready"
    SERVER_NOT_READY = "ServerNotReady", _ENDPOINT, "no server of the stable version is ready"
    VERSION_NOT_FOUND = "VersionNotFound", _ENDPOINT, "the ModelVersion of spec.version does not exist"
    WRONG_TASK = "WrongTask", _ENDPOINT, "a version is for another task than the endpoint"
    VERSION_FAILED_BEFORE = "VersionFailedBefore", _ENDPOINT, "the pinned version was tried and given up"
    NOT_PROVEN = "NotProven", _ENDPOINT, "the pinned version did not pass its evaluation"
    BASELINE_CHANGED = "BaselineChanged", _ENDPOINT, "a version was proven against what is not stable any more"
    COMPARING = "Comparing", _ENDPOINT, "a version is compared with what has become stable since it was evaluated"
    COMPARISON_FAILED = "ComparisonFailed", _ENDPOINT, "that comparison came to no result"
    NOTHING_TO_ROLL_BACK_TO = "NothingToRollBackTo", _ENDPOINT, "no other version was stable before"

    # -- a rollout ----------------------------------------------------------------------------------------------------

    NOT_SERVABLE = "NotServable", _ENDPOINT, "the endpoint's runtime cannot serve the version"
    WAITING_FOR_NODE = "WaitingForNode", _ENDPOINT, "no node has room for a server of the candidate"
    CANDIDATE_FAILED = "CandidateFailed", _ENDPOINT, "a server of the candidate ended for a reason that stays"
    CANDIDATE_READY = "CandidateReady", _ENDPOINT, "the servers of the candidate are ready"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded", _ENDPOINT, "the candidate was not ready in time"
    SHADOWING = "Shadowing", _ENDPOINT, "the candidate answers copies of requests"
    CANARY = "Canary", _ENDPOINT, "the candidate answers some of the requests"
    STEP_PASSED = "StepPassed", _ENDPOINT, "the candidate takes its next step"
    AWAITING_APPROVAL = "AwaitingApproval", _ENDPOINT, "a person decides (annotation finetune.dev/approve)"
    MANUAL_APPROVAL = "ManualApproval", _ENDPOINT, "rollout.approval is Manual"
    REGRESSION = "Regression", _ENDPOINT, "a live metric got worse beyond what is allowed"
    REGRESSION_ACCEPTED = "RegressionAccepted", _ENDPOINT, "a person let the version go on in spite of a regression"
    PROMOTING = "Promoting", _ENDPOINT, "gateways are being told of the new stable version"
    GUARDING = "Guarding", _ENDPOINT, "the new stable version is watched; the one before stays warm"
    GUARD_PASSED = "GuardPassed", _ENDPOINT, "the guard is over"
    ROLLING_BACK = "RollingBack", _ENDPOINT, "gateways are being told that a version is given up"

    # -- beside all that ----------------------------------------------------------------------------------------------

    REQUEST_VOID = (
        "RequestVoid",
        _BOTH,
        "a decision is about another version, an approval was for another thing, or trying again cannot help",
    )
    RETRY_USELESS = "RetryUseless", _JOB, "another attempt would fail alike (of the condition RequestVoid)"
    ANOTHER_VERSION = "AnotherVersion", _ENDPOINT, "a decision is about another version (of the condition RequestVoid)"
    CONTESTED = "Contested", _ENDPOINT, "somebody else changes what the endpoint's children say"
    CHANGED_BY_OTHERS = "ChangedByOthers", _ENDPOINT, "somebody else changes the children (of the condition Contested)"
    COMPLETE = "Complete", _JOB, "the stage is complete"
    FAILED = "Failed", _JOB, "the stage failed"
    IN_PROGRESS = "InProgress", _JOB, "the stage has begun"
    NOT_STARTED = "NotStarted", _JOB, "the stage has not begun"


_PAGE = """\
<!-- Generated from operator/finetune_operator/core/reasons.py by `make generate`; do not edit. -->
# Reasons

What conditions and Events of a FineTuneJob or a ModelEndpoint give as their reason. While nothing else is to be said,
it is the phase; why an attempt ended is a reason too ([restarts](restarts.md)), and so is a container's own word,
which the second table has.

| reason | said of | meaning |
|---|---|---|
{conditions}

## What a container says of its own end

The message beside it says which row, file, model or field is meant.

| reason | meaning | way out |
|---|---|---|
{containers}
"""


def page() -> str:
    """The page for users."""
    names = {_JOB: "FineTuneJob", _ENDPOINT: "ModelEndpoint", _BOTH: "both"}
    rows = sorted(f"| `{each}` | {names[each.about]} | {each.meaning} |" for each in Reason)
    containers = sorted(f"| `{name}` | {meaning} | {out} |" for name, (meaning, out) in STAGE_REASONS.items())
    return _PAGE.format(conditions="\n".join(rows), containers="\n".join(containers))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
