"""The API environment itself: what the other tests of this layer rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.harness import ApiServer, Kubectl, KubectlError, Object, wait_until
from tests.harness.prerequisites import require_for_api
from tests.harness.processes import ProcessId
from tests.harness.store import ROOT
from tests.patience import HANGS_S


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_objects_are_stored_and_deleted(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl.apply(config_map("colours", sky="blue"), namespace=namespace)
    apiserver.kubectl.patch("configmap", "colours", {"data": {"grass": "green"}}, namespace=namespace)
    assert apiserver.kubectl.get("configmap", "colours", namespace=namespace)["data"] == {
        "sky": "blue",
        "grass": "green",
    }
    apiserver.kubectl.delete("configmap", "colours", namespace=namespace)
    assert apiserver.kubectl.find("configmap", "colours", namespace=namespace) is None


def test_a_user_has_only_the_rights_that_rbac_gives(apiserver: ApiServer, namespace: str) -> None:
    alice = apiserver.user("alice", groups=["ml"])
    with pytest.raises(KubectlError, match='User "alice" cannot list resource "configmaps"'):
        alice.list("configmaps", namespace=namespace)
    _let_group_read_config_maps(apiserver.kubectl, group="ml", namespace=namespace)
    wait_until(lambda: _may_list(alice, namespace), what="effect of the role binding")
    with pytest.raises(KubectlError, match="cannot create"):
        alice.create(config_map("x"), namespace=namespace)
    assert not _may_list(apiserver.user("bob"), namespace)


def test_a_service_account_gets_a_token_for_an_audience(controllers: ApiServer, namespace: str) -> None:
    wait_until(
        lambda: controllers.kubectl.find("serviceaccount", "default", namespace=namespace),
        what="the default service account",
    )
    token = controllers.service_account_token("default", namespace=namespace, audience="somebody.dev")
    for audience, authenticated in (("somebody.dev", "true"), ("somebody.else", "")):
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = controllers.kubectl.run(
            "create", "-f", "-", "-o", "jsonpath={.status.authenticated}", text=json.dumps(review)
        )
        assert answer == authenticated


def test_a_dependent_is_garbage_collected(controllers: ApiServer, namespace: str) -> None:
    kubectl = controllers.kubectl
    kubectl.create(config_map("owner"), namespace=namespace)
    owner = kubectl.get("configmap", "owner", namespace=namespace)
    dependent = config_map("dependent")
    dependent["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    ]
    kubectl.create(dependent, namespace=namespace)
    kubectl.delete("configmap", "owner", namespace=namespace)
    wait_until(
        lambda: kubectl.find("configmap", "dependent", namespace=namespace) is None,
        what="garbage collection of the dependent",
    )


def test_a_restart_keeps_the_data(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl.create(config_map("kept"), namespace=namespace)
    apiserver.stop_apiserver()
    with pytest.raises(KubectlError, match="refused"):
        apiserver.kubectl.get("configmap", "kept", namespace=namespace)
    apiserver.start_apiserver()
    assert apiserver.kubectl.get("configmap", "kept", namespace=namespace)


def test_a_killed_owner_leaves_nothing_behind() -> None:
    require_for_api()
    program = (
        "from tests.harness import ApiServer\n"
        "import time\n"
        "with ApiServer.running() as server:\n"
        "    pids = [d.process().pid for d in (server.etcd, server.apiserver)]\n"
        "    print(server.folder, *pids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder, *pids = owner.stdout.readline().split()
    processes = [ProcessId.of(pid=int(pid)) for pid in pids]
    assert len(processes) == 2
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait(timeout=HANGS_S)
    owner.stdout.close()
    wait_until(lambda: not Path(folder).exists(), what=f"removal of {folder}")
    assert not any(process.alive() for process in processes)


def _may_list(user: Kubectl, namespace: str) -> bool:
    try:
        user.list("configmaps", namespace=namespace)
    except KubectlError:
        return False
    return True


def _let_group_read_config_maps(kubectl: Kubectl, *, group: str, namespace: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    rbac = "rbac.authorization.k8s.io"
    kubectl.create(
        [
            {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": rules},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "readers"},
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "reader"},
                "subjects": [{"apiGroup": rbac, "kind": "Group", "name": group}],
            },
        ],
        namespace=namespace,
    )
