"""What Flux and Argo CD make of each phase, and what Argo CD's actions write: by their own means, from objects that the
operator wrote (tests/data/golden/recordings.yaml)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tests.conformance.golden import GOLDEN
from tests.harness import MissingPrerequisite, tools
from tests.patience import HANGS_S

from finetune_api.crd import RESOURCES
from finetune_api.finetunejob import RETRY, FineTuneJob
from finetune_api.modelendpoint import APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK, ModelEndpoint
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.wishes import (
    Verb,
    counts_no_more,
    decision_changes,
    pause_changes,
    resume_changes,
    version_meant,
)
from finetune_operator.job.retry import end_of

COMPONENT = Path("manifests/argocd/component")
PAGE = Path("docs/gitops.md")
ARGO_CD = "system:serviceaccount:argocd:argocd-server"

# Recording: what `flux` waits for (kstatus), and what Argo CD shows.
JOBS = {
    "Pending": ("InProgress", "Progressing"),
    "Queued": ("InProgress", "Progressing"),
    "Queued (for the endpoint)": ("InProgress", "Progressing"),
    "Preparing": ("InProgress", "Progressing"),
    "Training": ("InProgress", "Progressing"),
    "Evaluating": ("InProgress", "Progressing"),
    "Shadowing": ("InProgress", "Progressing"),
    "Canary": ("InProgress", "Progressing"),
    "AwaitingApproval": ("InProgress", "Suspended"),
    "AwaitingApproval (held)": ("InProgress", "Suspended"),
    "Promoting": ("InProgress", "Progressing"),
    "Guarding": ("InProgress", "Progressing"),
    "Paused": ("InProgress", "Suspended"),
    "RollingBack": ("InProgress", "Progressing"),
    "Suspended": ("InProgress", "Suspended"),
    "Succeeded": ("Current", "Healthy"),
    "Rejected": ("Failed", "Degraded"),
    "Superseded": ("Failed", "Degraded"),
    "RolledBack": ("Failed", "Degraded"),
    "Failed": ("Failed", "Degraded"),
}
ENDPOINTS = {
    "Empty": ("InProgress", "Progressing"),
    "Idle": ("Current", "Healthy"),
    "Idle (rolled back)": ("Current", "Healthy"),
    "Idle (superseded)": ("Current", "Healthy"),
    "Idle (held)": ("Current", "Healthy"),
    "Idle (two held)": ("Current", "Healthy"),
    "Idle (pinned to what is not there)": ("Failed", "Degraded"),
    "Shadowing": ("InProgress", "Progressing"),
    "Canary": ("InProgress", "Progressing"),
    "Canary (approved)": ("InProgress", "Progressing"),
    "AwaitingApproval": ("InProgress", "Suspended"),
    "Promoting": ("InProgress", "Progressing"),
    "Guarding": ("InProgress", "Progressing"),
    "Paused": ("InProgress", "Suspended"),
    "Paused (regression)": ("InProgress", "Suspended"),
    "Paused (regression, approved before)": ("InProgress", "Suspended"),
    "RollingBack": ("InProgress", "Progressing"),
}
EXPECTED: dict[str, dict[str, tuple[str, str | None]]] = {
    "FineTuneJob": dict(JOBS),
    "ModelVersion": {"": ("Current", None)},
    "ModelEndpoint": dict(ENDPOINTS),
}
Answer = dict[str, Any]


def scripts(kind: str) -> dict[str, Any]:
    """What manifests/argocd/component gives Argo CD for a kind."""
    customization = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())
    (generated,) = customization["configMapGenerator"]
    files = dict(each.split("=") for each in generated["files"])
    texts = {
        key.removeprefix("resource.customizations."): (COMPONENT / name).read_text() for key, name in files.items()
    }
    if f"health.finetune.dev_{kind}" not in texts:
        return {}
    actions = yaml.safe_load(texts[f"actions.finetune.dev_{kind}"])
    return {
        "health": texts[f"health.finetune.dev_{kind}"],
        "discovery": actions["discovery.lua"],
        "actions": {each["name"]: each["action.lua"] for each in actions["definitions"]},
    }


@pytest.fixture(scope="module")
def judge() -> Path:
    """The program that has the others' means."""
    try:
        return tools.program("gitops-judge")
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))


