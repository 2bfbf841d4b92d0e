"""What stands before vLLM's routes. tests/vllm has it in vLLM itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.serving import vllm_middleware
from finetune_trainer.serving.vllm_middleware import OnlyTheModel


@pytest.fixture
def middleware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnlyTheModel:
    """Before an application that answers everything with `vLLM`."""

    async def vllm(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"vLLM"})

    (tmp_path / "probes.json").write_text('{"probes": []}')
    monkeypatch.setattr(vllm_middleware, "__file__", str(tmp_path / "finetune_middleware.py"))
    return OnlyTheModel(vllm)


async def asked(middleware: OnlyTheModel, **scope: str) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    await middleware({"type": "http", **scope}, receive, send)
    return sent


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("POST", "/v1/chat/completions", 200, b"vLLM"),
        ("POST", "/v1/completions", 200, b"vLLM"),
        ("GET", "/health", 200, b"vLLM"),
        ("GET", "/metrics", 200, b"vLLM"),
        ("GET", "/finetune/probes", 200, b'{"probes": []}'),
        ("GET", "/docs", 404, b"not found"),
        ("POST", "/inference/v1/abort_requests", 404, b"not found"),
        ("POST", "/scale_elastic_ep", 404, b"not found"),
        ("POST", "/v1/load_lora_adapter", 404, b"not found"),
        ("POST", "/health", 404, b"not found"),
        ("POST", "/v1/chat/completions/", 404, b"not found"),
    ],
)
async def test_the_model_is_served_and_nothing_else_and_no_connection_is_kept(
    middleware: OnlyTheModel, method: str, path: str, status: int, body: bytes
) -> None:
    head, rest = await asked(middleware, method=method, path=path)
    assert (head["status"], body in rest["body"]) == (status, True)
    assert (b"connection", b"close") in head["headers"]


async def test_no_websocket_is_opened(middleware: OnlyTheModel) -> None:
    assert [each["type"] for each in await asked(middleware, type="websocket", path="/v1/realtime")] == [
        "websocket.close"
    ]


async def test_the_start_of_the_server_is_handed_on(middleware: OnlyTheModel) -> None:
    assert await asked(middleware, type="lifespan")
