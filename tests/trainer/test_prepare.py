"""Prepare as a whole, with the real models' tokenizers and the real topic data."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from demo import assets
from tests.trainer.small_run import small_model
from tests.trainer.test_chat_template import FORGETS_THOUGHTS

from finetune_api.results import ExitCode, PrepareResult
from finetune_api.run import Locations, PrepareRun
from finetune_trainer.data import remarks
from finetune_trainer.data.dataset import SPLITS, Example, Manifest, SplitName, data_folder, read_manifest, read_split
from finetune_trainer.models import base_model
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks import token_lengths
from finetune_trainer.tasks.choose import task_of


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def small_smollm2() -> Path:
    """SmolLM2's tokenizer, template and context; random weights, for all of them are read to know the model again."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-smollm2-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return small_model(tokenizer_folder=assets.smollm2_folder(), to=folder / "base", context=8192)


def order(tmp_path: Path, *sources: Path | dict[str, Any], **options: Any) -> PrepareRun:
    """A run in `tmp_path`; classification with MiniLM unless `options` say otherwise."""
    task = options.pop("task", "SequenceClassification")
    base = assets.minilm() if task == "SequenceClassification" else small_smollm2()
    fractions = {"train": 0.7, "validation": 0.1, "test": 0.2, **options.pop("fractions", {})}
    named = [
        {"name": f"source-{index}", "uri": f"file://{source}"} if isinstance(source, Path) else source
        for index, source in enumerate(sources)
    ]
    return PrepareRun.model_validate(
        {
            "identity": {"namespace": "ml", "job": "router", "uid": "1", "attempt": 1},
            "locations": {
                "run": f"file://{tmp_path}/{options.pop('run', 'run')}",
                "cache": f"file://{tmp_path}/cache",
                "allowed_roots": [f"file://{tmp_path}", f"file://{base.parent}"],
            },
            "model": {"uri": f"file://{base}", "task": task},
            "sources": named,
            "max_bad_rows": 0,
            "max_truncated_fraction": 0.01,
            "max_length": 128,
            "split": {"fractions": fractions, "salt": "ml/router"},
            **options,
        }
    )


def snapshot(run: PrepareRun) -> tuple[dict[SplitName, list[Example]], Manifest]:
    storage = Storage(locations=run.locations)
    data = data_folder(run.locations.run)
    splits = {name: read_split(storage, data=data, split=name) for name in SPLITS}
    return splits, read_manifest(storage, uri=f"{data}/manifest.json")


def refusal(run: PrepareRun) -> StageError:
    with pytest.raises(StageError) as refused:
        prepare(run)
    return refused.value


