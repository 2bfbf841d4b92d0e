"""Whole rollouts on real nodes under the requests of a real client, with everything going wrong on the way."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
import urllib3
from tests.cluster import backup, containers, endpoints
from tests.cluster.endpoints import ENDPOINT, EndpointSpace
from tests.cluster.jobs import classifier
from tests.cluster.operator_install import InstalledOperator, install
from tests.cluster.switches import GatewayLogs, Switch, gateway_name, splits, switches
from tests.cluster.traffic import Traffic, wait_reachable
from tests.harness import Object, wait_until
from tests.patience import HANGS_S

from finetune_gateway.routing import user_position

pytestmark = pytest.mark.timeout(1700)

_BURST = 16
_WATCHING_AGAIN_S = 8.0
"""Where the apiserver was away, a gateway asks again after at most 5 s; only then do newer routes reach it."""


@pytest.fixture
def space(operator: InstalledOperator, namespace: str) -> EndpointSpace:
    return endpoints.prepare(cluster=operator.cluster, namespace=namespace)


@pytest.fixture
def upgradable(operator: InstalledOperator) -> Iterator[InstalledOperator]:
    """The operator, as it was installed again after the test; and nodes that take pods."""
    yield operator
    operator.kubectl.run("uncordon", *operator.cluster.nodes)
    install(cluster=operator.cluster)


def in_production(status: dict[str, Any]) -> bool:
    """A version serves, and gateways lead to it."""
    available = any(each["type"] == "Available" and each["status"] == "True" for each in status.get("conditions") or ())
    return status.get("phase") == "Idle" and available


@dataclass(kw_only=True)
class Walk:
    """One endpoint and its traffic through all that happens to it."""

    operator: InstalledOperator
    space: EndpointSpace
    traffic: Traffic
    logs: GatewayLogs
    stable: str
    """Digest of v1."""
    killed_in: list[str] = field(default_factory=list)
    """Phases in which the operator was killed."""
    disturbed: dict[int, float] = field(default_factory=dict)
    """By epoch: when a fault began that moves users."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Of the apiserver."""
    deletions: list[tuple[float, float]] = field(default_factory=list)
    """Of gateway pods. A connection that was about to be used may be closed then: its client asks again."""
    kills: list[tuple[float, float]] = field(default_factory=list)
    """kill -9 of a gateway, until it runs again: its requests break off, and until its Service leads around it some
    cannot connect."""
    figures: dict[str, Any] = field(default_factory=dict)

    def kill_leader(self, phase: str) -> str:
        """The operator's leader is gone without a word, in this phase; who it was."""
        leader = self.operator.kill_leader()
        assert self.space.status()["phase"] == phase
        self.killed_in.append(phase)
        return leader

    def wait(self, phase: str, *, candidate: str) -> None:
        """Wait until the candidate with this UID is in a phase; fail as soon as it has been given up."""

        def reached(status: dict[str, Any]) -> bool:
            ended = [each for each in status.get("versions") or () if each["uid"] == candidate]
            assert not ended, f"{ended[-1]}; {self.traffic.failures[-3:]}"
            return status.get("phase") == phase and (status.get("candidate") or {}).get("uid") == candidate

        self.space.wait(reached, what=phase)

    def wait_answered_by(self, version: str) -> None:
        """Wait until a client had an answer of this version."""

        def seen() -> bool:
            self.logs.collect()
            last = [self.logs.answered.get(each.answer_id, (0, "")) for each in self.traffic.answers[-20:]]
            return any(by == version for _, by in last)

        wait_until(
            seen,
            what=f"an answer of {version}",
            explain=lambda: json.dumps(self.space.status(), indent=1),
        )

    def running(self, component: str, *, version: str = "") -> dict[str, int]:
        """UIDs of pods that nobody has deleted, and how often each was started again."""
        return {
            pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"]
            for pod in self.space.pods(component, version=version)
            if "deletionTimestamp" not in pod["metadata"]
        }


