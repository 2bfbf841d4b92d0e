"""What goes wrong while a version's servers start says nothing about it, whenever they start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tests.patience import HANGS_S
from tests.unit.gateway.test_both_arms import gateway

from finetune_gateway import first_answers
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.process import session_to_versions


def route(live: LiveRoutes, *versions: str) -> None:
    """Put routes in force that name these versions."""
    assert live.current is not None
    rules = [{"name": "all", "weights": {versions[0]: 100}}]
    variants = {name: {"name": name, "url": f"http://{name}", "ready": True} for name in versions}
    told = {**live.current.to_dict(), "epoch": live.epoch + 1, "variants": variants, "rules": rules}
    live.accept(type(live.current).model_validate(told))


async def until(holds: Callable[[], bool]) -> None:
    """Let others go on until this holds."""
    deadline = time.monotonic() + HANGS_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_version_that_comes_back_is_asked_again() -> None:
    """Back to a version that was stable before: its servers, and their name, are new ones."""
    live = gateway().live
    live.heard |= {"new", "old"}
    route(live, "old")
    route(live, "old", "new")
    assert live.heard == {"old"}


async def test_a_version_that_comes_back_has_as_long_as_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def silent(_: object, url: str) -> bool:
        asked.put_nowait(url)
        return url == "http://old"

    monkeypatch.setattr(first_answers, "_answers", silent)
    monkeypatch.setattr(first_answers, "time", SimpleNamespace(monotonic=lambda: now))
    live, now = gateway().live, 0.0
    async with session_to_versions() as session, asyncio.timeout(HANGS_S):
        task = asyncio.create_task(
            first_answers.wait_for_first_answers(live=live, session=session, longest_seconds=60.0)
        )
        while await asked.get() != "http://new":
            pass
        route(live, "old")
        await until(lambda: not live.changed.is_set())
        now = 600.0
        route(live, "old", "new")
        await until(lambda: not live.changed.is_set())
        assert live.heard == {"old"}
        now = 661.0
        await until(lambda: "new" in live.heard)
        task.cancel()
