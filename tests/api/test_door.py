"""The door over TLS, with real tokens, before a real apiserver."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from tests.api.client import open_api
from tests.harness import ApiServer, Kubectl, Object
from tests.local.eventually import eventually
from tests.wrong_manifests import valid

from finetune_api.progress import progress_path
from finetune_operator.core.ports import Key
from finetune_operator.kube.certificates import new_authority, new_serving
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.door import MAXIMUM_BODY_BYTES, door_application, serving
from finetune_operator.kube.doorway import load_certificate
from finetune_operator.kube.gatekeeper import Gatekeeper
from finetune_operator.kube.inboxes import ObservationInbox, ProgressInbox

REPORT = {
    "trainerStatus": {
        "progressPercentage": 35,
        "estimatedRemainingSeconds": 2280,
        "metrics": [{"name": "loss", "value": "1.83"}, {"name": "step", "value": "70"}],
        "lastUpdatedTime": "2026-11-21T04:22:00.123456+00:00",
    }
}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A door, what it took in, and how to knock."""

    url: str
    session: aiohttp.ClientSession
    inbox: ProgressInbox
    observations: ObservationInbox
    enqueued: list[Key]

    async def post(
        self, *, namespace: str, job: str, token: str | None, body: bytes | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of the answer."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        data = json.dumps(REPORT).encode() if body is None else body
        url = self.url + progress_path(namespace=namespace, job=job)
        async with self.session.post(url, data=data, headers=headers) as answer:
            return answer.status, await answer.json(), dict(answer.headers)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The objects of a running job, and its pod's token."""

    namespace: str
    uid: str
    token: str


@asynccontextmanager
async def open_door(apiserver: ApiServer) -> AsyncIterator[Running]:
    authority = new_authority(now=datetime.now(UTC))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_certificate(context=tls, pair=new_serving(authority=authority, names=("127.0.0.1",), now=datetime.now(UTC)))
    trust = ssl.create_default_context(cadata=authority.certificate)
    trust.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    enqueued: list[Key] = []
    inbox = ProgressInbox(enqueue=enqueued.append, clock=lambda: datetime.now(UTC))
    async with open_api(apiserver) as api:
        gatekeeper = Gatekeeper(api=api, cluster=KubernetesCluster(api=api), audience="finetune.dev")
        observations = ObservationInbox(enqueue=enqueued.append, clock=lambda: datetime.now(UTC))
        application = door_application(gatekeeper=gatekeeper, inbox=inbox, observations=observations)
        async with (
            serving(application=application, host="127.0.0.1", port=0, tls=tls) as port,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
        ):
            url = f"https://127.0.0.1:{port}"
            yield Running(url=url, session=session, inbox=inbox, observations=observations, enqueued=enqueued)


@pytest.fixture
def run(crds: ApiServer, namespace: str) -> Run:
    """A job with its batch Job and a pod."""
    return make_run(crds.kubectl, namespace=namespace, job="router")


@pytest.fixture
def other_namespace(apiserver: ApiServer) -> Iterator[str]:
    with apiserver.namespace_named() as name:
        yield name


def make_run(
    kubectl: Kubectl, *, namespace: str, job: str, label: str | None = None, audience: str = "finetune.dev"
) -> Run:
    """Create the objects that kubelet and the controllers would leave, without either."""
    kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer"}}, namespace=namespace)
    kubectl.create(valid("job") | {"metadata": {"name": job}}, namespace=namespace)
    owner = kubectl.get("finetunejob", job, namespace=namespace)
    kubectl.create(_batch_job(name=f"{job}-train-1", owner=owner), namespace=namespace)
    batch_job = kubectl.get("job", f"{job}-train-1", namespace=namespace)
    kubectl.create(_pod(name=f"{job}-train-1-0", label=label or job, owner=batch_job), namespace=namespace)
    return Run(
        namespace=namespace,
        uid=owner["metadata"]["uid"],
        token=pod_token(kubectl, pod=f"{job}-train-1-0", namespace=namespace, audience=audience),
    )


def pod_token(kubectl: Kubectl, *, pod: str, namespace: str, audience: str = "finetune.dev") -> str:
    """What kubelet projects into a pod."""
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
    return kubectl.run("create", "token", "trainer", "-n", namespace, f"--audience={audience}", *bound).strip()


def _owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def _batch_job(*, name: str, owner: Object) -> Object:
    container = {"name": "trainer", "image": "localhost/none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "ownerReferences": [_owner_reference(owner)]},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


def _pod(*, name: str, label: str, owner: Object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"finetune.dev/job": label}, "ownerReferences": [_owner_reference(owner)]},
        "spec": {
            "serviceAccountName": "trainer",
            "automountServiceAccountToken": False,
            "containers": [{"name": "trainer", "image": "localhost/none"}],
        },
    }


