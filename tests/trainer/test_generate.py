"""Generation, likelihoods and classes: batches give what single examples give, whatever the model's own settings."""

from __future__ import annotations

import inspect
import math
import random
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen3Config,
)

from finetune_trainer.tasks.batching import run_in_batches
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.tasks.generate import generate_answers
from finetune_trainer.tasks.likelihood import class_log_probabilities, token_likelihoods
from finetune_trainer.tasks.shared_prefix import shared_prefix

VOCABULARY, PAD = 97, 0


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = random.Random(4)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 30))] for _ in range(17)]


def greedy_by_hand(model: Any, prompt: list[int], *, steps: int, end_ids: set[int]) -> list[int]:
    """Without a cache, without padding, one token at a time."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def generate(model: Any, prompts: list[list[int]], *, batch_size: int, end_ids: set[int]) -> list[list[int]]:
    return generate_answers(model, prompts, end_ids=end_ids, pad_id=PAD, max_new_tokens=12, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_a_batch_gives_what_each_prompt_gives_alone(model: Any, prompts: list[list[int]], batch_size: int) -> None:
    expected = [greedy_by_hand(model, prompt, steps=12, end_ids=set()) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > 10
    assert generate(model, prompts, batch_size=batch_size, end_ids=set()) == expected


def test_generation_stops_at_any_end_token_and_leaves_it_out(model: Any, prompts: list[list[int]]) -> None:
    free = generate(model, prompts, batch_size=8, end_ids=set())
    end_ids = {free[0][2], free[1][5]}
    stopped = generate(model, prompts, batch_size=8, end_ids=end_ids)
    assert stopped == [greedy_by_hand(model, prompt, steps=12, end_ids=end_ids) for prompt in prompts]
    assert len(stopped[0]) <= 2
    assert all(not end_ids & set(answer) for answer in stopped)


def test_the_models_own_settings_do_not_change_decoding(model: Any, prompts: list[list[int]]) -> None:
    expected = generate(model, prompts, batch_size=8, end_ids=set())
    own = model.generation_config
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    try:
        assert generate(model, prompts, batch_size=8, end_ids=set()) == expected
        assert model.generation_config is own
    finally:
        model.generation_config.repetition_penalty = None
        model.generation_config.no_repeat_ngram_size = None
        model.generation_config.do_sample = None
        model.generation_config.temperature = None


def nll_by_hand(model: Any, example: Encoded) -> float:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(example.ids)])).logits[0].double().log_softmax(-1)
    return -sum(
        float(logits[index - 1, example.ids[index]]) for index, is_target in enumerate(example.targets) if is_target
    )


def examples(prompts: list[list[int]]) -> list[Encoded]:
    """The second half of each is to be predicted; every third wholly, one not at all."""
    made = []
    for number, ids in enumerate(prompts):
        start = 1 if number % 3 == 0 else 1 + len(ids) // 2
        made.append(Encoded(ids=tuple(ids), targets=tuple(index >= start for index in range(len(ids)))))
    return [*made, Encoded(ids=(5, 6, 7), targets=(False, False, False)), Encoded(ids=(9,), targets=(False,))]


@pytest.mark.parametrize("batch_size", [1, 6])
def test_likelihoods_are_those_of_each_example_alone(model: Any, prompts: list[list[int]], batch_size: int) -> None:
    given = examples(prompts)
    found = token_likelihoods(model, given, batch_size=batch_size)
    for example, (nll, count) in zip(given, found, strict=True):
        assert count == sum(example.targets)
        assert nll == pytest.approx(nll_by_hand(model, example), rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def alike(prompts: list[list[int]]) -> list[list[int]]:
    """Prompts that begin with the same twenty tokens."""
    return [[(7 * place) % VOCABULARY for place in range(1, 21)] + prompt for prompt in prompts]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3", "bloom", "mistral with a window"])
def any_model(request: pytest.FixtureRequest, model: Any) -> Any:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
    wide = small | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(6)
    match request.param:
        case "gpt2":
            config: Any = GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=256)
        case "qwen3":
            config = Qwen3Config(**wide, head_dim=8)
        case "bloom":
            config = BloomConfig(**small, hidden_size=32, n_layer=2, n_head=4)
        case "mistral with a window":
            config = MistralConfig(**wide, sliding_window=9)
        case _:
            return model
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_prefix_that_all_share_changes_nothing(any_model: Any, alike: list[list[int]]) -> None:
    expected = [greedy_by_hand(any_model, prompt, steps=12, end_ids=set()) for prompt in alike]
    assert generate(any_model, alike, batch_size=6, end_ids=set()) == expected
    given = [
        Encoded(ids=tuple(ids), targets=tuple(place >= 21 + number % 3 for place in range(len(ids))))
        for number, ids in enumerate(alike)
    ]
    for example, (nll, count) in zip(given, token_likelihoods(any_model, given, batch_size=6), strict=True):
        assert count == sum(example.targets)
        assert nll == pytest.approx(nll_by_hand(any_model, example), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[*range(1, 20), 30], [*range(1, 20), 31, 5]], 19),
        ([[*range(1, 20)], [*range(1, 20), 31]], 18),
        ([[*range(1, 20)], [*range(1, 20)]], 18),
        ([[*range(1, 8), 30], [*range(1, 8), 31]], None),
        ([[*range(1, 20)]], None),
    ],
)
def test_the_prefix_leaves_each_a_token_of_its_own(model: Any, rows: list[list[int]], shared: int | None) -> None:
    prefix = shared_prefix(model, rows)
    assert (None if prefix is None else len(prefix.ids)) == shared


def test_the_shared_tokens_are_run_once(model: Any, alike: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = model.forward

    def forward(*args: Any, **given: Any) -> Any:
        seen.append(int(given["input_ids"].numel()))
        return real(*args, **given)

    forward.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", forward)
    given = [Encoded(ids=tuple(ids), targets=(False,) * (len(ids) - 1) + (True,)) for ids in alike if len(ids) > 22]
    token_likelihoods(model, given, batch_size=1)
    assert sum(seen) == 20 + sum(len(example.ids) - 20 for example in given)


def test_likelihoods_do_not_need_all_logits_at_once(
    model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = examples(prompts)
    expected = token_likelihoods(model, given, batch_size=32)
    monkeypatch.setattr("finetune_trainer.tasks.likelihood.LOGIT_BYTES", 1)
    found = token_likelihoods(model, given, batch_size=32)
    assert [count for _, count in found] == [count for _, count in expected]
    assert [nll for nll, _ in found] == pytest.approx([nll for nll, _ in expected], rel=1e-4, abs=1e-5)


def test_an_untrained_model_finds_every_token_equally_unlikely() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )  # fmt: skip
    flat = LlamaForCausalLM(config).eval()
    flat.lm_head.weight.data.zero_()
    [(nll, count)] = token_likelihoods(flat, [Encoded(ids=(1, 2, 3), targets=(False, True, True))], batch_size=1)
    assert nll / count == pytest.approx(math.log(VOCABULARY), rel=1e-5)


def test_classes_of_a_batch_are_those_of_each_text_alone(prompts: list[list[int]]) -> None:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    classifier = BertForSequenceClassification(config).eval()
    together = class_log_probabilities(classifier, prompts, pad_id=PAD, batch_size=7)
    for prompt, row in zip(prompts, together, strict=True):
        with torch.inference_mode():
            expected = classifier(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1).tolist()
        assert row == pytest.approx(expected, abs=1e-5)
        assert sum(math.exp(value) for value in row) == pytest.approx(1.0)


def test_batches_too_big_for_memory_are_halved() -> None:
    tried = []

    def run(batch: Any) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        return [item * 10 for item in batch]

    found = run_in_batches([3, 1, 4, 1, 5], length=lambda item: item, batch_size=8, run=run, what="test")
    assert found == [30, 10, 40, 10, 50]
    assert tried == [5, 2, 3, 1, 2]


def test_one_example_too_big_for_memory_is_an_error() -> None:
    def run(batch: Any) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        run_in_batches([1, 2], length=lambda item: item, batch_size=2, run=run, what="test")
