"""The access log: written in batches, one line for each request."""

from __future__ import annotations

import asyncio
import io
import re

from finetune_gateway.access_log import AccessLog


def noted(log: AccessLog, *, status: int = 200) -> None:
    log.add(
        method="POST",
        path="/v1/chat/completions",
        status=status,
        seconds=0.0123,
        client="team-a",
        answer_id="a1",
        arm=(3, "half", "uid-7"),
        request_id=None,
    )


def test_lines_are_written_together() -> None:
    stream = io.StringIO()
    log = AccessLog(enabled=True, stream=stream)
    noted(log)
    noted(log, status=429)
    assert stream.getvalue() == ""
    log.write()
    first, second = stream.getvalue().splitlines()
    expected = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO finetune_gateway.access POST /v1/chat/completions 200 0.0123s"
    )
    assert re.fullmatch(expected + " client=team-a answer=a1 request=- epoch=3 rule=half version=uid-7", first)
    assert " 429 " in second
    log.write()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_line_is_no_longer_for_a_long_path() -> None:
    stream = io.StringIO()
    log = AccessLog(enabled=True, stream=stream)
    log.add(
        method="G" * 100,
        path="/" * 8000,
        status=404,
        seconds=0.1,
        client=None,
        answer_id=None,
        arm=None,
        request_id=None,
    )
    log.write()
    assert len(stream.getvalue()) < 500


def test_nothing_is_kept_where_it_is_off() -> None:
    stream = io.StringIO()
    log = AccessLog(enabled=False, stream=stream)
    noted(log)
    log.write()
    assert stream.getvalue() == ""


async def test_the_last_lines_are_written_at_the_end() -> None:
    stream = io.StringIO()
    log = AccessLog(enabled=True, stream=stream)
    writing = asyncio.create_task(log.keep_writing())
    await asyncio.sleep(0)
    noted(log)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert len(stream.getvalue().splitlines()) == 1


def test_lines_that_cannot_be_written_are_counted() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    dropped: list[int] = []
    log = AccessLog(enabled=True, stream=Full(), on_drop=dropped.append)
    noted(log)
    noted(log)
    log.write()
    assert dropped == [2]
