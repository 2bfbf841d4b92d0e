"""A user's own DeepSpeed configuration against the fields of the job."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conformance.objects import CONFIG, all_results, job, plan_of

from finetune_api.run import PrepareRun, TrainRun, run_adapter
from finetune_operator.core.ports import Door
from finetune_operator.job.children import children_of
from finetune_operator.job.deepspeed_config import DeepSpeedConfigError, settings_beyond, with_config
from finetune_operator.job.plan import read_plan

JOB = job(
    compute={
        "nodes": 2,
        "gpusPerNode": 4,
        "strategy": "DeepSpeedZeRO2",
        "offload": {"optimizer": True},
        "configRef": {"name": "my-deepspeed", "key": "ds.json"},
    },
    training={"globalBatchSize": 64, "microBatchSize": 4, "learningRate": 0.0001, "precision": "BF16"},
)
PLAN = plan_of(JOB)
AUTO: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "none", "pin_memory": True},
        "overlap_comm": True,
        "reduce_bucket_size": 2e8,
        "stage3_prefetch_bucket_size": "auto",
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "wall_clock_breakdown": False,
}
"""As Transformers' documentation writes them."""


def settings(config: Any) -> dict[str, Any]:
    return settings_beyond(config if isinstance(config, str) else json.dumps(config), plan=PLAN)


def test_what_is_left_is_what_the_fields_do_not_say() -> None:
    assert settings(AUTO) == {
        "zero_optimization": {
            "offload_optimizer": {"pin_memory": True},
            "overlap_comm": True,
            "reduce_bucket_size": 2e8,
        },
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    }


def test_to_say_the_same_again_is_no_contradiction() -> None:
    again = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 1e-4, "warmup_min_lr": 0}},
        "fp16": {"enabled": False},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}},
        "communication_data_type": None,
    }
    assert settings(again) == {}
    assert with_config(PLAN, job=JOB, data={"ds.json": json.dumps(again)}).deepspeed is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"train_batch_size": 32}, "train_batch_size: 32 contradicts training.globalBatchSize: 64"),
        ({"train_micro_batch_size_per_gpu": 8}, "8 contradicts training.microBatchSize: 4"),
        ({"gradient_accumulation_steps": 1}, "microBatchSize / processes: 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping: 0.5 contradicts training.maxGradNorm: 1.0"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type: "Lamb" contradicts what the trainer needs: "AdamW"'),
        (
            {"optimizer": {"params": {"lr": 1e-3}}},
            "lr: 0.001 contradicts training.learningRate: 0.0001",
        ),
        ({"optimizer": {"params": {"torch_adam": True}}}, "optimizer.params.torch_adam: the optimiser is AdamW"),
        ({"optimizer": "AdamW"}, "optimizer: the optimiser is AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, 'training.scheduler: Cosine, which is: "WarmupCosineLR"'),
        ({"scheduler": {"params": {"warmup_num_steps": 9}}}, "warmup_num_steps: training.scheduler and"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: true contradicts training.precision: BF16, which is: false"),
        ({"bf16": {"enabled": False}}, "bf16.enabled: false contradicts training.precision: true"),
        ({"zero_optimization": {"stage": 3}}, "stage: 3 contradicts compute.strategy: DeepSpeedZeRO2, which is: 2"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            'offload_optimizer.device: "nvme" contradicts compute.offload.optimizer: "cpu"',
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            'offload_param.device: "cpu" contradicts compute.offload.parameters: "none"',
        ),
        ({"zero_optimization": True}, "zero_optimization must be an object"),
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "round_robin_gradients: true contradicts what the trainer's checkpoints need: false",
        ),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "what the trainer's checkpoints need: 1"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "what the trainer's checkpoints need: 1"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "which compile nothing: false"),
        ({"zero_optimization": {"mics_shard_size": 8}}, "zero_optimization.mics_shard_size is not known to leave"),
        ({"zero_optimization": {"overlap_com": True}}, "did you mean zero_optimization.overlap_comm?"),
        ({"steps_per_print": True}, "steps_per_print must be a whole number"),
        ({"gradient_cliping": 1}, "gradient_cliping is no key that can be set; did you mean gradient_clipping?"),
        ({"elasticity": {"enabled": True}}, "elasticity is no key that can be set; what can be set is amp, bf16"),
        ('{"a": 1, "a": 2}', "a is there twice"),
        ('{"gradient_clipping": NaN}', "NaN is no JSON"),
        ("{'a': 1}", "it is no JSON: line 1"),
        ("[]", "it is no JSON object"),
        ('{"a":' * 2000 + "1" + "}" * 2000, "nested too deeply"),
        ('{"tensorboard":' * 20 + "1" + "}" * 20, "nested too deeply"),
        ({"a": "x" * 20_000}, "it has more than 16,384 bytes"),
    ],
)
def test_what_cannot_be_is_refused_and_both_places_are_named(config: Any, words: str) -> None:
    with pytest.raises(DeepSpeedConfigError) as refusal:
        settings(config)
    assert words in str(refusal.value)


def test_the_orders_of_prepare_and_train_carry_it() -> None:
    plan = with_config(PLAN, job=JOB, data={"ds.json": json.dumps(AUTO)})
    assert read_plan(plan.to_dict()) == plan
    for stage, of in (("Prepare", PrepareRun), ("Train", TrainRun)):
        made = children_of(
            job=JOB,
            plan=plan,
            stage=stage,
            attempt=1,
            results=all_results(),
            config=CONFIG,
            door=Door(url="http://d"),  # type: ignore[arg-type]
        )
        order = run_adapter.validate_json(made[0]["data"]["run.json"])
        assert isinstance(order, of)
        assert order.deepspeed == settings(AUTO)
