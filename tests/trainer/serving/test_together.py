"""Answers in company are those that each gets alone, whoever comes and goes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.trainer import tiny_models
from tests.trainer.serving.rounds import run

from finetune_trainer.models import base_model
from finetune_trainer.serving.decoding import Sampling
from finetune_trainer.serving.generation import Answer, GenerationRequest, InTurns, Piece, TextModel
from finetune_trainer.serving.together import Together, runner_of, tried
from finetune_trainer.tasks.generate import generate_answers

IN_TURNS = {"mamba", "mamba2", "rwkv", "jamba", "falcon_h1", "qwen3_next", "recurrent_gemma", "xlnet"}
"""Recurrent ones, and XLNet, which padding changes. What follows from this list is only what is expected here."""


def text_model(name: str, folder: Path) -> TextModel:
    made = tiny_models.make(name, to=folder / name)
    model = base_model.load_model(made, task="Chat", dtype="float32", labels=None).eval()
    return TextModel.of(model=model, tokenizer=base_model.load_tokenizer(made), two_parts=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return text_model("llama", tmp_path_factory.mktemp("llama"))


def request(model: TextModel, length: int, *, tokens: int, **options: Any) -> GenerationRequest:
    """A prompt of random tokens."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, model.model.config.vocab_size, (length,), generator=generator).tolist()
    stop = options.pop("stop", ())
    return GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=tokens, sampling=Sampling(**options), stop=stop)


def said(pieces: Sequence[Any]) -> tuple[str, int, str | None]:
    """An answer's text, tokens and end."""
    assert all(isinstance(piece, Piece) for piece in pieces), pieces
    assert [piece.tokens for piece in pieces] == list(range(1, len(pieces) + 1)), "a piece a token, in order"
    return "".join(piece.text for piece in pieces), pieces[-1].tokens, pieces[-1].finish


def alone(model: TextModel, asked: GenerationRequest) -> tuple[str, int, str | None]:
    return said(run(InTurns(model), [model.answer(asked)])[0])


def mixed(model: TextModel) -> list[GenerationRequest]:
    """Long and short, greedy and drawn, one with a stop string."""
    sampled = {"temperature": 1.0, "seed": 3}
    stop = alone(model, request(model, 21, tokens=12))[0][5:8]
    return [
        request(model, 3, tokens=20),
        request(model, 40, tokens=12),
        request(model, 7, tokens=30, **sampled),
        request(model, 1, tokens=1),
        request(model, 33, tokens=9, top_p=0.8, **sampled),
        request(model, 60, tokens=20),
        request(model, 21, tokens=12, stop=(stop,)),
    ]


@pytest.mark.parametrize("name", tiny_models.DECODERS)
def test_each_architecture_answers_in_company_as_alone(name: str, tmp_path: Path) -> None:
    """By whichever way it is run; which one that is, its own logits decide."""
    model = text_model(name, tmp_path)
    runner = runner_of(model)
    assert isinstance(runner, InTurns if name in IN_TURNS else Together)
    asked = mixed(model)
    expected = [alone(model, each) for each in asked]
    assert expected[-1][2] == "stop"
    found = run(runner, [model.answer(each) for each in asked], begin=(0, 3, 1, 6, 6, 9, 2))
    assert [said(pieces) for pieces in found] == expected
    assert runner.kept_tokens == 0


COMING = st.tuples(
    st.integers(1, 70), st.integers(1, 20), st.integers(0, 12), st.none() | st.integers(0, 15), st.booleans()
)
"""Tokens of the prompt and of the answer, the round in which it begins, how many its client stays, whether drawn."""


def test_which_are_decoded_in_turns_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text().partition("## Decoded in turns")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == IN_TURNS


