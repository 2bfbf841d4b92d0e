"""Each process writes its share of a checkpoint, which counts only as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.pair import pair
from tests.trainer.saving import SIZES, checkpoints_in
from torch import nn

from finetune_trainer.process.gang import Gang
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root


def saved(root: Path, *, strategy: str = "FSDP2", mode: str) -> list[str]:
    """What two processes say of their saving."""
    texts = pair("-m", "tests.trainer.saving", strategy, str(root), mode)
    return [text.split("SAID ")[1].strip() if "SAID" in text else text for text in texts]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def resumed(claim: Path) -> tuple[int | None, dict[str, float]]:
    """The step from which one process goes on, and each parameter's first number."""
    alone = Gang(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    parameters = {name: nn.Parameter(torch.full((size,), -1.0)) for name, size in SIZES.items()}
    parallel = parallel_of("DDP", gang=alone, settings=ParallelSettings())
    parallel.prepare(Root(nn.Identity()), optimizer=lambda: torch.optim.AdamW(parameters.values()))
    found = checkpoints_in(claim).load_newest(parameters=parameters, gang=alone, parallel=parallel)
    return found and found.step, {name: float(each.detach()[0]) for name, each in parameters.items()}


@pytest.mark.parametrize(("strategy", "mode"), [("DDP", "later"), ("FSDP2", "at once")])
def test_each_process_writes_its_share(strategy: str, mode: str, tmp_path: Path) -> None:
    assert saved(tmp_path, strategy=strategy, mode=mode) == ["saved"] * 2
    folder = tmp_path / "claim/run/checkpoints/step-1"
    shares = [[f"{name}-{rank}.safetensors" for name in ("optimizer", "parameters")] for rank in range(2)]
    assert names(folder) == sorted(["COMPLETE", "random.safetensors", "state.json", *shares[0], *shares[1]])
    tensors = [[tensor for name in share for tensor in load_file(folder / name).items()] for share in shares]
    held = [key for share in tensors for key, _ in share]
    moments = [f"{name}/{moment}" for name in SIZES for moment in ("exp_avg", "exp_avg_sq", "step")]
    assert sorted(held) == sorted([*SIZES, *moments]), "each is there once"
    sizes = [sum(tensor.nbytes for _, tensor in share) for share in tensors]
    assert abs(sizes[0] - sizes[1]) <= 4 * max(SIZES.values())
    assert resumed(tmp_path / "claim") == (1, {name: float(number) for number, name in enumerate(SIZES)})


def test_whoever_does_not_see_the_folder_writes_nothing(tmp_path: Path) -> None:
    """Such as a pod on another node, with a folder of its node's own disk."""
    assert saved(tmp_path, mode="apart") == ["saved"] * 2
    whole = ["COMPLETE", "optimizer.safetensors", "parameters.safetensors", "random.safetensors", "state.json"]
    assert names(tmp_path / "claim-0/run/checkpoints/step-1") == whole
    assert not list((tmp_path / "claim-1").rglob("*.safetensors"))
    assert resumed(tmp_path / "claim-0")[0] == 1


def test_a_share_that_cannot_be_written_is_heard_by_all(tmp_path: Path) -> None:
    for said in saved(tmp_path, mode="full"):
        assert said.startswith("CannotWrite: pvc://c/run/checkpoints/step-1 could not be written: No space left"), said
    assert names(tmp_path / "claim/run/checkpoints") == ["step-2"], "nothing is left of it"


def test_a_process_that_dies_meanwhile_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "claim/run/checkpoints"
    # Of an earlier attempt, of more processes, which saved at a step at which none will again.
    (checkpoints / ".staging-step-7-dead").mkdir(parents=True)
    (checkpoints / "step-1").mkdir()
    (checkpoints / "step-1" / "parameters-2.safetensors").write_bytes(b"half")
    assert saved(tmp_path, mode="dies")[0].startswith("PeerLost: ")
    assert resumed(tmp_path / "claim")[0] is None
    assert saved(tmp_path, mode="later") == ["saved"] * 2
    assert names(checkpoints) == ["step-1"]
    record = json.loads((checkpoints / "step-1" / "COMPLETE").read_text())
    assert "parameters-2.safetensors" not in [file["path"] for file in record["files"]]