def test_from_the_first_version_to_a_restore(
    upgradable: InstalledOperator, space: EndpointSpace, request: pytest.FixtureRequest
) -> None:
    space.kubectl.apply(endpoints.manifest(), namespace=space.namespace)
    space.offer("v1", baseline="")
    first = space.wait(in_production, what="the first version in production")
    url = f"http://{space.cluster.service_address(ENDPOINT, namespace=space.namespace)}"
    wait_reachable(url)
    with last_words(space), Traffic(url=url, model=ENDPOINT).flowing() as traffic:
        walk = Walk(
            operator=upgradable,
            space=space,
            traffic=traffic,
            logs=GatewayLogs(space=space),
            stable=first["status"]["stable"]["digest"],
        )
        stable = walk.running("server", version="v1")
        assert list(stable.values()) == [0]
        voted_at_any_gateway(walk)
        damaged_on_disk(walk)
        candidate_without_pods(walk)
        promoted(walk)
        servers_that_hang(walk)
        assert walk.running("server", version="v1") == stable, "nothing restarts what serves"
        restored(walk)
        assert walk.running("server", version="v1") == stable, "nor does a restore"
        traffic.wait(more=5)
    checked(walk)
    request.node.user_properties.append(("figures", json.dumps(walk.figures)))


@contextmanager
def last_words(space: EndpointSpace) -> Iterator[None]:
    """Where the test fails, print what its pods said last; the access log is left out."""
    try:
        yield
    except BaseException:
        for pod in [*space.pods("gateway"), *space.pods("server")]:
            name = pod["metadata"]["name"]
            lines = space.kubectl.run("logs", name, "-n", space.namespace, "--tail=300").splitlines()
            print(f"--- {name}", *[line for line in lines if " /v1/" not in line][-40:], sep="\n")
        raise


def voted_at_any_gateway(walk: Walk) -> None:
    """Whichever replica gave an answer, each of them takes the vote about it, and only one vote."""
    one, other = [pod["status"]["podIP"] for pod in walk.space.pods("gateway")]
    voted_once(answering=one, other=other)
    voted_once(answering=other, other=one)