def questions(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Rows that are no relatives of each other."""
    words = ("parcel", "invoice", "password", "refund", "delivery", "contract", "address", "account", "ticket", "order")
    return [
        {
            "text": f"{words[number % 10]} {number * 7919} {words[number // 10 % 10]} {number * 104729}",
            "label": words[number % 3],
        }
        for number in range(start, start + count)
    ]


# -- what it makes ----------------------------------------------------------------------------------------------------


def test_labelled_topics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = order(tmp_path, assets.topic_labelled(tmp_path / "topics.jsonl"))
    result = prepare(run)
    splits, manifest = snapshot(run)

    assert (result.summary.rows_read, result.summary.bad_rows, result.summary.duplicate_rows) == (840, 0, 173)
    assert sum(len(examples) for examples in splits.values()) == 840 - 173
    assert result.summary.rows.train == len(splits["train"])
    assert result.labels == list(assets.TOPICS)
    assert result.labels == list(manifest.labels or ())
    assert result.data_digest == manifest.digest
    assert (
        0 < result.summary.token_length_p50 < result.summary.token_length_p95 <= result.summary.token_length_max < 128
    )
    for name, examples in splits.items():
        assert [example.id for example in examples] == list(manifest.splits[name])
        assert sorted({example.group for example in examples}) == list(manifest.groups[name])
    groups = [group for examples in splits.values() for group in {example.group for example in examples}]
    assert len(groups) == len(set(groups))
    assert all(manifest.learned_from(example) == (name != "test") for name in SPLITS for example in splits[name])
    assert "rows read   840, of them bad 0, repeated 173" in caplog.text
    assert PrepareResult.model_validate(json.loads(json.dumps(result.to_dict()))) == result


def test_chat_topics(tmp_path: Path) -> None:
    run = order(tmp_path, assets.topic_chat(tmp_path / "topics.jsonl"), task="Chat")
    result = prepare(run)
    splits, _ = snapshot(run)
    example = splits["train"][0]
    assert result.labels is None
    assert [message.role for message in example.messages or ()] == ["system", "user", "assistant"]
    assert (example.text, example.label) == (None, None)
    assert result.summary.near_duplicate_groups < 10


def test_plain_texts(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": "ignored by this task"} for row in questions(60)]
    run = order(tmp_path, write(tmp_path / "rows.jsonl", rows), task="CausalLM")
    assert prepare(run).labels is None
    example = snapshot(run)[0]["train"][0]
    assert (example.text in {row["text"] for row in rows}, example.label, example.messages) == (True, None, None)


def test_the_same_question_is_held_out_of_chat_and_classifier_alike(tmp_path: Path) -> None:
    """Both take the question's hash: the split is the endpoint's, not the format's."""
    held_out: list[set[str]] = []
    for task, write_topics in (("SequenceClassification", assets.topic_labelled), ("Chat", assets.topic_chat)):
        run = order(tmp_path, write_topics(tmp_path / f"{task}.jsonl"), task=task, run=task)
        prepare(run)
        splits, _ = snapshot(run)
        held_out.append({example.text or (example.messages or ())[1].content for example in splits["test"]})
    common = held_out[0] & held_out[1]
    assert len(common) >= 0.97 * len(held_out[0] | held_out[1])


def test_corrected_labels_do_not_move_an_example_between_splits(tmp_path: Path) -> None:
    right = order(tmp_path, assets.topic_labelled(tmp_path / "right.jsonl"), run="right")
    wrong = order(tmp_path, assets.topic_labelled(tmp_path / "wrong.jsonl", corrupted=0.4), run="wrong")
    assert prepare(right).data_digest != prepare(wrong).data_digest
    for name in SPLITS:
        first, second = ({example.text for example in snapshot(run)[0][name]} for run in (right, wrong))
        assert first == second


def test_equal_content_gives_an_equal_snapshot(tmp_path: Path) -> None:
    """Other file names, other order of rows and keys, another kind of file, one file or several."""
    rows = questions(300)
    one = order(tmp_path, write(tmp_path / "one.jsonl", rows), run="one")
    (tmp_path / "folder").mkdir()
    turned = [dict(reversed(row.items())) for row in reversed(rows)]
    write(tmp_path / "folder" / "b.jsonl", turned[:100])
    (tmp_path / "folder" / "a.json").write_text(json.dumps(turned[100:], indent=1))
    other = order(tmp_path, tmp_path / "folder", run="other")
    assert prepare(one).data_digest == prepare(other).data_digest
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (tmp_path / "one/data" / name).read_bytes() == (tmp_path / "other/data" / name).read_bytes()


def test_content_counts_and_the_name_of_the_source_does_not(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", questions(200))
    renamed = prepare(order(tmp_path, {"name": "another", "uri": f"file://{file}"}, run="a"))
    digest = prepare(order(tmp_path, file, run="b")).data_digest
    assert renamed.data_digest == digest
    rows = questions(200)
    rows[5]["text"] += " changed"
    assert prepare(order(tmp_path, write(tmp_path / "more.jsonl", rows), run="c")).data_digest != digest


def test_a_second_attempt_takes_the_first_ones_output(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", questions(100))
    run = order(tmp_path, file)
    first = prepare(run)
    before = (tmp_path / "run/data/COMPLETE").stat().st_mtime_ns
    second = prepare(run)
    assert second == first.model_copy(update={"reused": True})
    assert (tmp_path / "run/data/COMPLETE").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["torn", "input", "order"])
def test_a_second_attempt_starts_over_where_it_must(tmp_path: Path, change: str) -> None:
    file = write(tmp_path / "rows.jsonl", questions(100))
    first = prepare(order(tmp_path, file))
    options: dict[str, Any] = {}
    if change == "torn":
        (tmp_path / "run/data/test.jsonl").write_text("")
    elif change == "input":
        write(file, questions(101))
    else:
        options["max_length"] = 127
    again = prepare(order(tmp_path, file, **options))
    assert not again.reused
    assert (again.data_digest == first.data_digest) == (change != "input")
    assert Storage(locations=order(tmp_path, file).locations).read_complete(f"file://{tmp_path}/run/data") is not None


def test_weights_repeat_and_leave_out_training_examples_only(tmp_path: Path) -> None:
    def weighed(weight: float) -> tuple[dict[SplitName, list[Example]], Counter[str]]:
        run = order(
            tmp_path,
            write(tmp_path / "a.jsonl", questions(400)),
            {"name": "b", "uri": f"file://{write(tmp_path / 'b.jsonl', questions(400, start=400))}", "weight": weight},
            run=f"weight-{weight}",
        )
        prepare(run)
        splits, _ = snapshot(run)
        return splits, Counter(example.source for example in splits["train"])

    plain, once = weighed(1)
    for weight in (2.5, 0.25):
        splits, counts = weighed(weight)
        assert counts["source-0"] == once["source-0"]
        assert abs(counts["b"] - weight * once["b"]) < 4 * (once["b"] * 0.25) ** 0.5
        assert splits["test"] == plain["test"]
        assert splits["validation"] == plain["validation"]
    ids = [example.id for example in weighed(2.5)[0]["train"] if example.source == "b"]
    assert set(Counter(ids).values()) == {2, 3}


def test_a_fixed_evaluation_set_is_the_test_split_and_its_relatives_leave(tmp_path: Path) -> None:
    rows = questions(100)
    long = "Please tell me where the parcel is that I have ordered in the week before the last one"
    training = [*rows, {"text": f"{long}!", "label": "parcel"}, {"text": "Unrelated words here", "label": "refund"}]
    evaluation = [rows[0], rows[1], {"text": f"{long}?", "label": "parcel"}, *questions(30, start=500)]
    run = order(
        tmp_path,
        write(tmp_path / "rows.jsonl", training),
        evaluation_dataset={"name": "golden", "uri": f"file://{write(tmp_path / 'golden.jsonl', evaluation)}"},
        fractions={"train": 0.8, "validation": 0.1, "test": 0.1},
    )
    result = prepare(run)
    splits, manifest = snapshot(run)
    assert {example.text for example in splits["test"]} == {row["text"] for row in evaluation}
    learned = {example.text for example in [*splits["train"], *splits["validation"]]}
    assert learned == {row["text"] for row in training} - {rows[0]["text"], rows[1]["text"], f"{long}!"}
    assert manifest.statistics["leftForEvaluation"] == {"duplicates": 2, "nearDuplicates": 1}
    assert [source.name for source in result.sources] == ["source-0", "golden"]


def test_stratified_keeps_the_proportions_of_the_labels(tmp_path: Path) -> None:
    rows = [{**row, "label": "rare" if index < 20 else "common"} for index, row in enumerate(questions(200))]
    run = order(tmp_path, write(tmp_path / "rows.jsonl", rows), fractions={"strategy": "Stratified"})
    prepare(run)
    counts = {name: Counter(example.label for example in examples) for name, examples in snapshot(run)[0].items()}
    assert (counts["test"]["rare"], counts["validation"]["rare"], counts["train"]["rare"]) == (4, 2, 14)


def test_stratified_chats_by_a_field_of_their_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["text"], "completion": "yes", "team": "a" if index % 4 else "b"}
        for index, row in enumerate(questions(40))
    ]
    fractions = {"strategy": "Stratified", "by": "team"}
    run = order(tmp_path, write(tmp_path / "rows.jsonl", rows), task="Chat", fractions=fractions)
    prepare(run)
    teams = {row["prompt"]: row["team"] for row in rows}
    held_out = Counter(teams[(example.messages or ())[0].content] for example in snapshot(run)[0]["test"])
    assert held_out == {"a": 6, "b": 2}


