"""How an attempt is doing: one verdict on its Job and its pods together.

A bad end is judged when no pod of the attempt may still be running: only then all evidence is there (evidence). That
costs no time, since the next attempt must not begin before then anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from finetune_api.results import Failure
from finetune_operator.attempts.evidence import cause_of_end, parsed_message
from finetune_operator.attempts.observed import Attempt, ChildJob
from finetune_operator.attempts.pods import CONTAINER, PodState
from finetune_operator.attempts.restarts import Cause
from finetune_operator.attempts.verdicts import Absent, Broken, Running, Stopping, Succeeded, Verdict, Waiting
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after

_NO_PODS_SECONDS = 10.0
_OVERLOOKED_SECONDS = 30.0
_SLOW_SECONDS = 10.0
_SETTLE_SECONDS = 10.0
"""How long a pod whose container has failed may take to say that its node or somebody else ended it, while its sidecars
end."""


def judge(*, attempt: Attempt, stage: str, size: int, now: datetime, config: OperatorConfig) -> Verdict:
    """The state of an attempt of `size` pods. Whether it hangs is not for its pods to say."""
    job, pods = attempt.job, attempt.pods
    if _all_done(job=job, pods=pods, size=size):
        return _success(pods=pods, stage=stage)
    if job is None:
        return _without_job(pods=(*pods, *attempt.strays), now=now, config=config)
    if job.suspended and not job.failed:
        return Waiting(reason=Reason.QUEUED, message="", queued=True, about=job.ref.uid)
    if not job.failed:
        before = [pod for pod in pods if _was_taken(pod, job=job)]
        if any(may_run(pod=pod, now=now, config=config) for pod in before):
            message = "the pods that it had before it was suspended are still ending"
            return Waiting(reason=Reason.STARTING, message=message, look_again=_next_gone(before, config=config))
        pods = tuple(pod for pod in pods if pod not in before)
    since = _trouble_since(job=job, pods=pods, now=now)
    if since is not None:
        if (wait := _still_ending(pods, since=since, now=now, config=config)) is not None:
            return wait
        return cause_of_end(job=job, pods=pods, size=size, ended_by_job=attempt.ended_by_job)
    return _starting_or_running(job=job, pods=pods, size=size, now=now, config=config)


def may_run(*, pod: PodState, now: datetime, config: OperatorConfig) -> bool:
    """Whether a pod's container could still be running, and with it write to the run's folder. Sidecars do not."""
    if pod.finished:
        return False
    gone_by = pod.gone_by(lost_pod_seconds=config.lost_pod_seconds)
    return gone_by is None or now < gone_by


def first_start(pods: Iterable[PodState]) -> datetime | None:
    """When the first container began to run."""
    return min((pod.started for pod in pods if pod.started is not None), default=None)


def last_end(*, attempt: Attempt) -> datetime | None:
    """When the attempt ended, as far as its children know. None: a container runs, or nobody knows."""
    if any(pod.running for pod in attempt.pods):
        return None
    ends = [pod.ended.finished for pod in attempt.pods if pod.ended is not None and pod.ended.finished is not None]
    return max(ends, default=attempt.job.failed_since if attempt.job else None)


# -- the good end -----------------------------------------------------------------------------------------------------


def _all_done(*, job: ChildJob | None, pods: Sequence[PodState], size: int) -> bool:
    # The pods know before their Job does: by a second, or for as long as a sidecar goes on.
    done = {pod.index for pod in pods if pod.done}
    return len(done) >= size or (job is not None and job.complete)


def _success(*, pods: Sequence[PodState], stage: str) -> Verdict:
    ended = next((pod.ended for pod in pods if pod.index == 0 and pod.done), None)
    if ended is None:
        return Broken(
            cause=Cause.RESULT_LOST,
            message="the pod with the result was removed before it was read; the output that is complete is used again",
            saved_all=True,
        )
    result = parsed_message(ended.message)
    if result is None or result.stage != stage or isinstance(result, Failure):
        return Broken(
            cause=Cause.CONTAINER_FAILED,
            reason=Reason.INVALID_RESULT,
            message=f"the container ended well but its termination message is not a {stage} result: "
            f"{_short(ended.message) or 'it is empty'}; use the trainer image of the operator's version",
            saved_all=True,
        )
    return Succeeded(result=result)


# -- the bad ends -----------------------------------------------------------------------------------------------------


def _without_job(*, pods: Sequence[PodState], now: datetime, config: OperatorConfig) -> Verdict:
    if any(may_run(pod=pod, now=now, config=config) for pod in pods):
        return Stopping(message="the Job is gone, its pods are ending", look_again=_next_gone(pods, config=config))
    return Absent()


def _was_taken(pod: PodState, *, job: ChildJob) -> bool:
    """Whether the pod was taken away by a suspension that is over: Kueue has admitted the Job again."""
    asked = pod.deletion_requested
    return asked is not None and job.resumed is not None and asked <= job.resumed


def _trouble_since(*, job: ChildJob, pods: Sequence[PodState], now: datetime) -> datetime | None:
    """When the first sign came that this attempt will not end well. None: there is none. A time that is still to come
    is a node's whose clock is fast."""
    signs = [job.failed_since or job.created] if job.failed else []
    for pod in pods:
        if pod.finished and not pod.done:
            signs.append((pod.ended.finished if pod.ended else None) or pod.created)
        elif pod.deletion_requested is not None and not pod.finished:
            signs.append(pod.deletion_requested)
    return min((sign for sign in signs if sign <= now), default=min(signs, default=None))


