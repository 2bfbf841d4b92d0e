"""Keys of a DeepSpeed configuration against what a checkpoint takes out of an engine, and puts into the next."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.patience import HANGS_S

from finetune_operator.job.deepspeed_config import SHARED

EXCHANGES = {
    "allgather_bucket_size": 100,
    "allgather_partitions": False,
    "contiguous_gradients": False,
    "elastic_checkpoint": True,
    "ignore_unused_parameters": False,
    "load_from_fp32_weights": False,
    "overlap_comm": True,
    "parameter_alignment": True,
    "reduce_bucket_size": 500,
    "reduce_scatter": False,
    "use_multi_rank_bucket_allreduce": False,
}
WEIGHTS = {
    "enable_sanity_checks": True,
    "log_trace_cache_warnings": True,
    "memory_efficient_linear": False,
    "override_module_apply": False,
    "pipeline_loading_checkpoint": True,
    "sub_group_size": 500,
    "stage3_allgather_sequential": True,
    "stage3_gather_16bit_weights_on_model_save": True,
    "stage3_max_live_parameters": 100,
    "stage3_max_reuse_distance": 100,
    "stage3_prefetch_bucket_size": 10,
    "stage3_model_persistence_threshold": 0,
    "stage3_param_persistence_threshold": 0,
}
MOMENTS = {"pin_memory": False, "buffer_count": 2, "fast_init": True, "pipeline_read": True, "pipeline_write": True}
OFFLOADED = {
    "offload_optimizer": MOMENTS,
    "offload_param": {"pin_memory": False, "buffer_count": 2, "buffer_size": 5000, "max_in_cpu": 1000},
}
WORKS: list[tuple[str, dict[str, Any]]] = [
    ("DeepSpeedZeRO1", EXCHANGES),
    ("DeepSpeedZeRO2", EXCHANGES),
    ("DeepSpeedZeRO2", {"offload_optimizer": MOMENTS}),
    ("DeepSpeedZeRO3", WEIGHTS),
    ("DeepSpeedZeRO3", {"stage3_use_all_reduce_for_fetch_params": True, "stage3_param_persistence_threshold": 0}),
    ("DeepSpeedZeRO3", {**WEIGHTS, **OFFLOADED}),
]
FAILS = [(strategy, {"round_robin_gradients": True}) for strategy in ("DeepSpeedZeRO1", "DeepSpeedZeRO2")]


def paths(node: dict[str, Any], path: str = "zero_optimization") -> Iterator[str]:
    for key, value in node.items():
        yield from paths(value, f"{path}.{key}") if isinstance(value, dict) else (f"{path}.{key}",)


def test_what_can_be_set_leaves_checkpoints_as_they_are(tmp_path: Path) -> None:
    assert {path for _, own in WORKS for path in paths(own)} == SHARED
    (tmp_path / "cases.json").write_text(json.dumps([*WORKS, *FAILS]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "tests/trainer/deepspeed_pair.py"]
    ended = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "cases.json"), str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for (strategy, own), (trained, resumed) in zip(WORKS, found, strict=False):
        assert max(trained, resumed) < 1e-5, (strategy, own)
    for (strategy, own), (_, resumed) in zip(FAILS, found[len(WORKS) :], strict=True):
        assert resumed > 1e-2, (strategy, own, "it can be allowed")
