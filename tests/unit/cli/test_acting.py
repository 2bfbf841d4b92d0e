"""approve, reject, rollback, pause and resume: which version is meant, what is written, what is said."""

from __future__ import annotations

import asyncio
import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.harness.waiting import wait_until
from tests.unit.cli.endpoints import (
    V1,
    V2,
    V3,
    awaiting,
    canary,
    condition,
    endpoint,
    given,
    guarding,
    idle,
    outcome,
    rolling_back,
    served,
    shadowing,
    trying,
)

from finetune_api.modelendpoint import APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK, ModelEndpoint
from finetune_operator.cli import ask
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.ask import what_follows
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.wishes import (
    Verb,
    decision_changes,
    pause_changes,
    progress_of,
    resume_changes,
    version_meant,
    withdraws_approval,
)
from finetune_operator.core.ports import ConflictError, Key, Manifest
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.home import LocalHome
from finetune_operator.local.observations import FileObservations
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.watch import LocalWatchSource

ME = pwd.getpwuid(os.getuid()).pw_name
HELD = {"step": {"held": "quality: worse"}, "rollout": {"onRegression": "Pause"}, "phase": "Paused"}

# -- which version ----------------------------------------------------------------------------------------------------


LEAVE_TOO = "to leave that one as well: --version v1"
FORMER = [outcome("v0", V3, "Promoted"), outcome("v1", V1, "Promoted"), outcome("v2", V2, "RolledBack")]


@pytest.mark.parametrize(
    ("verb", "found", "name", "meant"),
    [
        ("approve", awaiting(), None, "v2"),
        ("approve", canary(), "v2", "v2"),
        ("approve", guarding(**HELD), None, "v2"),
        ("approve", guarding(), "v2", "v2"),
        ("reject", shadowing(), None, "v2"),
        ("reject", trying("Starting", phase="Shadowing"), None, "v2"),
        ("rollback", canary(), None, "v2"),
        ("rollback", canary(versions=[outcome("v0", V3, "Promoted"), outcome("v1", V1, "Promoted")]), "v1", "v1"),
        ("rollback", guarding(), None, "v2"),
        ("rollback", idle(), None, "v2"),
        ("rollback", rolling_back(versions=FORMER), "v1", "v1"),
    ],
)
def test_the_version_that_is_meant(verb: Verb, found: ModelEndpoint, name: str | None, meant: str) -> None:
    assert version_meant(found, verb=verb, name=name).name == meant


TWO_HELD = {
    "held": {"name": "v4", "uid": "u4", "reason": "not decided against v2"},
    "alsoHeld": [{"name": "v3", "uid": V3, "reason": "not decided against v1"}],
}


@pytest.mark.parametrize("verb", ["approve", "reject"])
@pytest.mark.parametrize(
    ("found", "names"), [(idle(**TWO_HELD), ("v4", "v3")), (awaiting(held=TWO_HELD["held"]), ("v2", "v4"))]
)
def test_where_several_wait_all_are_named_and_none_is_guessed(
    verb: Verb, found: ModelEndpoint, names: tuple[str, str]
) -> None:
    with pytest.raises(CommandError) as error:
        version_meant(found, verb=verb, name=None)
    assert str(error.value).endswith(f"say --version {names[0]} or --version {names[1]}")
    assert [version_meant(found, verb=verb, name=name).name for name in names] == list(names)


