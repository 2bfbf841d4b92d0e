"""What the model is taught: which tokens are targets, what packing changes (nothing), and that it learns to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from demo import assets
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.tiny_tokenizer import tiny_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.process.errors import StageError
from finetune_trainer.tasks.answer_ends import answer_ends
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import (
    IGNORED,
    Encoded,
    encode_chat,
    pack,
    packed_batch,
    padded_batch,
    prompt_ids,
)
from finetune_trainer.tasks.generate import generate_answers
from finetune_trainer.training.objectives.sft import SupervisedLoss

LONG = 4096
ROLES = ("user", "assistant")
TOPIC = (("system", "Be brief."), ("user", "Which colour has the sky?"), ("assistant", "Blue."))


def new_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(assets.smollm2_folder()))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return new_tokenizer()


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in turns)


def taught(encoded: Encoded, tokenizer: Any) -> str:
    return str(
        tokenizer.decode([token for token, is_target in zip(encoded.ids, encoded.targets, strict=True) if is_target])
    )


def small_llama(vocabulary: int, *, width: int = 32) -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (TOPIC, "Blue.<|im_end|>"),
        ((*TOPIC, ("user", "And grass?"), ("assistant", "Green.")), "Blue.<|im_end|>Green.<|im_end|>"),
        ((("user", "Blue. Blue."), ("assistant", "Blue.")), "Blue.<|im_end|>"),
        (
            (("user", "é😀"), ("assistant", "漢 😀\n\n    def f():\n\n\n  ok")),
            "漢 😀\n\n    def f():\n\n\n  ok<|im_end|>",
        ),
        ((("user", "assistant\nBlue."), ("assistant", "No.")), "No.<|im_end|>"),
    ],
    ids=[
        "one answer",
        "two answers",
        "the answer is in the question",
        "white space and bytes",
        "a role in the question",
    ],
)
def test_only_answers_and_their_ends_are_targets(
    tokenizer: Any, turns: Sequence[tuple[str, str]], expected: str
) -> None:
    encoded = encode_chat(chat(*turns), tokenizer=tokenizer, max_length=LONG)
    assert taught(encoded, tokenizer) == expected
    whole = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in turns], tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole
    assert not encoded.truncated


def test_masked_answers_are_read_and_not_learned(tokenizer: Any) -> None:
    masked = Message(role="assistant", content="Blue.", learned=False)
    messages = (Message(role="user", content="Sky?"), masked, *chat(("user", "Grass?"), ("assistant", "Green.")))
    encoded = encode_chat(messages, tokenizer=tokenizer, max_length=LONG)
    assert taught(encoded, tokenizer) == "Green.<|im_end|>"
    assert "Blue." in tokenizer.decode(encoded.ids)


def test_labels_are_the_next_tokens(tokenizer: Any) -> None:
    encoded = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    labels = padded_batch([encoded], pad_id=tokenizer.pad_token_id).labels[0].tolist()
    found = [(position + 1, label) for position, label in enumerate(labels) if label != IGNORED]
    assert found == [(position, encoded.ids[position]) for position, target in enumerate(encoded.targets) if target]


def test_padding_with_the_end_token_leaves_the_true_end_a_target() -> None:
    tokenizer = new_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    short = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    long = encode_chat(chat(TOPIC[0], ("user", "word " * 30), TOPIC[2]), tokenizer=tokenizer, max_length=LONG)
    batch = padded_batch([short, long], pad_id=tokenizer.pad_token_id)
    for row, example in enumerate((short, long)):
        assert (batch.labels[row] == tokenizer.eos_token_id).sum() == 1, "the end, and no padding"
        assert int(batch.attention_mask[row].sum()) == len(example.ids)  # type: ignore[index]
    assert batch.real_tokens == len(short.ids) + len(long.ids)


def test_truncation_cuts_the_end_and_says_so(tokenizer: Any) -> None:
    whole = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    first = whole.targets.index(True)
    for length in (first, first + 1, len(whole.ids) - 1, len(whole.ids)):
        cut = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=length)
        assert (cut.ids, cut.targets) == (whole.ids[:length], whole.targets[:length])
        assert cut.truncated == (length < len(whole.ids))
    assert encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=first).target_count == 0


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_a_template_without_an_end_gets_one(ending: str) -> None:
    tokenizer = new_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '" + ending + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    encoded = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    assert taught(encoded, tokenizer).strip() == "Blue." + tokenizer.eos_token
    assert (encoded.ids[-1], encoded.targets[-1]) == (tokenizer.eos_token_id, True)


def test_blanks_are_targets_where_the_offsets_leave_them_out() -> None:
    tokenizer = new_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turns = chat(("user", "Write it."), ("assistant", "if x:\n        return    1"))
    offsets = tokenizer(turns[1].content, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in offsets), "this tokenizer gives indents no offsets"
    encoded = encode_chat(turns, tokenizer=tokenizer, max_length=LONG)
    assert taught(encoded, tokenizer) == "if x:\n        return    1<|im_end|>"


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    tokenizer = new_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ (m['content'] if loop.last else 'forgotten') + eos_token }}{% endfor %}"
    )
    with pytest.raises(StageError) as failure:
        encode_chat(chat(*TOPIC, *TOPIC[1:]), tokenizer=tokenizer, max_length=LONG)
    assert failure.value.reason == "UnsupportedChatTemplate"


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = new_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(StageError) as failure:
        encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    assert failure.value.reason == "NoChatTemplate"


# -- prompts and beginnings -------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t "), max_size=40)
answers = words.map(str.strip).filter(bool)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(words, answers), min_size=1, max_size=3))
def test_the_prompt_is_how_the_training_example_begins(tokenizer: Any, turns: list[tuple[str, str]]) -> None:
    """Otherwise the model would be asked in another way than it was taught."""
    messages = chat(*((role, text) for turn in turns for role, text in zip(ROLES, turn, strict=True)))
    encoded = encode_chat(messages, tokenizer=tokenizer, max_length=LONG)
    prompt = prompt_ids(messages, tokenizer=tokenizer)
    assert list(encoded.ids[: len(prompt)]) == prompt
    following = encoded.targets[len(prompt) :]
    assert all(following[:-1]), "the answer and its end"
    assert not following[-1], "the template's line break behind it"


def beginning_token(tokenizer: Any) -> Any:
    """The tokenizer as one that puts a beginning before each text, with a template that does so too."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template.replace("<|im_start|>", "# ")
    return tokenizer


