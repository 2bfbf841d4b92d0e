"""Who may report about which job.

A training pod shows a service-account token that kubelet projected into it: bound to the pod, with our audience,
useless anywhere else. The apiserver says whether it is genuine (TokenReview) and which pod it belongs to; that pod,
read live, must be one of the job's. Answers are remembered briefly, since a pod reports every few seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from finetune_api import API_VERSION
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY, gateway_name
from finetune_operator.job.names import ENDPOINT_LABEL, JOB_LABEL
from finetune_operator.kube.api import Api
from finetune_operator.ports import Cluster, Manifest

REMEMBERED_SECONDS = 60.0
_REMEMBERED = 4096
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_USER_PREFIX = "system:serviceaccount:"

T = TypeVar("T")


class UnauthenticatedError(Exception):
    """The token does not prove which pod is calling."""


class ForbiddenError(Exception):
    """The pod may not report about this job."""


@dataclass(frozen=True, kw_only=True)
class PodIdentity:
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


class Gatekeeper:
    """Tells pods from tokens, and jobs from pods. Every call may raise UnavailableError."""

    def __init__(
        self, *, api: Api, cluster: Cluster, audience: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._audience = audience
        self._clock = clock
        self._pods: _Remembered[PodIdentity | None] = _Remembered(clock=clock)
        self._jobs: _Remembered[str] = _Remembered(clock=clock)

    async def identify(self, *, token: str) -> PodIdentity:
        """The pod that the token is bound to. Raises UnauthenticatedError."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        known, pod = self._pods.recall(digest)
        if not known:
            pod = _pod_of(review=await self._review(token=token), audience=self._audience)
            self._pods.keep(digest, pod)  # a refusal too: a flood of bad tokens must not become a flood of reviews
        if pod is None:
            raise UnauthenticatedError(
                f"the bearer token is not a token of a running pod with audience {self._audience}; "
                "project one into the pod (serviceAccountToken volume)"
            )
        return pod

    async def authorise(self, *, pod: PodIdentity, namespace: str, job: str) -> str:
        """The UID of the FineTuneJob that the pod works for. Raises ForbiddenError unless it is this one."""
        known, uid = self._jobs.recall(f"{pod.uid}/{namespace}/{job}")
        if known and uid:
            return uid
        refusal = ForbiddenError(f"pod {pod.namespace}/{pod.name} is not a pod of FineTuneJob {namespace}/{job}")
        if pod.namespace != namespace:
            raise refusal
        child = await self._cluster.get(kind="Pod", namespace=namespace, name=pod.name)
        if child is None or child["metadata"].get("uid") != pod.uid or _labels(child).get(JOB_LABEL) != job:
            raise refusal
        owner = _controller(child, api_version="batch/v1", kind="Job")
        run = await self._cluster.get(kind="Job", namespace=namespace, name=owner["name"]) if owner else None
        if run is None or owner is None or run["metadata"].get("uid") != owner["uid"]:
            raise refusal
        fine_tune_job = _controller(run, api_version=API_VERSION, kind="FineTuneJob")
        if fine_tune_job is None or fine_tune_job["name"] != job:
            raise refusal
        uid = str(fine_tune_job["uid"])
        self._jobs.keep(f"{pod.uid}/{namespace}/{job}", uid)
        return uid

    async def authorise_gateway(self, *, pod: PodIdentity, endpoint: str) -> None:
        """Raises ForbiddenError unless the pod is a gateway of this endpoint of its own namespace."""
        known, uid = self._jobs.recall(f"{pod.uid}/gateway/{endpoint}")
        if known and uid:
            return
        refusal = ForbiddenError(f"pod {pod.namespace}/{pod.name} is not a gateway of ModelEndpoint {endpoint}")
        child = await self._cluster.get(kind="Pod", namespace=pod.namespace, name=pod.name)
        labels = _labels(child) if child is not None else {}
        if child is None or child["metadata"].get("uid") != pod.uid or labels.get(COMPONENT_LABEL) != GATEWAY:
            raise refusal
        name = gateway_name(endpoint)
        deployment = await self._cluster.get(kind="Deployment", namespace=pod.namespace, name=name)
        replicas = _controller(child, api_version="apps/v1", kind="ReplicaSet")
        owner = _controller(deployment, api_version=API_VERSION, kind="ModelEndpoint") if deployment else None
        if owner is None or owner["name"] != endpoint or replicas is None:
            raise refusal
        if labels.get(ENDPOINT_LABEL) != endpoint or not str(replicas["name"]).startswith(f"{name}-"):
            raise refusal
        self._jobs.keep(f"{pod.uid}/gateway/{endpoint}", str(owner["uid"]))

    async def _review(self, *, token: str) -> Manifest:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        return await self._api.request(
            method="POST", path="/apis/authentication.k8s.io/v1/tokenreviews", body=review, timeout_seconds=5
        )


class _Remembered(Generic[T]):
    """Answers of the last REMEMBERED_SECONDS, the oldest forgotten first."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def recall(self, key: str) -> tuple[bool, T | None]:
        """Whether an answer is remembered, and which."""
        kept = self._answers.get(key)
        if kept is None or self._clock() - kept[0] > REMEMBERED_SECONDS:
            return False, None
        return True, kept[1]

    def keep(self, key: str, answer: T) -> None:
        """Remember an answer."""
        self._answers[key] = (self._clock(), answer)
        self._answers.move_to_end(key)
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)


def _pod_of(*, review: Manifest, audience: str) -> PodIdentity | None:
    """The pod that a TokenReview vouches for, or None where it does not."""
    status: dict[str, Any] = review.get("status") or {}
    if not status.get("authenticated") or audience not in (status.get("audiences") or ()):
        return None
    user: dict[str, Any] = status.get("user") or {}
    extra: dict[str, list[str]] = user.get("extra") or {}
    name, uid = extra.get(_POD_NAME), extra.get(_POD_UID)
    username = str(user.get("username", ""))
    if not name or not uid or not username.startswith(_USER_PREFIX):
        return None
    return PodIdentity(namespace=username.removeprefix(_USER_PREFIX).split(":")[0], name=name[0], uid=uid[0])


def _labels(manifest: Manifest) -> dict[str, str]:
    return manifest["metadata"].get("labels") or {}


def _controller(manifest: Manifest, *, api_version: str, kind: str) -> dict[str, Any] | None:
    """The controlling owner, where it is of this kind."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next(
        (
            owner
            for owner in owners
            if owner.get("controller") and owner.get("apiVersion") == api_version and owner.get("kind") == kind
        ),
        None,
    )
