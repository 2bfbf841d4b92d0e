"""From logits to tokens and from tokens to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.serving.rounds import run
from transformers import AutoTokenizer, LlamaForCausalLM

from finetune_trainer.serving.decoding import AnswerText, Sampler, Sampling
from finetune_trainer.serving.generation import GenerationRequest, InTurns, TextModel
from finetune_trainer.serving.together import runner_of

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


def test_what_is_no_character_costs_no_more_the_longer_it_lasts(tokenizer: Any) -> None:
    """Parts of characters without end: shown after a while, and not read again with each token."""

    class Counted:
        read = 0

        def decode(self, tokens: list[int], **options: Any) -> str:
            Counted.read += len(tokens)
            return str(tokenizer.decode(tokens, **options))

    part = tokenizer("🙂")["input_ids"][0]
    assert tokenizer.decode([part]) == "\ufffd"
    text = AnswerText(Counted(), stop=())
    parts = [text.push(part) for _ in range(500)]
    assert Counted.read < 500 * 40
    assert sum(map(len, parts)) > 450
    rest = [text.push(token) for token in tokenizer("ab")["input_ids"]]
    assert ("".join(rest) + text.finish()).lstrip("\ufffd") == "ab"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.7, top_p=0.5)])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_no_answer(sampling: Sampling, wrong: float) -> None:
    logits = torch.zeros(8)
    logits[3] = wrong
    with pytest.raises(ArithmeticError, match="no numbers"):
        Sampler(sampling, device=CPU).next_token(logits)


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
    text_model = TextModel.of(model=model, tokenizer=tokenizer, two_parts=False)
    request = GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=30, sampling=Sampling())
    for runner in (InTurns(text_model), runner_of(text_model)):
        (pieces,) = run(runner, [text_model.answer(request)])
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(expected, skip_special_tokens=True)
        assert pieces[-1].tokens == len(expected)