def encode_text(text: str, *, tokenizer: Any, max_length: int) -> Encoded:
    example = Example(id="1", group="1", source="texts", text=text)
    return task_of("CausalLM").encode(example, tokenizer=tokenizer, max_length=max_length, labels=None)


def test_one_beginning_of_sequence() -> None:
    tokenizer = beginning_token(new_tokenizer())
    bos = tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][0] == bos
    encoded = encode_chat(chat(*TOPIC), tokenizer=tokenizer, max_length=LONG)
    assert encoded.ids[0] == bos
    assert encoded.ids.count(bos) == 1
    assert prompt_ids(chat(*TOPIC), tokenizer=tokenizer).count(bos) == 1
    text = encode_text("Some text.", tokenizer=tokenizer, max_length=LONG)
    assert text.ids[0] == bos
    assert text.ids.count(bos) == 1
    assert not text.targets[0]


def test_text_is_learned_whole_with_its_end(tokenizer: Any) -> None:
    encoded = encode_text("The sky is blue.", tokenizer=tokenizer, max_length=LONG)
    assert tokenizer.decode(encoded.ids) == "The sky is blue." + tokenizer.eos_token
    assert encoded.targets == (False, *(True for _ in encoded.ids[1:]))
    ended = encode_text("The sky is blue." + tokenizer.eos_token, tokenizer=tokenizer, max_length=LONG)
    assert ended == encoded, "no second end"
    assert encode_text("The sky is blue.", tokenizer=tokenizer, max_length=3).truncated


def test_a_labelled_text_has_its_class_and_its_last_special_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(assets.minilm()))
    example = Example(id="i", group="g", source="s", text="word " * 30, label="b")
    encoded = task_of("SequenceClassification").encode(example, tokenizer=tokenizer, max_length=8, labels=["a", "b"])
    assert (encoded.label, encoded.target_count, len(encoded.ids), encoded.truncated) == (1, 1, 8, True)
    assert encoded.ids[-1] == tokenizer.sep_token_id
    assert task_of("SequenceClassification").batch([encoded, encoded], pad_id=0).labels.tolist() == [1, 1]


# -- packing ----------------------------------------------------------------------------------------------------------


def examples_of(lengths: Sequence[int], *, seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        found.append(Encoded(ids=tuple(ids), targets=tuple(index >= length // 2 > 0 for index in range(length))))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=40), st.integers(64, 200))
def test_packing_loses_nothing_and_keeps_to_the_length(lengths: list[int], max_length: int) -> None:
    rows = pack(lengths, max_length=max_length)
    assert all(0 < sum(lengths[place] for place in row) <= max_length for row in rows)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    halves = sum(sum(lengths[place] for place in row) <= max_length // 2 for row in rows)
    assert halves <= 1, "two half-empty rows would have been one"


def test_packed_examples_do_not_see_each_other() -> None:
    model = small_llama(50)
    examples = examples_of([9, 5, 13, 2, 21])
    batch = packed_batch(examples)
    with torch.inference_mode():
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
        alone = [model(input_ids=torch.tensor([example.ids])).logits[0] for example in examples]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        mixed = model(input_ids=batch.input_ids, use_cache=False).logits[0]
    assert not torch.allclose(mixed, torch.cat(alone), atol=1e-3), "the model does look back as far as it may"


def test_packed_padded_and_whole_logits_give_the_same_loss() -> None:
    model = small_llama(50)
    loss_of = SupervisedLoss(task_of("Chat"))
    examples = examples_of([9, 5, 13, 2, 21])
    padded = padded_batch(examples, pad_id=0)
    with torch.inference_mode():
        logits = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded.labels.flatten(), reduction="sum")
        torch.testing.assert_close(loss_of(model, padded), expected)
        torch.testing.assert_close(loss_of(model, packed_batch(examples)), expected)


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_trained_model_stops_by_itself(packing: bool) -> None:
    tokenizer = tiny_tokenizer(pad="<|endoftext|>")
    chats = [
        chat(*TOPIC),
        chat(TOPIC[0], ("user", "Which colour has grass in spring?"), ("assistant", "Bright green.")),
    ]
    examples = [encode_chat(messages, tokenizer=tokenizer, max_length=LONG) for messages in chats]
    batch = packed_batch(examples) if packing else padded_batch(examples, pad_id=tokenizer.pad_token_id)
    model = small_llama(len(tokenizer), width=64).train()
    loss_of = SupervisedLoss(task_of("Chat"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss = loss_of(model, batch) / sum(example.target_count for example in examples)
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    assert loss.item() < 0.05, "learned by heart"
    prompts = [prompt_ids(messages, tokenizer=tokenizer) for messages in chats]
    answers = generate_answers(
        model.eval(),
        prompts,
        end_ids=answer_ends(tokenizer, model.generation_config),
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=24,
        batch_size=2,
    )
    assert [tokenizer.decode(answer) for answer in answers] == ["Blue.", "Bright green."]
