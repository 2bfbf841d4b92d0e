"""`finetune up` with real processes: gateway, servers with a real model, kills, a rollout, a hang, and its rollback.

One endpoint lives through the tests in their order; each takes it up as the one before has left it.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.harness import MissingPrerequisite
from tests.local.conftest import Workspace, descendants
from tests.local.eventually import wait_for
from tests.local.prometheus import Prometheus
from tests.monitoring import filled_in, panel_queries
from tests.monitoring import rules as all_rules
from tests.patience import HANGS_S

from finetune_api.modelendpoint import APPROVE, REQUESTED_BY
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.files import read_json
from finetune_operator.local.services import free_port

pytestmark = pytest.mark.timeout(900)
NAME = "topics"
ROLLOUT = {
    "shadow": {"percent": 100, "minSamples": 20},
    "steps": [{"name": "half", "percent": 50, "minSamples": 20}],
    "approval": "Manual",
    "guard": {"durationSeconds": 600},
    "metrics": [
        {"name": "error_rate", "maxRegression": 0.2},
        # Wide: the machine that tests run on may be busy. Requests that hang for twice as long open the breaker.
        {"name": "latency_seconds", "limit": 2.0, "maxRegression": 0.4},
    ],
}


@dataclass(kw_only=True)
class Served:
    """A workspace with an endpoint, and the `finetune up` that serves it."""

    workspace: Workspace
    port: int
    up: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Run `finetune up`."""
        out = (self.workspace.folder / "up.log").open("a")
        self.up = self.workspace.start("up", "-f", "endpoint.yaml", "--port", str(self.port), stdout=out)

    def said(self) -> str:
        """All that it has printed, of all starts."""
        return (self.workspace.folder / "up.log").read_text()

    def metrics(self) -> dict[str, str]:
        """Whose metrics are where, as it has said last."""
        lines = [line.partition("metrics of ")[2] for line in self.said().split("\n")[:-1] if "metrics of " in line]
        return dict(line.split(": ", 1) for line in lines)

    def end(self, number: signal.Signals) -> int:
        """End `finetune up` by a signal; its exit status."""
        assert self.up is not None
        self.up.send_signal(number)
        self.up.wait(timeout=HANGS_S)
        return self.up.returncode

    def status(self) -> dict[str, Any]:
        """The endpoint's."""
        found = read_json(self.workspace.home.objects / "modelendpoint" / "default" / f"{NAME}.json") or {}
        return found.get("status") or {}

    def phase(self) -> str:
        """The endpoint's."""
        return str(self.status().get("phase"))

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Pods of the gateway, or of servers."""
        found = (read_json(path) for path in (self.workspace.home.objects / "pod" / "default").glob("[!.]*.json"))
        return [pod for pod in found if pod and pod["metadata"]["labels"].get("finetune.dev/component") == component]

    def pid(self, component: str, *, version: str | None = None) -> int:
        """The process of a pod's container."""
        fitting = [
            pod
            for pod in self.pods(component)
            if version is None or pod["metadata"]["labels"]["finetune.dev/version"] == version
        ]
        assert len(fitting) == 1, fitting
        (shim,) = self.workspace.shims(pod=fitting[0]["metadata"]["name"])
        return descendants(shim)[1]

    def restarts(self, component: str) -> int:
        """Of the only pod of the component, once it is ready again."""
        (pod,) = self.pods(component)
        state = (pod["status"].get("containerStatuses") or [{}])[0]
        return int(state["restartCount"]) if state.get("ready") else -1

    def ask(self, *, user: str = "ann") -> tuple[int, Any]:
        """One request of a client: status and answer."""
        body = json.dumps({"input": "who won the match?", "user": user}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/classify", data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=HANGS_S) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def answers(self) -> bool:
        """Whether clients are served."""
        return self.ask()[0] == 200


@dataclass(kw_only=True)
class Traffic:
    """Clients that ask all the time."""

    served: Served
    failures: list[tuple[int, Any]] = field(default_factory=list)
    answered: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask_on(self, first: int) -> None:
        """Ask as one user after the other."""
        number = first
        while not self.stopped.is_set():
            status, answer = self.served.ask(user=f"user-{number}")
            if status == 200:
                self.answered += 1
            else:
                self.failures.append((status, answer))
            number += 100
            time.sleep(0.05)


@contextmanager
def traffic(served: Served, *, clients: int = 2) -> Iterator[Traffic]:
    """So many clients at a time, each with one request under way."""
    made = Traffic(served=served)
    threads = [threading.Thread(target=made.ask_on, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.stopped.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(workspace: Workspace, endpoint: dict[str, Any]) -> Iterator[Served]:
    """`finetune up` of an endpoint; nothing of it is left behind."""
    (workspace.folder / "endpoint.yaml").write_text(yaml.safe_dump(endpoint))
    made = Served(workspace=workspace, port=free_port())
    try:
        made.start()
        yield made
    finally:
        for pid in [each for process in workspace.processes for each in descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        workspace.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An endpoint without a version, served."""
    workspace = Workspace(folder=tmp_path_factory.mktemp("up"))
    endpoint = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": NAME},
        "spec": {
            "task": "SequenceClassification",
            "serving": {"runtime": "FastAPI", "replicas": 2},
            "rollout": ROLLOUT,
        },
    }
    with serving(workspace, endpoint) as made:
        yield made


def version(served: Served, name: str) -> dict[str, Any]:
    """A stored ModelVersion."""
    found = read_json(served.workspace.home.objects / "modelversion" / "default" / f"{name}.json")
    assert found is not None
    return dict(found)


def until(served: Served, look: Callable[[], Any], *, what: str, seconds: float = HANGS_S) -> Any:
    """Wait, and tell all that is known when it does not come."""
    try:
        return wait_for(look, seconds=seconds, what=what)
    except TimeoutError:
        status = json.dumps(served.status(), indent=1)
        logs = "".join(
            f"== {path.name}\n{path.read_text()[-1500:]}"
            for path in served.workspace.home.root.glob("endpoint-logs/*/*/*.log")
        )
        raise AssertionError(f"{what} did not happen\n{status}\n{served.said()}\n{logs}") from None


@pytest.fixture(scope="module")
def prometheus(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """One that scrapes all that `finetune up` starts, with our rules; None where it cannot be built."""
    try:
        found = Prometheus.running(tmp_path_factory.mktemp("prometheus"), targets=served.metrics, endpoint=NAME)
        with found as made:
            yield made
    except MissingPrerequisite:
        yield None


@pytest.mark.usefixtures("prometheus")
def test_a_job_that_runs_beside_it_brings_the_first_version(served: Served) -> None:
    until(served, lambda: served.phase() == "Empty", what="looking at the endpoint")
    workspace = served.workspace
    workspace.write_data(rows=60)
    job = workspace.write_job("first", endpointRef={"name": NAME}, training={"maxSteps": 8, "maxLength": 32},
        evaluation={"baseline": "Base", "metrics": [{"name": "accuracy", "maxRegression": 0.9}]})  # fmt: skip
    ended = workspace.finetune("run", "-f", job)
    assert ended.returncode == 0, ended.stdout + ended.stderr + served.said()
    assert "It runs first; following." in ended.stderr, "one process works in the folder: the one that serves"
    until(served, lambda: served.phase() == "Idle", what="promotion")
    assert served.status()["stable"]["name"] == "first"
    status, answer = served.ask()
    assert status == 200, answer
    assert answer["label"] in ("ai", "food", "sports")
    assert f"listening at http://127.0.0.1:{served.port}/v1" in served.said()


def test_a_killed_server_and_a_killed_gateway_are_started_again(served: Served) -> None:
    epoch = served.status()["routes"]["epoch"]
    for component in ("server", "gateway"):
        os.kill(served.pid(component), signal.SIGKILL)
        until(served, lambda: served.restarts(component) == 1, what=f"a new {component}")  # noqa: B023 - called at once
        until(served, served.answers, what="an answer")
        (pod,) = served.pods(component)
        assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert served.status()["routes"]["epoch"] == epoch, "both are where they were"


def test_a_killed_up_leaves_nothing_behind_and_the_same_command_serves_again(served: Served) -> None:
    assert served.workspace.shims()
    served.end(signal.SIGKILL)
    until(served, lambda: not served.workspace.shims(), what="the end of all processes")
    assert processes_of(served.workspace.folder) == []
    epoch = served.status()["routes"]["epoch"]
    served.start()
    until(served, lambda: served.said().count("will be at") == 2, what="the second start")
    until(served, lambda: served.phase() == "Idle" and served.answers(), what="an answer")
    for component in ("server", "gateway"):
        until(served, lambda: served.restarts(component) == 2, what=f"a ready {component}")  # noqa: B023 - called at once
    assert served.status()["routes"]["epoch"] == epoch, "servers are where they were"


def test_metrics_are_where_it_says(served: Served) -> None:
    urls = served.metrics
    names = {
        "the operator": "finetune_endpoints",
        "the gateway": "finetune_gateway_",
        "the server of first": "finetune_server_",
    }
    until(served, lambda: set(urls()) == set(names), what="all of them")
    for whose, name in names.items():
        with urllib.request.urlopen(urls()[whose], timeout=HANGS_S) as answer:  # noqa: S310
            assert f"\n{name}" in answer.read().decode()


def test_a_next_version_goes_through_shadow_canary_and_approval(served: Served) -> None:
    first = version(served, "first")
    second = {key: value for key, value in copy.deepcopy(first).items() if key != "status"}
    second["metadata"] = {"name": "second", "namespace": "default", "labels": first["metadata"]["labels"]}
    second["spec"]["baseline"] = {"name": "first", "digest": first["spec"]["artifact"]["digest"]}
    with traffic(served) as clients:
        LocalCluster(home=served.workspace.home).submit(manifest=second)
        until(served, lambda: served.phase() == "AwaitingApproval", what="the end of the canary")
        approve_another(served, first["metadata"]["uid"])
        approved = served.workspace.finetune("approve", NAME, "--local")
        assert approved.returncode == 0, approved.stderr
        until(served, lambda: served.phase() == "Guarding", what="promotion")
    assert clients.failures == []
    assert clients.answered > 40
    assert served.status()["stable"]["name"] == "second"
    until(served, lambda: "Guarding: " in served.said(), what="a line that says so")
    phases = ["Shadowing: ", "Canary: ", "AwaitingApproval: ", "Guarding: "]
    assert sorted(phases, key=served.said().index) == phases


def approve_another(served: Served, uid: str) -> None:
    """As by hand, with the wrong UID: nothing comes of it, and whoever asks is told why."""
    LocalCluster(home=served.workspace.home).annotate(
        kind="ModelEndpoint", namespace="default", name=NAME, annotations={APPROVE: uid, REQUESTED_BY: "ann"}
    )
    why = f"it is for another version, first ({uid}), not for second"
    explained = served.workspace.finetune("explain", "endpoint", NAME, "--local").stdout
    assert f"finetune.dev/approve is void: {why}" in explained
    assert "a person to approve second (rollout.approval Manual): there is no time limit" in explained
    assert (
        f"approve first (void: {why}) (by ann)" in served.workspace.finetune("describe", "mep", NAME, "--local").stdout
    )
    assert served.phase() == "AwaitingApproval"


def test_a_server_that_hangs_under_guard_is_left(served: Served) -> None:
    hanging = served.pid("server", version="second")
    with traffic(served, clients=8) as clients:
        os.kill(hanging, signal.SIGSTOP)
        began = time.monotonic()
        until(served, lambda: served.status()["versions"][-1]["outcome"] == "RolledBack", what="the rollback")
        took = time.monotonic() - began
        until(served, lambda: served.phase() == "Idle", what="the end of the rollback")
        os.kill(hanging, signal.SIGKILL)  # it was told to end, and would for a minute be given the time for it
    assert clients.failures == []
    assert served.status()["stable"]["name"] == "first"
    assert served.status()["versions"][-1]["name"] == "second"
    assert took < 60, f"{took:.1f} s"
    until(served, lambda: len(served.pods("server")) == 1, what="the end of its server")


NOT_HERE = (
    "vllm:",  # its servers are an image of their own: that their queries can be read is all that is tested
    "finetune_kubernetes_",  # calls to an apiserver
    "finetune_training_mfu_ratio",  # of GPUs
    "finetune_training_gpu_memory_bytes",
    "finetune_gateway_time_to_first_byte_seconds",  # of streams: a classifier has none
    "finetune_job_wait_start_timestamp_seconds",  # nothing waited: there is neither a queue, nor a quota
)
"""What has no data on this machine."""


def test_every_panel_and_every_alert_can_be_asked_and_shows_what_happened(prometheus: Prometheus | None) -> None:
    if prometheus is None:
        pytest.skip("Go is missing, which builds Prometheus: install Go (golang.org/dl, or golang-go)")
    names = {"run": "first", "endpoint": NAME, "gateway": NAME, "fleet": ".*"}
    empty = []
    for where, query in panel_queries():
        namespace = ".*" if where.startswith("fleet") else "default"
        asked = filled_in(query, namespace=namespace, name=names[where.partition(":")[0]])
        if not prometheus.ever(asked) and not any(name in query for name in NOT_HERE):
            empty.append((where, query))
    assert empty == []
    assert not prometheus.ever('finetune_training_loss{name="another"}'), "it can be empty"
    rules = wait_for(lambda: with_alert(prometheus.rules(), of="FinetuneRolledBack"), what="the rollback's alert")
    assert {rule["name"] for rule in rules} == {rule.get("alert") or rule["record"] for rule in all_rules()}
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    (fired,) = (rule for rule in rules if rule["name"] == "FinetuneRolledBack")
    (alert,) = fired["alerts"]
    assert (alert["state"], alert["annotations"]["summary"]) == ("firing", f"default/{NAME} was rolled back")
    firing = {rule["name"] for rule in rules for each in rule.get("alerts", ()) if each["state"] == "firing"}
    assert firing <= {"FinetuneRolledBack", "FinetuneGatewaySheds", "FinetuneGatewayErrors"}, "all else was well"


def with_alert(rules: list[dict[str, Any]], *, of: str) -> list[dict[str, Any]]:
    """The rules, once this one has what it is for."""
    return rules if any(rule["name"] == of and rule["alerts"] for rule in rules) else []


def test_ctrl_c_ends_all_and_the_same_command_brings_it_back(served: Served) -> None:
    assert served.end(signal.SIGINT) == 130
    assert "All is ended; nothing was lost." in served.said()
    assert processes_of(served.workspace.folder) == []
    assert served.ask()[0] == 0
    served.start()
    until(served, served.answers, what="an answer")
    assert served.status()["stable"]["name"] == "first"
    assert served.end(signal.SIGTERM) == 130
    assert processes_of(served.workspace.folder) == [], "nothing is left behind"


def test_what_this_machine_cannot_do_is_said(served: Served) -> None:
    workspace = served.workspace
    text = (workspace.folder / "endpoint.yaml").read_text()
    (workspace.folder / "gpus.yaml").write_text(text.replace("replicas: 2", "gpus: 64"))
    refused = workspace.finetune("up", "-f", "gpus.yaml")
    assert refused.returncode == 2
    assert "spec.serving.gpus: 64 GPUs are wanted for each version, this machine has" in refused.stderr
    taken = workspace.finetune("up", "-f", workspace.write_job("no-endpoint"))
    assert taken.returncode == 2
    assert "up takes ModelEndpoints, found FineTuneJob" in taken.stderr


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that have to do with a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found
