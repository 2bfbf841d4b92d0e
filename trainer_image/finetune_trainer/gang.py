"""The processes that train one model together: agreeing, summing, and telling a lost peer from an error of our own."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from finetune_api.results import ExitCode
from finetune_trainer.errors import StageError

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
_LOST_PEER = ("connection closed by peer", "connection reset by peer", "timed out", "timeout", "broken pipe", "socket")


@dataclass(frozen=True, kw_only=True)
class Gang:
    """This process among all."""

    rank: int
    local_rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def any_of(self, flag: bool) -> bool:
        """Whether any process says so. All must ask at the same point."""
        if self.world == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def sum_of(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def first_says(self, value: int) -> int:
        """The first process's number, everywhere."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def gather_bytes(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor (of equal shape), in the order of ranks."""
        if self.world == 1:
            return [tensor]
        mine = tensor.to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(gathered, mine)
        return [item.cpu() for item in gathered]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(*, gpus: bool) -> Iterator[Gang]:
    """Join the processes that torchrun started; alone where there is none. Raises StageError PeerLost.

    Reads RANK, LOCAL_RANK and WORLD_SIZE, as torchrun sets them.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world == 1:
        yield Gang(rank=0, local_rank=0, world=1, device=device)
        return
    with lost_peers_named():
        dist.init_process_group(backend="nccl" if gpus else "gloo", timeout=COLLECTIVE_TIMEOUT)
        try:
            yield Gang(rank=rank, local_rank=local_rank, world=world, device=device)
        finally:
            dist.destroy_process_group()


@contextmanager
def lost_peers_named() -> Iterator[None]:
    """Turn a collective's failure into StageError PeerLost: the cause is with another process."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or any(words in text for words in _LOST_PEER):
            raise StageError(
                reason="PeerLost",
                message="another process of the run went away: " + str(error).partition("\n")[0],
                exit_code=ExitCode.INTERNAL_ERROR,
            ) from error
        raise