@pytest.mark.parametrize(
    ("verb", "found", "name", "message"),
    [
        ("approve", idle(), None, "nothing to approve: router tries no version now, v2 is stable"),
        ("approve", endpoint(phase="Empty"), None, "nothing to approve: router serves no version and tries none"),
        ("approve", guarding(), None, "nothing to approve: router tries no version now, v2 is stable"),
        ("approve", canary(), "v1", "--version v1: not a version to approve at router now (v1 was promoted: proven); it"
         " can be done with v2"),
        ("approve", canary(), "v9", "--version v9: not a version to approve at router now; it can be done with v2"),
        ("reject", guarding(), None, "v2 is promoted and under guard: finetune rollback router leaves it"),
        ("reject", guarding(), "v2", "--version v2: not a version to reject at router now (v2 was promoted"),
        ("rollback", rolling_back(), None, "router is going back to v1 already"),
        ("rollback", rolling_back(), "v1", "router cannot leave v1: there is no other"),
        ("rollback", rolling_back(versions=FORMER), None, f"router is going back to v1 already; {LEAVE_TOO}"),
        ("rollback", idle(versions=[outcome("v2", V2, "Promoted")]), None, "router cannot leave v2: there is no other"),
        ("rollback", endpoint(phase="Empty"), None, "nothing to roll back: router serves no version and tries none"),
    ],
)  # fmt: skip
def test_a_version_that_cannot_be_meant(verb: Verb, found: ModelEndpoint, name: str | None, message: str) -> None:
    with pytest.raises(CommandError) as error:
        version_meant(found, verb=verb, name=name)
    assert str(error.value).startswith(message)
    assert error.value.status == 2


# -- what is written --------------------------------------------------------------------------------------------------


def test_a_decision_takes_the_place_of_all_others() -> None:
    known = {APPROVE: V2, ROLLBACK: V1, PAUSE: "true", REQUESTED_BY: "ann", "note": "x"}
    changes = decision_changes(canary(annotations=known), verb="reject", uid=V2, by="bob")
    assert changes == {APPROVE: None, ROLLBACK: None, REJECT: V2, REQUESTED_BY: "bob"}


@pytest.mark.parametrize(
    ("known", "by", "changes"),
    [
        ({}, "bob", {PAUSE: "true", REQUESTED_BY: "bob"}),
        ({PAUSE: "true", REQUESTED_BY: "ann"}, "bob", {}),
        ({ROLLBACK: V3, REQUESTED_BY: "ann"}, "bob", {ROLLBACK: None, PAUSE: "true", REQUESTED_BY: "bob"}),
        ({APPROVE: V2, REQUESTED_BY: "ann"}, "bob", {APPROVE: None, PAUSE: "true", REQUESTED_BY: "bob"}),
        ({APPROVE: V2, REQUESTED_BY: "ann"}, "ann", {PAUSE: "true", REQUESTED_BY: "ann"}),
        ({REJECT: V2, REQUESTED_BY: "ann"}, "bob", {PAUSE: "true", REQUESTED_BY: "bob"}),
    ],
    ids=[
        "first",
        "already",
        "of another version",
        "somebody else's approval",
        "one's own approval",
        "a live rejection",
    ],
)
def test_a_pause_signs_for_nothing_but_itself(known: dict[str, str], by: str, changes: dict[str, Any]) -> None:
    assert pause_changes(canary(annotations=known), by=by) == changes


@pytest.mark.parametrize(("uid", "withdrawn"), [(V2, True), (V3, False)], ids=["in force", "void"])
def test_only_an_approval_in_force_is_withdrawn(uid: str, withdrawn: bool) -> None:
    found = canary(annotations={APPROVE: uid, REQUESTED_BY: "ann"})
    changes = pause_changes(found, by="bob")
    assert changes[APPROVE] is None
    assert withdraws_approval(found, changes=changes) == withdrawn


@pytest.mark.parametrize(
    ("known", "changes"),
    [
        ({}, {}),
        ({PAUSE: "true", REQUESTED_BY: "ann"}, {PAUSE: None, REQUESTED_BY: None}),
        ({PAUSE: "true", APPROVE: V2, REQUESTED_BY: "ann"}, {PAUSE: None}),
        ({PAUSE: "true", REJECT: V3, REQUESTED_BY: "ann"}, {PAUSE: None, REJECT: None, REQUESTED_BY: None}),
    ],
)
def test_resuming_leaves_what_is_in_force(known: dict[str, str], changes: dict[str, Any]) -> None:
    assert resume_changes(canary(annotations=known)) == changes


def test_an_approval_that_was_used_is_in_force_no_more() -> None:
    known = {APPROVE: V2, REQUESTED_BY: "ann"}
    found = canary(annotations=known | {PAUSE: "true"}, approval=given("quality: worse", used=True))
    assert resume_changes(found) == {PAUSE: None, APPROVE: None, REQUESTED_BY: None}
    found = canary(annotations=known, approval=given("quality: worse", used=True))
    assert not withdraws_approval(found, changes=pause_changes(found, by="bob"))


