"""Task Seq2Seq: what a prompt and its answer become, what is refused, and that strategies learn the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models
from tests.trainer.small_run import LORA, SmallRun, SmallRuns
from tests.trainer.tiny_tokenizer import two_part_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.fields import Problem
from finetune_trainer.data.held_out_probes import make_probes
from finetune_trainer.data.rows import Content, check
from finetune_trainer.models import base_model
from finetune_trainer.process.errors import StageError
from finetune_trainer.serving.generation import TextModel
from finetune_trainer.tasks import seq2seq
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.scores import TextOutcome
from finetune_trainer.tasks.task import Asked, Decoding

TASK = task_of("Seq2Seq")
SAME = 1e-5


def example(prompt: str, answer: str) -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(id="1", group="g", source="s", messages=messages)


def row(**fields: Any) -> Content:
    return check({"prompt": "one", "completion": "two", **fields}, row_format="PromptCompletion")


def words_only() -> Any:
    """One that knows two words, and reads white space as T5's does."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581one", -1.0), ("\u2581two", -1.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def asked(name: str, folder: Path) -> Asked:
    made = tiny_models.make(name, to=folder / name)
    model, tokenizer = base_model.load_model(made, task="Seq2Seq", dtype="float32"), base_model.load_tokenizer(made)
    return Asked(model=model, tokenizer=tokenizer, labels=(), context=None, pad_id=0, who="it")


def outcomes(asked: Asked, *pairs: Example, **decoding: Any) -> list[TextOutcome]:
    found = TASK.ask(asked, pairs, decoding=Decoding(task="Seq2Seq", batch_size=2, **decoding)).outcomes
    return [each for each in found if isinstance(each, TextOutcome)]


# -- rows and tokens --------------------------------------------------------------------------------------------------


def test_a_prompt_keeps_its_mark_where_it_is_cut_and_neither_part_takes_room_of_the_other() -> None:
    tokenizer = two_part_tokenizer(begins=True)
    end = tokenizer.eos_token_id
    whole = TASK.encode(example("abcdef", "xyz"), tokenizer=tokenizer, max_length=8, labels=None)
    begin = whole.targets.index(True)
    assert tokenizer.decode(whole.ids[:begin]) == "<s>abcdef</s>"
    assert tokenizer.decode(whole.ids[begin:]) == "<s>xyz</s>"
    assert all(whole.targets[begin:])
    assert not whole.truncated
    long = example("abcdefghij", "stuvwxyz")
    cut = TASK.encode(long, tokenizer=tokenizer, max_length=8, labels=None)
    begin = cut.targets.index(True)
    assert (len(cut.ids), begin, cut.truncated) == (16, 8, True)
    assert cut.ids[begin - 1] == end, "as the model is asked"
    assert cut.ids[-1] != end, "an answer that is cut does not end"
    assert TASK.lengths([long, example("a", "b")], tokenizer=tokenizer) == [12, 3]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_loss_is_that_of_the_models_own_labels(name: str, tmp_path: Path) -> None:
    one = asked(name, tmp_path)
    pairs = (example("one two three", "one"), example("four", "five six seven"))
    encoded = [TASK.encode(each, tokenizer=one.tokenizer, max_length=64, labels=None) for each in pairs]
    batch = TASK.batch(encoded, pad_id=0)
    with torch.inference_mode():
        ours, theirs = TASK.loss(one.model, batch), one.model(**batch.inputs, labels=batch.labels).loss
    assert float(ours) == pytest.approx(float(theirs) * sum(each.target_count for each in encoded), rel=SAME)
    evaluated = outcomes(one, *pairs, max_length=64, max_new_tokens=4, generate=False)
    assert sum(each.nll for each in evaluated) == pytest.approx(float(ours), rel=SAME)


def test_answers_are_no_longer_than_those_that_were_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor than those that a server gives: it keeps to the same number."""
    one, limits = asked("t5", tmp_path), []

    def generated(_: Any, prompts: Any, *, max_new_tokens: int, **__: Any) -> list[list[int]]:
        limits.append(max_new_tokens)
        return [[] for _ in prompts]

    monkeypatch.setattr(seq2seq, "generate_answers", generated)
    for max_length in (8, 64):
        outcomes(one, example("one", "two"), max_length=max_length, max_new_tokens=32, generate=True)
    server = TextModel.of(model=one.model, tokenizer=one.tokenizer, two_parts=True, limit=8)
    assert (limits, server.room(8)) == ([8, 32], 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (row(system="Be brief."), "is not read for task Seq2Seq"),
        (row(tools=[{"type": "function", "function": {"name": "f"}}]), "is not read for task Seq2Seq"),
        (row(completion="one </s> two"), "spells '</s>', a mark of the base model"),
        (row(completion="one {two}"), "so cannot write: it would be read back as 'one"),
    ],
    ids=["system", "tools", "mark", "unknown characters"],
)
def test_what_could_not_be_learned_is_a_bad_row(content: Content, words: str) -> None:
    TASK.check_row(row(), tokenizer=words_only())
    with pytest.raises(Problem) as found:
        TASK.check_row(content, tokenizer=words_only())
    assert words in found.value.reason


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = words_only()
    tokenizer.eos_token = None
    with pytest.raises(StageError) as refused:
        TASK.check_row(row(), tokenizer=tokenizer)
    assert refused.value.reason == "NoEndOfAnswer"


def test_an_answer_is_compared_as_the_tokenizer_reads_it_back() -> None:
    found = TASK.with_reference(example("one", "one\n  two"), tokenizer=words_only())
    assert found.right_answer == "one two"
    plain = example("one", "one two")
    assert TASK.with_reference(plain, tokenizer=words_only()) is plain


def test_probes_are_prompts() -> None:
    found = make_probes([example("one", "two")], prompts=True)
    assert [(each.path, each.request["prompt"]) for each in found] == [("/v1/completions", "one")]


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Of a small T5."""
    folder = tmp_path_factory.mktemp("seq2seq")
    base = tiny_models.make("t5", to=folder / "base")
    return SmallRuns(base=base, prepared=SmallRun(root=folder / "prepared", base=base, task="Seq2Seq").prepare())


def test_strategies_learn_the_same(pairs: SmallRuns) -> None:
    lora = LORA | {"lora": LORA["lora"] | {"dropout": 0.0}}
    found = {}
    for strategy in ("DDP", "FSDP2", "DeepSpeedZeRO3"):
        processes = 1 if strategy == "DDP" else 2
        run = pairs.new(strategy, processes=processes, task="Seq2Seq", overrides={"maxSteps": 4})
        found[strategy] = run.train(run.order(pairs.prepared, method=lora, strategy=strategy))["validationLoss"]
    assert found == pytest.approx(dict.fromkeys(found, found["DDP"]), rel=SAME)
    probes = (run.folder / "model" / "probes.jsonl").read_text().splitlines()
    assert json.loads(probes[0])["path"] == "/v1/completions"
