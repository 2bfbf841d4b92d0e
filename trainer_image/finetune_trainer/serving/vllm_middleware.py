"""What vLLM's server is asked through: `vllm serve --middleware finetune_middleware.OnlyTheModel`.

`fetch` copies this file, with the version's probes beside it, to where vLLM imports it from: it uses the standard
library only. vLLM serves dozens of routes on one port, among them some that abort others' requests or rescale it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

PROBES_FILE = "probes.json"
_PROBES = ("GET", "/finetune/probes")
_OPEN = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/metrics"),
}


class OnlyTheModel:
    """ASGI middleware: the model, its probes, health and metrics; whatever else there is, is not found.

    Each answer ends its connection. Kept open, it would bring requests to a server that is to stop, which answers them
    with 500, long after its Service leads elsewhere.
    """

    def __init__(self, app: Application) -> None:
        self.app = app
        self.probes = (Path(__file__).parent / PROBES_FILE).read_bytes()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        asked = (scope.get("method"), scope.get("path"))
        if scope["type"] != "http" or asked in _OPEN:
            await self.app(scope, receive, last)
            return
        status, body = (200, self.probes) if asked == _PROBES else (404, b'{"error": {"message": "not found"}}')
        headers = [(b"content-type", b"application/json")]
        await last({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