# -- how far it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "found", "reached", "failed"),
    [
        ("approve", awaiting(), False, ""),
        ("approve", guarding(stage="Promoting"), False, ""),
        ("approve", guarding(), True, ""),
        ("approve", guarding(reason="Regression"), False, ""),
        ("approve", rolling_back(), False, "v2 was rolled back (error_rate: up, by operator)"),
        ("reject", canary(), False, ""),
        ("reject", rolling_back(), False, ""),
        ("reject", idle(stable=served("v1", V1)), True, ""),
        ("reject", idle(), False, "it was promoted before, and its guard is over: rollback leaves it"),
        ("rollback", guarding(), False, ""),
        ("rollback", idle(reason="NothingToRollBackTo", stalled=True, message="no other"), False, "no other"),
        ("rollback", idle(), False, ""),
        ("rollback", guarding(stable=served("v1", V1), previous=served("v2", V2)), True, ""),
        ("pause", canary(), False, ""),
        ("pause", canary(phase="Paused", reason="Paused"), True, ""),
        ("pause", endpoint(phase="Empty", reason="Paused"), True, ""),
        ("resume", canary(phase="Paused", reason="Paused"), False, ""),
        ("resume", canary(), True, ""),
        ("resume", canary(**HELD, reason="Regression"), True, ""),
    ],
)
def test_when_it_is_done(verb: Verb, found: ModelEndpoint, reached: bool, failed: str) -> None:
    progress = progress_of(found, verb=verb, uid=V2)
    assert (progress.reached, progress.failed) == (reached, failed)


@pytest.mark.parametrize(
    ("verb", "found", "words"),
    [
        ("approve", awaiting(), "v2 is promoted: all requests move to it, and it is watched for 3600 s"),
        ("approve", awaiting(annotations={PAUSE: "true"}), "first, the pause must end"),
        (
            "approve",
            canary(),
            "it still has to pass its steps; where approval is Manual, it is promoted after the last one",
        ),
        ("approve", canary(**HELD), "v2 goes on to its next step in spite of it"),
        ("approve", guarding(**HELD), "v2 stays, and its guard goes on, in spite of it"),
        ("approve", idle(held={"name": "v3", "uid": V3, "reason": "x"}), "v3 is tried although it is not proven"),
        ("reject", canary(), "v2 is given up and not tried again; v1 answers all requests"),
        ("rollback", canary(), "v2 is given up and not tried again; v1 answers all requests"),
        ("rollback", guarding(), "all requests go back to v1 at once; v2 is not tried again"),
        ("rollback", idle(), "starts the servers of the version that was stable before"),
        ("rollback", idle(annotations={PAUSE: "true"}), "first, the pause must end"),
        ("pause", idle(), "nothing moves on until finetune resume"),
        ("resume", canary(annotations={PAUSE: "true"}), "it still waits for 600 s to pass"),
        ("resume", canary(**HELD, annotations={PAUSE: "true"}), "it still waits for a person to decide about v2"),
        ("resume", idle(annotations={PAUSE: "true"}), "it goes on from where it is"),
    ],
)
def test_what_follows(verb: Verb, found: ModelEndpoint, words: str) -> None:
    version = version_meant(found, verb=verb, name=None) if verb in ("approve", "reject", "rollback") else None
    assert words in what_follows(found, verb=verb, version=version)