def _still_ending(
    pods: Sequence[PodState], *, since: datetime, now: datetime, config: OperatorConfig
) -> Stopping | None:
    deadline = after(since, config.evidence_seconds)
    pending = [pod for pod in pods if may_run(pod=pod, now=now, config=config)]
    # Pods that nobody has told to end do not hold up the judgement for ever.
    times = [_gone_by(pod, config=config) or deadline for pod in pending if pod.deletion_requested or now < deadline]
    times += [due for pod in pods if (due := _settled_by(pod)) is not None and now < due <= after(now, _SETTLE_SECONDS)]
    if not times:
        return None
    return Stopping(message=f"{_count(max(1, len(pending)))} still ending", look_again=min(times))


def _settled_by(pod: PodState) -> datetime | None:
    """Until when the pod's own word on the end of its container may still come; None: it is there."""
    if pod.over or pod.done or pod.ended is None or pod.ended.finished is None:
        return None
    return after(pod.ended.finished, _SETTLE_SECONDS)


# -- on the way -------------------------------------------------------------------------------------------------------


def _starting_or_running(
    *, job: ChildJob, pods: Sequence[PodState], size: int, now: datetime, config: OperatorConfig
) -> Verdict:
    trouble = next((f"pod {pod.name}: {pod.trouble}" for pod in pods if pod.trouble), "")
    waiting = next((pod for pod in pods if pod.image_problem or pod.container_problem), None)
    if waiting is not None:
        return _held_container(pod=waiting, now=now, config=config)
    gates = sorted({gate for pod in pods for gate in pod.gates})
    if gates:
        message = f"{_count(sum(bool(pod.gates) for pod in pods))} of {size} held back by {', '.join(gates)}"
        return Waiting(reason=Reason.SCHEDULING_GATED, message=message, queued=True)
    homeless = [pod for pod in pods if pod.unschedulable is not None or _overlooked(pod, now=now)]
    if homeless:
        return _homeless(homeless, size=size)
    if len(pods) < size:
        return _without_pods(job=job, count=len(pods), size=size, now=now)
    started = [pod.started for pod in pods if pod.started is not None]
    if len(started) < size:
        return _slow_start(pods=pods, now=now, config=config, trouble=trouble)
    return Running(since=max(started), trouble=trouble)


def _overlooked(pod: PodState, *, now: datetime) -> bool:
    """The scheduler has not said anything about the pod: it waits for a volume to be made, or does not run."""
    return pod.homeless and now >= after(pod.created, _OVERLOOKED_SECONDS)


