"""Whole runs in a simulated cluster: where each fate of the pods leads."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import evaluate_result, job_manifest, prepare_result, train_result
from tests.simulation.script import BAD_DATA, CRASH, OUT_OF_MEMORY, Disrupt, Exit, Hang, Script, Succeed, Wait
from tests.simulation.world import World

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJobStatus
from finetune_api.results import Failure
from finetune_operator.core.ports import Key


def ended(status: FineTuneJobStatus) -> bool:
    return status.phase in TERMINAL_PHASES


async def finished(script: Script | None = None, **changes: Any) -> tuple[World, Key, FineTuneJobStatus]:
    """A job run to its end, and one more look after it."""
    world = World(script=script)
    key = await world.submit(job_manifest(**changes))
    await world.run(key, until=ended)
    await world.tick()
    await world.reconcile(key)
    return world, key, await world.status(key)


def reasons(status: FineTuneJobStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


async def test_a_run_that_goes_well() -> None:
    world, key, status = await finished()
    assert status.phase == "Succeeded"
    assert reasons(status) == {
        "Ready": ("True", "Succeeded"),
        "Prepared": ("True", "Complete"),
        "Trained": ("True", "Complete"),
        "Evaluated": ("True", "Pass"),
    }
    assert world.created == ["router-prepare-1", "router-train-1", "router-evaluate-1"]
    assert status.restarts is None
    assert status.model_version is not None
    version = await world.cluster.get(kind="ModelVersion", namespace="ml", name="router")
    assert version is not None
    assert "ownerReferences" not in version["metadata"]
    assert version["spec"]["evaluation"]["verdict"] == "Pass"
    assert status.trainer_status is not None
    assert status.completion_time is not None
    phases = [event.reason for event in world.cluster.events]
    assert phases == ["Pending", "Preparing", "Training", "Evaluating", "Succeeded"]
    assert (await world.job(key)).spec.suspend is None


async def test_a_gang_runs_as_one_job_with_a_service() -> None:
    world, _, status = await finished(compute={"nodes": 3})
    assert status.phase == "Succeeded"
    pods = await world.cluster.list(kind="Pod", namespace="ml", labels={"finetune.dev/stage": "Train"})
    assert len(pods) == 3
    assert await world.cluster.get(kind="Service", namespace="ml", name="router-train-1") is not None
    assert await world.cluster.get(kind="Service", namespace="ml", name="router-prepare-1") is None


@pytest.mark.parametrize(
    ("verdict", "policy", "phase", "reason"),
    [
        ("Fail", "Hold", "Rejected", "GateFailed"),
        ("Fail", "Proceed", "Rejected", "GateFailed"),
        ("Inconclusive", "Hold", "Rejected", "Inconclusive"),
        ("Inconclusive", "Reject", "Rejected", "Inconclusive"),
        ("Inconclusive", "Proceed", "Succeeded", "Succeeded"),
    ],
)
async def test_the_verdict_decides_and_is_kept(verdict: Any, policy: str, phase: str, reason: str) -> None:
    script = Script(succeed={"Evaluate": evaluate_result(verdict=verdict)})
    world, _, status = await finished(script, evaluation={"onInconclusive": policy})
    assert status.phase == phase
    assert reasons(status)["Ready"][1] == reason
    assert reasons(status)["Evaluated"] == ("True", verdict)
    assert ("Stalled" in reasons(status)) == (phase == "Rejected")
    version = await world.cluster.get(kind="ModelVersion", namespace="ml", name="router")
    assert version is not None
    assert version["spec"]["evaluation"]["verdict"] == verdict


async def test_an_undecided_comparison_says_what_would_decide_it() -> None:
    _, _, status = await finished(Script(succeed={"Evaluate": evaluate_result(verdict="Inconclusive")}))
    assert status.message is not None
    assert "900" in status.message
    assert "exact_match" in status.message


@pytest.mark.parametrize("how", ["Evicted", "Deleted", "NodeLost", "JobDeleted"])
@pytest.mark.parametrize("nodes", [1, 2])
async def test_interruptions_are_not_failures(how: Any, nodes: int) -> None:
    world, _, status = await finished(Script(fates={("Train", 1): Disrupt(how=how, ticks=5)}), compute={"nodes": nodes})
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert (status.restarts.preemptions, status.restarts.failures) == (1, 0)
    assert world.created == ["router-prepare-1", "router-train-1", "router-train-2", "router-evaluate-1"]
    left = await world.cluster.list(kind="Job", namespace="ml")
    assert "router-train-1" not in [job["metadata"]["name"] for job in left]
    assert await world.cluster.get(kind="ConfigMap", namespace="ml", name="router-train-1") is None


@pytest.mark.parametrize(("how", "reason"), [("Evicted", "Preempted"), ("JobDeleted", "JobDeleted")])
async def test_a_graceful_end_loses_no_step(how: Any, reason: str) -> None:
    _, _, status = await finished(Script(fates={("Train", 1): Disrupt(how=how, ticks=5)}))
    assert status.restarts is not None
    assert status.restarts.steps_lost == 0
    assert status.restarts.last is not None
    assert status.restarts.last.reason == reason


async def test_a_sudden_end_loses_the_steps_since_the_checkpoint() -> None:
    # Five ticks of ten steps, a checkpoint at step 40.
    script = Script(fates={("Train", 1): Disrupt(how="Deleted", ticks=5, saves=False)})
    _, _, status = await finished(script)
    assert status.restarts is not None
    assert status.restarts.steps_lost == 10
    assert status.checkpoint is not None


@pytest.mark.parametrize(
    ("fate", "reason"), [(OUT_OF_MEMORY, "OutOfMemory"), (CRASH, "InternalError"), (Exit(code=1), "ExitCode1")]
)
async def test_failures_are_tried_again_and_counted(fate: Any, reason: str) -> None:
    world, _, status = await finished(Script(fates={("Train", 1): fate}))
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert (status.restarts.preemptions, status.restarts.failures) == (0, 1)
    assert status.restarts.last is not None
    assert status.restarts.last.reason == reason
    value = world.metrics.registry.get_sample_value("finetune_restarts_total", {"reason": "OutOfMemory"})
    assert value == (1.0 if reason == "OutOfMemory" else 0.0)


async def test_failures_end_when_the_budget_does() -> None:
    fates = {("Train", number): OUT_OF_MEMORY for number in range(1, 9)}
    world, _, status = await finished(Script(fates=fates), failurePolicy={"maxFailures": 2})
    assert status.phase == "Failed"
    assert reasons(status)["Stalled"] == ("True", "OutOfMemory")
    assert status.message is not None
    assert "memory" in status.message
    assert "maxFailures (2) is used up" in status.message
    assert status.restarts is not None
    assert status.restarts.failures == 2
    assert world.created == ["router-prepare-1", "router-train-1", "router-train-2", "router-train-3"]


async def test_preemptions_have_a_budget_of_their_own() -> None:
    fates = {("Train", number): Disrupt(how="Evicted") for number in range(1, 9)}
    _, _, status = await finished(Script(fates=fates), failurePolicy={"maxPreemptions": 3, "maxFailures": 0})
    assert status.phase == "Failed"
    assert reasons(status)["Stalled"][1] == "Preempted"
    assert status.restarts is not None
    assert status.restarts.preemptions == 3


async def test_bad_input_fails_at_once_in_its_own_words() -> None:
    world, _, status = await finished(Script(fates={("Prepare", 1): BAD_DATA}))
    assert status.phase == "Failed"
    assert reasons(status)["Stalled"] == ("True", "TooManyBadRows")
    assert status.message is not None
    assert "line 7" in status.message
    assert world.created == ["router-prepare-1"]


async def test_a_loss_that_is_not_finite_is_not_tried_again() -> None:
    fate = Exit(code=70, failure=Failure(reason="LossNotFinite", message="loss is nan at step 12; lower learningRate"))
    world, _, status = await finished(Script(fates={("Train", 1): fate}))
    assert reasons(status)["Stalled"] == ("True", "LossNotFinite")
    assert world.created[-1] == "router-train-1"


async def test_a_run_that_hangs_is_begun_again() -> None:
    world, _, status = await finished(Script(fates={("Train", 1): Hang()}), failurePolicy={"hangSeconds": 60})
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert status.restarts.failures == 1
    assert status.restarts.last is not None
    assert status.restarts.last.reason == "Hung"
    assert world.created.count("router-train-2") == 1


async def test_silence_while_the_operator_was_away_is_no_hang() -> None:
    world = World()
    key = await world.submit(job_manifest(failurePolicy={"hangSeconds": 60}))
    world.script.fates[("Train", 1)] = Hang()
    await world.run(key, until=lambda status: status.phase == "Training")
    for _ in range(40):
        await world.tick()  # nobody listens for 200 s
    world.restart_operator()
    await world.reconcile(key)
    status = await world.status(key)
    assert status.restarts is None
    await world.run(key, until=lambda status: status.restarts)


async def test_waiting_for_a_node_says_why_and_never_ends_the_run() -> None:
    world = World(script=Script(fates={("Train", 1): Wait(how="Unschedulable")}))
    key = await world.submit(job_manifest())
    status = await world.run(key, until=lambda status: status.phase == "Queued")
    assert status.message == "1 pod of 1 waiting for a node: 0/2 nodes are available"
    assert reasons(status)["Reconciling"] == ("True", "Unschedulable")
    for _ in range(1000):
        await world.tick()
    await world.reconcile(key)
    assert (await world.status(key)).phase == "Queued"


@pytest.mark.parametrize(
    ("how", "waiting", "failed"),
    [
        ("ImagePullBackOff", "ImagePullFailing", "ImagePullFailed"),
        ("CreateContainerConfigError", "ContainerConfigInvalid", "ContainerConfigInvalid"),
    ],
)
async def test_what_cannot_start_is_named_and_bounded(how: Any, waiting: str, failed: str) -> None:
    world = World(script=Script(fates={("Prepare", 1): Wait(how=how)}))
    key = await world.submit(job_manifest())
    status = await world.run(key, until=lambda status: reasons(status)["Ready"][1] == waiting)
    assert status.phase == "Preparing"
    assert status.message is not None
    assert world.config.trainer_image in status.message
    assert status.next is not None
    assert status.next.waits_for != ["Prepare to end"]
    assert status.next.until is not None
    status = await world.run(key, until=ended)
    assert reasons(status)["Stalled"] == ("True", failed)
    assert world.created == ["router-prepare-1"]


async def test_pods_that_are_refused_are_explained() -> None:
    world = World(script=Script(fates={("Prepare", 1): Wait(how="NoPods")}))
    key = await world.submit(job_manifest())
    await world.run(key, until=lambda status: status.stages and status.stages[0].child)
    job = (await world.cluster.list(kind="Job", namespace="ml"))[0]
    await world.cluster.create(
        manifest={
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "e1", "namespace": "ml"},
            "reason": "FailedCreate",
            "note": "exceeded quota: team-a",
            "eventTime": "2026-01-05T12:00:10Z",
            "regarding": {"uid": job["metadata"]["uid"]},
        }
    )
    status = await world.run(key, until=lambda status: status.phase == "Queued")
    assert status.message == "0 of 1 pods were created: exceeded quota: team-a"


async def test_suspending_ends_the_pods_and_resuming_goes_on() -> None:
    world = World()
    world.script.fates[("Train", 1)] = Hang()
    key = await world.submit(job_manifest())
    await world.run(key, until=lambda status: status.phase == "Training" and status.stages[-1].state == "Running")
    world.change_spec(key, suspend=True)
    status = await world.run(key, until=lambda status: status.phase == "Suspended")
    assert reasons(status)["Suspended"] == ("True", "Suspended")
    for _ in range(5):
        await world.tick()
        await world.reconcile(key)
    assert await world.cluster.list(kind="Pod", namespace="ml", labels={"finetune.dev/stage": "Train"}) == []
    assert (await world.status(key)).checkpoint is not None
    world.change_spec(key, suspend=False)
    status = await world.run(key, until=ended)
    assert status.phase == "Succeeded"
    assert status.restarts is None, "a suspension is nobody's failure"
    assert "Suspended" not in reasons(status)
    assert world.created.count("router-train-2") == 1


async def test_a_suspended_job_does_not_begin() -> None:
    world = World()
    key = await world.submit(job_manifest(suspend=True))
    await world.reconcile(key)
    status = await world.status(key)
    assert status.phase == "Suspended"
    assert status.plan is None
    world.change_spec(key, suspend=False)
    assert (await world.run(key, until=ended)).phase == "Succeeded"


async def test_the_deadline_counts_running_time_only() -> None:
    world = World(script=Script(fates={("Train", 1): Hang()}))
    key = await world.submit(job_manifest(activeDeadlineSeconds=120, suspend=True))
    for _ in range(100):
        await world.tick()
        await world.reconcile(key)
    world.change_spec(key, suspend=False)
    status = await world.run(key, until=ended)
    assert reasons(status)["Stalled"] == ("True", "DeadlineExceeded")
    assert 120 <= (status.active_seconds or 0) < 140
    for _ in range(3):
        await world.tick()
        await world.reconcile(key)
    assert [pod["metadata"]["name"] for pod in await world.cluster.list(kind="Pod", namespace="ml")] == [
        "router-prepare-1-0-x0yz"
    ], "what still ran was ended"


async def test_gpu_seconds_are_counted_over_attempts() -> None:
    _, _, status = await finished(
        Script(fates={("Train", 1): Disrupt(how="Evicted", ticks=4)}), compute={"nodes": 2, "gpusPerNode": 4}
    )
    train = status.stage("Train")
    evaluate = status.stage("Evaluate")
    assert train is not None
    assert evaluate is not None
    assert status.gpu_seconds == (train.active_seconds or 0) * 8 + (evaluate.active_seconds or 0)
    assert (train.active_seconds or 0) >= 30


@pytest.mark.parametrize(("needed", "given"), [(None, 1), (1, 1), (3, 3), (9, 4)])
async def test_an_evaluation_has_the_gpus_that_its_model_needs(needed: int | None, given: int) -> None:
    prepared = prepare_result().model_copy(update={"evaluation_gpus": needed})
    world, _, status = await finished(
        Script(fates={("Prepare", 1): Succeed(result=prepared)}), compute={"nodes": 2, "gpusPerNode": 4}
    )
    job = await world.cluster.get(kind="Job", namespace="ml", name="router-evaluate-1")
    assert job is not None
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == str(given)
    train, evaluate = status.stage("Train"), status.stage("Evaluate")
    assert train and evaluate
    assert status.gpu_seconds == (train.active_seconds or 0) * 8 + (evaluate.active_seconds or 0) * given
    version = await world.cluster.get(kind="ModelVersion", namespace="ml", name="router")
    assert version is not None
    assert version["spec"]["evaluation"]["plan"]["gpus"] == given, "as it will be compared again"


async def test_children_expire_and_the_record_stays() -> None:
    world, key, status = await finished(ttlSecondsAfterFinished=600)
    assert len(await world.cluster.list(kind="Job", namespace="ml")) == 3
    requeue = await world.reconcile(key)
    assert requeue is not None
    assert requeue > 500
    for _ in range(130):
        await world.tick()
    await world.reconcile(key)
    for kind in ("Job", "Pod", "ConfigMap", "Service"):
        assert await world.cluster.list(kind=kind, namespace="ml") == []  # type: ignore[arg-type]
    assert (await world.status(key)).to_dict() == status.to_dict()
    assert await world.cluster.get(kind="ModelVersion", namespace="ml", name="router") is not None


async def test_deleting_the_job_leaves_the_version() -> None:
    world, key, _ = await finished()
    job = await world.job(key)
    await world.cluster.delete(kind="FineTuneJob", namespace="ml", name="router", uid=job.metadata.uid)
    assert await world.reconcile(key) is None
    assert await world.cluster.list(kind="Job", namespace="ml") == []
    assert await world.cluster.get(kind="ModelVersion", namespace="ml", name="router") is not None
    assert world.metrics.registry.get_sample_value("finetune_jobs", {"phase": "Succeeded"}) == 0


async def test_a_namesake_gets_a_version_of_its_own() -> None:
    world, key, first = await finished()
    job = await world.job(key)
    await world.cluster.delete(kind="FineTuneJob", namespace="ml", name="router", uid=job.metadata.uid)
    key = await world.submit(job_manifest())
    second = await world.run(key, until=ended)
    assert first.model_version is not None
    assert second.model_version is not None
    assert second.model_version.name.startswith("router-")
    assert len(await world.cluster.list(kind="ModelVersion", namespace="ml")) == 2


async def test_kueue_holds_the_run_and_says_why() -> None:
    world = World()
    manifest = job_manifest()
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    key = await world.submit(manifest)
    await world.run(key, until=lambda status: status.phase == "Queued")
    job = (await world.cluster.list(kind="Job", namespace="ml"))[0]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    await world.cluster.create(
        manifest={
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Workload",
            "metadata": {
                "name": "w",
                "namespace": "ml",
                "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]},
            },
        }
    )
    pending = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "insufficient quota for gpu"}
    world.cluster.edit(
        kind="Workload", namespace="ml", name="w", change=lambda found: found.update(status={"conditions": [pending]})
    )
    requeue = await world.reconcile(key)
    assert requeue == 30
    status = await world.status(key)
    assert status.message == "Kueue: insufficient quota for gpu"

    def admit() -> None:
        for name in ("prepare", "train", "evaluate"):
            if f"router-{name}-1" in {address[2] for address in world.cluster.snapshot()}:
                world.cluster.edit(
                    kind="Job",
                    namespace="ml",
                    name=f"router-{name}-1",
                    change=lambda found: found["spec"].update(suspend=False),
                )

    def admitting(status: FineTuneJobStatus) -> bool:
        admit()
        return ended(status)

    assert (await world.run(key, until=admitting)).phase == "Succeeded"


async def test_time_between_admissions_does_not_count() -> None:
    """Kueue takes the pods of an attempt away and admits the same Job again later."""
    world = World(script=Script(fates={("Train", 1): Hang()}))
    key = await world.submit(job_manifest(failurePolicy={"hangSeconds": 600}))
    await world.run(key, until=lambda status: status.phase == "Training" and (status.active_seconds or 0) >= 15)
    before = (await world.status(key)).active_seconds or 0

    def suspend(*, value: bool) -> None:
        world.cluster.edit(
            kind="Job",
            namespace="ml",
            name="router-train-1",
            change=lambda job: (job["spec"].update(suspend=value), job["status"].pop("made", None)),  # type: ignore[arg-type,return-value]
        )

    suspend(value=True)
    world.cluster.remove(kind="Pod", namespace="ml", name="router-train-1-0-x0yz")
    for _ in range(100):
        await world.tick()
        await world.reconcile(key)
    assert (await world.status(key)).phase == "Queued"
    assert ((await world.status(key)).active_seconds or 0) <= before
    suspend(value=False)
    status = await world.run(key, until=lambda status: status.phase == "Training" and status.stages[-1].start_time)
    assert status.stages[-1].attempt == 1
    assert (status.active_seconds or 0) <= before + 10


async def test_a_node_that_refuses_every_pod_is_left_for_a_healthy_one() -> None:
    world = World()
    world.broken_nodes = {"node1"}
    key = await world.submit(job_manifest())
    status = await world.run(key, until=ended)
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert (status.restarts.preemptions, status.restarts.failures) == (2, 0)
    assert status.restarts.last is not None
    assert "UnexpectedAdmissionError" in (status.restarts.last.message or "")


async def test_where_there_is_no_other_node_the_same_one_is_tried_again_with_growing_pauses() -> None:
    world = World()
    world.nodes, world.broken_nodes = ["node1"], {"node1"}
    key = await world.submit(job_manifest())
    began = world.now
    await world.run(key, until=lambda status: status.restarts and status.restarts.preemptions >= 6)
    assert (world.now - began).total_seconds() > 1200, "six attempts in a row"
    world.broken_nodes = set()
    status = await world.run(key, until=ended)
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert (status.restarts.preemptions, status.restarts.failures) == (6, 0)


@pytest.mark.parametrize("probed", [True, False])
async def test_training_whose_reports_do_not_get_through_is_not_taken_for_hung(probed: bool) -> None:
    world = World()
    world.script.fates[("Train", 1)] = Succeed(result=train_result(), ticks=80, reports=False, probed=probed)
    key = await world.submit(job_manifest(failurePolicy={"hangSeconds": 60}))
    status = await world.run(key, until=lambda status: reasons(status)["Ready"][1] == "NotReporting")
    assert status.phase == "Training"
    assert "https://door.example" in (status.message or "")
    assert "NetworkPolicy" in (status.message or "")
    status = await world.run(key, until=ended)
    assert (status.phase, status.restarts) == ("Succeeded", None)


async def test_reports_from_before_a_suspension_do_not_make_the_next_attempt_hung() -> None:
    world = World()
    world.script.fates[("Train", 1)] = Succeed(result=train_result(), ticks=80)
    world.script.fates[("Train", 2)] = Succeed(result=train_result(), ticks=80, reports=False, probed=False)
    key = await world.submit(job_manifest(failurePolicy={"hangSeconds": 60}))
    await world.run(key, until=lambda status: status.trainer_status is not None)
    world.change_spec(key, suspend=True)
    await world.run(key, until=lambda status: status.phase == "Suspended")
    world.change_spec(key, suspend=False)
    status = await world.run(key, until=ended)
    assert (status.phase, status.restarts) == ("Succeeded", None)


async def test_a_pod_that_its_job_ended_unseen_is_no_interruption() -> None:
    lost = Failure(reason="PeerLost", message="another process of the run went away")
    world = World(script=Script(fates={("Train", 1): Exit(code=70, failure=lost)}))
    key = await world.submit(job_manifest(compute={"nodes": 2}))
    await world.run(key, until=lambda status: status.phase == "Training" and status.stages[-1].state == "Running")
    for _ in range(10):  # the operator is away
        await world.tick()
    assert len(await world.cluster.list(kind="Pod", namespace="ml", labels={"finetune.dev/stage": "Train"})) == 1
    status = await world.run(key, until=ended)
    assert status.restarts is not None
    assert status.restarts.last is not None
    assert (status.restarts.failures, status.restarts.preemptions) == (1, 0)
    assert status.restarts.last.reason == "PeerLost"


async def test_a_hang_shows_in_the_probe_where_no_report_gets_through() -> None:
    world, _, status = await finished(
        Script(fates={("Train", 1): Hang(reports=False)}), failurePolicy={"hangSeconds": 60}
    )
    assert status.phase == "Succeeded"
    assert status.restarts is not None
    assert status.restarts.last is not None
    assert status.restarts.last.reason == "Hung"
    assert world.created.count("router-train-2") == 1


async def tell(world: World, *, about: str, reason: str, note: str, time: str = "2026-01-05T12:00:10Z") -> None:
    """Somebody publishes an Event."""
    await world.cluster.create(
        manifest={
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{reason.lower()}-{time[11:19].replace(':', '-')}", "namespace": "ml"},
            "type": "Normal" if reason in ("Pulling", "Pulled", "Scheduled") else "Warning",
            "reason": reason,
            "note": note,
            "eventTime": time,
            "regarding": {"uid": about},
        }
    )


async def test_why_a_pod_with_a_node_does_not_start_is_told_in_kubelets_words() -> None:
    world = World(script=Script(fates={("Prepare", 1): Wait(how="ContainerCreating")}))
    key = await world.submit(job_manifest())
    status = await world.run(key, until=lambda status: "are being made" in (status.message or ""))
    assert (status.phase, reasons(status)["Ready"][1]) == ("Preparing", "Starting")
    (pod,) = await world.cluster.list(kind="Pod", namespace="ml")
    await tell(world, about="another", reason="FailedMount", note="not ours", time="2026-01-05T13:00:00Z")
    await tell(
        world, about=pod["metadata"]["uid"], reason="FailedMount", note="rpc error: volume is attached elsewhere"
    )
    status = await world.run(key, until=lambda status: "attached elsewhere" in (status.message or ""))
    assert (status.message or "").endswith("its containers are being made: rpc error: volume is attached elsewhere")
    for reason, time in (("Pulling", "12:05:00"), ("Pulled", "12:06:00")):
        about = pod["metadata"]["uid"]
        await tell(world, about=about, reason=reason, note=f"{reason} image x", time=f"2026-01-05T{time}Z")
    status = await world.run(key, until=lambda status: (status.message or "").endswith("are being made"))
    assert status.restarts is None


async def test_a_claim_that_is_not_bound_is_named_with_the_reason() -> None:
    why = "pod has unbound immediate PersistentVolumeClaims"
    world = World(script=Script(fates={("Prepare", 1): Wait(how="Unschedulable", message=why)}))
    key = await world.submit(job_manifest())
    (claim,) = await world.cluster.list(kind="PersistentVolumeClaim", namespace="ml")
    world.cluster.edit(
        kind="PersistentVolumeClaim",
        namespace="ml",
        name="models",
        change=lambda found: found.update(status={"phase": "Pending"}),
    )
    await tell(world, about=claim["metadata"]["uid"], reason="ProvisioningFailed", note="no space left in pool ssd")
    status = await world.run(key, until=lambda status: status.phase == "Queued")
    assert status.message == (
        f"1 pod of 1 waiting for a node: {why}: PersistentVolumeClaim models is Pending: no space left in pool ssd"
    )
