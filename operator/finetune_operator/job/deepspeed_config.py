"""A user's own DeepSpeed configuration: held against what the job says in fields of its own, and what it adds to them.

Of a configuration as other tools take it (https://www.deepspeed.ai/docs/config-json/) two kinds of keys are known:
those that say again what a field of the job says, and those that change how the same training is done, not what is
learned. Below `zero_optimization` only those can be set under which weights and moments were put into our checkpoints
and taken out again (tests/trainer/test_deepspeed_keys.py). What goes together, the library says in Prepare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.job.plan import ResolvedPlan

LONGEST = 16_384
"""Bytes: what a configuration says is recorded in the job's status."""
_SHOWN = 60
_TUNED: dict[str, tuple[tuple[type, ...], str]] = {
    "zero_optimization": ((dict,), "an object"),
    "communication_data_type": ((str,), "a text"),
    "gradient_predivide_factor": ((int, float), "a number"),
    "prescale_gradients": ((bool,), "true or false"),
    "steps_per_print": ((int,), "a whole number"),
    "wall_clock_breakdown": ((bool,), "true or false"),
    "memory_breakdown": ((bool,), "true or false"),
    "dump_state": ((bool,), "true or false"),
}
_OFTEN = ("pin_memory", "buffer_count")
SHARED = frozenset(
    f"zero_optimization.{key}"
    for key in (
        *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "elastic_checkpoint"),
        *("enable_sanity_checks", "ignore_unused_parameters", "load_from_fp32_weights", "log_trace_cache_warnings"),
        *("memory_efficient_linear", "overlap_comm", "override_module_apply", "parameter_alignment"),
        *("pipeline_loading_checkpoint", "reduce_bucket_size", "reduce_scatter", "sub_group_size"),
        *("stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters"),
        *("stage3_max_reuse_distance", "stage3_model_persistence_threshold", "stage3_param_persistence_threshold"),
        *("stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params", "use_multi_rank_bucket_allreduce"),
        *(f"offload_optimizer.{key}" for key in (*_OFTEN, "fast_init", "pipeline_read", "pipeline_write")),
        *(f"offload_param.{key}" for key in (*_OFTEN, "buffer_size", "max_in_cpu")),
    )
)
"""Below `zero_optimization`: tried one by one, in two processes, with checkpoints."""
_FIELDS = {
    "optimizer": "the optimiser is AdamW; its settings are training.learningRate and training.weightDecay",
    "scheduler": "training.scheduler and training.warmupFraction say it",
    "bf16": "training.precision says it",
    "torch_autocast": "training.precision says it",
}
"""What of theirs is not said again is the trainer's."""
_IDLE = ("fp16", "amp")
"""Once it is certain that they are off, the rest of them means nothing."""
_QUANTISED = ("weights", "nontrainable_weights", "gradients")
_SCHEDULERS = {"Constant": "WarmupLR", "Linear": "WarmupDecayLR", "Cosine": "WarmupCosineLR"}
_DEEPEST = 16
_TOO_DEEP = "it is nested too deeply; no key needs that"


class DeepSpeedConfigError(ValueError):
    """The configuration cannot be used. `str()` names the key, the reason and the way out."""


def with_config(plan: ResolvedPlan, *, job: FineTuneJob, data: Mapping[str, str]) -> ResolvedPlan:
    """A job's plan with what `compute.configRef` says; `data`: of the ConfigMap. Raises DeepSpeedConfigError."""
    reference = job.spec.compute.config_ref if job.spec.compute else None
    if reference is None:
        return plan
    try:
        found = settings_beyond(data[reference.key], plan=plan)
    except DeepSpeedConfigError as error:
        raise DeepSpeedConfigError(
            f"spec.compute.configRef: {reference.key} of ConfigMap {reference.name}: {error}"
        ) from error
    return plan.model_copy(update={"deepspeed": found or None})