def test_measured_lengths_are_those_of_training(tmp_path: Path) -> None:
    chats = order(tmp_path, assets.topic_chat(tmp_path / "chat.jsonl"), task="Chat", run="chat")
    labelled = order(tmp_path, assets.topic_labelled(tmp_path / "labelled.jsonl"), run="labelled")
    for run in (chats, labelled):
        prepare(run)
        examples = snapshot(run)[0]["validation"]
        tokenizer = base_model.load_tokenizer(Path(run.model.uri.removeprefix("file://")))
        encoded = [
            task_of(run.model.task).encode(example, tokenizer=tokenizer, max_length=10_000, labels=assets.TOPICS)
            for example in examples
        ]
        assert token_lengths.measure(examples, tokenizer=tokenizer) == [len(example.ids) for example in encoded]


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_are_named_and_kept(tmp_path: Path) -> None:
    rows: list[object] = [*questions(50), {"text": "no label"}, {"label": "x"}, 5]
    file = write(tmp_path / "rows.jsonl", rows)
    error = refusal(order(tmp_path, file, max_bad_rows=2))
    assert (error.reason, error.exit_code) == ("TooManyBadRows", ExitCode.BAD_DATA)
    assert (
        f'data.maxBadRows: 2, and 3 of 53 rows cannot be used: source-0 (file://{file}) line 51: "label"'
        in error.message
    )
    kept = [json.loads(line) for line in (tmp_path / "run/data/quarantine.jsonl").read_text().rstrip("\n").split("\n")]
    assert [row["line"] for row in kept] == [51, 52, 53]

    result = prepare(order(tmp_path, file, max_bad_rows=3))
    assert (result.summary.bad_rows, result.summary.rows_read) == (3, 53)
    assert len((tmp_path / "run/data/quarantine.jsonl").read_text().splitlines()) == 3


