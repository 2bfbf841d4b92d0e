"""What a job does next, phase by phase."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conformance.objects import (
    CONFIG,
    START,
    all_results,
    evaluate_result,
    job,
    plan_of,
    prepare_result,
    train_result,
)
from tests.simulation.endpoint_world import endpoint_manifest

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus, StageStatus, TrainerStatus
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.results import Sharing
from finetune_operator.attempts.observed import Attempt, ChildJob
from finetune_operator.attempts.pods import Ended, PodState
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.ports import Door, Progress
from finetune_operator.gates.policy import Judgement
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision
from finetune_operator.job.observed import Observed, ObservedClaim
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import _begun_with
from finetune_operator.job.version import version_manifest

SHARED = ObservedClaim(name="models", exists=True, access_modes=("ReadWriteMany",))

PROVEN = Judgement(accepted=True, reason="Proven", message="proven")
VERSION = Path(__file__).resolve().parents[2] / "data" / "valid_version.yaml"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def observed(of: FineTuneJob | None = None, *, status: dict[str, Any] | None = None, **parts: Any) -> Observed:
    run = of or job()
    if status is not None:
        run = run.model_copy(update={"status": FineTuneJobStatus.model_validate(status)})
    defaults: dict[str, Any] = {"now": at(100), "config": CONFIG, "listening_since": START, "claims": (SHARED,)}
    return Observed(job=run, **(defaults | parts))


def written(decision: Decision) -> FineTuneJobStatus:
    assert decision.status is not None
    return decision.status


def ready(status: FineTuneJobStatus) -> tuple[str, str]:
    condition = status.condition("Ready")
    assert condition is not None
    return condition.status, condition.reason


def planned(*stages: StageStatus, of: FineTuneJob | None = None, **more: Any) -> dict[str, Any]:
    """A status in the middle of a run."""
    return {
        "observedGeneration": 1,
        "phase": "Preparing",
        "phaseStartTime": "2026-01-05T12:00:00Z",
        "startTime": "2026-01-05T12:00:00Z",
        "plan": plan_of(of or job()).to_dict(),
        "stages": [stage.to_dict() for stage in stages],
        **more,
    }


PREPARED = StageStatus(name="Prepare", state="Complete", result=prepare_result().to_dict())
TRAINED = StageStatus(name="Train", state="Complete", result=train_result().to_dict())
EVALUATED = StageStatus(name="Evaluate", state="Complete", result=evaluate_result().to_dict())
PENDING = StageStatus(name="Prepare", state="Pending")


def child(name: str = "router-prepare-1", **parts: Any) -> ChildJob:
    return ChildJob(ref=ChildRef(kind="Job", namespace="ml", name=name, uid="j1"), created=at(50), **parts)


# -- before the run ---------------------------------------------------------------------------------------------------


def test_the_first_look_records_the_plan_and_makes_nothing() -> None:
    decision = decide(observed())
    status = written(decision)
    assert decision.create == ()
    assert decision.requeue_seconds == 0
    assert status.phase == "Pending"
    assert status.observed_generation == 1
    assert status.plan == plan_of(job()).to_dict()
    assert [(stage.name, stage.state, stage.attempt) for stage in status.stages] == [("Prepare", "Pending", 1)]
    assert ready(status) == ("False", "Pending")
    reconciling = status.condition("Reconciling")
    assert reconciling is not None
    assert reconciling.status == "True"


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (
            {"data": {"sources": [{"name": "a", "uri": "file:///etc/passwd"}]}},
            "UriNotAllowed",
            "sources[0].uri: file:///etc/passwd",
        ),
        ({"data": {"sources": [{"name": "a", "uri": "pvc://models/../other/x"}]}}, "UriNotAllowed", '".."'),
        ({"artifacts": {"uri": "file:///tmp"}}, "UriNotAllowed", "spec.artifacts.uri"),
        (
            {"compute": {"nodes": 2, "gpusPerNode": 3}, "training": {"globalBatchSize": 16}},
            "InvalidSpec",
            "multiple of 6",
        ),
        (
            {"training": {"globalBatchSize": 16, "microBatchSize": 16}, "compute": {"nodes": 2}},
            "InvalidSpec",
            "microBatchSize",
        ),
        ({"evaluation": {"metrics": [{"name": "accuracy", "maxRegression": 0.1}]}}, "InvalidSpec", "accuracy"),
        ({"compute": {"podTemplate": {"spec": {"affinity": {"x": "x" * 300_000}}}}}, "TooLarge", "spec has 300,"),
    ],
)
def test_what_can_never_run_fails_at_once(changes: dict[str, Any], reason: str, words: str) -> None:
    decision = decide(observed(job(**changes)))
    status = written(decision)
    assert status.phase == "Failed"
    assert ready(status) == ("False", reason)
    assert status.condition("Stalled") is not None
    assert words in (status.message or "")
    assert status.plan is None
    assert status.completion_time is not None
    assert decision.create == ()


@pytest.mark.parametrize(
    ("modes", "nodes", "writable", "refused"),
    [
        (("ReadWriteOnce",), 1, True, False),
        (("ReadWriteOnce",), 2, True, True),
        (("ReadWriteOncePod",), 2, True, True),
        (("ReadOnlyMany",), 2, True, True),
        (("ReadOnlyMany",), 2, False, False),
        (("ReadWriteOnce", "ReadWriteMany"), 2, True, False),
    ],
)
def test_a_claim_must_suit_its_pods(modes: tuple[str, ...], nodes: int, writable: bool, refused: bool) -> None:
    uris: dict[str, Any] = {} if writable else {"artifacts": {"uri": "s3://acme/runs"}}
    claims = (ObservedClaim(name="models", exists=True, access_modes=modes),)
    status = written(decide(observed(job(compute={"nodes": nodes}, **uris), claims=claims)))
    assert ready(status)[1] == ("ClaimNotShared" if refused else "Pending")
    if refused:
        field = "spec.artifacts.uri" if writable else "spec.data.sources[0].uri"
        assert f"{field}: PersistentVolumeClaim models has access mode" in (status.message or "")
        assert "ReadWriteMany" in (status.message or "")


def test_what_is_missing_is_waited_for_and_not_for_ever() -> None:
    run = job(evaluation={"baseline": "router-6"})
    decision = decide(observed(run))
    status = written(decision)
    assert (status.phase, ready(status)) == ("Pending", ("False", "BaselineNotFound"))
    assert decision.requeue_seconds == 10
    assert decide(observed(run, status=status.to_dict(), now=at(200))).status is None, "the message stays the same"
    over = at(100 + CONFIG.reference_deadline_seconds)
    late = decide(observed(run, status=status.to_dict(), now=over))
    assert (written(late).phase, ready(written(late))) == ("Failed", ("False", "BaselineNotFound"))


def test_a_version_to_go_on_from_is_waited_for_checked_and_planned() -> None:
    run = job(model={"uri": "version://router-6", "task": "Chat"})
    missing = written(decide(observed(run)))
    assert (missing.phase, ready(missing)) == ("Pending", ("False", "ParentNotFound"))
    version = ModelVersion.model_validate(yaml.safe_load(VERSION.read_text()))
    spec = version.spec.model_copy(update={"task": "SequenceClassification"})
    other = written(decide(observed(run, parent=version.model_copy(update={"spec": spec}))))
    assert (other.phase, ready(other)) == ("Failed", ("False", "ParentMismatch"))
    artifact = version.spec.artifact.model_copy(update={"uri": "pvc://elsewhere/model"})
    spec = version.spec.model_copy(update={"artifact": artifact, "task": "Chat"})
    named = version.model_copy(update={"spec": spec})
    outside = CONFIG.model_copy(update={"allowed_roots": ("pvc://models/", "s3://acme/")})
    refused = written(decide(replace(observed(run, parent=named), config=outside)))
    assert ready(refused) == ("False", "UriNotAllowed")
    assert "spec.model.uri: ModelVersion router-1: pvc://elsewhere/model is outside" in (refused.message or "")
    status = written(decide(observed(run, parent=named)))
    assert status.plan is not None
    assert status.plan["model"]["parent"]["artifact"]["uri"] == "pvc://elsewhere/model"
    assert {"name": "elsewhere", "writable": False} in status.plan["claims"], "its pods must read it"


def test_an_adapter_that_is_kept_is_what_base_means() -> None:
    lora: dict[str, Any] = {"type": "LoRA", "lora": {"rank": 8}, "parent": "Keep"}
    run = job(model={"uri": "version://router-6", "task": "Chat"}, method=lora)
    version = ModelVersion.model_validate(yaml.safe_load(VERSION.read_text()))
    spec = version.spec.model_copy(update={"task": "Chat"})
    named = version.model_copy(update={"spec": spec})
    plan = ResolvedPlan.model_validate(written(decide(observed(run, parent=named))).plan)
    assert plan.model.parent is not None
    assert plan.model.parent.keep
    before = _begun_with(plan, base=spec.base)
    assert (before.name, before.artifact, before.base) == ("router-1", spec.artifact, spec.base)
    assert plan.baseline_name == "router-1"
    whole = spec.model_copy(update={"artifact": spec.artifact.model_copy(update={"format": "Full"})})
    refused = written(decide(observed(run, parent=version.model_copy(update={"spec": whole}))))
    assert ready(refused) == ("False", "ParentMismatch")
    assert "spec.method.parent: Keep, but ModelVersion router-1 is a whole model" in (refused.message or "")


def test_a_missing_claim_is_named() -> None:
    status = written(decide(observed(claims=(ObservedClaim(name="models", exists=False),))))
    assert ready(status) == ("False", "ClaimNotFound")
    assert "spec.artifacts.uri: PersistentVolumeClaim models does not exist here" in (status.message or "")


def test_a_configuration_is_waited_for_and_read_once() -> None:
    run = job(compute={"strategy": "DeepSpeedZeRO2", "configRef": {"name": "my-deepspeed", "key": "ds.json"}})
    absent = written(decide(observed(run)))
    assert (absent.phase, ready(absent)) == ("Pending", ("False", "ConfigNotFound"))
    assert "spec.compute.configRef: there is no ConfigMap my-deepspeed here" in (absent.message or "")
    other = written(decide(observed(run, config_data={"other.json": "{}"})))
    assert "ConfigMap my-deepspeed has no key ds.json; waiting for it" in (other.message or "")
    status = written(decide(observed(run, config_data={"ds.json": '{"steps_per_print": 5}'})))
    assert (status.plan or {})["deepspeed"] == {"steps_per_print": 5}
    refused = written(decide(observed(run, config_data={"ds.json": '{"gradient_clipping": 5}'})))
    assert (refused.phase, ready(refused)) == ("Failed", ("False", "ConfigInvalid"))
    assert "ds.json of ConfigMap my-deepspeed: gradient_clipping: 5 contradicts" in (refused.message or "")


def test_a_baseline_of_another_task_is_refused() -> None:
    version = version_of("Chat")
    run = job(
        model={"task": "SequenceClassification"},
        method={"type": "Full", "lora": None},
        data={"sources": [{"name": "a", "uri": "pvc://models/a.jsonl", "format": "Labelled"}]},
        evaluation={"baseline": "router-6", "metrics": [{"name": "accuracy", "maxRegression": 0.1}]},
    )
    status = written(decide(observed(run, baseline=version)))
    assert ready(status) == ("False", "BaselineMismatch")


def test_a_method_that_the_endpoints_runtime_does_not_serve_is_refused_before_it_is_trained() -> None:
    manifest = endpoint_manifest()
    manifest["spec"] |= {"task": "Chat", "serving": {"runtime": "VLLM", "gpus": 1}}
    named = {"endpointRef": {"name": manifest["metadata"]["name"]}}
    dora = job(method={"type": "DoRA"}, **named)
    status = written(decide(observed(dora, endpoint=ModelEndpoint.from_object(manifest))))
    assert (status.phase, ready(status)) == ("Failed", ("False", "EndpointMismatch"))
    assert "spec.method.type: vLLM, by which ModelEndpoint" in (status.message or "")
    qlora = job(method={"type": "QLoRA"}, **named)
    assert written(decide(observed(qlora, endpoint=ModelEndpoint.from_object(manifest)))).plan is not None


def test_the_baseline_is_pinned_in_the_plan() -> None:
    status = written(decide(observed(job(evaluation={"baseline": "router-6"}), baseline=version_of("Chat"))))
    assert status.plan is not None
    assert status.plan["baseline"]["uid"] == "v1"
    assert status.plan["baseline"]["artifact"]["digest"] == train_result().artifact.digest


def version_of(task: str) -> ModelVersion:
    run = job(name="router-6")
    evaluation = FineTuneJobStatus.model_validate(
        {"evaluation": {"verdict": "Pass", "results": [row.to_dict() for row in evaluate_result().results]}}
    ).evaluation
    assert evaluation is not None
    manifest = version_manifest(
        job=run, plan=plan_of(run), results=all_results(), evaluation=evaluation, judgement=PROVEN, taken=False
    )
    manifest["metadata"]["uid"] = "v1"
    manifest["spec"]["task"] = task
    return ModelVersion.model_validate(manifest)


def test_what_this_operator_cannot_do_waits_for_one_that_can() -> None:
    decision = decide(observed(job(artifacts={"uri": "pvc://models/runs", "policy": "Delete"})))
    status = written(decision)
    assert (status.phase, ready(status)) == ("Pending", ("False", "NotSupported"))
    assert status.plan is None
    assert decision.create == ()


# -- stages -----------------------------------------------------------------------------------------------------------


def test_a_recorded_stage_gets_its_children() -> None:
    decision = decide(observed(status=planned(PENDING)))
    assert [manifest["kind"] for manifest in decision.create] == ["ConfigMap", "Job"]
    status = written(decision)
    assert status.phase == "Preparing"
    assert status.stages[0].child == "router-prepare-1"


def test_a_result_is_recorded_before_the_next_stage_begins() -> None:
    done = PodState(
        name="p",
        index=0,
        phase="Succeeded",
        created=at(50),
        started=at(60),
        ended=Ended(exit_code=0, message=prepare_result().model_dump_json(by_alias=True), finished=at(90)),
    )
    stage = StageStatus(name="Prepare", state="Running", child="router-prepare-1", start_time=at(60))
    attempts = {("Prepare", 1): Attempt(job=child(), pods=(done,))}
    decision = decide(observed(status=planned(stage), attempts=attempts))
    status = written(decision)
    assert decision.create == ()
    assert decision.requeue_seconds == 0
    assert [(stage.name, stage.state) for stage in status.stages] == [("Prepare", "Complete"), ("Train", "Pending")]
    assert status.stages[0].result == prepare_result().to_dict()
    assert status.stages[0].active_seconds == 30
    assert status.phase == "Training"
    following = decide(observed(status=status.to_dict(), attempts=attempts))
    assert [manifest["metadata"]["name"] for manifest in following.create][-1] == "router-train-1"
    assert following.forget_progress


def test_training_that_is_complete_shows_all_steps_though_its_last_report_was_lost() -> None:
    message = train_result().model_dump_json(by_alias=True)
    ended = Ended(exit_code=0, message=message, finished=at(90))
    done = PodState(name="p", index=0, phase="Succeeded", created=at(50), started=at(60), ended=ended)
    stage = StageStatus(name="Train", state="Running", child="router-train-1", start_time=at(60))
    shown = {
        "progressPercentage": 93,
        "estimatedRemainingSeconds": 14,
        "metrics": [{"name": "step", "value": "1"}, {"name": "loss", "value": "0.5"}],
    }
    before = planned(PREPARED, stage, phase="Training") | {"trainerStatus": shown}
    status = written(
        decide(
            observed(
                status=before,
                attempts={("Train", 1): Attempt(job=child("router-train-1"), pods=(done,))},
                now=at(95),
            )
        )
    )
    assert status.trainer_status is not None
    assert status.trainer_status.progress_percentage == 100
    assert status.trainer_status.estimated_remaining_seconds == 0
    assert status.trainer_status.metric("step") == str(train_result().steps)
    assert status.trainer_status.metric("loss") == "0.5"


def test_training_names_the_strategy_that_prepare_chose() -> None:
    sharing = Sharing(strategy="FSDP2", offload=True, because="DDP would need 145 GiB")
    result = prepare_result().model_copy(update={"sharing": sharing})
    prepared = PREPARED.model_copy(update={"result": result.to_dict()})
    status = written(decide(observed(status=planned(prepared, StageStatus(name="Train", state="Pending")))))
    assert status.message == "training on 1 node (CPU), FSDP2 with offload"


def test_the_next_attempt_waits_for_the_pods_of_the_last() -> None:
    old = PodState(
        name="old",
        index=0,
        phase="Running",
        created=at(0),
        started=at(0),
        deletion_requested=at(90),
        deletion_due=at(210),
    )
    stage = StageStatus(name="Train", state="Pending", attempt=2)
    attempts = {("Train", 1): Attempt(pods=(old,))}
    decision = decide(observed(status=planned(PREPARED, stage), attempts=attempts))
    assert decision.create == ()
    assert decision.requeue_seconds == 110 + CONFIG.lost_pod_seconds
    assert written(decision).message == "waiting until the pods of the attempt before have ended"
    late = decide(observed(status=planned(PREPARED, stage), attempts=attempts, now=at(210 + CONFIG.lost_pod_seconds)))
    assert late.create[-1]["metadata"]["name"] == "router-train-2"


@pytest.mark.parametrize(
    ("reason", "failures", "waits"),
    [("Preempted", 0, 0), ("NodeLost", 5, 0), ("InternalError", 1, 10), ("OutOfMemory", 3, 40), ("Hung", 30, 300)],
)
def test_failures_wait_longer_and_longer(reason: str, failures: int, waits: int) -> None:
    last = {"reason": reason, "time": "2026-01-05T12:01:40Z", "message": "the disk is full"}
    restarts = {"preemptions": 1, "failures": failures, "last": last}
    stage = StageStatus(name="Train", state="Pending", attempt=2)
    status = planned(PREPARED, stage, restarts=restarts)
    decision = decide(observed(status=status, now=at(100)))
    assert bool(decision.create) == (waits == 0)
    assert decide(observed(status=status, now=at(100 + waits))).create
    if waits:
        assert decision.requeue_seconds == waits
        assert written(decision).message == ("attempt 2 of Train follows after a pause; the last one: the disk is full")


def test_jobs_of_attempts_that_are_over_go_with_what_belongs_to_them() -> None:
    attachment = ChildRef(kind="ConfigMap", namespace="ml", name="router-train-1", uid="c1")
    stage = StageStatus(name="Train", state="Pending", attempt=2)
    old = child("router-train-1")
    parts = {"attempts": {("Train", 1): Attempt(job=old)}, "attachments": (attachment,)}
    decision = decide(observed(status=planned(PREPARED, stage), **parts))
    assert decision.delete == (attachment, old.ref)
    deleting = {("Train", 1): Attempt(job=replace(old, deleting=True))}
    assert decide(observed(status=planned(PREPARED, stage), attempts=deleting)).delete == ()


def test_the_version_is_made_before_the_end_is_recorded() -> None:
    evaluation = {"verdict": "Pass", "results": [row.to_dict() for row in evaluate_result().results]}
    status = planned(PREPARED, TRAINED, EVALUATED, evaluation=evaluation, phase="Evaluating")
    decision = decide(observed(status=status))
    assert [manifest["kind"] for manifest in decision.create] == ["ModelVersion"]
    assert decision.status is None or decision.status.phase == "Evaluating"
    manifest = decision.create[0]
    manifest["metadata"]["uid"] = "v9"
    end = decide(observed(status=status, versions=(ModelVersion.model_validate(manifest),)))
    assert written(end).phase == "Succeeded"
    assert written(end).model_version is not None
    assert end.create == ()


def test_a_version_that_somebody_deleted_during_its_rollout_is_not_made_again() -> None:
    evaluation = {"verdict": "Pass", "results": [row.to_dict() for row in evaluate_result().results]}
    known = {"name": "router", "uid": "v9"}
    status = planned(PREPARED, TRAINED, EVALUATED, evaluation=evaluation, phase="Canary", modelVersion=known)
    decision = decide(observed(job(endpointRef={"name": "prod"}), status=status))
    assert decision.create == ()


# -- the end ----------------------------------------------------------------------------------------------------------

ENDED = ("Succeeded", "Rejected", "Failed", "Superseded", "RolledBack")


@pytest.mark.parametrize("phase", ENDED)
def test_an_end_is_final(phase: str) -> None:
    """Whatever is seen afterwards."""
    status = planned(PREPARED, StageStatus(name="Train", state="Running"), phase=phase)
    status["conditions"] = [{"type": "Ready", "status": "False", "reason": "R", "message": ""}]
    attempts = {("Train", 1): Attempt(job=child("router-train-1"))}
    decision = decide(observed(status=status, attempts=attempts))
    assert decision.create == ()
    assert decision.delete == (child("router-train-1").ref,)
    assert decision.status is None or decision.status.phase == phase


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    run = job()
    going = run.model_copy(update={"metadata": run.metadata.model_copy(update={"deletion_timestamp": at(1)})})
    assert decide(observed(going)) == Decision()


# -- operators of other versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{"planVersion": 2}, {"planVersion": 1}, {}])
def test_a_plan_that_cannot_be_read_is_held_with_its_pods(plan: dict[str, Any]) -> None:
    status = {**planned(StageStatus(name="Train", state="Running")), "plan": plan, "phase": "Training"}
    running = PodState(name="p", index=0, phase="Running", created=at(0), started=at(0))
    attempts = {("Train", 1): Attempt(job=child("router-train-1"), pods=(running,))}
    decision = decide(observed(status=status, attempts=attempts))
    assert (decision.create, decision.delete) == ((), ())
    assert (written(decision).phase, ready(written(decision))) == ("Training", ("False", "PlanUnsupported"))
    assert written(decision).plan == plan


def test_an_upgrade_changes_nothing_of_a_run_under_way() -> None:
    newer = OperatorConfig(trainer_image="ghcr.io/acme/finetune-trainer:2")
    decision = decide(observed(status=planned(PREPARED, StageStatus(name="Train", state="Pending")), config=newer))
    image = decision.create[-1]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == CONFIG.trainer_image


# -- what flows -------------------------------------------------------------------------------------------------------


def training(*, reported: datetime | None, step: int = 40, status: dict[str, Any] | None = None) -> Decision:
    pod = PodState(name="p", index=0, phase="Running", created=at(0), scheduled=at(0), started=at(10))
    stage = StageStatus(name="Train", state="Running", child="router-train-1", start_time=at(10))
    progress = None
    if reported is not None:
        metrics = [{"name": "step", "value": str(step)}, {"name": "checkpoint_step", "value": "20"}]
        shown = TrainerStatus.model_validate({"progressPercentage": 40, "metrics": metrics})
        progress = Progress(status=shown, received=reported)
    return decide(
        observed(
            status=status or planned(PREPARED, stage, phase="Training"),
            attempts={("Train", 1): Attempt(job=child("router-train-1"), pods=(pod,))},
            progress=progress,
            door=Door(url="https://door"),
        )
    )


def test_progress_is_shown() -> None:
    decision = training(reported=at(99))
    status = written(decision)
    assert status.trainer_status is not None
    assert status.trainer_status.progress_percentage == 40
    assert status.checkpoint is not None
    assert status.checkpoint.step == 20
    assert status.checkpoint.uri.endswith("/checkpoints/step-20")
    assert status.active_seconds == 90
    assert decision.requeue_seconds == 899, "then it would hang"


def test_progress_is_written_at_most_every_five_seconds() -> None:
    status = written(training(reported=at(97))).to_dict()
    decision = training(reported=at(99), step=41, status=status)
    assert decision.status is None
    assert decision.requeue_seconds == 2
    assert training(reported=at(102), step=41, status=status).status is None, "97 + 5 is 102, now is 100"


@pytest.mark.parametrize("step", ["not a number", "inf", "nan", ""])
def test_what_pods_report_is_not_trusted(step: str) -> None:
    shown = TrainerStatus.model_validate({"metrics": [{"name": "checkpoint_step", "value": step}]})
    pod = PodState(name="p", index=0, phase="Running", created=at(0), scheduled=at(0), started=at(10))
    stage = StageStatus(name="Train", state="Running", child="router-train-1", start_time=at(10))
    decision = decide(
        observed(
            status=planned(PREPARED, stage, phase="Training"),
            attempts={("Train", 1): Attempt(job=child("router-train-1"), pods=(pod,))},
            progress=Progress(status=shown, received=at(99)),
        )
    )
    assert written(decision).checkpoint is None


# -- sidecars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Training", "Succeeded"])
def test_a_sidecar_that_never_ends_does_not_keep_a_pods_accelerators(phase: str) -> None:
    complete = PREPARED.model_copy(update={"attempt": 1, "completion_time": at(100)})
    status = planned(complete, StageStatus(name="Train", state="Queued"), phase=phase)
    lingers = PodState(name="p0", index=0, phase="Running", created=START, started=START, ended=Ended(exit_code=0))
    attempts = {("Prepare", 1): Attempt(job=child(), pods=(lingers,)), ("Train", 1): Attempt(job=child("router-t"))}
    early = decide(observed(status=status, attempts=attempts, now=at(200)))
    assert child().ref not in early.delete
    assert early.requeue_seconds is not None
    assert early.requeue_seconds <= 80
    late = decide(observed(status=status, attempts=attempts, now=at(280)))
    assert child().ref in late.delete
    ended = {**attempts, ("Prepare", 1): Attempt(job=child(complete=True))}
    assert child().ref not in decide(observed(status=status, attempts=ended, now=at(9999))).delete