async def test_a_pod_of_the_job_reports(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        status, body, _ = await door.post(namespace=run.namespace, job="router", token=run.token)
        assert (status, body) == (200, {})
        latest = door.inbox.latest(uid=run.uid)
        assert latest is not None
        assert latest.status.progress_percentage == 35
        assert latest.status.metric("loss") == "1.83"
        await asyncio.sleep(0)
        assert door.enqueued == [Key(kind="FineTuneJob", namespace=run.namespace, name="router")]


async def test_reports_in_quick_succession_are_looked_at_once(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        for percent in range(5):
            report = {"trainerStatus": {"progressPercentage": percent}}
            status, _, _ = await door.post(
                namespace=run.namespace, job="router", token=run.token, body=json.dumps(report).encode()
            )
            assert status == 200
        latest = door.inbox.latest(uid=run.uid)
        assert latest is not None
        assert latest.status.progress_percentage == 4
        assert len(door.enqueued) == 1


async def test_without_a_token(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        status, body, headers = await door.post(namespace=run.namespace, job="router", token=None)
        assert status == 401
        assert "no bearer token" in body["error"]
        assert headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("token", ["nonsense", "a.b.c"])
async def test_with_a_token_that_is_none(crds: ApiServer, run: Run, token: str) -> None:
    async with open_door(crds) as door:
        status, body, _ = await door.post(namespace=run.namespace, job="router", token=token)
        assert status == 401
        assert "audience finetune.dev" in body["error"]
        assert token not in json.dumps(body) or token == "a.b.c"


async def test_with_a_token_for_another_audience(crds: ApiServer, run: Run) -> None:
    token = pod_token(crds.kubectl, pod="router-train-1-0", namespace=run.namespace, audience="somebody.dev")
    async with open_door(crds) as door:
        status, _, _ = await door.post(namespace=run.namespace, job="router", token=token)
        assert status == 401


async def test_with_a_token_that_is_bound_to_no_pod(crds: ApiServer, run: Run) -> None:
    token = crds.service_account_token("trainer", namespace=run.namespace, audience="finetune.dev")
    async with open_door(crds) as door:
        status, _, _ = await door.post(namespace=run.namespace, job="router", token=token)
        assert status == 401


async def test_with_the_token_of_a_deleted_pod(crds: ApiServer, run: Run) -> None:
    crds.kubectl.run("delete", "pod", "router-train-1-0", "-n", run.namespace, "--force", "--grace-period=0")
    async with open_door(crds) as door:
        status, _, _ = await door.post(namespace=run.namespace, job="router", token=run.token)
        assert status == 401


async def test_about_another_job(crds: ApiServer, run: Run) -> None:
    other = make_run(crds.kubectl, namespace=run.namespace, job="other")
    async with open_door(crds) as door:
        status, body, _ = await door.post(namespace=run.namespace, job="other", token=run.token)
        assert status == 403
        assert "is not a pod of FineTuneJob" in body["error"]
        assert door.inbox.latest(uid=other.uid) is None


async def test_about_a_job_of_another_namespace(crds: ApiServer, run: Run, other_namespace: str) -> None:
    make_run(crds.kubectl, namespace=other_namespace, job="router")
    async with open_door(crds) as door:
        status, _, _ = await door.post(namespace=other_namespace, job="router", token=run.token)
        assert status == 403


async def test_a_label_alone_makes_no_pod_of_the_job(crds: ApiServer, run: Run) -> None:
    """A pod may claim any label; who owns it decides."""
    impostor = make_run(crds.kubectl, namespace=run.namespace, job="impostor", label="router")
    async with open_door(crds) as door:
        status, _, _ = await door.post(namespace=run.namespace, job="router", token=impostor.token)
        assert status == 403
        assert door.inbox.latest(uid=run.uid) is None


async def test_a_body_that_is_too_big(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        body = json.dumps({"trainerStatus": {}, "padding": "x" * MAXIMUM_BODY_BYTES}).encode()
        status, _, _ = await door.post(namespace=run.namespace, job="router", token=run.token, body=body)
        assert status == 413


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"[]", "object"),
        (b"{}", "trainerStatus: Field required"),
        (b'{"trainerStatus": {"progressPercentage": 200}}', "less than or equal to 100"),
        (b'{"trainerStatus": {"metrics": [{"name": "loss", "value": 1.5}]}}', "metrics.0.value"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
async def test_a_body_that_is_no_report(crds: ApiServer, run: Run, body: bytes, words: str) -> None:
    async with open_door(crds) as door:
        status, answer, _ = await door.post(namespace=run.namespace, job="router", token=run.token, body=body)
        assert status == 400
        assert words in answer["error"]
        assert door.inbox.latest(uid=run.uid) is None


async def test_another_path_and_another_method(crds: ApiServer) -> None:
    async with open_door(crds) as door:
        async with door.session.get(door.url + "/") as answer:
            assert answer.status == 404
        async with door.session.get(door.url + progress_path(namespace="a", job="b")) as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "POST"


async def test_a_pod_that_floods_is_told_when_to_come_back(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        answers = await asyncio.gather(
            *(door.post(namespace=run.namespace, job="router", token=run.token) for _ in range(60))
        )
        refused = [headers for status, _, headers in answers if status == 429]
        assert sum(status == 200 for status, _, _ in answers) >= 20
        assert len(refused) >= 30
        assert all(int(headers["Retry-After"]) >= 1 for headers in refused)

        async def is_taken() -> bool:
            status, _, _ = await door.post(namespace=run.namespace, job="router", token=run.token)
            return status == 200

        await eventually(is_taken)


async def test_a_flood_of_bad_tokens_does_not_reach_the_apiserver(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        statuses = [
            (await door.post(namespace=run.namespace, job="router", token=f"wrong-{number}"))[0] for number in range(40)
        ]
        assert statuses[:20] == [401] * 20
        assert statuses.count(429) >= 15


async def test_the_apiserver_away(crds: ApiServer, run: Run) -> None:
    async with open_door(crds) as door:
        await asyncio.to_thread(crds.stop_apiserver)
        try:
            status, _, headers = await door.post(namespace=run.namespace, job="router", token=run.token)
        finally:
            await asyncio.to_thread(crds.start_apiserver)
        assert status == 503
        assert headers["Retry-After"] == "5"
        assert (await door.post(namespace=run.namespace, job="router", token=run.token))[0] == 200


async def test_plain_http_is_not_answered(crds: ApiServer) -> None:
    async with open_door(crds) as door:
        with pytest.raises(aiohttp.ClientError):
            await door.session.get(door.url.replace("https", "http"))


async def test_the_callback_of_transformers_is_understood(
    crds: ApiServer, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Kubeflow's protocol as the `transformers` library speaks it."""
    async with open_door(crds) as door:
        monkeypatch.setenv(
            "KUBEFLOW_TRAINER_SERVER_URL", door.url + progress_path(namespace=run.namespace, job="router")
        )
        token = tmp_path / "token"
        token.write_text(run.token)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
        from transformers.integrations.integration_utils import KubeflowCallback

        callback = KubeflowCallback()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        callback._ssl_context, callback._ssl_context_initialized = context, True
        taken = await asyncio.to_thread(
            callback._update_status, progress_percent=12, estimated_time_remaining=34.5, metrics={"loss": 1.25}
        )
        assert taken
        latest = door.inbox.latest(uid=run.uid)
        assert latest is not None
        assert (latest.status.progress_percentage, latest.status.metric("loss")) == (12, "1.25")