def test_an_answer_that_spells_a_special_token_is_one_bad_row(tmp_path: Path) -> None:
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in questions(60)]
    rows[7]["completion"] += "<|im_end|>"
    file = write(tmp_path / "rows.jsonl", rows)
    error = refusal(order(tmp_path, file, task="Chat"))
    assert (error.reason, error.exit_code) == ("TooManyBadRows", ExitCode.BAD_DATA)
    assert "line 8: has an answer that spells '<|im_end|>'" in error.message
    assert prepare(order(tmp_path, file, task="Chat", max_bad_rows=1)).summary.bad_rows == 1


def test_answers_must_fit_beside_their_questions(tmp_path: Path) -> None:
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in questions(60)]
    file = write(tmp_path / "rows.jsonl", rows)
    for tokens in (1 << 20, 8192):
        error = refusal(order(tmp_path, file, task="Chat", max_new_tokens=tokens))
        assert (error.reason, error.exit_code) == ("AnswersLongerThanContext", ExitCode.BAD_CONFIGURATION)
    error = refusal(order(tmp_path, file, task="Chat", max_new_tokens=8180))
    assert "held-out questions (the longest has" in error.message
    fits = int(re.findall(r"lower it to at most (\d+)", error.message)[0])
    assert prepare(order(tmp_path, file, task="Chat", max_new_tokens=fits)).remarks == []
    assert refusal(order(tmp_path, file, task="Chat", max_new_tokens=fits + 1)).reason == error.reason


def test_too_many_cut_examples(tmp_path: Path) -> None:
    rows = [*questions(95), *({**row, "text": row["text"] * 20} for row in questions(5, start=100))]
    file = write(tmp_path / "rows.jsonl", rows)
    error = refusal(order(tmp_path, file))
    assert (error.reason, error.exit_code) == ("TooManyTruncated", ExitCode.BAD_DATA)
    assert "training.maxLength: 128" in error.message
    assert prepare(order(tmp_path, file, max_truncated_fraction=0.2)).summary.truncated_fraction > 0.01


