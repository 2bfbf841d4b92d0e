"""One of two processes that save a checkpoint: `python -m tests.trainer.saving STRATEGY FOLDER MODE`, with the
variables of torchrun.

Modes: `later` (in the background), `at once`, `apart` (each sees a folder of its own), `full` (the second process's
disk is, the first time), `dies` (the second process, as it writes).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from tests.patience import HANGS_S
from torch import nn

from finetune_api.run import Locations
from finetune_trainer.process import gang as gangs
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage
from finetune_trainer.training.checkpoint import Checkpoints, TrainingState
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root

SIZES = {"a": 40, "b": 32, "c": 24, "d": 16, "e": 8}


class Model(nn.Module):
    """Each weight is its number."""

    _no_split_modules = ()

    def __init__(self) -> None:
        super().__init__()
        for number, (name, size) in enumerate(SIZES.items()):
            setattr(self, name, nn.Parameter(torch.full((size,), float(number))))

    def forward(self) -> torch.Tensor:
        """All of them matter."""
        return torch.stack([(each * each).sum() for each in self.parameters()]).sum()


def checkpoints_in(claim: Path) -> Checkpoints:
    """Those of a run on a claim that is mounted there."""
    locations = Locations(run="pvc://c/run", cache="pvc://c/cache", allowed_roots=["pvc://"], mounts={"c": str(claim)})
    folder, storage = "pvc://c/run/checkpoints", Storage(locations=locations)
    return Checkpoints(storage=storage, folder=folder, input_digest="sha256:a", keep=1, keeps_best=False)


def main(strategy: Any, root: str, mode: str) -> None:
    """Save, and say how it went."""
    gangs.SHARE_SECONDS = 1.0
    with gangs.joined(gpus=False) as gang:
        model = Model()
        parallel = parallel_of(strategy, gang=gang, settings=ParallelSettings())
        ask = parallel.prepare(Root(model), optimizer=lambda: torch.optim.AdamW(model.parameters(), fused=True))
        named = dict(model.named_parameters())
        with parallel.accumulating(last=True):
            parallel.backward(ask(lambda inner: inner()), weight=1)
        parallel.step(named, learning_rate=0.0, max_norm=1.0)
        claim = Path(root, f"claim-{gang.rank}" if mode == "apart" else "claim")
        claim.mkdir(exist_ok=True)
        put = Storage.put

        def failing(storage: Storage, paths: Any, **how: Any) -> Any:
            if gang.is_first:
                return put(storage, paths, **how)
            if mode == "dies":
                os._exit(0)
            raise OSError(errno.ENOSPC, "No space left on device")

        if mode in ("full", "dies"):
            Storage.put = failing  # type: ignore[method-assign]
        checkpoints, said = checkpoints_in(claim), "saved"
        together: dict[str, Any] = {"parameters": named, "gang": gang, "parallel": parallel}
        try:
            with gangs.lost_peers_named():
                checkpoints.save(state=TrainingState(step=1), background=mode != "at once", **together)
                if mode == "dies" and not gang.is_first:
                    threading.Event().wait(HANGS_S)
                gang.wait()  # training goes on
                checkpoints.settle(gang)
        except StageError as error:
            said = f"{error.reason}: {error.message}"
        checkpoints.leave()
        if mode == "full":  # it is tried again
            Storage.put = put  # type: ignore[method-assign]
            checkpoints_in(claim).save(state=TrainingState(step=2), **together)
        print("SAID", said, flush=True)
        os._exit(0)  # the other may be gone


if __name__ == "__main__":
    main(*sys.argv[1:])
