"""What runs beside the requests of clients: whatever it meets, the gateway goes on."""

from __future__ import annotations

import asyncio

import pytest

from finetune_gateway import process


async def test_what_fails_beside_the_requests_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_AGAIN_SECONDS", 0.0)
    begun, goes_on = [], asyncio.Event()

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise KeyError("metadata")
        goes_on.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(process.kept_up(work))
    await goes_on.wait()
    assert begun == [0, 1, 2]
    assert sum("it begins anew" in each for each in caplog.messages) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
