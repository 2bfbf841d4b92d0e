"""Reports wake the reconciler, but not at the pace of the reporters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from tests.staying import stays

from finetune_api.finetunejob import TrainerStatus
from finetune_operator.core.ports import Key
from finetune_operator.kube import inboxes
from finetune_operator.kube.inboxes import ProgressInbox

INTERVAL = 0.2
NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = Key(kind="FineTuneJob", namespace="ml", name="router")


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "MINIMUM_INTERVAL_SECONDS", INTERVAL)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the inbox has no events to wait for
            await asyncio.sleep(0.002)


def percent(value: int) -> TrainerStatus:
    return TrainerStatus(progress_percentage=value)


async def test_the_first_report_is_looked_at_at_once_and_the_last_one_at_last() -> None:
    looks: list[tuple[Key, int | None]] = []
    times: list[float] = []

    def look(key: Key) -> None:
        looks.append((key, latest(inbox)))
        times.append(asyncio.get_running_loop().time())

    inbox = ProgressInbox(enqueue=look, clock=lambda: NOW)
    for value in (1, 2, 3):
        inbox.report(key=KEY, uid="u", status=percent(value))
    await until(lambda: looks)
    assert looks == [(KEY, 3)]
    for value in (4, 5):
        inbox.report(key=KEY, uid="u", status=percent(value))
    assert len(looks) == 1
    await until(lambda: len(looks) > 1)
    assert looks == [(KEY, 3), (KEY, 5)]
    assert times[1] - times[0] >= 0.9 * INTERVAL
    await stays(lambda: len(looks) == 2, seconds=2 * INTERVAL)


async def test_what_came_in_and_when() -> None:
    inbox = ProgressInbox(enqueue=lambda _: None, clock=lambda: NOW)
    assert inbox.listening_since == NOW
    assert inbox.latest(uid="u") is None
    inbox.report(key=KEY, uid="u", status=percent(1))
    found = inbox.latest(uid="u")
    assert found is not None
    assert (found.status, found.received) == (percent(1), NOW)


async def test_jobs_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Key] = []
    inbox = ProgressInbox(enqueue=looks.append, clock=lambda: NOW)
    monkeypatch.setattr(inboxes, "MINIMUM_INTERVAL_SECONDS", 60.0)
    other = Key(kind="FineTuneJob", namespace="ml", name="other")
    inbox.report(key=KEY, uid="u", status=percent(1))
    inbox.report(key=other, uid="v", status=percent(1))
    await until(lambda: len(looks) > 1)
    assert looks == [KEY, other]


async def test_what_is_forgotten_is_not_looked_at() -> None:
    looks: list[Key] = []
    inbox = ProgressInbox(enqueue=looks.append, clock=lambda: NOW)
    inbox.report(key=KEY, uid="u", status=percent(1))
    inbox.forget(uid="u")
    inbox.forget(uid="u")
    await stays(lambda: looks == [], seconds=INTERVAL)
    assert inbox.latest(uid="u") is None


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "_JOBS", 10)
    inbox = ProgressInbox(enqueue=lambda _: None, clock=lambda: NOW)
    for number in range(50):
        inbox.report(key=KEY, uid=str(number), status=percent(1))
    assert inbox.latest(uid="39") is None
    assert inbox.latest(uid="40") is not None
    assert len(inbox._paces) == 10


def latest(inbox: ProgressInbox) -> int | None:
    found = inbox.latest(uid="u")
    return found.status.progress_percentage if found else None
