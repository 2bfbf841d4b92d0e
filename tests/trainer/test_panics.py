"""A library in Rust that gives up raises what is no Exception: wherever a failure ends, this one ends too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import tokenizers
import torch
from tests.patience import HANGS_S
from tests.trainer.tiny_tokenizer import tiny_tokenizer

import finetune_trainer.__main__ as entry
from finetune_api.panics import PanicError, as_exception
from finetune_api.results import ExitCode
from finetune_api.run import TERMINATION_LOG_VARIABLE
from finetune_trainer.serving.application import Service
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.together import _drawn


def panic(*_: object) -> NoReturn:
    """A real one."""
    document = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    mark = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    document["post_processor"] = {"type": "TemplateProcessing", "single": [mark], "pair": [], "special_tokens": {}}
    tokenizers.Tokenizer.from_str(json.dumps(document)).encode("a")
    raise AssertionError("the library does not panic any more: find another way to make it")


def test_a_stage_ends_with_it_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "term"))
    monkeypatch.setattr(entry, "_read_run", panic)
    assert entry.main([]) == ExitCode.INTERNAL_ERROR
    said = json.loads((tmp_path / "term").read_text())
    assert (said["reason"], said["message"]) == ("InternalError", "PanicError: no entry found for key")


async def test_the_engine_goes_on_after_a_round_that_ended_so() -> None:
    class Once:
        kept_tokens = 0
        panics = True

        def admits(self, work: Any, *, under_way: Sequence[Any]) -> bool:
            return True

        def round(self, under_way: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            if self.panics:
                self.panics = False
                panic()
            yield from ((work, SimpleNamespace(last=True)) for work in under_way)

    engine = Engine(concurrency=1, max_waiting=1)
    engine.start(Once())
    try:
        with pytest.raises(PanicError, match="no entry found"):
            [event async for event in engine.submit(object())[0]]
        assert len([event async for event in engine.submit(object())[0]]) == 1
    finally:
        assert engine.stop(timeout=HANGS_S)


async def test_a_request_that_cannot_be_tokenized_or_shown_fails_alone() -> None:
    unused: Any = None
    service = Service(order=unused, engine=unused, metrics=unused)
    with pytest.raises(PanicError):
        await service._off_loop(panic)
    answer: Any = SimpleNamespace(push=panic)
    assert isinstance(_drawn(answer, torch.zeros(1)), PanicError)


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_failure_goes_on(wish: type[BaseException]) -> None:
    with pytest.raises(wish):
        as_exception(wish())
