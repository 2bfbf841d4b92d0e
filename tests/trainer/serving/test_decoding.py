"""From logits to tokens and from tokens to text, and who gets his turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM

from finetune_trainer.serving.decoding import AnswerText, Sampler, Sampling
from finetune_trainer.serving.engine import BusyError, Engine
from finetune_trainer.serving.generation import GenerationRequest, TextModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(small_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(small_base))


def shown(tokenizer: Any, tokens: list[int], *, stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    text = AnswerText(tokenizer, stop=stop)
    parts = []
    for token in tokens:
        parts.append(text.push(token))
        if text.stopped:
            break
    parts.append(text.finish())
    assert all("\ufffd" not in part for part in parts[:-1]), "a character is shown when it is whole"
    return "".join(parts), text.stopped


@settings(max_examples=60, deadline=None)
@given(words=st.text(alphabet="aé 字🙂\n.", max_size=40))
def test_pieces_add_up_to_the_whole(tokenizer: Any, words: str) -> None:
    tokens = tokenizer(words)["input_ids"]
    assert shown(tokenizer, tokens) == (tokenizer.decode(tokens, clean_up_tokenization_spaces=False), False)


@settings(max_examples=60, deadline=None)
@given(words=st.text(alphabet="abc", min_size=1, max_size=30), stop=st.text(alphabet="abc", min_size=1, max_size=4))
def test_nothing_of_a_stop_string_is_shown(tokenizer: Any, words: str, stop: str) -> None:
    found, stopped = shown(tokenizer, tokenizer(words)["input_ids"], stop=(stop,))
    assert (found, stopped) == (words.split(stop)[0], stop in words)


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    sampler = Sampler(Sampling(temperature=1.0, seed=1), device=CPU)
    drawn = [sampler.next_token(logits) for _ in range(4000)]
    shares = [drawn.count(token) / len(drawn) for token in range(4)]
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.03)

    nucleus = Sampler(Sampling(temperature=1.0, top_p=0.7, seed=1), device=CPU)
    drawn = [nucleus.next_token(logits) for _ in range(4000)]
    assert [drawn.count(token) / len(drawn) for token in range(4)] == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)

    cold = Sampler(Sampling(temperature=0.25, seed=1), device=CPU)
    drawn = [cold.next_token(logits) for _ in range(4000)]
    assert drawn.count(0) / len(drawn) == pytest.approx(0.5**4 / (0.5**4 + 0.3**4 + 0.2**4), abs=0.03)


def test_the_loop_gives_what_transformers_own_loop_gives(small_base: Path, tokenizer: Any) -> None:
    model = LlamaForCausalLM.from_pretrained(str(small_base)).eval()
    ids = tokenizer("Once upon a time there was")["input_ids"]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, len(ids) :]
    text_model = TextModel.of(model=model, tokenizer=tokenizer, task="CausalLM")
    request = GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=30, sampling=Sampling())
    pieces = list(text_model.answer(request))
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(expected, skip_special_tokens=True)
    assert pieces[-1].tokens == len(expected)


# -- turns ------------------------------------------------------------------------------------------------------------


def counting(name: str, steps: int, order: list[str]) -> Iterator[str]:
    for number in range(steps):
        order.append(name)
        yield f"{name}{number}"


async def test_work_takes_turns_and_later_work_waits() -> None:
    engine = Engine(concurrency=2, max_waiting=1)
    order: list[str] = []
    tickets = []
    with pytest.raises(RuntimeError, match="has ended"):
        engine.submit(counting("x", 1, order))
    engine.start()
    try:
        with engine._changed:  # nothing begins before all are handed in
            for work in (counting("a", 3, order), counting("b", 3, order), counting("c", 1, order)):
                tickets.append(engine.submit(work))
            with pytest.raises(BusyError):
                engine.submit(counting("d", 1, order))
        events = [[event async for event in ticket] for ticket in tickets]
        assert events == [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["c0"]]
        assert "".join(order) == "abababc"
    finally:
        assert engine.stop(timeout=5)
    assert (engine.active, engine.waiting) == (0, 0)


async def test_what_fails_is_told_and_harms_nobody_else() -> None:
    engine = Engine(concurrency=2, max_waiting=2)
    engine.start()

    def failing() -> Iterator[str]:
        yield "one"
        raise ValueError("out of words")

    try:
        failed, fine = engine.submit(failing()), engine.submit(counting("a", 3, []))
        with pytest.raises(ValueError, match="out of words"):
            [event async for event in failed]
        assert [event async for event in fine] == ["a0", "a1", "a2"]
    finally:
        assert engine.stop(timeout=5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_broken_accelerator_ends_the_engine_and_fails_all() -> None:
    class AcceleratorError(RuntimeError):
        """torch's name for a GPU context that is broken."""

    engine = Engine(concurrency=2, max_waiting=2)

    def broken() -> Iterator[str]:
        yield "one"
        raise AcceleratorError("CUDA error: device-side assert triggered")

    def endless() -> Iterator[None]:
        while True:
            yield None

    engine.start()
    with engine._changed:
        first, other = engine.submit(broken()), engine.submit(endless())
    with pytest.raises(AcceleratorError):
        [event async for event in first]
    with pytest.raises(RuntimeError, match="stopped"):
        [event async for event in other]
    assert engine.stop(timeout=5)
    assert not engine.is_alive
