"""From the traces of an attempt that ended badly to its cause.

A gang lives and dies as a whole: when one pod ends badly the others follow, and what they say is often only an echo (a
lost connection, a SIGTERM). The most specific evidence wins; of equal evidence, what came first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.results import (
    PERMANENT_EXIT_CODES,
    ExitCode,
    Failure,
    result_adapter,
)
from finetune_operator.attempts.observed import ChildJob
from finetune_operator.attempts.pods import CONTAINER, Ended, PodState
from finetune_operator.attempts.restarts import Cause
from finetune_operator.attempts.verdicts import Broken, Result
from finetune_operator.core.reasons import Reason

_STATUS_UNKNOWN = "ContainerStatusUnknown"
"""Kubelet's word for a container that was gone when it came back: its node was away."""
_NOT_STARTED = {"StartError", "ContainerCannotRun"}
"""The runtimes' words for a container whose command could not be run. The message is then theirs."""


_OWN_LIMIT = re.compile(r"exceed(?:s|ed) (?:the|its) ")
"""Of an eviction that is the pod's own doing: kubelet's eviction manager has three such sentences."""
_NOT_OF_THE_NODE = frozenset({Cause.OUT_OF_MEMORY, Cause.PERMANENT, Cause.NOT_FINITE, Cause.POD_DELETED})
_BY_OTHERS = frozenset({"PreemptionByScheduler", "EvictionByEvictionAPI"})
"""Interruptions that are not the node's doing."""


def cause_of_end(*, job: ChildJob, pods: Sequence[PodState], size: int, ended_by_job: Set[str] = frozenset()) -> Broken:
    """The cause with the most specific evidence; of equal evidence, what came first: the rest followed from it."""
    found = [(_trouble_time(pod), _at_node(verdict, pod)) for pod in pods if (verdict := _broken_pod(pod))]
    if not found:
        return _broken_job(job)
    _, first = min(found, key=lambda each: (_rank(each[1]), each[0], each[1].cause is not Cause.CONTAINER_FAILED))
    gone = size - len(pods) - len(ended_by_job - {pod.name for pod in pods})
    if first.reason in _ECHOES and gone > 0:
        text = f"{gone} of {size} pods gone; {first.message}"
        return Broken(cause=Cause.POD_DELETED, message=text)
    spoilt = next(
        (pod for pod in pods if pod.done and pod.phase == "Failed" and pod.trouble and not pod.disruption), None
    )
    if spoilt is not None and first.cause in (Cause.PREEMPTED, Cause.POD_DELETED) and not first.disrupted:
        # Kubernetes takes such a pod for failed, and ends the others with their Job: no interruption from outside.
        text = f"pod {spoilt.name} had done its part, but its {spoilt.trouble}; that ended the pods that had not"
        return Broken(cause=Cause.CONTAINER_FAILED, reason=Reason.SIDECAR_FAILED, message=text)
    return first


def end_without_job(*, name: str, pods: Sequence[PodState]) -> Broken:
    """The Job is gone. Those of its pods that are still there may say that they saved before they ended."""
    said = [found for pod in pods if (found := _broken_pod(pod)) is not None]
    return Broken(
        cause=Cause.JOB_DELETED,
        message=f"Job {name} was deleted",
        checkpoint_step=max((each.checkpoint_step for each in said if each.checkpoint_step is not None), default=None),
        saved_all=any(each.saved_all for each in said),
    )


_CERTAIN = (Cause.NODE_LOST, Cause.OUT_OF_MEMORY, Cause.NOT_FINITE, Cause.PERMANENT, Cause.PREEMPTED)
_ECHOES = ("PeerLost", "ProcessKilled")
"""What the processes say that lived on when another one ended."""


def _rank(verdict: Broken) -> int:
    """Certain causes by precedence, then what may have followed from something else, then what surely has."""
    if verdict.reason in _ECHOES:
        return len(_CERTAIN) + 1
    echo_of_a_signal = verdict.cause is Cause.PREEMPTED and not verdict.disrupted
    certain = verdict.cause in _CERTAIN and not echo_of_a_signal
    return _CERTAIN.index(verdict.cause) if certain else len(_CERTAIN)


def _at_node(verdict: Broken, pod: PodState) -> Broken:
    """The verdict with the node, where that may have brought it about."""
    own = verdict.cause in _NOT_OF_THE_NODE or verdict.reason in (*_ECHOES, Reason.OUT_OF_STORAGE)
    own = own or pod.disruption in _BY_OTHERS
    stopped = verdict.cause is Cause.PREEMPTED and not verdict.disrupted
    return verdict if own or stopped else replace(verdict, node=pod.node)


def _trouble_time(pod: PodState) -> datetime:
    ended = pod.ended.finished if pod.ended else None
    return min((time for time in (pod.deletion_requested, ended) if time is not None), default=pod.created)


