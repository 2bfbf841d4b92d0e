"""Every default, resolved once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import CONFIG, job, plan_of

from finetune_operator.core.config import OperatorConfig
from finetune_operator.job.plan import ResolvedPlan, read_plan
from finetune_operator.job.resolve import claims_of, refusal, refusal_of


def test_a_plan_survives_its_storage() -> None:
    plan = plan_of(job())
    assert read_plan(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("stored", "words"),
    [({"planVersion": 2}, "version 2"), ({}, "version None"), ({"planVersion": 1, "run": "pvc://a/b"}, "trainerImage")],
)
def test_a_plan_that_cannot_be_read_says_why(stored: dict[str, Any], words: str) -> None:
    found = read_plan(stored)
    assert isinstance(found, str)
    assert words in found


def test_a_plan_of_a_newer_operator_that_asks_for_more_is_not_followed() -> None:
    stored = plan_of(job()).to_dict()
    stored["optimisation"]["optimiser"] = "Muon"
    assert isinstance(read_plan(stored), str)


@pytest.mark.parametrize(
    ("changes", "batch", "micro"),
    [
        ({}, 16, 8),
        ({"compute": {"nodes": 3}}, 18, 6),
        ({"compute": {"nodes": 2, "gpusPerNode": 16}}, 32, 1),
        ({"training": {"globalBatchSize": 12}}, 12, 6),
        ({"training": {"globalBatchSize": 64, "microBatchSize": 4}, "compute": {"nodes": 2, "gpusPerNode": 8}}, 64, 4),
    ],
)
def test_batches_are_shared_evenly(changes: dict[str, Any], batch: int, micro: int) -> None:
    plan = plan_of(job(**changes))
    assert (plan.optimisation.global_batch_size, plan.optimisation.micro_batch_size) == (batch, micro)
    assert batch % (plan.nodes * plan.processes_per_node * micro) == 0
    assert refusal(job=job(**changes), config=CONFIG) is None


def test_the_method_decides_the_learning_rate() -> None:
    assert plan_of(job()).optimisation.learning_rate == 2e-4
    assert plan_of(job(method={"type": "Full", "lora": None})).optimisation.learning_rate == 2e-5
    assert plan_of(job(method={"type": "IA3", "lora": None})).optimisation.learning_rate == 2e-3
    assert plan_of(job(training={"learningRate": 0.01})).optimisation.learning_rate == 0.01


def test_qlora_keeps_the_base_in_four_bits_unless_it_is_told_otherwise() -> None:
    bits = [
        plan_of(job(method={"type": "QLoRA", **more})).method.quantisation
        for more in ({}, {"quantisation": {"bits": 8}})
    ]
    assert [each and each.bits for each in bits] == [4, 8]
    assert plan_of(job()).method.quantisation is None


def test_zero_is_not_the_absence_of_a_value() -> None:
    plan = plan_of(job(failurePolicy={"maxFailures": 0, "maxPreemptions": 0}, training={"warmupFraction": 0}))
    assert (plan.max_failures, plan.max_preemptions, plan.optimisation.warmup_fraction) == (0, 0, 0)


def test_steps_and_epochs_exclude_each_other() -> None:
    assert plan_of(job(training={"epochs": None, "maxSteps": 7})).optimisation.epochs is None
    assert plan_of(job(training={"epochs": None})).optimisation.epochs == 3.0


def test_runs_of_a_namespace_hold_out_the_same_examples() -> None:
    assert plan_of(job(name="a")).split.salt == plan_of(job(name="b")).split.salt


def test_the_runs_folder_belongs_to_one_job() -> None:
    plan = plan_of(job())
    assert plan.run == "pvc://models/runs/ml/router-5a0c1e7e"
    assert plan.cache == "pvc://models/runs/cache"


def test_remote_code_is_the_administrators_choice() -> None:
    trusting = OperatorConfig(trainer_image="x", trust_remote_code=True)
    assert plan_of(job(), config=trusting).model.trust_remote_code
    assert not plan_of(job()).model.trust_remote_code


def test_claims_are_writable_where_the_artifacts_are() -> None:
    spec = job(data={"sources": [{"name": "a", "uri": "pvc://tickets/a.jsonl"}]}).spec
    assert {claim.name: claim.writable for claim in claims_of(spec)} == {"models": True, "tickets": False}


@pytest.mark.parametrize(
    ("uri", "roots", "allowed"),
    [
        ("s3://acme/data", ("s3://acme",), True),
        ("s3://acme", ("s3://acme",), True),
        ("s3://acme-evil/data", ("s3://acme",), False),
        ("s3://acme-evil/data", ("s3://acme/",), False),
        ("s3://anything/x", ("s3://",), True),
        ("pvc://models/a/../../b", ("pvc://models",), False),
        ("file:///data/x", ("file:///data",), True),
        ("file:///database/x", ("file:///data",), False),
        ("hf://a/b", (), False),
    ],
)
def test_uris_are_confined(uri: str, roots: tuple[str, ...], allowed: bool) -> None:
    assert (refusal_of(uri=uri, allowed_roots=roots) is None) is allowed


def test_machines_in_words() -> None:
    def words(**compute: Any) -> str:
        plan: ResolvedPlan = plan_of(job(compute=compute))
        return plan.machines

    assert words() == "1 node (CPU)"
    assert words(nodes=2, gpusPerNode=1) == "2 nodes x 1 GPU"
    assert words(nodes=2, gpusPerNode=8) == "2 nodes x 8 GPUs"
    assert words(processesPerNode=2, strategy="FSDP2") == "1 node x 2 processes (CPU), FSDP2"
    assert words(nodes=2, gpusPerNode=8, strategy="DeepSpeedZeRO2") == "2 nodes x 8 GPUs, DeepSpeedZeRO2"


@pytest.mark.parametrize(
    ("policy", "times"),
    [
        ({}, None),
        ({"onDivergence": "Stop"}, None),
        ({"onDivergence": "RollBack"}, 2),
        ({"onDivergence": "RollBack", "maxRollBacks": 1}, 1),
    ],
)
def test_training_goes_back_only_where_the_job_says_so(policy: dict[str, Any], times: int | None) -> None:
    assert plan_of(job(failurePolicy=policy)).max_roll_backs == times


def test_a_broken_regular_expression_is_named() -> None:
    method = {"type": "Full", "freeze": {"patterns": ["embed", "(abc"]}}
    refused = refusal(job=job(method=method), config=CONFIG)
    assert refused is not None
    assert refused.message.startswith(
        "spec.method.freeze.patterns[1]: (abc is no regular expression of Python: missing )"
    )
