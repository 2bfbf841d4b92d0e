"""The demonstration's switch: around the real server, read at each request."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.trainer.serving.server_process import get, order_for, post, serving
from tests.trainer.small_run import ROOT


async def test_the_switch_makes_it_slow_failing_or_wrong(small_chat: dict[str, Any], tmp_path: Path) -> None:
    switch = tmp_path / "switches" / "router-7"
    switch.parent.mkdir()
    request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    with serving(
        tmp_path,
        order_for(small_chat, folder=tmp_path),
        program=(str(ROOT / "demo" / "misbehaving.py"), "serve"),
        variables={"MISBEHAVIOUR": str(switch.parent)},
    ) as server:
        url = f"{server.url}/v1/chat/completions"
        _, usual = await post(url, request)
        assert usual["choices"][0]["message"]["content"]

        switch.write_text("failing")
        status, _ = await post(url, request)
        assert status == 500
        assert (await get(f"{server.url}/readyz"))[0] == 200

        switch.write_text("wrong")
        status, wrong = await post(url, request | {"stream": True})
        assert (status, wrong["choices"][0]["message"]["content"]) == (200, "")
        status, _ = await post(url, request | {"max_tokens": -1})
        assert status == 400

        switch.write_text("slow 0.7")
        began = time.monotonic()
        await post(url, request)
        assert time.monotonic() - began > 0.7

        switch.unlink()
        _, again = await post(url, request)
        assert again["choices"][0]["message"] == usual["choices"][0]["message"]