def _broken_pod(pod: PodState) -> Broken | None:
    """What one pod has to say about the end; None: it ended well, or knows nothing."""
    if pod.done:
        return None
    ended = pod.ended
    failure = parsed_message(ended.message) if ended else None
    said = failure if isinstance(failure, Failure) else None
    step = said.checkpoint_step if said else None
    stopped = ended is not None and ended.exit_code == ExitCode.STOPPED_AFTER_CHECKPOINT
    saved = stopped and (said is None or step is not None)
    if pod.disruption == "Evicted" and _OWN_LIMIT.search(pod.disruption_message):
        message = (
            f"pod {pod.name} used more disk than it may: {pod.disruption_message.strip()} "
            "Raise limits.ephemeral-storage in compute.resources, or have FINETUNE_TMP_SIZE_LIMIT raised"
        )
        return Broken(cause=Cause.CONTAINER_FAILED, reason=Reason.OUT_OF_STORAGE, message=message, checkpoint_step=step)
    if pod.disruption or (ended is not None and ended.reason == _STATUS_UNKNOWN):
        cause = Cause.PREEMPTED if pod.disruption and not pod.node_lost else Cause.NODE_LOST
        why = pod.disruption or _STATUS_UNKNOWN
        text = f"pod {pod.name} was interrupted ({why}): {pod.disruption_message}".rstrip(": ")
        return Broken(cause=cause, message=text, checkpoint_step=step, saved_all=saved, disrupted=True)
    if ended is None:
        if pod.phase == "Failed":
            return _never_begun(pod)
        if pod.deletion_requested is None:
            return None
        return Broken(cause=Cause.POD_DELETED, message=f"pod {pod.name} was deleted")
    if stopped:
        text = said.message if said else "stopped by a signal after a checkpoint"
        message = f"pod {pod.name} {'was deleted' if pod.deletion_requested else 'was interrupted'}: {text}"
        return Broken(cause=Cause.PREEMPTED, message=message, checkpoint_step=step, saved_all=saved)
    return _failed_container(pod=pod, ended=ended, said=said)


def _never_begun(pod: PodState) -> Broken:
    """An init container, ours or one that was injected, has failed: the container that counts never ran."""
    why = pod.trouble or "kubectl describe pod says why"
    reason = Reason.INIT_CONTAINER_FAILED if pod.trouble else Reason.POD_FAILED
    return Broken(
        cause=Cause.CONTAINER_FAILED,
        reason=reason,
        message=f"pod {pod.name} failed before its container {CONTAINER} began: {why}",
    )


def _failed_container(*, pod: PodState, ended: Ended, said: Failure | None) -> Broken:
    step = said.checkpoint_step if said else None
    if ended.reason == "OOMKilled" or (said is not None and said.reason == Cause.OUT_OF_MEMORY):
        detail = f": {said.message}" if said and ended.reason != "OOMKilled" else ""
        message = (
            f"pod {pod.name} ran out of memory (exit code {ended.exit_code}){detail}; raise compute.resources, or "
            "lower training.microBatchSize or training.maxLength"
        )
        return Broken(cause=Cause.OUT_OF_MEMORY, message=message, checkpoint_step=step)
    if said is not None and said.reason == Cause.NOT_FINITE:
        return Broken(cause=Cause.NOT_FINITE, reason=said.reason, message=said.message, checkpoint_step=step)
    if ended.exit_code in PERMANENT_EXIT_CODES:
        return Broken(
            cause=Cause.PERMANENT,
            reason=said.reason if said else _exit_name(ended.exit_code),
            message=said.message if said else f"pod {pod.name} ended with exit code {ended.exit_code}",
            checkpoint_step=step,
        )
    if pod.deletion_requested is not None and said is None:
        # Killed at the end of its grace period, or by whoever deleted it.
        message = f"pod {pod.name} was deleted (exit code {ended.exit_code})"
        return Broken(cause=Cause.POD_DELETED, message=message)
    if said is None and ended.reason in _NOT_STARTED:
        message = f"pod {pod.name} could not be started: {ended.message}"
        return Broken(cause=Cause.CONTAINER_FAILED, reason=ended.reason, message=message)
    return Broken(
        cause=Cause.CONTAINER_FAILED,
        reason=said.reason if said else _exit_name(ended.exit_code),
        message=said.message if said else f"pod {pod.name} ended with exit code {ended.exit_code}{_signal(ended)}",
        checkpoint_step=step,
    )


def _broken_job(job: ChildJob) -> Broken:
    """The pods are gone. Their Job remembers which rule of its failure policy applied (manifests.FAILURE_RULES)."""
    message = f"{job.failure_message} (the pod is gone)" if job.failure_message else "its pods are gone"
    if job.failure_reason == "PodFailurePolicy":
        if "rule at index 0" in job.failure_message:
            return Broken(cause=Cause.PREEMPTED, message=message, saved_all=True)
        if "rule at index 1" in job.failure_message:
            return Broken(cause=Cause.PERMANENT, message=message)
        return Broken(cause=Cause.PREEMPTED, message=message)
    return Broken(cause=Cause.POD_DELETED, message=message)


def parsed_message(message: str) -> Result | Failure | None:
    """What a termination message says, None where it says nothing that can be read."""
    try:
        return result_adapter.validate_json(message)
    except ValidationError:
        return None


def _exit_name(exit_code: int) -> str:
    try:
        return {ExitCode.INTERNAL_ERROR: "InternalError", ExitCode.CANNOT_WRITE: "CannotWrite"}[ExitCode(exit_code)]
    except (KeyError, ValueError):
        return f"ExitCode{exit_code}"


def _signal(ended: Ended) -> str:
    return f" (signal {ended.exit_code - 128})" if 128 < ended.exit_code < 160 else ""
