"""A real Chromium, driven over its DevTools protocol: no driver program, no second browser.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from tests.harness.prerequisites import require_for_browser
from tests.local.eventually import eventually
from tests.patience import HANGS_S

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}


class Tab:
    """A page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """What the browser logged as an error: scripts that failed or were forbidden, what was not found."""
        self.requested: list[str] = []
        """All that was asked for, by URL."""

    async def listen(self) -> None:
        """Take what the browser says, until it ends."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])
            elif said["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(str(said["params"]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], timeout=HANGS_S)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what comes of it."""
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """The first true value of an expression, also across pages."""

        async def look() -> Any:
            with suppress(AssertionError):  # between two pages there is none
                return await self.run(script)

        return await eventually(look)

    async def open(self, url: str) -> None:
        """Go there, and wait until all of it is loaded."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def press(self, key: str) -> None:
        """Press and release a key."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": "\r"} if key == "Enter" else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    async def screen(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """A screen of this size, and what the user prefers."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """What is on the screen, as PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Tab]:
    """A browser with an empty page; its profile is in the folder."""
    process = await asyncio.create_subprocess_exec(
        require_for_browser(), *FLAGS, f"--user-data-dir={folder}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as client:
            address = await asyncio.wait_for(_address(process), timeout=HANGS_S)
            drain = asyncio.create_task(_drain(process))
            async with client.put(f"http://{address}/json/new?about:blank") as answer:
                socket = (await answer.json())["webSocketDebuggerUrl"]
            async with client.ws_connect(socket, max_msg_size=0) as connection:
                tab = Tab(connection)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.send(f"{domain}.enable")
                yield tab
            listening.cancel()
            drain.cancel()
    finally:
        process.kill()
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        if found := re.search(rb"DevTools listening on ws://([^/]+)/", line):
            return found[1].decode()
    raise AssertionError("the browser ended at once")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async for _ in process.stderr:
        pass