def voted_once(*, answering: str, other: str) -> None:
    """Gateways know of each other a second or two after they have started."""
    question = {"model": ENDPOINT, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    answer = urllib3.request("POST", f"http://{answering}:8080/v1/chat/completions", json=question, timeout=HANGS_S)
    ballot = {"request_id": answer.headers["x-finetune-answer-id"], "rating": "up"}

    def vote(at: str) -> int:
        return urllib3.request("POST", f"http://{at}:8080/v1/feedback", json=ballot, timeout=HANGS_S).status

    wait_until(lambda: vote(other) == 200, what="a vote that is passed on")
    assert [vote(each) for each in (answering, other)] == [409, 409], "one vote for each answer"


def damaged_on_disk(walk: Walk) -> None:
    """A version whose files are not what was evaluated: it cannot be served, and never touches production."""
    space = walk.space
    v0 = space.offer("v0", baseline=walk.stable, damaged=True)
    status = space.wait(
        lambda status: status.get("phase") == "Idle" and status["versions"][-1]["name"] == "v0", what="v0 rejected"
    )["status"]
    assert status["versions"][-1]["outcome"] == "Rejected"
    assert "Artifact" in status["versions"][-1]["reason"], status["versions"][-1]
    assert status["stable"]["name"] == "v1"
    assert not [each for each in switches(space) if any(v0 in rule.weights for rule in each.routes.rules)]


def candidate_without_pods(walk: Walk) -> None:
    """v2 loses its pods while clients are sent to it: a gateway leaves it by itself, which ends it. All replicas of the
    operator are killed at that moment, and the one that leads in each phase before."""
    space, traffic = walk.space, walk.traffic
    v2 = space.offer("v2", baseline=walk.stable)
    wait_until(lambda: space.pods("server", version="v2"), what="a pod of v2")
    leader = walk.kill_leader("Shadowing")
    walk.wait("Canary", candidate=v2)
    walk.wait_answered_by(v2)
    walk.operator.wait_for_leader(other_than=leader)
    with walk.operator.killed_in(
        "RollingBack", kind="modelendpoint", name=ENDPOINT, namespace=space.namespace
    ) as killed:
        walk.kill_leader("Canary")
        percent = space.status()["step"]["percent"]
        users = [
            f"burst-{number}" for number in range(1000) if user_position(salt=v2, user=f"burst-{number}") < percent
        ]
        pids = space.processes("v2")
        began = time.time()
        walk.disturbed[space.routes()["epoch"]] = began
        space.kubectl.run("cordon", *space.cluster.nodes)  # no others take their place meanwhile
        for pod in space.pods("server", version="v2"):
            name = pod["metadata"]["name"]
            space.kubectl.delete("pod", name, namespace=space.namespace, wait=False)
        wait_until(lambda: not set(pids) & set(space.processes("v2")), what="the end of v2's servers")
        traffic.burst(users[:_BURST])
        space.wait(lambda status: status["versions"][-1]["uid"] == v2, what="the end of v2", timeout_s=HANGS_S)
        walk.figures["candidate_pods_deleted_to_recorded_s"] = round(time.time() - began, 1)
        phase = space.status()["phase"]
        if killed and phase == "RollingBack":
            walk.killed_in.append(phase)
        status = space.wait(lambda status: status.get("phase") == "Idle", what="Idle", timeout_s=HANGS_S)["status"]
    space.kubectl.run("uncordon", *space.cluster.nodes)
    walk.logs.collect()
    walk.figures["candidate_pods_deleted_to_left_by_gateway_s"] = round(walk.logs.left[v2] - began, 2)
    outcome = status["versions"][-1]
    assert (outcome["name"], outcome["outcome"]) == ("v2", "RolledBack")
    assert outcome["reason"].startswith("a gateway left it: "), outcome
    assert status["stable"]["name"] == "v1"


def promoted(walk: Walk) -> None:
    """v3 goes all the way, although a gateway, the apiserver and the leader go away, and the operator is upgraded."""
    space, traffic = walk.space, walk.traffic
    v3 = space.offer("v3", baseline=walk.stable)
    walk.wait("Shadowing", candidate=v3)
    gateway_killed(walk)
    walk.wait("Canary", candidate=v3)
    walk.wait_answered_by(v3)
    walk.logs.collect()
    gateway = space.pods("gateway")[0]["metadata"]["name"]
    deleted = time.time()
    space.kubectl.delete("pod", gateway, namespace=space.namespace)
    walk.deletions.append((deleted, time.time()))
    space.cluster.stop_apiserver()
    stopped = time.time()
    traffic.wait(more=10)
    space.cluster.start_apiserver()
    walk.outages.append((stopped, time.time()))
    walk.wait("AwaitingApproval", candidate=v3)
    walk.operator.wait_for_leader()
    walk.kill_leader("AwaitingApproval")
    upgraded(walk)
    space.annotate(approve=v3)
    space.wait(lambda status: status.get("phase") == "Guarding", what="Guarding")
    assert space.status()["stable"]["name"] == "v3"


def gateway_killed(walk: Walk) -> None:
    """One of the gateways ends without a word; another starts in its pod, and takes the routes in."""
    walk.logs.collect()
    began, killed = time.time(), walk.space.kill_gateway()

    def runs_again() -> bool:
        (status,) = [
            pod["status"]["containerStatuses"][0]
            for pod in walk.space.pods("gateway")
            if pod["metadata"]["name"] == killed
        ]
        return bool(status["ready"]) and status["restartCount"] == 1

    wait_until(runs_again, what=f"{killed} ready again")
    walk.kills.append((began, time.time()))


def upgraded(walk: Walk) -> None:
    """The operator is replaced by one that would start other images. The rollout waits for its approval meanwhile."""

    def picture() -> tuple[object, ...]:
        return walk.space.routes(), walk.running("gateway"), walk.running("server")

    def phase() -> object:
        status = walk.space.status()
        return status["phase"], status["candidate"]["name"], status["stable"]["name"]

    before = picture(), phase()
    walk.operator.upgrade(tag="next")
    image_that_cannot_be_pulled(walk)
    walk.traffic.wait(more=5)
    assert (picture(), phase()) == before, "an upgrade restarts nothing, and moves nobody"


def image_that_cannot_be_pulled(walk: Walk) -> None:
    """There are no images of the new version here. A job says so, by the image's name."""
    space, image = walk.space, f"{walk.operator.cluster.images.trainer}-next"
    space.kubectl.apply(classifier("no-image"), namespace=space.namespace)

    def named(job: Object) -> bool:
        status = job.get("status") or {}
        return status.get("phase") == "Preparing" and image in (status.get("message") or "")

    space.kubectl.wait_for(
        "finetunejob", "no-image", named, namespace=space.namespace, timeout_s=HANGS_S, what="the image's name"
    )
    space.kubectl.delete("finetunejob", "no-image", namespace=space.namespace)


def servers_that_hang(walk: Walk) -> None:
    """After the promotion all servers of v3 freeze: back to v1, which is still warm."""
    space, traffic = walk.space, walk.traffic
    leader = walk.kill_leader("Guarding")
    traffic.wait(more=20)
    walk.operator.wait_for_leader(other_than=leader)
    pids = space.processes("v3")
    assert pids
    began = time.time()
    thaw = containers.freeze(pids)  # every answer hangs from now on
    try:
        space.wait(lambda status: status["stable"]["name"] == "v1", what="back on v1", timeout_s=HANGS_S)
        walk.figures["servers_frozen_to_rollback_s"] = round(time.time() - began, 1)
        space.wait(lambda status: status.get("phase") == "Idle", what="Idle", timeout_s=HANGS_S)
    finally:
        thaw()
    outcome = space.status()["versions"][-1]
    assert (outcome["name"], outcome["outcome"]) == ("v3", "RolledBack")
    wait_until(lambda: not space.pods("server", version="v3"), what="the servers of v3 gone")


def restored(walk: Walk) -> None:
    """The objects come from a backup: no status, other UIDs. The operator was away, and comes back as it was before."""
    space = walk.space

    def picture() -> tuple[object, ...]:
        return space.routes(), walk.running("gateway"), walk.running("server")

    before = picture()
    walk.operator.scale(0)
    backup.recreate(space)
    walk.traffic.wait(more=5)
    install(cluster=space.cluster)
    status = space.wait(in_production, what="the restored endpoint in production")["status"]
    assert [(each["name"], each["outcome"]) for each in status["versions"][-1:]] == [("v1", "Promoted")]
    assert status["stable"]["digest"] == walk.stable
    walk.traffic.wait(more=15)
    assert picture() == before, "the same routes, epoch included, and the same pods"
    assert (space.status()["phase"], space.status().get("candidate")) == ("Idle", None), "what failed stays out"
    endpoint = space.endpoint()["metadata"]["uid"]
    owners = {
        each["metadata"]["name"]: [owner["uid"] for owner in each["metadata"].get("ownerReferences") or ()]
        for kind in ("deployments", "services")
        for each in space.kubectl.list(kind, namespace=space.namespace)
    }
    assert all(uids == [endpoint] for uids in owners.values()), owners


def checked(walk: Walk) -> None:
    """What held all the time, and the figures."""
    traffic, logs = walk.traffic, walk.logs
    logs.collect()
    known = switches(walk.space)
    divided = splits(traffic.answers, answered=logs.answered, known=known, before=walk.disturbed)
    settled = {each.routes.epoch: logs.seconds(each) for each in known}
    delayed = [each.routes.epoch for each in known if after_outage(each, walk.outages)]
    walk.figures = {
        "answers": len(traffic.answers),
        "answers_of_unknown_versions": sum(each.answer_id not in logs.answered for each in traffic.answers),
        "failures": len(traffic.failures),
        "sdk_retries": sum(each.retries for each in traffic.answers),
        "fallbacks": sum(logs.fallbacks.values()),
        "slowest_answer_s": round(max(each.seconds for each in traffic.answers), 1),
        "operator_killed_in": walk.killed_in,
        "splits": [asdict(each) for each in divided],
        "switch_to_all_gateways_s": {epoch: each and round(each, 3) for epoch, each in settled.items()},
        "switches_just_after_an_outage": delayed,
        **walk.figures,
    }
    words = json.dumps(walk.figures, indent=1)
    for each in traffic.failures:
        excused = any(each.sent < ended and began < each.ended for began, ended in walk.kills)
        assert excused, f"clients must not notice: {each}\n{words}"
    for each in traffic.answers:
        excused = any(began - 5 < each.sent < ended + 5 for began, ended in [*walk.deletions, *walk.kills])
        assert excused or not each.retries, f"asked twice: {each}\n{words}"
    for phase in ("Shadowing", "Canary", "AwaitingApproval", "Guarding"):
        assert phase in walk.killed_in
    assert len([each for each in divided if each.answers >= 15]) >= 2, words
    for split in divided:
        assert split.low <= split.candidate <= split.high, words
    assert sum(each.strayed for each in divided) <= sum(logs.fallbacks.values()), words
    gateways = [gateway_name(pod) for pod in walk.space.pods("gateway")]
    assert not logs.missing([each for each in known if each.routes.epoch not in delayed], gateways=gateways), words
    quick = [took for epoch, took in settled.items() if took is not None and epoch not in delayed]
    assert len(quick) >= 6, words
    assert statistics.median(quick) < 1, words


def after_outage(switch: Switch, outages: list[tuple[float, float]]) -> bool:
    """Whether the apiserver was away when routes were written, or gateways may not have noticed that it is back."""
    return any(stopped - 1 <= switch.at <= back + _WATCHING_AGAIN_S for stopped, back in outages)
