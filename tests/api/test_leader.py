"""Leader election on a real apiserver, with short leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.api.client import open_api
from tests.harness import ApiServer
from tests.patience import HANGS_S

from finetune_operator.core.ports import UnavailableError
from finetune_operator.kube.api import Api
from finetune_operator.kube.leader import Elector, LeaseSettings

RETRY = 0.4
DURATION = 6
"""Of leases that a test waits to see the end of; the others last longer than a busy machine stands still."""
LONG = 90


class Candidate:
    """A process that competes, and when it began and ended to lead."""

    def __init__(self, *, api: Api, namespace: str, identity: str, duration: int) -> None:
        self.working = False
        self.changes: list[tuple[float, bool]] = []
        settings = LeaseSettings(
            namespace=namespace,
            name="finetune-operator",
            identity=identity,
            duration_seconds=duration,
            renew_deadline_seconds=duration / 3,
            retry_seconds=RETRY,
        )
        self.elector = Elector(api=api, settings=settings, on_change=self._note)
        self.task = asyncio.create_task(self.elector.run(lead=self._work))

    async def _work(self) -> None:
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False

    def _note(self, leading: bool) -> None:
        self.changes.append((time.monotonic(), leading))

    @property
    def leading(self) -> bool:
        return bool(self.changes) and self.changes[-1][1]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@asynccontextmanager
async def competing(
    apiserver: ApiServer, namespace: str, *identities: str, duration: int = LONG
) -> AsyncIterator[list[Candidate]]:
    async with open_api(apiserver) as api:
        candidates = [Candidate(api=api, namespace=namespace, identity=each, duration=duration) for each in identities]
        try:
            yield candidates
        finally:
            await asyncio.gather(*(candidate.stop() for candidate in candidates))


async def until(condition: Callable[[], object]) -> float:
    """Wait for a condition; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < HANGS_S, f"not within {HANGS_S} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def test_exactly_one_leads_and_keeps_leading(apiserver: ApiServer, namespace: str) -> None:
    async with competing(apiserver, namespace, "a", "b") as candidates:
        await until(lambda: any(candidate.working for candidate in candidates))
        renewals = set()
        while len(renewals) < 5:
            assert sum(candidate.working for candidate in candidates) == 1
            lease = await asyncio.to_thread(apiserver.kubectl.get, "lease", "finetune-operator", namespace=namespace)
            renewals.add(lease["spec"]["renewTime"])
        assert sum(len(candidate.changes) for candidate in candidates) == 1
    lease = apiserver.kubectl.get("lease", "finetune-operator", namespace=namespace)
    assert lease["spec"]["holderIdentity"] == "", "the last leader did not release the lease"


async def test_a_graceful_stop_hands_over_at_once(apiserver: ApiServer, namespace: str) -> None:
    async with competing(apiserver, namespace, "a", "b") as candidates:
        await until(lambda: any(candidate.working for candidate in candidates))
        leader, other = sorted(candidates, key=lambda candidate: not candidate.working)
        await leader.stop()
        assert not leader.working
        assert await until(lambda: other.working) < LONG / 2
        lease = apiserver.kubectl.get("lease", "finetune-operator", namespace=namespace)
        assert lease["spec"]["leaseTransitions"] == 1
        assert lease["spec"]["leaseDurationSeconds"] == LONG


async def test_a_stop_in_the_middle_of_a_renewal_releases_all_the_same(apiserver: ApiServer, namespace: str) -> None:
    """The apiserver has taken the renewal, and nobody has heard of it."""
    async with competing(apiserver, namespace, "a") as (candidate,):
        await until(lambda: candidate.working)
        renewal = {"spec": {"renewTime": "2026-11-21T00:00:00.000000Z"}}
        await asyncio.to_thread(apiserver.kubectl.patch, "lease", "finetune-operator", renewal, namespace=namespace)
        await candidate.stop()
    lease = apiserver.kubectl.get("lease", "finetune-operator", namespace=namespace)
    assert lease["spec"]["holderIdentity"] == ""


async def test_a_dead_leader_is_replaced_when_its_lease_ends(apiserver: ApiServer, namespace: str) -> None:
    async with competing(apiserver, namespace, "a", duration=DURATION) as (dead,):
        await until(lambda: dead.working)
        async with competing(apiserver, namespace, "b", duration=DURATION) as (other,):
            cut_off(dead)
            await until(lambda: other.working)
            began, _ = other.changes[0]
            assert began - dead.elector._renewed_at > DURATION, "led before the lease had ended"


def cut_off(candidate: Candidate) -> None:
    """From now on it can neither renew nor release."""

    async def unreachable(**_: object) -> None:
        raise UnavailableError("cut off")

    candidate.elector._write = unreachable  # type: ignore[method-assign,assignment]


async def test_a_stolen_lease_stops_the_work(apiserver: ApiServer, namespace: str) -> None:
    async with competing(apiserver, namespace, "a", duration=DURATION) as (candidate,):
        await until(lambda: candidate.working)
        theft = {"spec": {"holderIdentity": "thief"}}
        await asyncio.to_thread(apiserver.kubectl.patch, "lease", "finetune-operator", theft, namespace=namespace)
        await until(lambda: not candidate.working)
        assert not candidate.leading
        await until(lambda: candidate.working)  # the thief never renews


async def test_an_outage_ends_the_work_before_another_could_lead(apiserver: ApiServer, namespace: str) -> None:
    async with competing(apiserver, namespace, "a", duration=2 * DURATION) as (candidate,):
        await until(lambda: candidate.working)
        await asyncio.to_thread(apiserver.pause_apiserver)
        try:
            took = await until(lambda: not candidate.working)
            assert took < 2 * DURATION, "another could have led already"
            assert not candidate.task.done()
        finally:
            await asyncio.to_thread(apiserver.resume_apiserver)
        await until(lambda: candidate.working)
        assert [leading for _, leading in candidate.changes] == [True, False, True]


async def test_a_failure_of_the_work_releases_the_lease_and_is_raised(apiserver: ApiServer, namespace: str) -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    async with open_api(apiserver) as api:
        settings = LeaseSettings(namespace=namespace, name="finetune-operator", identity="a")
        with pytest.raises(RuntimeError, match="broken"):
            await Elector(api=api, settings=settings).run(lead=fail)
    lease = apiserver.kubectl.get("lease", "finetune-operator", namespace=namespace)
    assert lease["spec"]["holderIdentity"] == ""


def test_settings_that_could_give_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="renew_deadline_seconds < duration_seconds"):
        LeaseSettings(namespace="n", name="x", identity="a", duration_seconds=10, renew_deadline_seconds=10)
