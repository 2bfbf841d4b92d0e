"""Who may report about which job, and who may read metrics.

A training pod shows a service-account token that kubelet projected into it: bound to the pod, with our audience,
useless anywhere else. The apiserver says whether it is genuine (TokenReview) and which pod it belongs to; that pod,
read live, must be one of the job's. Answers are remembered briefly, since a pod reports every few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from finetune_api import API_VERSION
from finetune_operator.core.names import JOB_LABEL
from finetune_operator.core.ownership import controller_of, is_owned
from finetune_operator.core.ports import Cluster, Kind, Manifest
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY, gateway_name
from finetune_operator.kube.api import Api

REMEMBERED_SECONDS = 60.0
_REMEMBERED = 4096
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_USER_PREFIX = "system:serviceaccount:"

T = TypeVar("T")


class UnauthenticatedError(Exception):
    """The token does not prove who is calling."""


class ForbiddenError(Exception):
    """The caller may not do this: report about another pod's job, or read metrics."""


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
            review = await _reviewed(self._api, token=token, audiences=[self._audience])
            pod = _pod_of(review=review, audience=self._audience)
            self._pods.keep(digest, pod)  # a refusal too: a flood of bad tokens must not become a flood of reviews
        if pod is None:
            raise UnauthenticatedError(
                f"the bearer token is not a token of a running pod with audience {self._audience}; "
                "project one into the pod (serviceAccountToken volume)"
            )
        return pod

    async def authorise(self, *, pod: PodIdentity, namespace: str, job: str) -> str:
        """The UID of the FineTuneJob that the pod works for. Raises ForbiddenError unless it is this one."""
        key = f"{pod.uid}/{namespace}/{job}"
        known, uid = self._jobs.recall(key)
        if known and uid:
            return uid
        child = await self._pod(pod) if pod.namespace == namespace else None
        run_ref = _controller(child, api_version="batch/v1", kind="Job")
        run = await self._cluster.get(kind="Job", namespace=namespace, name=run_ref["name"]) if run_ref else None
        owner = _controller(run, api_version=API_VERSION, kind="FineTuneJob")
        genuine = run is not None and run["metadata"].get("uid") == run_ref.get("uid") and owner.get("name") == job
        if not genuine or _labels(child).get(JOB_LABEL) != job:
            raise ForbiddenError(f"pod {pod.namespace}/{pod.name} is not a pod of FineTuneJob {namespace}/{job}")
        self._jobs.keep(key, str(owner["uid"]))
        return str(owner["uid"])

    async def authorise_gateway(self, *, pod: PodIdentity, endpoint: str) -> None:
        """Raises ForbiddenError unless the pod is a gateway of this endpoint of its own namespace."""
        key = f"{pod.uid}/gateway/{endpoint}"
        if self._jobs.recall(key)[0]:
            return
        child = await self._pod(pod)
        owners: list[Manifest | None] = [None]
        if child is not None and _labels(child).get(COMPONENT_LABEL) == GATEWAY:
            replicas = str(controller_of(child).get("name", "-"))
            wanted: tuple[tuple[Kind, str], ...] = (
                ("ReplicaSet", replicas), ("Deployment", gateway_name(endpoint)), ("ModelEndpoint", endpoint),
            )  # fmt: skip
            owners = await asyncio.gather(
                *(self._cluster.get(kind=kind, namespace=pod.namespace, name=name) for kind, name in wanted)
            )
        for each, its_owner in pairwise((child, *owners)):
            if each is None or its_owner is None or not is_owned(each, uid=its_owner["metadata"]["uid"]):
                raise ForbiddenError(f"pod {pod.namespace}/{pod.name} is not a gateway of ModelEndpoint {endpoint}")
        self._jobs.keep(key, pod.uid)

    async def _pod(self, pod: PodIdentity) -> Manifest | None:
        """The very pod that the token is bound to, read live; None: it is gone."""
        found = await self._cluster.get(kind="Pod", namespace=pod.namespace, name=pod.name)
        return found if found is not None and found["metadata"].get("uid") == pod.uid else None


class Readers:
    """Who may read metrics: whom the apiserver knows by a token and lets `get` the path /metrics, as the roles of
    Prometheus do. A call may raise UnavailableError."""

    def __init__(self, *, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._answers: _Remembered[UnauthenticatedError | ForbiddenError | None] = _Remembered(clock=clock)

    async def admit(self, *, token: str) -> None:
        """Raises UnauthenticatedError, ForbiddenError."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        known, refusal = self._answers.recall(digest)
        if not known:
            refusal = await self._refusal(token=token)
            self._answers.keep(digest, refusal)
        if refusal is not None:
            raise refusal

    async def _refusal(self, *, token: str) -> UnauthenticatedError | ForbiddenError | None:
        status: dict[str, Any] = (await _reviewed(self._api, token=token)).get("status") or {}
        if not status.get("authenticated"):
            return UnauthenticatedError("the bearer token is none of this cluster")
        user: dict[str, Any] = status.get("user") or {}
        who: dict[str, Any] = {
            "user": user.get("username"),
            **{key: user[key] for key in ("uid", "groups", "extra") if key in user},
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**who, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = await self._api.request(method="POST", path=path, body=review, timeout_seconds=5)
        if (answer.get("status") or {}).get("allowed"):
            return None
        return ForbiddenError(
            f"{who['user']} may not read metrics: bind a ClusterRole with nonResourceURLs [/metrics], verbs [get]"
        )


async def _reviewed(api: Api, *, token: str, audiences: Sequence[str] = ()) -> Manifest:
    """What the apiserver says of a token; without audiences, of one that is for the apiserver."""
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, **({"audiences": list(audiences)} if audiences else {})},
    }
    return await api.request(
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


def _labels(manifest: Manifest | None) -> dict[str, str]:
    return (manifest or {}).get("metadata", {}).get("labels") or {}


def _controller(manifest: Manifest | None, *, api_version: str, kind: str) -> dict[str, Any]:
    """The controlling owner, where it is of this kind; else nothing."""
    owner = controller_of(manifest) if manifest is not None else {}
    return owner if (owner.get("apiVersion"), owner.get("kind")) == (api_version, kind) else {}
