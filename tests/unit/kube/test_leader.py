"""The end of a leadership: nobody writes any more when another process could lead."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from finetune_operator.core.ports import NotFoundError, UnavailableError
from finetune_operator.kube.api import Api
from finetune_operator.kube.leader import Elector, LeaseSettings

SETTINGS = LeaseSettings(
    namespace="ml", name="op", identity="a", duration_seconds=1, renew_deadline_seconds=0.4, retry_seconds=0.1
)


class Leases:
    """An apiserver that takes a first Lease, and is away from then on."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None

    async def request(self, *, method: str, body: dict[str, Any] | None = None, **_: Any) -> dict[str, Any]:
        if method == "POST" and body is not None:
            self.lease = body
            return body
        if self.lease is None:
            raise NotFoundError("none")
        raise UnavailableError("away")


async def test_work_that_goes_on_is_not_waited_for_longer_than_the_lease_holds() -> None:
    """cilium/cilium 42920: another process leads from then on, and two would write. The process ends instead."""
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    loop = asyncio.get_running_loop()
    began = loop.time()
    elector = Elector(api=cast("Api", Leases()), settings=SETTINGS)
    try:
        with pytest.raises(RuntimeError, match="did not stop while its lease held"):
            await elector.run(lead=stubborn)
        took = loop.time() - began
    finally:
        let_go.set()
    assert SETTINGS.renew_deadline_seconds <= took < 3 * SETTINGS.duration_seconds


async def test_a_frozen_leader_competes_again_when_it_wakes_up() -> None:
    """Its lease is long over then, and its work takes a moment to end: the process went down with a RuntimeError."""
    frozen_for = 0.0
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(int)
            ended.set()

    loop = asyncio.get_running_loop()
    elector = Elector(api=cast("Api", Leases()), settings=SETTINGS, clock=lambda: loop.time() + frozen_for)
    running = asyncio.ensure_future(elector.run(lead=work))
    try:
        await began.wait()
        frozen_for = 100.0
        await asyncio.wait_for(ended.wait(), timeout=10)
        done, _ = await asyncio.wait({running}, timeout=SETTINGS.retry_seconds)
        assert not done, "it ended instead of competing again"
    finally:
        running.cancel()
        await asyncio.wait({running})