@settings(max_examples=25, deadline=None)
@given(requests=st.lists(COMING, min_size=1, max_size=7), budget=st.sampled_from([5, 16, 128]))
def test_whoever_comes_and_goes(
    llama: TextModel, requests: list[tuple[int, int, int, int | None, bool]], budget: int
) -> None:
    runner = Together(llama.model, most_tokens=None)
    runner._budget = budget
    asked = [
        request(llama, prompt, tokens=tokens, temperature=float(drawn), seed=prompt)
        for prompt, tokens, _, _, drawn in requests
    ]
    found = run(
        runner,
        [llama.answer(each) for each in asked],
        begin=[begin for *_, begin, _, _ in requests],
        leave={n: begin + stays for n, (*_, begin, stays, _) in enumerate(requests) if stays is not None},
    )
    for each, pieces, (*_, stays, _) in zip(asked, found, requests, strict=True):
        text, tokens, finish = alone(llama, each)
        if stays is None:
            assert said(pieces) == (text, tokens, finish)
        else:
            assert text.startswith("".join(piece.text for piece in pieces))
    assert runner.kept_tokens == 0


class Passes:
    """Shapes of the model's forward passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        forward = model.forward

        def noted(*args: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
            self.shapes.append(tuple(input_ids.shape))
            return forward(*args, input_ids=input_ids, **inputs)

        monkeypatch.setattr(model, "forward", noted)


def test_one_pass_gives_a_token_of_every_answer_and_long_prompts_are_read_in_between(
    llama: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Together(llama.model, most_tokens=None)
    runner._budget = 16
    answers = [llama.answer(request(llama, length, tokens=6)) for length in (4, 5, 70)]
    passes = Passes(monkeypatch, llama.model)
    found = run(runner, answers)
    assert [len(pieces) for pieces in found] == [6, 6, 6]
    reading = [(1, 4), (1, 5), (1, 7), (2, 1)], [(1, 16), (2, 1)], [(1, 16), (2, 1)], [(1, 16), (2, 1)]
    last = [(1, 15), (3, 1)], [(1, 1)], [(1, 1)], [(1, 1)], [(1, 1)]
    assert passes.shapes == [shape for round_ in (*reading, *last) for shape in round_]


def test_what_is_given_up_costs_nothing_more(llama: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Together(llama.model, most_tokens=None)
    runner._budget = 16
    answers = [llama.answer(request(llama, length, tokens=8)) for length in (4, 5, 100)]
    passes = Passes(monkeypatch, llama.model)
    run(runner, answers, leave={1: 2, 2: 2})
    assert passes.shapes[-6:] == [(2, 1), *[(1, 1)] * 5], "neither the row nor what is unread of the prompt"
    assert runner.kept_tokens == 0


def test_memory_does_not_grow_while_answers_come_and_go_without_a_pause(llama: TextModel) -> None:
    runner = Together(llama.model, most_tokens=None)
    answers = [llama.answer(request(llama, 5, tokens=20)) for _ in range(40)]
    widest = 0
    for number in range(40 * 7):
        under_way = [each for n, each in enumerate(answers) if 7 * n <= number and each.tokens < 20]
        list(runner.round(under_way))
        layers = runner._rows._cache.layers if runner._rows.members else []
        widest = max([widest, *(store.shape[2] for layer in layers for store in layer._stores)])
    assert all(each.tokens == 20 for each in answers[:-3])
    assert 0 < widest <= 2 * (5 + 20 + 64), "as much as the longest needs, and the room that is left for more"


def test_room_is_kept_for_what_may_come(llama: TextModel) -> None:
    runner = Together(llama.model, most_tokens=100)
    short, long = (llama.answer(request(llama, length, tokens=10)) for length in (10, 60))
    assert runner.admits(long, under_way=[])
    assert runner.admits(short, under_way=[short] * 4)
    assert not runner.admits(short, under_way=[short] * 5)
    assert not runner.admits(short, under_way=[long])


def test_an_answer_that_fails_fails_alone(llama: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = request(llama, 6, tokens=9)
    unreadable = GenerationRequest(prompt_ids=(10**6,), max_new_tokens=4, sampling=Sampling())
    answers = [llama.answer(each) for each in (request(llama, 5, tokens=9), wrong, unreadable)]
    push = Answer.push

    def failing(self: Answer, logits: torch.Tensor) -> Piece:
        if self is answers[1] and self.tokens == 3:
            raise ValueError("out of words")
        return push(self, logits)

    monkeypatch.setattr(Answer, "push", failing)
    fine, failed, unread = run(Together(llama.model, most_tokens=None), answers)
    assert said(fine)[1] == 9
    assert [type(each) for each in failed] == [Piece, Piece, Piece, ValueError]
    assert [type(each) for each in unread] == [IndexError]


def test_an_overflow_is_an_error_and_spoils_nobody_elses_answer(llama: TextModel) -> None:
    """Keys and values that are no numbers stay in the tensors when their answer has failed: 0 x NaN is NaN."""
    works = [request(llama, 40, tokens=20), request(llama, 30, tokens=20), request(llama, 3, tokens=8)]
    answers = [llama.answer(asked) for asked in works]

    class Overflowing(Together):
        @torch.inference_mode()
        def round(self, under_way: Sequence[Answer]) -> Iterator[tuple[Answer, Piece | Exception]]:
            if answers[1].tokens == 2 and answers[1] in under_way:
                for layer in self._rows._cache.layers:
                    for store in layer._stores:
                        store[self._rows.members.index(answers[1])] = torch.nan
            yield from super().round(under_way)

    found = run(Overflowing(llama.model, most_tokens=None), answers, begin=[0, 0, 7])
    assert [type(event) for event in found[1]] == [Piece, Piece, FloatingPointError]
    assert [said(found[index]) for index in (0, 2)] == [alone(llama, works[index]) for index in (0, 2)]


def test_a_model_that_answers_otherwise_in_company_is_found_out(
    llama: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes places for granted, as if all rows were of one length."""
    forward = llama.model.forward

    def without_positions(*args: Any, **inputs: Any) -> Any:
        inputs.pop("position_ids", None)
        return forward(*args, **inputs)

    assert tried(llama.model).alike
    monkeypatch.setattr(llama.model, "forward", without_positions)
    assert not tried(llama.model).alike
    assert isinstance(runner_of(llama), InTurns)


