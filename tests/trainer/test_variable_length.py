"""Packed rows attend by example: each learns what it would learn alone, and no mask is as large as the row's square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.trainer import tiny_models
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from finetune_trainer.tasks import variable_length
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded, packed_batch

CHAT = task_of("Chat")
LENGTHS = (9, 23, 1, 5, 13)
BY_EXAMPLE = ("llama", "mistral-window", "qwen3", "mixtral", "gpt2", "gemma3_text", "opt")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_models.configuration(name, tiny_models.tokenizer_of(name))).eval()


def examples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        ids = torch.randint(5, 50, (length,), generator=generator).tolist()
        found.append(Encoded(ids=tuple(ids), targets=tuple(index > length // 2 for index in range(length))))
    return found


def learned(model: Any, batches: Sequence[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of all tokens, and gradients by parameter."""
    model.zero_grad()
    for batch in batches:
        CHAT.loss(model, batch).backward()
    with torch.no_grad():
        logits = torch.cat([CHAT.logits(model, batch)[0] for batch in batches])
    return logits, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_same(one: Any, other: Any, *, share: float) -> None:
    largest = max(float(each.abs().max()) for each in other[1].values())
    assert one[1].keys() == other[1].keys()
    torch.testing.assert_close(one[0], other[0], rtol=0.0, atol=share * float(other[0].std()))
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, rtol=0.0, atol=share * largest, msg=name)


@pytest.mark.parametrize("name", [*BY_EXAMPLE, "gemma2", "stablelm"])
def test_packed_examples_learn_what_they_learn_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    alone = learned(model, [CHAT.batch([each], pad_id=0) for each in examples()])
    masks: list[int] = []

    def mask(**asked: Any) -> Any:
        masks.append(asked["kv_length"])
        return made(**asked)

    made = variable_length.sdpa_mask
    monkeypatch.setattr(variable_length, "sdpa_mask", mask)
    assert variable_length.use(model) == (name in BY_EXAMPLE)
    assert_same(learned(model, [packed_batch(examples())]), alone, share=1e-5)
    assert max(masks, default=0) <= max(LENGTHS), "no mask is as large as the row"


@pytest.mark.parametrize("name", ["mistral-window", "gpt2"])
def test_what_is_computed_twice_is_computed_alike(name: str) -> None:
    model = model_of(name).train()
    for each in model.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    variable_length.use(model)
    once = learned(model, [packed_batch(examples())])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(learned(model, [packed_batch(examples())]), once, share=0.0)


def test_in_bf16_packed_examples_are_as_close_to_those_alone_as_bf16_is() -> None:
    model = model_of("llama")
    variable_length.use(model)
    with torch.autocast("cpu", torch.bfloat16):
        packed = learned(model, [packed_batch(examples())])
        alone = learned(model, [CHAT.batch([each], pad_id=0) for each in examples()])
    assert_same(packed, alone, share=0.05)


def test_a_model_that_changes_its_mask_finds_one() -> None:
    whole = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    row = variable_length.Row(lengths=variable_length.Lengths.of([3, 1]), seen=None, longest=None, make=lambda: whole)
    changed: Any = torch.where(row, torch.zeros(()), 1.0)  # type: ignore[call-overload]
    assert changed.shape == row[:, :, :, :4].shape == row.shape == (1, 1, 4, 4)


def test_one_kernel_for_all_examples_is_given_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see that it is asked in its own terms."""

    def varlen_attn(query: Any, key: Any, value: Any, begins: Any, ends: Any, *longest: int, **asked: Any) -> Any:
        assert (longest, asked["window_size"], begins.dtype) == ((23, 23), (-1, 0), torch.int32)
        assert begins is ends, "which cuDNN asks for"
        answers = []
        for begin, end in zip(begins[:-1].tolist(), ends[1:].tolist(), strict=True):
            parts = (each[begin:end].transpose(0, 1)[None] for each in (query, key, value))
            answer = scaled_dot_product_attention(
                *parts, is_causal=True, scale=asked["scale"], enable_gqa=asked["enable_gqa"]
            )
            answers.append(answer[0].transpose(0, 1))
        return torch.cat(answers)

    monkeypatch.setattr(variable_length, "varlen_attn", varlen_attn)
    lengths = variable_length.Lengths.of(LENGTHS)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2))
    found = variable_length._by_kernel(query, key, value, lengths=lengths, scale=None)
    torch.testing.assert_close(found, variable_length._one_by_one(query, key, value, lengths=lengths))


def test_where_the_kernel_fails_it_is_not_used() -> None:
    shape = (torch.device("cpu"), torch.bfloat16, 2, 8)  # it is for GPUs
    assert not variable_length._kernel_is_right(shape, shape, shape)
