"""Reports wake the reconciler, but not at the pace of the reporters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from finetune_api.finetunejob import TrainerStatus
from finetune_operator.kube import progress
from finetune_operator.kube.progress import ProgressInbox
from finetune_operator.ports import Key

INTERVAL = 0.2
NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = Key(kind="FineTuneJob", namespace="ml", name="router")


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MINIMUM_INTERVAL_SECONDS", INTERVAL)


def percent(value: int) -> TrainerStatus:
    return TrainerStatus(progress_percentage=value)


async def test_the_first_report_is_looked_at_at_once_and_the_last_one_at_last() -> None:
    looks: list[tuple[Key, int | None]] = []
    inbox = ProgressInbox(enqueue=lambda key: looks.append((key, latest(inbox))), clock=lambda: NOW)
    for value in (1, 2, 3):
        inbox.report(key=KEY, uid="u", status=percent(value))
    await asyncio.sleep(INTERVAL / 2)
    assert looks == [(KEY, 3)]
    for value in (4, 5):
        inbox.report(key=KEY, uid="u", status=percent(value))
    assert len(looks) == 1
    await asyncio.sleep(INTERVAL)
    assert looks == [(KEY, 3), (KEY, 5)]
    await asyncio.sleep(2 * INTERVAL)
    assert len(looks) == 2


async def test_what_came_in_and_when() -> None:
    inbox = ProgressInbox(enqueue=lambda _: None, clock=lambda: NOW)
    assert inbox.listening_since == NOW
    assert inbox.latest(uid="u") is None
    inbox.report(key=KEY, uid="u", status=percent(1))
    found = inbox.latest(uid="u")
    assert found is not None
    assert (found.status, found.received) == (percent(1), NOW)


async def test_jobs_do_not_wait_for_each_other() -> None:
    looks: list[Key] = []
    inbox = ProgressInbox(enqueue=looks.append, clock=lambda: NOW)
    other = Key(kind="FineTuneJob", namespace="ml", name="other")
    inbox.report(key=KEY, uid="u", status=percent(1))
    inbox.report(key=other, uid="v", status=percent(1))
    await asyncio.sleep(INTERVAL / 2)
    assert looks == [KEY, other]


async def test_what_is_forgotten_is_not_looked_at() -> None:
    looks: list[Key] = []
    inbox = ProgressInbox(enqueue=looks.append, clock=lambda: NOW)
    inbox.report(key=KEY, uid="u", status=percent(1))
    inbox.forget(uid="u")
    inbox.forget(uid="u")
    await asyncio.sleep(INTERVAL)
    assert looks == []
    assert inbox.latest(uid="u") is None


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_JOBS", 10)
    inbox = ProgressInbox(enqueue=lambda _: None, clock=lambda: NOW)
    for number in range(50):
        inbox.report(key=KEY, uid=str(number), status=percent(1))
    assert inbox.latest(uid="39") is None
    assert inbox.latest(uid="40") is not None
    assert len(inbox._paces) == 10


def latest(inbox: ProgressInbox) -> int | None:
    found = inbox.latest(uid="u")
    return found.status.progress_percentage if found else None
