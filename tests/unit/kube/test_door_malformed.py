"""Whoever sends the door what is not HTTP finds nothing of it in the answer, nor anybody in the log."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from finetune_operator.kube.door import door_application, serving
from finetune_operator.kube.inboxes import ObservationInbox

TOKEN = "SECRET-OF-A-POD"


@pytest.mark.parametrize("head", [f"Authorization : Bearer {TOKEN}", f": {TOKEN}", f"Authorization: Bearer {TOKEN}\0"])
async def test_tokens_of_malformed_requests_are_told_to_nobody(head: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    inbox = ObservationInbox(enqueue=lambda _: None, clock=lambda: datetime.now(UTC))
    nobody = cast("Any", None)  # a request that cannot be read reaches neither
    application = door_application(gatekeeper=nobody, inbox=nobody, observations=inbox)
    async with serving(application=application, host="127.0.0.1", port=0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST /v1/observations HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), timeout=10)
        writer.close()
    status, body = answer.split(b" ", 2)[1], answer.partition(b"\r\n\r\n")[2]
    assert (status, "not valid HTTP" in json.loads(body)["error"]) == (b"400", True)
    assert TOKEN.encode() not in answer
    assert TOKEN not in caplog.text
    assert "a malformed request of 127.0.0.1 refused" in caplog.text