def test_examples_that_are_cut_before_their_answer_are_counted_where_a_person_looks(tmp_path: Path) -> None:
    long = [{"prompt": f"{row['text']} " * 100, "completion": "so"} for row in questions(10, start=200)]
    rows = [*({"prompt": row["text"], "completion": row["label"]} for row in questions(95)), *long]
    run = order(tmp_path, write(tmp_path / "rows.jsonl", rows), task="Chat", max_truncated_fraction=1.0)
    result = prepare(run)
    splits, manifest = snapshot(run)
    unlearned = sum(example.right_answer == "so" for example in splits["train"])
    assert manifest.statistics["nothingToLearn"] == unlearned > 0
    assert any(f"{unlearned} training examples have no answer within" in each for each in result.remarks)


def test_examples_longer_than_the_model_reads_are_refused_with_what_it_reads(tmp_path: Path) -> None:
    """A higher training.maxLength is no way out; the one that is named is one."""
    rows = [*questions(95), *({**row, "text": row["text"] * 100} for row in questions(5, start=100))]
    file = write(tmp_path / "rows.jsonl", rows)
    error = refusal(order(tmp_path, file, max_length=1024))
    assert (error.reason, error.exit_code) == ("LongerThanContext", ExitCode.BAD_DATA)
    assert "training.maxLength: 1024 is more than the 512 tokens that the base model can read" in error.message
    assert "source source-0" in error.message
    named = re.search(r"set training.maxLength: (\d+) and data.maxTruncatedFraction: ([0-9.]+) or more", error.message)
    assert named is not None, error.message
    settings = {"max_length": int(named[1]), "max_truncated_fraction": float(named[2])}
    assert prepare(order(tmp_path, file, **settings)).context_tokens == 512
    assert (
        prepare(order(tmp_path, write(tmp_path / "short.jsonl", questions(50)), max_length=1024)).context_tokens == 512
    )


def _one_label() -> list[dict[str, Any]]:
    return [{**row, "label": "only"} for row in questions(50)]


def _label_once() -> list[dict[str, Any]]:
    return [*questions(60), {"text": "something else entirely", "label": "lonely"}]


def _labels_of_one() -> list[dict[str, Any]]:
    return [{**row, "label": f"label {index}"} for index, row in enumerate(questions(50))]


@pytest.mark.parametrize(
    ("rows", "options", "reason", "named"),
    [
        ([], {}, "EmptyData", "source-0"),
        (questions(1), {}, "EmptySplit", "1 examples make 1 groups"),
        ([questions(1)[0]] * 50, {}, "EmptySplit", "1 examples make 1 groups"),
        (_one_label(), {}, "OneLabel", "'only'"),
        (_label_once(), {"fractions": {"strategy": "Stratified"}}, "StratumTooSmall", "'lonely' is seen once"),
        (_labels_of_one(), {}, "StratumTooSmall", "would never be learned (nor would 'label"),
    ],
)
def test_data_that_cannot_be_split(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], reason: str, named: str
) -> None:
    error = refusal(order(tmp_path, write(tmp_path / "rows.jsonl", rows), **options))
    assert (error.reason, error.exit_code) == (reason, ExitCode.BAD_DATA)
    assert named in error.message
    assert not (tmp_path / "run/data/COMPLETE").exists()


@pytest.mark.parametrize(
    ("uri", "reason", "code"),
    [
        ("file://{0}/none.jsonl", "InputNotFound", ExitCode.INPUT_NOT_FOUND),
        ("file:///etc/passwd", "OutsideAllowedRoots", ExitCode.BAD_CONFIGURATION),
        ("hf://datasets/acme/rows", "OutsideAllowedRoots", ExitCode.BAD_CONFIGURATION),
        ("file://{0}/rows.txt", "UnknownFileType", ExitCode.BAD_DATA),
        ("file://{0}/empty", "InputNotFound", ExitCode.INPUT_NOT_FOUND),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, uri: str, reason: str, code: ExitCode) -> None:
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    error = refusal(order(tmp_path, {"name": "a", "uri": uri.format(tmp_path)}))
    assert (error.reason, error.exit_code) == (reason, code)
    assert error.message.startswith(f"data.sources[0].uri: {uri.format(tmp_path)}")


def test_a_model_without_a_chat_template_is_refused_before_training(tmp_path: Path) -> None:
    base = Path(shutil.copytree(small_smollm2(), tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    rows = write(tmp_path / "rows.jsonl", [{"prompt": row["text"], "completion": "yes"} for row in questions(50)])
    error = refusal(order(tmp_path, rows, task="Chat", model={"uri": f"file://{base}", "task": "Chat"}))
    assert (error.reason, error.exit_code) == ("NoChatTemplate", ExitCode.BAD_CONFIGURATION)


# -- tools and other fields of chats ----------------------------------------------------------------------------------

KNOWS_TOOLS = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] -%}
<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def model_with_template(tmp_path: Path, template: str | None) -> dict[str, Any]:
    folder = tmp_path / "base"
    shutil.copytree(small_smollm2(), folder)
    if template is not None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        configuration = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration | {"chat_template": template}))
    return {"uri": f"file://{folder}", "task": "Chat"}


