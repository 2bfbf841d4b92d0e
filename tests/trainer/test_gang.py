"""What processes of a gang have done for each other. Pods are threads here: what they share is a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import torch
from torch._C._distributed_c10d import HashStore

from finetune_trainer.process.gang import Gang


def test_pods_that_fetch_wait_for_the_slowest() -> None:
    """The next exchange between them would not: it ends the run after ten minutes."""
    store: object = HashStore()
    fetched = Event()
    pods = [Gang(rank=rank, local_rank=0, world=2, device=torch.device("cpu"), store=store) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        quick = threads.submit(pods[0].once_per_node, lambda: "quick")
        slow = threads.submit(pods[1].once_per_node, lambda: fetched.wait(60) and "slow")
        waits = wait([quick], timeout=0.5).not_done
        fetched.set()
        assert waits
        assert [quick.result(timeout=60), slow.result(timeout=60)] == ["quick", "slow"]
