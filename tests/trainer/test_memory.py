"""What is computed of memory is what training takes; and Prepare's choice by it."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.measured_memory import LARGE, LORA
from tests.trainer.pair import pair
from tests.trainer.small_run import ROOT, SmallRuns
from transformers import LlamaForCausalLM

from finetune_api.memory import GIB, Training, memory_of
from finetune_api.model_shape import ModelShape
from finetune_api.results import PrepareResult
from finetune_api.run import MemoryOrder, MethodOrder, PrepareRun
from finetune_api.tasks import UsedStrategy
from finetune_trainer.preparation.sharing import with_sharing
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage

CLOSE = 0.15


@pytest.mark.parametrize(
    ("method", "rows", "tokens", "again"),
    [("Full", 2, 256, False), ("LoRA", 2, 256, False), ("LoRA", 2, 256, True)],
)
def test_what_is_predicted_is_what_is_measured(method: str, rows: int, tokens: int, again: bool) -> None:
    lora = {"lora": {"rank": 8, "targetModules": ["all-linear"]}} if method == "LoRA" else {}
    training = Training(
        shape=ModelShape.of({**LARGE, "model_type": "llama"}),
        method=MethodOrder.model_validate({"type": method, **lora}),
        order=MemoryOrder(strategy="DDP", nodes=1, processes_per_node=1, gpus=False, rows=rows, precision="FP32"),
        tokens=tokens,
    )
    expected = memory_of(training, "DDP", recomputes=again)
    command = [forked_python(), "-m", "tests.trainer.measured_memory", method, str(rows), str(tokens)]
    command += ["again"] if again else []
    measured = json.loads(subprocess.check_output(command, cwd=ROOT, timeout=HANGS_S))
    assert expected.total - expected.context == pytest.approx(measured, rel=CLOSE)


@pytest.mark.parametrize("strategy", ["FSDP2", "DeepSpeedZeRO3"])
def test_the_first_process_holds_a_base_once_while_it_hands_it_out(strategy: UsedStrategy) -> None:
    training = Training(
        shape=ModelShape.of({**LARGE, "model_type": "llama"}),
        method=LORA,
        order=MemoryOrder(strategy=strategy, nodes=2, processes_per_node=1, gpus=False, rows=1, precision="FP32"),
        tokens=8,
    )
    first = pair("-m", "tests.trainer.measured_hand_out", strategy)[0]
    assert memory_of(training, strategy).host == pytest.approx(int(first.split("SAID ")[1].split()[0]), rel=CLOSE)


def prepared_with(runs: SmallRuns, **machines: object) -> PrepareResult:
    """What Prepare says of a small model (6 MB of weights) on machines."""
    found = PrepareResult.model_validate(runs.prepared)
    order = {"strategy": "Auto", "nodes": 1, "processesPerNode": 2, "gpus": True, "rows": 2, "precision": "Auto"}
    run = runs.prepared_run.prepare_order() | {"method": {"type": "Full"}, "memory": {**order, **machines}}
    checked = PrepareRun.model_validate(run)
    return with_sharing(checked, found, storage=Storage(locations=checked.locations))


@pytest.mark.parametrize(
    ("machines", "says"),
    [
        ({}, "DDP needs 1.7 GiB a GPU .*; 24.0 GiB are assumed, since compute.gpuMemory is not set$"),
        ({"gpuMemory": 8 * GIB}, r"DDP needs 1.7 GiB a GPU \([^)]*\)$"),
        ({"gpus": False}, r"DDP needs 0.8 GiB a process \([^)]*\)$"),
    ],
)
def test_prepare_chooses_and_says_why(machines: dict[str, object], says: str, runs: SmallRuns) -> None:
    found = prepared_with(runs, **machines)
    assert found.sharing is not None
    assert (found.sharing.strategy, found.sharing.offload, found.remarks) == ("DDP", False, runs.prepared["remarks"])
    assert re.match(says, found.sharing.because), found.sharing.because


def test_prepare_refuses_what_fits_no_known_memory(runs: SmallRuns) -> None:
    said = r"^compute.strategy: Auto finds none that fits. compute.gpuMemory: 1.0 GiB: FSDP2 with offload needs .*; DDP"
    with pytest.raises(StageError, match=said) as caught:
        prepared_with(runs, gpuMemory=1 * GIB)
    assert (caught.value.reason, caught.value.exit_code) == ("DoesNotFit", 78)
    with pytest.raises(StageError, match=r"compute.resources.limits.memory: 0.5 GiB for 2 processes"):
        prepared_with(runs, gpus=False, memoryLimit=GIB // 2)


def test_prepare_asks_the_architecture_whether_it_can_compute_activations_again(
    runs: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"gpus": False, "memoryLimit": GIB, "processesPerNode": 1, "rows": 256}
    found = prepared_with(runs, **again, activationCheckpointing="Always", strategy="DDP")
    assert found.sharing is None, "the job says it all"
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(StageError, match="activationCheckpointing: Always: a model of type llama cannot") as caught:
        prepared_with(runs, **again, activationCheckpointing="Always")
    assert (caught.value.reason, caught.value.exit_code) == ("UnsupportedModel", 78)


def test_a_strategy_that_is_named_is_only_remarked_on(runs: SmallRuns) -> None:
    found = prepared_with(runs, strategy="DDP", gpuMemory=1 * GIB)
    assert found.sharing is None
    assert found.remarks[-1].startswith("compute.gpuMemory: 1.0 GiB: DDP needs ")