def test_what_is_asked_of_held_out_chats_is_not_taught_inside_of_longer_ones(tmp_path: Path) -> None:
    def turns(row: dict[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]

    first, second = questions(60), questions(60, start=1000)
    chats = [turns(one) for one in first] + [turns(one) + turns(two) for one, two in zip(first, second, strict=True)]
    model = model_with_template(tmp_path, FORGETS_THOUGHTS)
    run = order(tmp_path, write(tmp_path / "c.jsonl", [{"messages": chat} for chat in chats]), task="Chat", model=model)
    prepare(run)
    splits, manifest = snapshot(run)
    assert not any(manifest.learned_from(example) for example in splits["test"])
    learned = [example.id for name in ("train", "validation") for example in splits[name]]
    assert len(learned) == len(set(learned))


def calls_of_tools(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["text"]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "find", "arguments": json.dumps({"what": row["label"]})}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "find"}}],
        }
        for row in questions(count)
    ]


def test_tools_and_their_calls_go_through_the_template(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", calls_of_tools(60))
    run = order(tmp_path, rows, task="Chat", model=model_with_template(tmp_path, KNOWS_TOOLS))
    prepare(run)
    splits, _ = snapshot(run)
    example = splits["test"][0]
    what = (example.messages or ())[-1].extra["tool_calls"][0]["function"]["arguments"]["what"]
    assert example.right_answer == f'<call>{{"name": "find", "arguments": {{"what": "{what}"}}}}</call>'
    tokenizer = base_model.load_tokenizer(tmp_path / "base")
    encoded = task_of("Chat").encode(example, tokenizer=tokenizer, max_length=512, labels=None)
    text = tokenizer.decode(encoded.ids)
    assert '{"type": "function", "function": {"name": "find"}}' in text
    targets = [token for token, target in zip(encoded.ids, encoded.targets, strict=True) if target]
    assert tokenizer.decode(targets) == f"{example.right_answer}<|im_end|>"


def test_a_tool_may_say_nothing(tmp_path: Path) -> None:
    rows = calls_of_tools(60)
    for row in rows:
        row["messages"] += [{"role": "tool", "content": ""}, {"role": "assistant", "content": "Nothing was found."}]
    source = write(tmp_path / "rows.jsonl", rows)
    found = prepare(order(tmp_path, source, task="Chat", model=model_with_template(tmp_path, KNOWS_TOOLS)))
    assert found.summary.rows_read == 60


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"name": "Ann"}, "messages[0].name"),
        ({"tool_calls": [{"name": "f", "arguments": {}}]}, "messages[1].tool_calls"),
    ],
)
def test_what_the_template_drops_is_refused_by_name(tmp_path: Path, extra: dict[str, Any], field: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in questions(20)
    ]
    place: Any = rows[4]
    for index in range(2):
        if field.startswith(f"messages[{index}]"):
            place = rows[4]["messages"][index]
    place.update(extra)
    refused = refusal(order(tmp_path, write(tmp_path / "rows.jsonl", rows), task="Chat"))
    assert (refused.reason, refused.exit_code) == ("TooManyBadRows", ExitCode.BAD_DATA)
    assert refused.message.startswith("data.maxBadRows: 0, and 1 of 20 rows")
    assert f'rows.jsonl) line 5: "{field}" is not shown to the model' in refused.message