def _homeless(pods: Sequence[PodState], *, size: int) -> Waiting:
    why = pods[0].unschedulable
    text = f"{_count(len(pods))} of {size} waiting for a node"
    # Of a claim that is not bound, the scheduler does not say why.
    about = pods[0].uid if why is None or "olume" in why else ""
    return Waiting(reason=Reason.UNSCHEDULABLE, message=f"{text}: {why}" if why else text, queued=True, about=about)


def _held_container(*, pod: PodState, now: datetime, config: OperatorConfig) -> Verdict:
    since = pod.scheduled or pod.created
    deadline = after(since, config.image_pull_deadline_seconds)
    cause = Cause.IMAGE if pod.image_problem else Cause.CONTAINER_CONFIG
    text = f"{_held(pod)}: {pod.waiting_reason}: {pod.waiting_message}".rstrip(": ")
    if pod.waiting_reason == "InvalidImageName" or now >= deadline:
        return Broken(cause=cause, message=text)
    # Kubelet's two words for one problem take turns; said once, the status stays as it is.
    reason = Reason.IMAGE_PULL_FAILING if pod.image_problem else Reason.CONTAINER_CONFIG_INVALID
    return Waiting(reason=reason, message=_stable(pod), look_again=deadline)


def _held(pod: PodState) -> str:
    """The pod, with the container that holds it up where that is not ours."""
    return f"pod {pod.name}" + (f", container {pod.waiting_container}" if pod.waiting_container != CONTAINER else "")


def _stable(pod: PodState) -> str:
    if not pod.image_problem:
        return f"{_held(pod)} cannot start: {pod.waiting_message or pod.waiting_reason}"
    return f"the image {pod.image} cannot be pulled; kubelet tries again, kubectl describe pod {pod.name} says why"


def _without_pods(*, job: ChildJob, count: int, size: int, now: datetime) -> Verdict:
    due = after(job.created, _NO_PODS_SECONDS)
    if now < due:
        return Waiting(reason=Reason.STARTING, message="", look_again=due)
    message = f"{count} of {size} pods were created"
    return Waiting(reason=Reason.PODS_NOT_CREATED, message=message, queued=True, about=job.ref.uid)


def _slow_start(*, pods: Sequence[PodState], now: datetime, config: OperatorConfig, trouble: str) -> Verdict:
    late = min((pod.scheduled or pod.created for pod in pods if pod.started is None), default=now)
    deadline = after(late, config.start_deadline_seconds)
    if now < deadline:
        return _starting(pods=pods, now=now, deadline=deadline, trouble=trouble)
    names = ", ".join(pod.name for pod in pods if pod.started is None)
    return Broken(
        cause=Cause.NOT_STARTED,
        node=next((pod.node for pod in pods if pod.started is None), ""),
        message=f"{names}: no container was running {config.start_deadline_seconds} s after a node was found; "
        f"{trouble or 'kubectl describe pod says why'}",
    )


def _starting(*, pods: Sequence[PodState], now: datetime, deadline: datetime, trouble: str) -> Waiting:
    """A pod has a node, and no container that counts yet. Soon it is worth saying why."""
    pod = next(pod for pod in pods if pod.started is None)
    due = after(pod.scheduled or pod.created, _SLOW_SECONDS)
    if now < due:
        return Waiting(reason=Reason.STARTING, message=trouble, look_again=min(due, deadline))
    doing = f"init container {pod.initialising} is running" if pod.initialising else "its containers are being made"
    message = trouble or f"pod {pod.name}: {doing}"
    return Waiting(
        reason=Reason.STARTING, message=message, about="" if pod.initialising else pod.uid, look_again=deadline
    )


# -- words ------------------------------------------------------------------------------------------------------------


def _gone_by(pod: PodState, *, config: OperatorConfig) -> datetime | None:
    return pod.gone_by(lost_pod_seconds=config.lost_pod_seconds)


def _next_gone(pods: Sequence[PodState], *, config: OperatorConfig) -> datetime | None:
    """When to look again at pods of which kubelet may never confirm the end."""
    return min((due for pod in pods if not pod.finished and (due := _gone_by(pod, config=config))), default=None)


def _count(number: int) -> str:
    return "1 pod" if number == 1 else f"{number} pods"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]} ..."
