"""Reports to the operator: whatever stands between answers as it likes."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from finetune_gateway.config import GatewayConfig
from finetune_gateway.reporting import _post


async def test_an_error_page_that_is_not_utf_8_is_an_error_like_any_other() -> None:
    """The gateway ends with any of its loops; this one tries again after a ClientError."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=503, body=b"d\xe9bord\xe9", content_type="text/html")

    app = web.Application()
    app.router.add_post("/", refuse)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = GatewayConfig(endpoint="router")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError, match="answered 503"):
            await _post(session=session, config=config, url=f"http://127.0.0.1:{runner.addresses[0][1]}/", body="{}")
    await runner.cleanup()
