"""The processes that train one model together: agreeing, summing, and telling a lost peer from an error of our own."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from finetune_api.progress import HANG_VARIABLE
from finetune_api.results import ExitCode
from finetune_trainer.process.errors import StageError, as_stage_error
from finetune_trainer.process.progress import living

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
FETCHING_TIMEOUT = datetime.timedelta(hours=2)
"""How long processes wait for what one of them fetches, tries or saves: with a large model that takes longer than any
exchange between processes may.
"""
SHARE_SECONDS = 10.0
"""How long the first process waits for others' shares, at the least, once it leaves: theirs are as large as its own."""
_POLL_SECONDS = 0.1
_LOST_PEER = ("connection closed by peer", "connection reset by peer", "timed out", "timeout", "broken pipe", "socket")


@dataclass(frozen=True, kw_only=True)
class Gang:
    """This process among all."""

    rank: int
    local_rank: int
    world: int
    device: torch.device
    of_node: int = 1
    """Processes of this pod."""
    store: Any = None
    """Where processes leave words for each other (torch.distributed.Store); None for one alone."""
    _done: Iterator[int] = field(default_factory=itertools.count)

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

    def sum_of(self, values: torch.Tensor) -> list[float]:
        """Element-wise sum over all processes; `values` (on the device) is used up. Waits for the device."""
        if self.world > 1:
            dist.all_reduce(values)
        return [float(value) for value in values.tolist()]

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

    def once_per_node(self, work: Callable[[], Any]) -> Any:
        """What `work` gives (JSON-ready), done by one process of each pod; the others wait for it, and fail as it does.
        Each pod waits for all: one may take much longer than another, and than an exchange between them may.

        All must ask at the same point. Raises StageError: that of `work`, or PeerLost after `FETCHING_TIMEOUT`.
        """
        found = self._done_by(self.rank - self.local_rank, work, among=self.of_node)
        if self.of_node < self.world:
            key = f"met-{next(self._done)}"
            if self.store.add(key, 1) == self.world:
                self.store.set(f"{key}-all", json.dumps({"found": None}))
            _without_a_word(partial(self._said, f"{key}-all"))
        return found

    def first_does(self, work: Callable[[], Any]) -> Any:
        """The same, done by the first process alone: what may take longer than an exchange between processes."""
        found = self._done_by(0, work, among=self.world)
        self.wait()  # whoever goes first may take the store along
        return found

    def _done_by(self, rank: int, work: Callable[[], Any], *, among: int) -> Any:
        key = f"done-{rank}-{next(self._done)}"
        if among == 1:
            return _without_a_word(work)
        if self.rank != rank:
            return self._said(key)
        try:
            found = _without_a_word(work)
        except BaseException as error:
            failure = as_stage_error(error, writing="the run's output")
            self.store.set(key, json.dumps({"error": failure.to_dict()}))
            self._wait_until_heard(key, by=among - 1)
            raise failure from error
        self.store.set(key, json.dumps({"found": found}))
        return found

    def _said(self, key: str, *, is_over: Callable[[], bool] = lambda: False) -> Any:
        deadline = time.monotonic() + FETCHING_TIMEOUT.total_seconds()
        pause = _POLL_SECONDS / 64
        # Looked for again and again: a signal is heard in between.
        while not self.store.check([key]):
            if is_over() or time.monotonic() > deadline:
                raise StageError(
                    reason="PeerLost",
                    message="a process that others wait for went away, or was not ready in time",
                    exit_code=ExitCode.INTERNAL_ERROR,
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
        said = json.loads(self.store.get(key))
        if "error" in said:
            self.store.add(f"{key}-heard", 1)
            raise StageError.of(said["error"])
        return said["found"]

    def _wait_until_heard(self, key: str, *, by: int) -> None:
        """Whoever fails leaves, and may take the store along."""
        deadline = time.monotonic() + COLLECTIVE_TIMEOUT.total_seconds()
        while self.store.add(f"{key}-heard", 0) < by and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


class Shares:
    """What each process makes of its share of one piece of work, in any thread, and the first hears of.

    All must make it at the same point.
    """

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._key = f"share-{next(gang._done)}"

    def made(self, work: Callable[[], Any], *, writing: str, left: Callable[[], float]) -> list[Any]:
        """Do this process's `work`, which gives what is JSON-ready. The first process has what all gave, by rank.

        `writing`: what, for a full disk. `left`: when the first process left (time.monotonic), inf while it is there:
        then it waits for twice the time that its own share took, `SHARE_SECONDS` at the least. Raises StageError where
        a share failed, once all are over: that of the lowest rank; PeerLost for one that was not heard of.
        """
        gang, began = self._gang, time.monotonic()
        found, failures = [], []
        try:
            found.append(work())
        except BaseException as error:
            failures.append(as_stage_error(error, writing=writing))
        done = time.monotonic()
        if not gang.is_first:
            said = {"error": failures[0].to_dict()} if failures else {"found": found[0]}
            gang.store.set(f"{self._key}-{gang.rank}", json.dumps(said))

        def is_over() -> bool:
            return time.monotonic() > max(left(), done) + max(SHARE_SECONDS, 2 * (done - began))

        for rank in range(1, gang.world) if gang.is_first else ():
            try:
                found.append(gang._said(f"{self._key}-{rank}", is_over=is_over))
            except StageError as error:
                failures.append(error)
        for failure in failures:
            raise failure
        return found


def _without_a_word(work: Callable[[], Any]) -> Any:
    with living(FETCHING_TIMEOUT.total_seconds()):
        return work()


class Votes:
    """What processes tell each other after each step, over the host's own network: no device is waited for.

    It is heard a step later, when it long is there, so that all learn of it at one step and nobody waits.
    """

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._cast: torch.Tensor | None = None
        self._work: Any = None

    def cast(self, *flags: bool, urgent: bool) -> list[bool]:
        """Which of the flags any process had after the step before; where that one was `urgent`, after this one, too.

        All must cast after each step.
        """
        if self._gang.world == 1:
            return list(flags)
        heard = self._heard() if self._cast is not None else [False] * (len(flags) + 1)
        self._cast = torch.tensor([*map(int, flags), int(urgent)])
        self._work = dist.all_reduce(self._cast, op=dist.ReduceOp.MAX, async_op=True)
        if heard[-1]:
            heard = [earlier or now for earlier, now in zip(heard, self._heard(), strict=True)]
            self._cast[:-1] = 0  # heard once
        return heard[:-1]

    def _heard(self) -> list[bool]:
        self._work.wait()
        assert self._cast is not None
        return [bool(flag) for flag in self._cast.tolist()]


@contextmanager
def joined(*, gpus: bool, meets: bool = False) -> Iterator[Gang]:
    """Join the processes that torchrun started; alone where there is none. Raises StageError PeerLost.

    `meets`: whoever is alone forms a group as well, for libraries that exchange in any case.

    Reads RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world == 1 and not meets:
        yield Gang(rank=0, local_rank=0, world=1, device=device)
        return
    # Where longer silence is no hang, an exchange may take as long.
    hang = datetime.timedelta(seconds=float(os.environ.get(HANG_VARIABLE, "0")))
    with lost_peers_named():
        store: Any = HashStore()
        if world > 1:
            store, _, _ = next(rendezvous("env://", rank, world, timeout=COLLECTIVE_TIMEOUT))
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo",  # what is offloaded is exchanged on the CPU
            store=PrefixStore("gang", store),
            rank=rank,
            world_size=world,
            timeout=max(COLLECTIVE_TIMEOUT, hang),
        )
        try:
            yield Gang(
                rank=rank,
                local_rank=local_rank,
                world=world,
                device=device,
                of_node=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
                store=PrefixStore("words", store),
            )
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
