"""The serving process with a switch that makes it slow, failing or wrong: for demonstrations and tests only.

    python demo/misbehaving.py [serve] [--run-file FILE]   the trainer's own command with a wrapper around its servers
    FINETUNE_LOCAL_TRAINER=demo/misbehaving.py finetune up -f ENDPOINT    local mode with it

$MISBEHAVIOUR names a folder, in which the file with the name of a version is read at each request to its server.
Without it, or when it is empty, nothing is changed; else it holds one of

    slow [SECONDS]    each answer comes so much later (default 5)
    failing           status 500
    wrong             each answer says something else: empty texts, the last class instead of the first

The health of the server and its readiness are never touched: what misbehaves like this looks well to Kubernetes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

VARIABLE = "MISBEHAVIOUR"
_SLOW_SECONDS = 5.0
_ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/classify")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Misbehaving:
    """An ASGI application around another one."""

    def __init__(self, app: App, *, switch: Path) -> None:
        self._app = app
        self._switch = switch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as the switch says."""
        mode, _, detail = self._mode().partition(" ")
        if scope["type"] != "http" or scope["path"] not in _ANSWERS or not mode:
            await self._app(scope, receive, send)
            return
        match mode:
            case "slow":
                await asyncio.sleep(float(detail or _SLOW_SECONDS))
                await self._app(scope, receive, send)
            case "failing":
                await _answer(
                    send, status=500, document={"error": {"message": "switched to fail", "type": "server_error"}}
                )
            case "wrong":
                await self._wrong(scope, receive, send)
            case _:
                raise ValueError(f"{self._switch}: {mode!r} is none of slow, failing, wrong")

    def _mode(self) -> str:
        try:
            return self._switch.read_text().strip()
        except FileNotFoundError:
            return ""

    async def _wrong(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The real answer, not streamed, with its text or class exchanged."""
        said: list[Message] = []

        async def keep(message: Message) -> None:
            said.append(message)

        await self._app(scope, _without_stream(receive), keep)
        body = b"".join(message.get("body", b"") for message in said)
        if said[0]["status"] != 200:
            for message in said:
                await send(message)
            return
        await _answer(send, status=200, document=_falsified(json.loads(body)))


def _without_stream(receive: Receive) -> Receive:
    """The same request, asking for an answer at once. The length in its head is not looked at."""

    async def changed() -> Message:
        message = await receive()
        if message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        try:
            document = json.loads(body)
            document.pop("stream", None)
            document.pop("stream_options", None)
            body = json.dumps(document).encode()
        except (ValueError, AttributeError):
            pass  # the application says what is wrong with it
        return {"type": "http.request", "body": body, "more_body": False}

    return changed


def _falsified(document: dict[str, Any]) -> dict[str, Any]:
    for choice in document.get("choices", ()):
        if "message" in choice:
            choice["message"]["content"] = ""
        else:
            choice["text"] = ""
    for entry in document.get("data", ()):
        entry["label"] = list(entry["probabilities"])[-1]
        if "label" in document:
            document["label"] = entry["label"]
    return document


async def _answer(send: Send, *, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """The trainer's command, misbehaving as switched."""
    from finetune_trainer.__main__ import main as run

    folder = Path(os.environ[VARIABLE])
    return run(wrap=lambda app, order: Misbehaving(app, switch=folder / order.version.name))


if __name__ == "__main__":
    sys.exit(main())