def settings_beyond(text: str, *, plan: ResolvedPlan) -> dict[str, Any]:
    """What a configuration says that the job's fields do not. Raises DeepSpeedConfigError."""
    said = _said_again(plan)
    rest = _rest(_read(text), said=said, path="")
    for key in _IDLE:
        rest.pop(key, None)
    known = {*_TUNED, *(path.partition(".")[0] for path in said)}
    for key, value in rest.items():
        if key in _FIELDS:
            raise DeepSpeedConfigError(f"{_first(key, value)}: {_FIELDS[key]}; remove it")
        if key not in _TUNED:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"what can be set is {', '.join(sorted(known))}"
            raise DeepSpeedConfigError(f"{key} is no key that can be set; {hint}")
        types, words = _TUNED[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise DeepSpeedConfigError(f"{key} must be {words}")
    for path in _paths(rest.get("zero_optimization", {}), "zero_optimization"):
        if path not in SHARED:
            near = get_close_matches(path, SHARED, n=1)
            raise DeepSpeedConfigError(
                f"{path} is not known to leave weights and moments where the checkpoints of training find them; "
                + (f"did you mean {near[0]}? Or remove it" if near else "remove it")
            )
    for name, used in (("optimizer", plan.offload and plan.offload.optimizer), ("param", _parameters(plan))):
        if not used:
            rest.get("zero_optimization", {}).pop(f"offload_{name}", None)
    return rest


def _read(text: str) -> dict[str, Any]:
    if len(text.encode()) > LONGEST:
        raise DeepSpeedConfigError(f"it has more than {LONGEST:,} bytes; remove what need not be set")
    try:
        found = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
    except RecursionError as error:
        raise DeepSpeedConfigError(_TOO_DEEP) from error
    except json.JSONDecodeError as error:
        raise DeepSpeedConfigError(f"it is no JSON: line {error.lineno}: {error.msg}; correct it") from error
    if not isinstance(found, dict):
        raise DeepSpeedConfigError("it is no JSON object; write {...}")
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
    if level:
        raise DeepSpeedConfigError(_TOO_DEEP)
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DeepSpeedConfigError(f"{twice[0]} is there twice; remove one")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise DeepSpeedConfigError(f"{name} is no JSON; write a number")


def _said_again(plan: ResolvedPlan) -> dict[str, tuple[str, Any]]:
    """Keys that say what a field says: the field, and what it says."""
    order, offload = plan.optimisation, plan.offload
    processes = plan.nodes * plan.processes_per_node
    bf16 = ("training.precision", {"BF16": True, "FP32": False, "Auto": "Auto"}[order.precision])
    offloads = ("compute.offload.optimizer", bool(offload and offload.optimizer))
    offloads_parameters = ("compute.offload.parameters", _parameters(plan))
    rate = ("training.learningRate", order.learning_rate)
    own, found_again = "what the trainer needs", "what the trainer's checkpoints need"
    compiled = "what images can do, which compile nothing"
    return {
        "train_batch_size": ("training.globalBatchSize", order.global_batch_size),
        "train_micro_batch_size_per_gpu": ("training.microBatchSize", order.micro_batch_size),
        "gradient_accumulation_steps": (
            "training.globalBatchSize / microBatchSize / processes",
            order.global_batch_size // (order.micro_batch_size * processes),
        ),
        "gradient_clipping": ("training.maxGradNorm", order.max_grad_norm),
        "optimizer.type": (own, "AdamW"),
        "optimizer.params.lr": rate,
        "optimizer.params.weight_decay": ("training.weightDecay", order.weight_decay),
        "optimizer.params.betas": (own, [0.9, 0.999]),
        "optimizer.params.eps": (own, 1e-8),
        "scheduler.type": (f"training.scheduler: {order.scheduler}, which is", _SCHEDULERS[order.scheduler]),
        "scheduler.params.warmup_max_lr": rate,
        "scheduler.params.warmup_min_lr": (own, 0),
        "fp16.enabled": (f"training.precision: {order.precision}, which is", False),
        "amp.enabled": (f"training.precision: {order.precision}, which is", False),
        "bf16.enabled": bf16,
        "torch_autocast.enabled": bf16,
        "zero_allow_untested_optimizer": (own, True),
        "zero_force_ds_cpu_optimizer": (own, False),
        "zero_optimization.stage": (f"compute.strategy: {plan.strategy}, which is", int(plan.strategy[-1])),
        "zero_optimization.offload_optimizer.device": (offloads[0], "cpu" if offloads[1] else "none"),
        "zero_optimization.offload_param.device": (offloads_parameters[0], "cpu" if _parameters(plan) else "none"),
        "zero_optimization.round_robin_gradients": (found_again, False),
        "zero_optimization.zero_hpz_partition_size": (found_again, 1),
        "zero_optimization.offload_optimizer.ratio": (found_again, 1),
        **{f"zero_optimization.zero_quantized_{what}": (compiled, False) for what in _QUANTISED},
        "zero_optimization.cpu_offload": offloads,
        "zero_optimization.cpu_offload_param": offloads_parameters,
    }


def _rest(node: Mapping[str, Any], *, said: Mapping[str, tuple[str, Any]], path: str) -> dict[str, Any]:
    """Without what is said elsewhere, and what is left to others (`auto`, null)."""
    kept: dict[str, Any] = {}
    for key, value in node.items():
        where = f"{path}{key}"
        if value is None or value == "auto":
            continue
        if where in said:
            field, expected = said[where]
            if value != expected or isinstance(value, bool) is not isinstance(expected, bool):
                raise DeepSpeedConfigError(
                    f"{where}: {json.dumps(value)[:_SHOWN]} contradicts {field}: {json.dumps(expected)}; write"
                    ' "auto" or remove it, or change the field'
                )
        elif not isinstance(value, dict):
            kept[key] = value
        elif inner := _rest(value, said=said, path=f"{where}."):
            kept[key] = inner
    return kept


def _paths(node: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}"


def _first(key: str, value: Any) -> str:
    """The path of the first thing that is said there."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _parameters(plan: ResolvedPlan) -> bool:
    return bool(plan.offload and plan.offload.parameters)