def test_fields_that_are_not_used_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows = write(tmp_path / "rows.jsonl", [row | {"ticket": 1} for row in questions(40)])
    run = order(tmp_path, rows)
    prepare(run)
    assert snapshot(run)[1].statistics["carriedFields"] == {"source-0": {"ticket": 40}}
    assert "note        fields of source source-0 that are not used: ticket (40 rows)" in caplog.text


def test_labels_and_answers_that_a_person_should_look_at(tmp_path: Path) -> None:
    rows = [
        row | {"label": ("Spam", "spam ", "1", "1.0", "ham")[number % 5]} for number, row in enumerate(questions(60))
    ]
    (tmp_path / "labels").mkdir()
    write(tmp_path / "labels/rows.jsonl", rows)
    (tmp_path / os.fsdecode(b"labels/caf\xe9.xlsx")).write_text("x")
    for number in range(30):
        (tmp_path / f"labels/{number:02}.png").write_text("x")
    run = order(tmp_path, tmp_path / "labels", max_length=1024)
    files, labels, length = prepare(run).remarks
    assert files.startswith("files of source source-0 that are not read (31): '00.png', '01.png'")
    assert "'09.png' and 21 more; rows are read from .jsonl" in files
    not_read = snapshot(run)[1].statistics["filesNotRead"]["source-0"]
    first = [f"{number:02}.png" for number in range(20)]
    assert not_read == {"count": 31, "endings": {".png": 30, ".xlsx": 1}, "first": first}
    assert "differ only in case" in labels
    assert "count as different ones: '1' and '1.0', 'Spam' and 'spam'; write them alike" in labels
    assert length.startswith("training.maxLength 1024 is more than the 512 tokens that the base model can read at once")
    chats = [
        {"prompt": row["text"], "completion": "word " * (5 + 10 * (number % 2))} for number, row in enumerate(rows)
    ]
    source = write(tmp_path / "chats.jsonl", chats)
    (remark,) = prepare(order(tmp_path, source, task="Chat", max_new_tokens=10, run="chats")).remarks
    assert "held-out answers have more tokens than evaluation.generation.maxNewTokens 10 (the longest 16)" in remark
    assert prepare(order(tmp_path, source, task="Chat", max_new_tokens=20, run="more")).remarks == []


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["Food", "food", "drink"], [["Food", "food"]]),
        (["caf\u00e9", "cafe\u0301"], [["cafe\u0301", "caf\u00e9"]]),
        (["a b", "a  b", "ab"], [["a  b", "a b", "ab"]]),
        (["1", "01", "1.0", "10", "-1"], [["01", "1", "1.0"]]),
        (["NaN", "nan", "1e2", "100"], [["1e2", "100"], ["NaN", "nan"]]),
        (["a.b", "ab", "a-b"], []),
        (["12e4567890", "a"], []),
    ],
)
def test_labels_that_are_alike(labels: list[str], alike: list[list[str]]) -> None:
    assert sorted(remarks.labels_alike(labels)) == sorted(sorted(group) for group in alike)


def test_what_chats_are_stratified_by_is_looked_at_like_labels(tmp_path: Path) -> None:
    """A list that is cut short says how much is left."""
    rows = [
        {"prompt": row["text"], "completion": "yes", "team": f"{'Tt'[number % 2]}eam  {number // 10}"}
        for number, row in enumerate(questions(130))
    ]
    fractions = {"strategy": "Stratified", "by": "team"}
    (remark,) = prepare(order(tmp_path, write(tmp_path / "c.jsonl", rows), task="Chat", fractions=fractions)).remarks
    assert "'Team  0' and 'team  0', 'Team  1' and 'team  1'" in remark
    assert "and 3 more; write them alike" in remark


def test_an_evaluation_set_that_holds_all_examples(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", questions(50))
    run = order(tmp_path, file, evaluation_dataset={"name": "golden", "uri": f"file://{file}"})
    assert "nothing is left to learn from" in refusal(run).message


def test_the_locations_of_a_run_are_all_it_touches(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", questions(50))
    prepare(order(tmp_path, file))
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "run"}
    assert Locations.model_validate(order(tmp_path, file).locations.to_dict()) == order(tmp_path, file).locations