def asked(judge: Path, objects: list[Any]) -> list[Answer]:
    """What the tools make of objects, in one go."""
    questions = [{"object": each, **scripts(each["kind"])} for each in objects]
    run = subprocess.run(
        [judge], input=json.dumps(questions), capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert run.returncode == 0, run.stderr
    found: list[Answer] = json.loads(run.stdout)
    return found


def recordings() -> dict[tuple[str, str], Any]:
    """By kind and name."""
    documents = yaml.safe_load_all((GOLDEN / "recordings.yaml").read_text())
    return {(each["object"]["kind"], each["recording"]): each["object"] for each in documents}


def judged(answer: Answer) -> tuple[str, str | None]:
    return answer["kstatus"], answer["health"] and answer["health"]["status"]


def test_every_phase_of_every_kind_has_its_row() -> None:
    """A new kind, or a new phase, has to be recorded and judged."""
    phases = {each.kind: _phases(each.model) for each in RESOURCES}
    assert {kind: {name.partition(" (")[0] for name in rows} for kind, rows in EXPECTED.items()} == phases
    assert {(kind, name) for kind, rows in EXPECTED.items() for name in rows} == set(recordings())
    shown = {(kind, each.get("status", {}).get("phase", "")) for (kind, _), each in recordings().items()}
    assert shown == {(kind, phase) for kind, its in phases.items() for phase in its}


def _phases(model: Any) -> set[str]:
    field = model.model_fields["status"].annotation.model_fields.get("phase")
    return {phase for part in get_args(field.annotation) for phase in get_args(part)} if field else {""}


def test_each_phase_is_judged_as_documented(judge: Path) -> None:
    recorded = recordings()
    answers = dict(zip(recorded, asked(judge, list(recorded.values())), strict=True))
    found = {kind: {name: judged(answers[kind, name]) for name in rows} for kind, rows in EXPECTED.items()}
    assert found == EXPECTED
    for (kind, name), each in recorded.items():
        if (health := answers[kind, name]["health"]) is not None:
            assert health["message"] == each["status"]["message"]


def test_a_spec_that_the_operator_has_not_seen_is_under_way(judge: Path) -> None:
    newer = [
        {**each, "metadata": {**each["metadata"], "generation": each["metadata"]["generation"] + 1}}
        for (kind, _), each in recordings().items()
        if scripts(kind)
    ]
    unseen = [{**each, "status": {"observedGeneration": -1}} for each in newer]  # as the types' schema has it
    assert {judged(each) for each in asked(judge, [*newer, *unseen])} == {("InProgress", "Progressing")}


# -- actions ----------------------------------------------------------------------------------------------------------


def test_actions_on_a_job_change_what_a_person_would(judge: Path) -> None:
    recorded = {name: each for (kind, name), each in recordings().items() if kind == "FineTuneJob"}
    for name, answer in zip(recorded, asked(judge, list(recorded.values())), strict=True):
        ended = judged(answer)[0] in ("Current", "Failed")
        suspended = recorded[name]["spec"].get("suspend", False)
        offered = {"retry"} if name == "Failed" else set()
        offered |= set() if ended else {"resume" if suspended else "pause"}
        assert set(answer["offered"]) == offered, name
        assert answer["patches"]["pause"] == ({} if suspended else {"spec": {"suspend": True}})
        assert answer["patches"]["resume"] == {"spec": {"suspend": False}}


def test_retry_writes_what_the_command_line_writes(judge: Path) -> None:
    failed = recordings()["FineTuneJob", "Failed"]
    (answer,) = asked(judge, [failed])
    wanted = {RETRY: end_of(FineTuneJob.from_object(failed))}
    assert wanted[RETRY]
    assert answer["patches"]["retry"] == {"metadata": {"annotations": wanted}}


def test_actions_on_an_endpoint_write_what_the_command_line_writes(judge: Path) -> None:
    endpoints = [
        {**each, "metadata": {**each["metadata"], "annotations": annotations}}
        for (kind, _), each in recordings().items()
        if kind == "ModelEndpoint"
        for annotations in _annotations(each)
    ]
    for manifest, answer in zip(endpoints, asked(judge, endpoints), strict=True):
        endpoint = ModelEndpoint.from_object(manifest)
        verbs: tuple[Verb, ...] = ("approve", "reject", "rollback", "pause", "resume")
        wanted = {verb: _written(endpoint, verb=verb) for verb in verbs}
        possible = {verb: changes for verb, changes in wanted.items() if changes is not None}
        said = (manifest["metadata"], manifest["status"]["message"])
        assert set(answer["offered"]) == set(possible), said
        assert set(possible).isdisjoint(answer["errors"]), (answer["errors"], said)
        assert {verb: answer["patches"][verb] for verb in possible} == {
            verb: _patch(manifest["metadata"]["annotations"], changes) for verb, changes in possible.items()
        }, said


def _annotations(manifest: Any) -> list[dict[str, str]]:
    """As recorded, and as somebody else, or Argo CD itself, may have left them."""
    status, gone = manifest["status"], "7a6f5f0e-0000-4000-8000-000000000009"
    meant = (status.get("candidate") or status.get("held") or status.get("stable") or {"uid": gone})["uid"]
    return [
        manifest["metadata"].get("annotations", {}),
        {APPROVE: meant, REQUESTED_BY: "ann"},
        {APPROVE: meant, REQUESTED_BY: ARGO_CD},
        {REJECT: gone, REQUESTED_BY: "ann", "note": "x"},
        {PAUSE: "true", REQUESTED_BY: ARGO_CD},
        {PAUSE: "true", REQUESTED_BY: "ann", ROLLBACK: meant},
    ]


def _written(endpoint: ModelEndpoint, *, verb: Verb) -> dict[str, str | None] | None:
    """The annotations that `finetune VERB` writes first; None: it refuses, or it is so already."""
    if verb == "pause":
        return pause_changes(endpoint, by=ARGO_CD) or None
    if verb == "resume":
        return resume_changes(endpoint) or None
    try:
        version = version_meant(endpoint, verb=verb, name=None)
    except CommandError:
        return None
    changes = decision_changes(endpoint, verb=verb, uid=version.uid, by=ARGO_CD)
    return {APPROVE: None} if verb == "approve" and counts_no_more(endpoint, changes=changes) else changes


def _patch(annotations: dict[str, str], changes: dict[str, str | None]) -> dict[str, Any]:
    """The merge patch."""
    effective = {name: value for name, value in changes.items() if annotations.get(name) != value}
    left = {**annotations, **changes}
    gone = all(value is None for value in left.values())
    return {"metadata": {"annotations": None if gone else effective}} if effective else {}


def test_the_page_says_of_each_phase_what_the_tools_make_of_it() -> None:
    _, *tables = PAGE.read_text().split("<!-- phases:")[1].split("| phase of a ")
    said: dict[tuple[str, str], tuple[str, ...]] = {}
    for table in tables:
        kind = table.partition(" ")[0]
        rows = [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:]]
        said |= {(kind, phase): (flux, argo) for phases, flux, argo in rows for phase in phases.split(", ")}
    assert said == {
        (kind, name): judged
        for kind, rows in EXPECTED.items()
        for name, judged in rows.items()
        if name and "(" not in name
    }
