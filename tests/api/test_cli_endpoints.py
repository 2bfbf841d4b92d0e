"""What the command line asks of endpoints on a real apiserver, by users with and without the rights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.api.people import Team
from tests.harness import wait_until
from tests.patience import HANGS_S
from tests.unit.cli.endpoints import V1, V2, V3, awaiting, canary, guarding, rolling_back
from tests.wrong_manifests import valid

from finetune_api.finetunejob import RETRY
from finetune_api.modelendpoint import APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK, ModelEndpoint
from finetune_operator.cli.__main__ import main


def put(team: Team, found: ModelEndpoint, *, annotations: Mapping[str, str] | None = None) -> None:
    """Give the endpoint this status, as the operator would, and these requests, by alice."""
    nobody: dict[str, Any] = {"candidate": None, "previous": None}
    patch = json.dumps({"status": nobody | found.to_dict()["status"]})
    where = ("modelendpoint", "router", "-n", team.namespace)
    team.apiserver.kubectl.run("patch", *where, "--subresource=status", "--type=merge", "-p", patch)
    if annotations:
        team.annotate("alice", {**annotations, REQUESTED_BY: "alice"})


def typed(team: Team, user: str, *arguments: str) -> int:
    """The command, with the user's own kubeconfig."""
    kubeconfig = str(team.user(user).kubeconfig)
    return main([*arguments, "--kubeconfig", kubeconfig, "-n", team.namespace])


@pytest.mark.parametrize(
    ("verb", "found", "annotation", "uid"),
    [
        ("approve", awaiting(), APPROVE, V2),
        ("reject", canary(), REJECT, V2),
        ("rollback", canary(), ROLLBACK, V2),
        ("rollback", guarding(), ROLLBACK, V2),
    ],
)
def test_a_decision_in_ones_own_name(team: Team, verb: str, found: ModelEndpoint, annotation: str, uid: str) -> None:
    put(team, found)
    assert typed(team, "alice", verb, "router") == 0
    assert team.annotations() == {annotation: uid, REQUESTED_BY: "alice"}


@pytest.mark.parametrize("verb", ["approve", "reject", "rollback"])
def test_without_the_right_the_policy_speaks(team: Team, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, awaiting())
    assert typed(team, "bob", verb, "router") == 2
    said = f"bob may not write finetune.dev/{verb}: that needs the verb approve on modelendpoints of finetune.dev"
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == "", "nothing was approved, so nothing is said to be"
    assert team.annotations() == {}


def test_what_is_void_goes_in_the_same_patch(team: Team) -> None:
    put(team, awaiting(), annotations={REJECT: V3, ROLLBACK: V1})
    assert typed(team, "alice", "approve", "router") == 0
    assert team.annotations() == {APPROVE: V2, REQUESTED_BY: "alice"}


def test_editors_pause_and_resume(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, canary(), annotations={ROLLBACK: V3})
    assert typed(team, "bob", "pause", "router") == 0
    assert team.annotations() == {PAUSE: "true", REQUESTED_BY: "bob"}, "bob signs for nothing that alice asked for"
    assert (
        "router: paused\nnext: nothing moves on until finetune resume; it is still watched" in capsys.readouterr().out
    )
    assert typed(team, "carol", "resume", "router") == 0
    assert team.annotations() == {}


def test_a_pause_withdraws_an_approval_of_somebody_else(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, canary(), annotations={APPROVE: V2})
    assert typed(team, "bob", "pause", "router") == 0
    assert team.annotations() == {PAUSE: "true", REQUESTED_BY: "bob"}
    assert "the approval that somebody else had given is withdrawn" in capsys.readouterr().out


def test_a_pause_does_not_take_over_a_rejection(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, canary(), annotations={REJECT: V2})
    assert typed(team, "bob", "pause", "router") == 2
    assert "finetune.dev/reject would then bear the name of bob" in capsys.readouterr().err
    assert team.annotations() == {REJECT: V2, REQUESTED_BY: "alice"}


def test_whoever_may_only_look(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    team.bind(user="dave", role="finetune-view")
    put(team, awaiting())
    wait_until(lambda: typed(team, "dave", "get", "mep", "router") == 0, what="dave's rights")
    capsys.readouterr()
    assert typed(team, "dave", "approve", "router") == 1
    assert 'User "dave" cannot patch resource "modelendpoints"' in capsys.readouterr().err


def test_waiting_for_what_was_asked(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, awaiting())

    def promote() -> None:
        wait_until(lambda: APPROVE in team.annotations(), what="the approval")
        put(team, guarding())

    with ThreadPoolExecutor(1) as operator:
        promoting = operator.submit(promote)
        assert typed(team, "alice", "approve", "router", "--wait", f"--timeout={HANGS_S}") == 0
        promoting.result()
    assert re.search(r"\d\d:\d\d:\d\d AwaitingApproval: v2 in Approval\n", capsys.readouterr().out)


def test_waiting_for_what_does_not_come(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, awaiting())
    assert typed(team, "alice", "approve", "router", "--wait", "--timeout=0.1") == 1
    assert "router was not so far within 0.1 s; the request stays" in capsys.readouterr().err


def test_the_same_columns_as_kubectl(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, canary())
    for output in ([], ["-o", "wide"]):
        assert typed(team, "bob", "get", "endpoints", *output) == 0
        ours = [re.split(r" {2,}", line)[:-1] for line in capsys.readouterr().out.splitlines()]
        shown = team.user("bob").run("get", "mep", "-n", team.namespace, *output)
        assert ours == [re.split(r" {2,}", line.strip())[:-1] for line in shown.splitlines()]


def test_describe_and_explain(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    put(team, rolling_back())
    assert typed(team, "bob", "describe", "mep", "router") == 0
    captured = capsys.readouterr()
    assert "v2     RolledBack" in captured.out
    assert "note: events are left out: " in captured.err, "finetune-view does not show the namespace's events"
    assert typed(team, "bob", "explain", "mep", "router") == 0
    assert "1 of 2 gateways follow the newest routes (epoch 8)" in capsys.readouterr().out


def test_an_editor_has_a_job_tried_again_and_watches_it(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl, end = team.apiserver.kubectl, "2026-01-05T12:01:51Z"
    kubectl.create(valid("job") | {"metadata": {"name": "router", "namespace": team.namespace}})
    where = ("finetunejob", "router", "-n", team.namespace)
    ready = {"type": "Ready", "status": "False", "reason": "InputNotFound", "message": "no data"}
    ended = {"phase": "Failed", "completionTime": end, "message": "no data", "observedGeneration": 1}
    conditions = [ready | {"lastTransitionTime": end}]
    patch = json.dumps({"status": ended | {"conditions": conditions}})
    kubectl.run("patch", *where, "--subresource=status", "--type=merge", "-p", patch)
    assert typed(team, "bob", "watch", "job", "router") == 1
    assert "router: Failed\nno data\n" in capsys.readouterr().out
    assert typed(team, "bob", "retry", "job", "router") == 0
    stored = kubectl.get("finetunejob", "router", namespace=team.namespace)
    assert stored["metadata"]["annotations"] == {RETRY: end}
    assert "how it goes: finetune watch job router" in capsys.readouterr().out
    kubectl.run("delete", *where)