# -- in local mode ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHome:
    """A home with an endpoint `router`, and nothing that works on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return LocalHome.at(".finetune")


def store(home: LocalHome, found: ModelEndpoint) -> LocalCluster:
    cluster = LocalCluster(home=home)
    manifest = found.to_dict()
    manifest["metadata"] |= {"namespace": "default", "resourceVersion": "1"}
    manifest["metadata"]["name"] = "router"
    cluster.store.write(manifest)
    return cluster


def stored(cluster: LocalCluster) -> Manifest:
    found = cluster.store.read(kind="ModelEndpoint", namespace="default", name="router")
    assert found is not None
    return found


def asked(cluster: LocalCluster) -> dict[str, str]:
    return dict(stored(cluster)["metadata"].get("annotations", {}))


def test_approve_beside_a_process_that_works_in_the_folder(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = store(home, awaiting(annotations={ROLLBACK: V3, REQUESTED_BY: "ann"}))
    before = stored(cluster)
    with home.locked():
        assert main(["approve", "router", "--local"]) == 0
    after = stored(cluster)
    assert asked(cluster) == {APPROVE: V2, REQUESTED_BY: ME}
    assert after["status"] == before["status"]
    assert after["spec"] == before["spec"]
    assert int(after["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])
    assert after["metadata"]["generation"] == before["metadata"]["generation"], "a request is no change of the spec"
    assert capsys.readouterr().out.splitlines() == [
        "v2 at router: approved",
        "next: v2 is promoted: all requests move to it, and it is watched for 3600 s",
        "how it goes: finetune explain endpoint router --local",
    ]


@pytest.mark.parametrize("noted", [True, False], ids=["an operator works", "none does"])
def test_who_approves_a_second_thing_takes_the_first_approval_away(
    home: LocalHome, noted: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(ask, "_NOTED_SECONDS", 5.0 if noted else 0.05)
    known = {APPROVE: V2, REQUESTED_BY: ME}
    cluster = store(home, awaiting(annotations=known, approval=given("quality: worse", used=True)))

    def note() -> None:
        wait_until(lambda: APPROVE not in asked(cluster), what="the withdrawal", timeout_s=10)
        cluster.set_status(stored(cluster), awaiting().to_dict()["status"])

    with ThreadPoolExecutor(1) as others:
        noting = others.submit(note if noted else lambda: None)
        assert main(["approve", "router", "--local"]) == (ExitStatus.DONE if noted else ExitStatus.FAILED)
        noting.result()
    assert asked(cluster) == (known if noted else {REQUESTED_BY: ME})
    assert noted or "no operator took note within" in capsys.readouterr().err


async def test_a_status_that_was_computed_before_the_request_does_not_undo_it(home: LocalHome) -> None:
    """What a running `finetune up` holds in memory is outdated by the request, as on a cluster."""
    cluster = store(home, awaiting())
    read = await cluster.get(kind="ModelEndpoint", namespace="default", name="router")
    assert read is not None
    other = LocalCluster(home=home)
    other.annotate(kind="ModelEndpoint", namespace="default", name="router", annotations={APPROVE: V2})
    with pytest.raises(ConflictError):
        await cluster.replace_status(manifest={**read, "status": {"phase": "Idle"}})
    fresh = await cluster.get(kind="ModelEndpoint", namespace="default", name="router")
    assert fresh is not None
    written = await cluster.replace_status(manifest={**fresh, "status": {"phase": "Idle"}})
    assert int(written["metadata"]["resourceVersion"]) > int(fresh["metadata"]["resourceVersion"])
    assert asked(cluster) == {APPROVE: V2}


async def test_whoever_works_in_the_folder_is_told(home: LocalHome) -> None:
    working, mine = store(home, awaiting()), LocalCluster(home=home)
    watch = LocalWatchSource(
        store=working.store,
        home=home,
        progress=FileProgress(store=working.store, home=home, clock=utc_now),
        observations=FileObservations(store=working.store, home=home),
        works_on=lambda key: True,
    )
    told: asyncio.Queue[Key] = asyncio.Queue()
    watching = asyncio.create_task(watch.run(enqueue=told.put_nowait))
    key = Key(kind="ModelEndpoint", namespace="default", name="router")
    assert await asyncio.wait_for(told.get(), 10) == key, "it lists what there is when it begins"
    await asyncio.sleep(0)
    while not told.empty():
        told.get_nowait()
    mine.annotate(kind="ModelEndpoint", namespace="default", name="router", annotations={APPROVE: V2})
    assert await asyncio.wait_for(told.get(), 10) == key
    watching.cancel()


def test_writers_take_turns(home: LocalHome) -> None:
    """Two processes that change the same object lose nothing of each other."""
    cluster = store(home, canary())

    def annotate(number: int) -> None:
        own = LocalCluster(home=home)
        for count in range(20):
            name = f"note-{number}-{count}"
            own.annotate(kind="ModelEndpoint", namespace="default", name="router", annotations={name: "x"})

    with ThreadPoolExecutor(3) as writers:
        list(writers.map(annotate, range(3)))
    assert len(asked(cluster)) == 60


def test_pause_and_resume(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = store(home, canary())
    assert main(["pause", "router", "--local"]) == 0
    assert asked(cluster) == {PAUSE: "true", REQUESTED_BY: ME}
    assert "nothing works in this folder now: it takes effect when `finetune up` runs" in capsys.readouterr().out
    assert main(["pause", "router", "--local"]) == 0
    assert capsys.readouterr().out == "router is paused already\n"
    assert main(["resume", "router", "--local"]) == 0
    assert asked(cluster) == {}
    capsys.readouterr()
    assert main(["resume", "router", "--local"]) == 0
    assert capsys.readouterr().out == "router is not paused by anybody\n"


def test_what_nobody_paused_is_not_resumed(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    store(home, canary(**HELD, reason="Regression"))
    assert main(["resume", "router", "--local"]) == 2
    assert "a regression holds it (quality: worse); approve, reject or roll it back" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    store(home, idle())
    assert main(["approve", "other", "--local"]) == 2
    assert capsys.readouterr().err == f"error: ModelEndpoint other was not found in {home.root}\n"
    assert main(["approve", "router", "--local"]) == 2
    assert capsys.readouterr().err == "error: nothing to approve: router tries no version now, v2 is stable\n"


@pytest.mark.parametrize(
    ("then", "status", "last"),
    [
        (guarding(), 0, ""),
        (rolling_back(), 3, "error: router: v2 was rolled back (error_rate: up, by operator)\n"),
        (
            awaiting(),
            1,
            "error: router was not so far within 2 s; the request stays (AwaitingApproval: v2 in Approval)\n",
        ),
    ],
    ids=["promoted", "rolled back instead", "too late"],
)
def test_waiting(
    home: LocalHome, then: ModelEndpoint, status: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = store(home, awaiting())
    changed = then.to_dict()["status"]

    def change() -> None:
        wait_until(lambda: APPROVE in asked(cluster), what="the request", timeout_s=10)
        cluster.set_status(stored(cluster), changed)

    with ThreadPoolExecutor(1) as others:
        changing = others.submit(change)
        assert main(["approve", "router", "--local", "--wait", "--timeout=2"]) == status
        changing.result()
    captured = capsys.readouterr()
    assert captured.err == last
    assert "v2 at router: approved" in captured.out


def test_get_describe_and_explain_endpoints(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    store(home, canary())
    assert main(["get", "mep", "--local", "-o", "name"]) == 0
    assert capsys.readouterr().out == "modelendpoint.finetune.dev/router\n"
    assert main(["get", "endpoints", "--local"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "PHASE", "STABLE", "CANDIDATE", "WEIGHT", "SAMPLES", "AGE"]
    assert line.split()[:6] == ["router", "Canary", "v1", "v2", "5", "300"]
    assert main(["describe", "endpoint", "router", "--local"]) == 0
    assert "Candidate: v2" in capsys.readouterr().out
    assert main(["explain", "endpoint", "router", "--local"]) == 0
    assert "  finetune reject router --local\n" in capsys.readouterr().out
    assert main(["explain", "version", "v2", "--local"]) == 2
    assert "a version waits for nothing" in capsys.readouterr().err


def test_a_rollback_names_what_it_leaves(home: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = store(home, guarding(conditions=[condition("Ready", "False", "Guarding", "")]))
    assert main(["rollback", "router", "--local", "--version", "v1"]) == 2
    assert "it can be done with v2" in capsys.readouterr().err
    assert asked(cluster) == {}
    assert main(["rollback", "router", "--local", "--version", "v2"]) == 0
    assert asked(cluster) == {ROLLBACK: V2, REQUESTED_BY: ME}