@pytest.mark.parametrize(("limit", "way"), [(None, InTurns), (64, Together)])
def test_positions_that_the_longest_answer_stretches_for_all(
    llama: TextModel, limit: int | None, way: type[InTurns | Together]
) -> None:
    """Phi 3 and 4 and their like: beyond 64 tokens here, 4,096 there, all rows of a pass are turned otherwise."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
    config = transformers.Phi3Config(
        vocab_size=llama.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        rope_parameters={**rope, **factors},
    )
    torch.manual_seed(0)
    phi = transformers.Phi3ForCausalLM(config).eval()
    for parameter in phi.parameters():
        parameter.data.mul_(3)
    model = TextModel.of(model=phi, tokenizer=llama.tokenizer, two_parts=False, limit=limit)
    assert isinstance(runner := runner_of(model), way)
    asked = [request(model, 20, tokens=12), request(model, 40 if limit else 120, tokens=12)]
    expected = [alone(model, each) for each in asked]
    assert [said(pieces) for pieces in run(runner, [model.answer(each) for each in asked])] == expected
    ends: dict[str, Any] = {"end_ids": set(), "pad_id": 0, "max_new_tokens": 12}
    prompts = [each.prompt_ids for each in asked]
    evaluated = generate_answers(phi, prompts, batch_size=8, **ends)
    assert evaluated == [generate_answers(phi, [each], batch_size=1, **ends)[0] for each in prompts]


def test_an_adapter_of_the_first_layer(llama: TextModel) -> None:
    """In BF16 it stays beside its base."""
    order = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(llama.model).to(torch.bfloat16), order).eval()
    assert tried(adapted).alike
