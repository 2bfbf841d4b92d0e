"""Copies and held-out prompts: what a version hands out is not trusted, and what is asked is counted."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.gateway.test_both_arms import gateway

from finetune_gateway.answers import Answer
from finetune_gateway.process import session_to_versions
from finetune_gateway.shadow import Comparator, held_out


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"probes": 7}', b'{"probes": ["hi"]}', b'{"probes": [{"path": 1, "request": []}]}']
)
def test_held_out_prompts_that_make_no_sense_are_none(body: bytes) -> None:
    assert held_out(body) == []


@pytest.mark.parametrize("body", [b"[" * 99_999, b"{", b"\xff"])
def test_held_out_prompts_that_cannot_be_read_are_an_error_that_is_caught(body: bytes) -> None:
    """The gateway ends with any of its loops: a candidate could take the endpoint down."""
    with pytest.raises(ValueError):
        held_out(body)


def test_a_held_out_prompt_is_asked_once() -> None:
    probe = b'{"path": "/v1/classify", "request": {"input": "who won?"}, "label": "sport"}'
    assert [each["label"] for each in held_out(b'{"probes": [%s, %s]}' % (probe, probe))] == ["sport"]


async def test_metrics_count_copies_and_versions_that_were_left() -> None:
    live = gateway(failures=1).live
    assert live.current is not None
    shadow = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 5, "maxInFlight": 1}
    live.accept(type(live.current).model_validate({**live.current.to_dict(), "epoch": 2, "shadow": shadow}))
    live.heard |= {"new", "old"}
    good = Answer(status=200, text="sport")
    async with session_to_versions() as session:
        comparator = Comparator(live=live, tally=live.tally, session=session)
        for _ in range(3):
            comparator.offer(path="/", body=b"{}", variant="old", stable=good, json_expected=False, limited=True)
        await asyncio.gather(*comparator._tasks)
    live.record(epoch=2, rule="all", variant="new", failed=True, what="status 500")
    value = live.metrics.registry.get_sample_value
    name = "finetune_gateway_shadow_requests_total"
    assert [value(name, {"result": each}) for each in ("completed", "dropped")] == [1.0, 2.0]
    assert value("finetune_gateway_breakers_opened_total") == 1.0
