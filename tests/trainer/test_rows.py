"""Users' files: every kind that is read, and everything hostile that may be in them."""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from finetune_api.results import ExitCode
from finetune_trainer.data import source_files
from finetune_trainer.data.fields import Problem
from finetune_trainer.data.rows import BadRow, Quarantine, Row, RowFormat, check
from finetune_trainer.process.errors import StageError
from finetune_trainer.tasks.choose import formats_of, task_of

CHAT: tuple[RowFormat, ...] = ("Chat", "PromptCompletion")
LABELLED: tuple[RowFormat, ...] = ("Labelled",)
TEXT: tuple[RowFormat, ...] = ("Text",)


def read(
    file: Path, possible: Sequence[RowFormat] = LABELLED, *, stratum_field: str | None = None
) -> tuple[list[Row], list[BadRow]]:
    found = list(source_files.read(file, name=file.name, source="a", possible=possible, stratum_field=stratum_field))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


def read_line(tmp_path: Path, line: bytes | dict[str, Any], possible: Sequence[RowFormat]) -> Row | BadRow:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(line if isinstance(line, bytes) else json.dumps(line).encode())
    good, bad = read(file, possible)
    assert len(good) + len(bad) == 1
    return good[0] if good else bad[0]


def chat(*turns: tuple[str, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# -- kinds of files ---------------------------------------------------------------------------------------------------

PAIRS = [('Grüße, "quoted"\nand broken', "1"), ("plain", "0")]


def _jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"text": text, "label": int(label)}) for text, label in PAIRS))


def _json_list(path: Path) -> None:
    path.write_text(json.dumps([{"text": text, "label": label} for text, label in PAIRS], indent=2))


def _csv(path: Path) -> None:
    path.write_text('text,label\r\n"Grüße, ""quoted""\nand broken",1\r\nplain,0\r\n', newline="")


def _csv_with_bom(path: Path) -> None:
    path.write_text('text,label\n"Grüße, ""quoted""\nand broken",1\nplain,0\n', encoding="utf-8-sig")


def _parquet(path: Path) -> None:
    table = pyarrow.table({"text": [text for text, _ in PAIRS], "label": [float(label) for _, label in PAIRS]})
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", _jsonl),
        ("rows.ndjson", _jsonl),
        ("rows.json", _jsonl),
        ("rows.json", _json_list),
        ("ROWS.CSV", _csv),
        ("rows.csv", _csv_with_bom),
        ("rows.parquet", _parquet),
    ],
)
def test_each_kind_of_file_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], None], packed: bool
) -> None:
    file = tmp_path / name
    write(file)
    if packed:
        packed_file = tmp_path / f"{name}.gz"
        packed_file.write_bytes(gzip.compress(file.read_bytes()))
        file = packed_file
    good, bad = read(file)
    assert bad == []
    assert [(row.content.text, row.content.label) for row in good] == PAIRS


def test_a_folder_is_read_in_the_order_of_names_and_says_what_is_not_read(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "sub/c.parquet", "notes.txt", "sub/d.csv.xz", ".hidden.jsonl", ".git/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found, left_out = source_files.find(tmp_path, uri="file:///data")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.csv", "b.jsonl", "sub/c.parquet"]
    assert left_out == ["notes.txt", "sub/d.csv.xz"]


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["dataset_dict.json", "train/dataset_info.json", "train/state.json"], 3),
        (["dataset_infos.json"], 1),
        (["state.json"], 0),
        (["train.json", "sub/0.json"], 0),
    ],
)
@pytest.mark.parametrize(
    "content", ['{"version": 1, "data": [{"text": "a"}]}', '{"text": 1' + "0" * 5000 + "}", '{"text": ']
)
def test_what_describes_a_data_set_is_told_by_its_name(
    tmp_path: Path, names: list[str], left_out: int, content: str
) -> None:
    """Everything else is data: what has no rows as they are written here becomes bad rows."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "zz.jsonl").write_text("{}")
    found, others = source_files.find(tmp_path, uri="file:///data")
    assert (len(found), len(others)) == (1 + len(names) - left_out, left_out)
    assert [len(read(file)[1]) for file in found] == [1] * len(found)


def test_names_of_files_that_are_not_read_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    (tmp_path / "a.jsonl").write_text("{}")
    assert source_files.find(tmp_path, uri="file:///data")[1] == ["caf?.txt"]


@pytest.mark.parametrize("saved", ["data set", "splits", "parquet", "arrow file"])
def test_what_datasets_saves_is_read_with_the_names_of_its_classes(tmp_path: Path, saved: str) -> None:
    texts, classes = zip(*PAIRS, strict=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": texts, "label": [int(each) for each in classes]}, features=features)
    if saved == "parquet":
        made.to_parquet(tmp_path / "rows.parquet")
    elif saved == "arrow file":
        with pyarrow.ipc.new_file(tmp_path / "rows.arrow", made.data.schema) as writer:
            writer.write_table(made.data.table)
    else:
        (made if saved == "data set" else datasets.DatasetDict(train=made)).save_to_disk(tmp_path)
        (tmp_path / "cache-0123.arrow").write_bytes(b"x")
    (file,), left_out = source_files.find(tmp_path, uri="file:///data")
    good, bad = read(file)
    assert [(row.content.text, row.content.label) for row in good] == [(PAIRS[0][0], "yes"), (PAIRS[1][0], "no")]
    assert bad == []
    assert ("cache-0123.arrow" in left_out) == (saved in ("data set", "splits"))


def test_a_saved_data_set_of_which_a_part_is_missing_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a", "label": "x"}] * 4).save_to_disk(tmp_path, num_shards=2)
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(StageError, match=r"lacks data-00001-of-00002\.arrow, which its state\.json names"):
        source_files.find(tmp_path, uri="file:///data")
    (tmp_path / "state.json").unlink()
    assert len(source_files.find(tmp_path, uri="file:///data")[0]) == 1


CLASSES = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}


@pytest.mark.parametrize(
    ("features", "column", "labels"),
    [
        (CLASSES, [1, 0], ["yes", "no"]),
        (CLASSES | {"messages": [{"role": {"dtype": "string", "_type": "Value"}}]}, [1, 0], ["yes", "no"]),
        (CLASSES, ["good", "bad"], ["good", "bad"]),
        (CLASSES, None, []),
        ({"label": {"_type": "ClassLabel"}}, [1, 0], ["1", "0"]),
        (None, [1, 0], ["1", "0"]),
    ],
    ids=["classes", "a list of datasets 3", "replaced", "dropped", "no names", "no features"],
)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_names_of_classes_count_for_columns_of_numbers(
    tmp_path: Path, features: object, column: list[Any] | None, labels: list[str], name: str
) -> None:
    table = pyarrow.table({"text": ["a", "b"]} | ({} if column is None else {"label": column}))
    write_arrow(table, tmp_path / name, said=json.dumps({"info": {"features": features}}))
    good, bad = read(tmp_path / name)
    assert ([row.content.label for row in good], len(bad)) == (labels, 2 - len(labels))


@pytest.mark.parametrize("said", ["null", "not json", "[" * 100_000, b"\xff", '{"info": null}'])
def test_what_other_tools_left_in_a_file_beside_its_columns_is_passed_over(tmp_path: Path, said: str) -> None:
    write_arrow(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "rows.parquet", said=said)
    assert [row.content.label for row in read(tmp_path / "rows.parquet")[0]] == ["1"]


def write_arrow(table: pyarrow.Table, file: Path, *, said: str | bytes) -> None:
    """With what is said in the place of `datasets`."""
    table = table.replace_schema_metadata({"huggingface": said})
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def test_names_of_very_many_classes_take_no_time_of_each_row(tmp_path: Path) -> None:
    count = 20_000
    table = pyarrow.table({"text": ["a"] * count, "label": list(range(count))})
    features = {"label": {"_type": "ClassLabel", "names": list(map(str, range(count)))}}
    write_arrow(table, tmp_path / "rows.parquet", said=json.dumps({"info": {"features": features}}))
    started = time.process_time()
    good, _ = read(tmp_path / "rows.parquet")
    assert good[-1].content.label == str(count - 1)
    assert time.process_time() - started < 10, "15 s or more where each row looks at all names"


def test_a_batch_of_arrow_is_not_held_in_memory_as_rows(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"row {number}" for number in range(30_000)]})
    write_arrow(table, tmp_path / "rows.arrow", said="{}")
    found = source_files.read(tmp_path / "rows.arrow", name="a", source="a", possible=TEXT, stratum_field=None)
    tracemalloc.start()
    assert sum(isinstance(row, Row) for row in found) == len(table)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 << 20, "of 9 MiB"


def test_a_folder_without_data_and_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StageError, match=r"it holds notes\.txt") as empty:
        source_files.find(tmp_path, uri="file:///data")
    assert empty.value.exit_code == ExitCode.INPUT_NOT_FOUND
    with pytest.raises(StageError) as unknown:
        source_files.find(tmp_path / "notes.txt", uri="file:///data/notes.txt")
    assert (unknown.value.reason, unknown.value.exit_code) == ("UnknownFileType", ExitCode.BAD_DATA)


# -- formats ----------------------------------------------------------------------------------------------------------


def test_prompt_and_completion_become_a_chat(tmp_path: Path) -> None:
    row = read_line(tmp_path, {"prompt": "2+2?", "completion": "4", "id": 7}, CHAT)
    assert isinstance(row, Row)
    assert [(turn.role, turn.content) for turn in row.content.messages or ()] == [("user", "2+2?"), ("assistant", "4")]


def test_the_first_usable_row_decides_the_format(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows: list[object] = [{"other": 1}, chat(("user", "a"), ("assistant", "b")), {"prompt": "c", "completion": "d"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    good, bad = read(file, CHAT)
    assert [row.line for row in good] == [2]
    assert [str(row) for row in bad] == [
        'rows.jsonl line 1: has none of the fields "messages", or "prompt" and "completion"; the row has "other"',
        'rows.jsonl line 3: "messages" is missing; the row has "prompt", "completion"',
    ]


def test_csv_holds_chats_as_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    messages = json.dumps(chat(("user", "a"), ("assistant", "b"))["messages"]).replace('"', '""')
    file.write_text(f'messages\n"{messages}"\n"[{{]"\n')
    good, bad = read(file, CHAT)
    assert len(good) == 1
    assert "is text that is not JSON of a list" in bad[0].reason


@pytest.mark.parametrize(
    ("task", "declared", "expected"),
    [
        ("Chat", "Auto", ("Chat", "PromptCompletion")),
        ("Chat", "PromptCompletion", ("PromptCompletion",)),
        ("CausalLM", None, ("Text",)),
        ("SequenceClassification", "Labelled", ("Labelled",)),
    ],
)
def test_formats_by_task(task: Any, declared: str | None, expected: tuple[str, ...]) -> None:
    assert formats_of(task_of(task), declared=declared) == expected


def test_a_format_that_the_task_cannot_learn_from() -> None:
    with pytest.raises(
        StageError, match=r"data.sources\[\].format: Text is not for model.task: Chat; use Chat or PromptCompletion"
    ):
        formats_of(task_of("Chat"), declared="Text")


@pytest.mark.parametrize(("label", "expected"), [("  spam ", "spam"), (3, "3"), (True, "true"), (2.0, "2")])
def test_labels_are_strings(tmp_path: Path, label: object, expected: str) -> None:
    row = read_line(tmp_path, {"text": "x", "label": label}, LABELLED)
    assert isinstance(row, Row)
    assert row.content.label == expected


def test_the_field_to_stratify_by(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "team": 4}\n{"text": "b"}\n')
    good, bad = read(file, TEXT, stratum_field="team")
    assert [row.stratum for row in good] == ["4"]
    assert str(bad[0]) == 'rows.jsonl line 2: "team" is missing'


# -- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "possible", "field", "reason"),
    [
        (b"{not json}", TEXT, "", "is not JSON"),
        (b'"a string"', TEXT, "", "is not an object"),
        (b'{"text": NaN}', TEXT, "", "NaN is not a number"),
        (b'{"text": "a", "text": "b"}', TEXT, "text", "is there twice"),
        (b'{"text": "\xff\xfe"}', TEXT, "", "bytes that are not UTF-8"),
        (b'{"text": "\\ud800"}', TEXT, "text", "is not valid Unicode"),
        (b'{"text": "a\\u0000b"}', TEXT, "text", "contains a NUL"),
        (b'{"text": ' + b"[" * 100_000, TEXT, "", "is nested too deeply"),
        (b'{"text": 1' + b"0" * 5000 + b"}", TEXT, "", "is not JSON"),
        ({"instruction": "a", "output": "b"}, CHAT, "", 'as Alpaca and Dolly write; write "prompt"'),
        ({"instruction": "a", "output": "b"}, CHAT[1:], "prompt", 'as Alpaca and Dolly write; write "prompt"'),
        ({"conversations": []}, CHAT, "", 'as ShareGPT writes; write "messages"'),
        ({"messages": [{"from": "human", "value": "a"}]}, CHAT, "messages[0].role", 'the message has "from", "value"'),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, CHAT, "", "as preferences are written"),
        ({"prompt": [{"role": "user"}], "completion": []}, CHAT, "prompt", 'as one list "messages"'),
        ({"messages": "[{'role': 'user', 'content': 'a'}]"}, CHAT, "messages", "as Python shows it"),
        ({"messages": '[{"role": 1, "role": 2}]'}, CHAT, "messages", "it role is there twice"),
        ({"text": None}, TEXT, "text", "is missing"),
        ({"text": 5}, TEXT, "text", "is a number; expected a string"),
        ({"text": " \n"}, TEXT, "text", "is empty"),
        ({"text": "a"}, LABELLED, "label", "is missing"),
        ({"text": "a", "label": 1.5}, LABELLED, "label", "is a number"),
        ({"text": "a", "label": ["x"]}, LABELLED, "label", "is a list"),
        ({"text": "a", "label": " "}, LABELLED, "label", "is empty"),
        ({"text": "a", "label": "x" * 1025}, LABELLED, "label", "has 1025 characters"),
        ({"messages": []}, CHAT, "messages", "has no message"),
        ({"messages": {"role": "user"}}, CHAT, "messages", "is an object; expected a list"),
        ({"messages": [None]}, CHAT, "messages[0]", "is missing; expected {role, content}"),
        (chat(("user", "a")), CHAT, "messages", "ends with role user"),
        (chat(("assistant", "a")), CHAT, "messages", "begins with the assistant"),
        (chat(("user", "a"), ("assistant", "  ")), CHAT, "messages[1].content", "is empty"),
        (chat(("user", "a"), ("assistant", None)), CHAT, "messages[1].content", "is missing; expected a string"),
        (
            chat(("user", [{"type": "text"}]), ("assistant", "b")),
            CHAT,
            "messages[0].content[0]",
            "only parts with text",
        ),
        (chat(("critic", "a"), ("assistant", "b")), CHAT, "messages[0].role", "is 'critic'; expected one of"),
        (chat(("tool", "a"), ("assistant", "b")), CHAT, "messages[0].role", "no tool was called"),
        (chat(("user", "a"), ("system", "s"), ("assistant", "b")), CHAT, "messages[1].role", "only the first"),
        ({"prompt": "a", "completion": ""}, CHAT, "completion", "is empty"),
    ],
)
def test_a_bad_row_is_named_with_field_and_reason(
    tmp_path: Path, row: bytes | dict[str, Any], possible: Sequence[RowFormat], field: str, reason: str
) -> None:
    found = read_line(tmp_path, row, possible)
    assert isinstance(found, BadRow)
    assert (found.file, found.line, found.field) == ("rows.jsonl", 1, field)
    assert reason in found.reason
    json.loads(found.to_json())


def pair(question: dict[str, Any] | None = None, answer: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    """A chat of one question and one answer, with more fields."""
    messages = [
        {"role": "user", "content": "a", **(question or {})},
        {"role": "assistant", "content": "b", **(answer or {})},
    ]
    return {"messages": messages, **beside}


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("row", "possible", "field", "reason"),
    [
        (pair(functions=[{"name": "f"}]), CHAT, "functions", 'write them as "tools"'),
        (pair(images=["a.png"]), CHAT, "images", "only text is learned"),
        (pair(weight=0), CHAT, "weight", "weigh sources"),
        (pair(loss_mask=[0, 1]), CHAT, "loss_mask", '"weight": 0'),
        (pair(answer={"train_detail": [{"begin_offset": 0}]}), CHAT, "messages[1].train_detail", "whole or not at all"),
        (pair(tools=[1]), CHAT, "tools[0]", "is a number; expected an object"),
        (pair(tools="[{]"), CHAT, "tools", "is text that is not JSON of a list"),
        (pair(system=["s"]), CHAT, "system", "is a list; expected a string"),
        (chat(("system", "s"), ("user", "a"), ("assistant", "b")) | {"system": "t"}, CHAT, "system", "keep one"),
        ({"prompt": "a", "completion": "b", "system_prompt": "s"}, CHAT, "system_prompt", 'name it "system"'),
        ({"prompt": "a", "completion": "b", "input": "i"}, CHAT, "input", 'write it into "prompt"'),
        ({"prompt": "a", "completion": "b", "history": [["c", "d"]]}, CHAT, "history", "earlier turns"),
        ({"text": "a", "label": "b", "image": "a.png"}, LABELLED, "image", "only text is learned"),
        (pair(answer={"reasoning_content": "hm"}), CHAT, "messages[1].reasoning_content", "reasoning is not learned"),
        (pair(answer={"thinking": "hm"}), CHAT, "messages[1].thinking", "reasoning is not learned"),
        (pair(answer={"prefix": True}), CHAT, "messages[1].prefix", "learned whole"),
        (pair(answer={"function_call": {"name": "f"}}), CHAT, "messages[1].function_call", "write it as tool_calls"),
        (pair(answer={"tool_calls": [1]}), CHAT, "messages[1].tool_calls[0]", "names no function"),
        (
            pair(answer={"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            CHAT,
            "messages[1].tool_calls[0].function.arguments",
            "is not JSON",
        ),
        (pair(question={"tool_call_id": "1"}), CHAT, "messages[0].tool_call_id", "belongs to role tool"),
        (pair(answer={"weight": 0.5}), CHAT, "messages[1].weight", "is 0.5; a message is learned (1) or not (0)"),
        (pair(answer={"weight": 0}), CHAT, "messages", "no answer that is learned"),
        (pair(answer={"weight": 1, "train": False}), CHAT, "messages[1]", "weight and train"),
        (pair(question={"train": True}), CHAT, "messages[0].train", "only answers are learned"),
        (pair(question={"content": [IMAGE]}), CHAT, "messages[0].content[0].image_url", "only text is learned"),
    ],
)
def test_a_field_that_would_change_what_is_learned_is_used_or_refused(
    tmp_path: Path, row: dict[str, Any], possible: Sequence[RowFormat], field: str, reason: str
) -> None:
    found = read_line(tmp_path, row, possible)
    assert isinstance(found, BadRow)
    assert found.field == field
    assert reason in found.reason


def test_a_system_text_beside_a_chat_is_its_first_message(tmp_path: Path) -> None:
    for row in (
        pair(system="Be kind."),
        {"prompt": "a", "completion": "b", "system": "Be kind."},
        chat(("system", "Be kind."), ("user", "a"), ("assistant", "b")) | {"system": "Be kind."},
    ):
        found = read_line(tmp_path, row, CHAT)
        assert isinstance(found, Row)
        assert [(turn.role, turn.content) for turn in found.content.messages or ()] == [
            ("system", "Be kind."),
            ("user", "a"),
            ("assistant", "b"),
        ]


def test_masked_answers_and_a_chat_ends_with_the_last_that_is_learned(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]
    row = chat(*turns)
    row["messages"][1]["weight"] = 0
    row["messages"][4]["train"] = False
    row["messages"][5]["loss"] = False
    found = read_line(tmp_path, row, CHAT)
    assert isinstance(found, Row)
    messages = found.content.messages or ()
    assert [(turn.content, turn.learned) for turn in messages] == [("a", True), ("b", False), ("c", True), ("d", True)]


def test_calls_of_tools_are_kept_for_the_template(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    row = {
        "messages": [
            {"role": "user", "content": "Rain in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "yes", "tool_call_id": "1"},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "weather"}}]),
    }
    found = read_line(tmp_path, row, CHAT)
    assert isinstance(found, Row)
    asked, result = (found.content.messages or ())[1:3]
    assert asked.to_dict()["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert result.to_dict() == {"role": "tool", "content": "yes", "tool_call_id": "1"}
    assert found.content.tools == ({"type": "function", "function": {"name": "weather"}},)


def test_objects_of_parquet_lose_the_padding_of_their_neighbours(tmp_path: Path) -> None:
    tools = [{"name": "a", "parameters": {"x": 1}}, {"name": "b", "parameters": {"y": 2}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([pair(tools=tools)]), tmp_path / "rows.parquet")
    good, bad = read(tmp_path / "rows.parquet", CHAT)
    assert bad == []
    assert good[0].content.tools == tuple(tools)


def test_what_parquet_holds_that_json_does_not(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    maps = pyarrow.array([[("unit", "m")]], type=pyarrow.map_(pyarrow.string(), pyarrow.string()))
    call = pyarrow.array([[{"name": "read", "arguments": {"unit": "m"}}]])
    content = json.dumps(chat(("user", "How far?"), ("assistant", "Far."))["messages"])
    # pandas writes a missing text as NaN; a column of maps is one of objects.
    table = pyarrow.table({"messages": [content], "system": [math.nan], "tools": call, "notes": maps})
    pyarrow.parquet.write_table(table, file)
    good, bad = read(file, CHAT)
    assert bad == []
    assert [(len(row.content.messages or ()), row.carried) for row in good] == [(2, ("notes",))]
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, file)
    with pytest.raises(StageError, match='column "text" twice'):
        read(file, TEXT)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([2**31 - 1], pyarrow.date32()),
        pyarrow.array([0], pyarrow.timestamp("us", tz="Mars/Base")),
        pyarrow.array([[("key", 1), ("key", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
        pyarrow.array(
            [[{"when": 2**62, "by": "me"}]],
            pyarrow.list_(pyarrow.struct({"when": pyarrow.timestamp("us"), "by": pyarrow.string()})),
        ),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_python_has_no_values_for_costs_nothing_but_itself(tmp_path: Path, column: Any) -> None:
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "beside": column}), file)
    good, bad = read(file, TEXT)
    assert ([(row.content.text, row.carried) for row in good], bad) == ([("a", ("beside",))], [])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
    good, bad = read(file, TEXT)
    assert good == []
    assert re.fullmatch(r"is a (.* that cannot be read|list); expected a string", bad[0].reason)


@pytest.mark.parametrize(
    ("tools", "call", "field", "words"),
    [
        ([{"name": "\ud800"}], {}, "tools[0].name", "half a surrogate pair"),
        ([{"\ud800": 1}], {}, "tools[0]: a name", "half a surrogate pair"),
        ([{"most": math.inf}], {}, "tools[0].most", "a number, which JSON does not have"),
        ([functools.reduce(lambda inner, _: {"a": inner}, range(300), {})], {}, "tools[0]" + 100 * ".a", "too deeply"),
        ([], {"at": datetime(2026, 1, 1)}, "messages[1].tool_calls[0].function.arguments.at", "datetime, which JSON"),
        ([], {"at": b"x"}, "messages[1].tool_calls[0].function.arguments.at", "bytes, which JSON"),
        ([], {"at": Decimal(1)}, "messages[1].tool_calls[0].function.arguments.at", "Decimal, which JSON"),
    ],
)
def test_what_templates_are_given_is_json(tools: list[Any], call: dict[str, Any], field: str, words: str) -> None:
    """Parquet has dates, JSON's escapes halves of characters: the snapshot could not be written, after all was read."""
    answer = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": call}}]}
    with pytest.raises(Problem) as found:
        check({"messages": [{"role": "user", "content": "a"}, answer], "tools": tools}, row_format="Chat")
    assert (found.value.field, words in found.value.reason) == (field, True)


def test_names_that_are_no_unicode_can_be_told(tmp_path: Path) -> None:
    found = read_line(tmp_path, b'{"text": "a", "\\ud800": 1}', TEXT)
    assert isinstance(found, Row)
    assert found.carried == ("?",)
    assert str(read_line(tmp_path, b'{"\\ud800": 1}', TEXT)).endswith('the row has "?"')


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "annotations": None}]
    found = read_line(tmp_path, pair(question={"content": parts}), CHAT)
    assert isinstance(found, Row)
    assert (found.content.messages or ())[0].content == "a b"


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    row = pair(answer={"id": 7, "refusal": None}, source="faq", team="a", empty=[], system="s")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    good, bad = read(file, CHAT, stratum_field="team")
    assert (good[0].carried, bad) == (("messages[].id", "source"), [])


def test_columns_beside_a_text_are_no_parts_of_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label,system,history,documents\nprinter is dead,it,SAP,none,2\n")
    good, bad = read(file, LABELLED)
    assert (good[0].carried, bad) == (("documents", "history", "system"), [])


def test_none_padding_of_other_tools_is_ignored(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a", "tool_calls": None, "name": None},
        {"role": "assistant", "content": "b", "tool_calls": None, "weight": 1, "prefix": False},
    ]
    assert isinstance(read_line(tmp_path, {"messages": messages}, CHAT), Row)


def test_a_bad_row_does_not_hide_its_neighbours(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\r\n\r\n{"text": "\xff"}\n   \n{"text": "third"}\n\x00\n{"text": "last"}'
    )
    good, bad = read(file, TEXT)
    assert [(row.line, row.content.text) for row in good] == [(1, "first"), (5, "third"), (7, "last")]
    assert [row.line for row in bad] == [3, 6]


def test_a_line_of_many_megabytes_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"text": "first"}\n{"text": "')
        for _ in range(40):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n{"text": "last"}\n')
    good, bad = read(file, TEXT)
    assert [(row.line, row.content.text) for row in good] == [(1, "first"), (3, "last")]
    assert (bad[0].line, bad[0].reason) == (2, "is longer than 16 MiB")
    assert len(bad[0].raw) < 3000


def test_a_quoted_text_of_csv_may_begin_with_a_blank_and_a_quote(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,label\n" ""Fine"", she said",good\nbad,bad\n')
    good, bad = read(file)
    assert [row.content.text for row in good] == [' "Fine", she said', "bad"]
    assert not bad


@pytest.mark.parametrize(
    "content",
    [
        "text,label\na,b\n,\n,\n",
        "text,label\na,b,,\n",
        "text,label,,\na,b,,\n,,,\n",
        ",text,label\n0,a,b\n",
        "text,label\ra,b\r",
    ],
    ids=["empty rows", "wide rows", "wide sheet", "pandas' index", "old Macs"],
)
def test_what_spreadsheets_and_pandas_write_around_the_rows_of_csv(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content.encode())
    good, bad = read(file)
    assert ([(row.line, row.content.text, row.content.label) for row in good], bad) == ([(2, "a", "b")], [])
    assert good[0].carried == (("column 1",) if content.startswith(",") else ())


@pytest.mark.parametrize(
    ("content", "lines", "reason"),
    [
        ("text,label\na,b,c\n", [2], "has 3 columns; the header has 2"),
        ("text,text\na,b\n", [2], "names a column twice"),
        ("text,label\na,\n", [2], "is missing"),
        ('text,label\n"a"b,c\n', [2], "is not CSV"),
        ('text, label\n"a", "b"\n', [2], "has a blank before a quote"),
        ("question,topic\na,b\n", [2], 'is missing; the row has "question", "topic"'),
        ("text,label\n\udcff,c\n", [2], "is not valid Unicode"),
        ("text,label\na\rb,c\n", [2], "is not CSV: new-line character seen in unquoted field. Quote a text"),
        ("text,label\ntext, label\n", [2], "repeats the header"),
        ("text,label,\ntext,label,\n", [2], "repeats the header"),
        (",text,label\n,text,label\n", [2], "repeats the header"),
        ("text,label\ntext,label,,\n", [2], "repeats the header"),
        ("text,label,,\nd,e,,f,g\n", [2], "has 5 columns; the header has 4"),
    ],
)
def test_bad_rows_of_csv(tmp_path: Path, content: str, lines: list[int], reason: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    good, bad = read(file)
    assert good == []
    assert [row.line for row in bad] == lines
    assert reason in bad[0].reason


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_a_line_feed_in_a_text_is_no_end_of_a_row_where_carriage_returns_are(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes('text,label\r"a\nb",1\rc,2\r'.encode(encoding))
    good, bad = read(file)
    assert ([(row.content.text, row.content.label) for row in good], bad) == ([("a\nb", "1"), ("c", "2")], [])


def test_a_row_of_one_column_may_say_what_the_header_says(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nhello\ntext\n")
    assert [row.content.text for row in read(tmp_path / "rows.csv", TEXT)[0]] == ["hello", "text"]


def csv_lines(count: int) -> list[str]:
    """A header and `count` rows."""
    return ["text,label", *(f"{number} apples,{'food' if number % 2 else 'ask'}" for number in range(count))]


@pytest.mark.parametrize(
    ("change", "damaged", "reason"),
    [
        ({30: '"30 apples,food'}, [30], "opens a quote that"),
        ({20: '"20 apples,food', 41: '41 apples 5",ask'}, [20], "closed in line 41 only"),
        ({20: '"20 apples,food', 21: '21 apples 5",ask'}, [20], "closed in line 21 only"),
        ({101: '"the last apple,food'}, [101], "is not CSV: unexpected end of data"),
    ],
    ids=["never closed", "21 lines", "2 lines", "in the last line"],
)
@pytest.mark.parametrize("filled_up", ["", ",,"])
def test_a_quote_too_many_costs_one_row_of_csv(
    tmp_path: Path, change: dict[int, str], damaged: list[int], reason: str, filled_up: str
) -> None:
    file = tmp_path / "rows.csv"
    lines = csv_lines(100)
    for number, line in change.items():
        lines[number - 1] = line
    lines[1:] = [line + filled_up for line in lines[1:]]
    file.write_text("\n".join(lines) + "\n")
    good, bad = read(file)
    assert [row.line for row in bad] == damaged
    assert reason in bad[0].reason
    assert len(good) == 99


def test_texts_of_several_lines_are_no_damage(tmp_path: Path) -> None:
    """Also where only one row has them, and its lines have as many commas as a row."""
    poem = '"roses are red, violets are blue\nsugar is sweet, and so are you\nhere is a line\nwithout",poems\n'
    file = tmp_path / "rows.csv"
    plain = "\n".join(csv_lines(50)) + "\n"
    for text in (plain + poem, plain + poem * 3, "text,label\n" + poem):
        file.write_text(text)
        good, bad = read(file)
        assert bad == []
        assert good[-1].content.label == "poems"
        assert (good[-1].content.text or "").count("\n") == 3


@pytest.mark.parametrize("count", [8, 20])
def test_lines_far_beyond_the_habit_of_a_file_of_one_column(tmp_path: Path, count: int) -> None:
    lines = ["text", *(f"apples {number}" for number in range(100))]
    lines[40], lines[40 + count] = f'"{lines[40]}', f'{lines[40 + count]}"'
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(lines))
    good, bad = read(file, TEXT)
    assert (len(good), [row.line for row in bad]) == ((100 - count, []) if count == 8 else (99, [41]))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_delimiters_and_encodings_that_can_be_told_for_certain(tmp_path: Path, delimiter: str, encoding: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(f"\r\nlabel{delimiter}text\r\nfood{delimiter}Grüße\r\n".encode(encoding))
    good, bad = read(file)
    assert bad == []
    assert [(row.line, row.content.text, row.content.label) for row in good] == [(3, "Grüße", "food")]


@pytest.mark.parametrize("said", ["sep=;", '"sep=;"'])
def test_the_delimiter_that_excel_names_in_a_line_of_its_own(tmp_path: Path, said: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{said}\ntext;label\nfood, and drink;a\n", encoding="utf-8-sig")
    good, bad = read(file)
    assert bad == []
    assert [(row.line, row.content.text, row.content.label) for row in good] == [(3, "food, and drink", "a")]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("rows.csv", "utf-8"), ("rows.csv", "utf-16"), ("rows.jsonl", "utf-16"), ("rows.json", "utf-8")],
)
def test_large_files_are_not_held_in_memory(tmp_path: Path, name: str, encoding: str) -> None:
    lines = [f"{number} {'x' * 2000}" for number in range(4000)]
    rows = (
        ["text", *(f'"{line}\nand more"' for line in lines)]
        if name.endswith(".csv")
        else [json.dumps({"text": line}) for line in lines]
    )
    text = f"[{', '.join(rows)}]" if name.endswith(".json") else "\n".join(rows)
    (tmp_path / name).write_text(text, encoding=encoding)
    found = source_files.read(tmp_path / name, name=name, source="a", possible=TEXT, stratum_field=None)
    tracemalloc.start()
    assert sum(isinstance(row, Row) for row in found) == len(lines)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 << 20, "of 8 MiB"


def test_other_encodings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("text,label\nGrüße,a\n".encode("cp1252"))
    assert "as files in Windows-1252 or Latin-1 have" in read(file)[1][0].reason
    file.write_bytes("text,label\nhello,a\n".encode("utf-16-le"))
    with pytest.raises(StageError, match="as UTF-16 without a byte order mark is"):
        read(file)


def test_json_lines_in_utf16(tmp_path: Path) -> None:
    assert isinstance(read_line(tmp_path, '{"text": "Grüße"}\r\n'.encode("utf-16"), TEXT), Row)


def test_bad_elements_of_a_json_list(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    number = b"1" * 5000
    file.write_bytes(
        b'[{"text": "a"}, {"text": "b", "text": "c"}, {"text": NaN}, 5, {"text": "\xff"}, '
        + number
        + b', {"text": "z"}]'
    )
    good, bad = read(file, TEXT)
    assert [row.line for row in good] == [1, 7]
    assert [(row.line, row.field) for row in bad] == [(2, "text"), (3, ""), (4, ""), (5, ""), (6, "")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"text": "a"}] {"text": "b"}', "goes on behind the end of its list, of 1 elements"),
        ('[{"text": "a"}]\n[{"text": "b"}]\n', "goes on behind the end of its list, of 1 elements"),
        ('[{"text": "a"}, {"text": "b', "element 2 is cut off: the file ends within it"),
        ('[{"text": "a"},', "element 2 is cut off: the file ends within it"),
        ('[{"text": "a"}', "is cut off: its list is not closed behind element 1"),
        ('[{"text": "a"}, {"text": b}]', "element 2 is not JSON: Expecting value"),
        ('[{"text": "a"} {"text": "b"}]', "no comma after element 1"),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}', "objects one behind the other"),
    ],
)
def test_a_json_file_whose_rows_cannot_be_told_apart_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(StageError, match=words):
        read(tmp_path / "rows.json", TEXT)


def _damaged_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])


def _no_gzip(path: Path) -> None:
    path.write_bytes(b'{"text": "a"}\n')


def _no_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1 and then nothing")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl.gz", _damaged_gzip),
        ("rows.jsonl.gz", _no_gzip),
        ("rows.parquet", _no_parquet),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    file = tmp_path / name
    write(file)
    with pytest.raises(StageError, match=name) as damaged:
        read(file, TEXT)
    assert (damaged.value.reason, damaged.value.exit_code) == ("UnreadableFile", ExitCode.BAD_DATA)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", gzip.compress(b'{"text": "a"}'), "packed with gzip: end its name with .gz"),
        ("rows.jsonl.gz", gzip.compress(gzip.compress(b'{"text": "a"}')), "once for each time"),
        ("rows.csv", b"PK\x03\x04 and more", "Excel workbook: unpack it, or save the sheet as CSV"),
        ("rows.jsonl.gz", b"PK\x03\x04 and more", "a zip archive"),
        ("rows.json", b"PAR1\x15 and more", "let its name end with .parquet"),
        (
            "rows.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("rows.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        ("rows.jsonl", b"<!DOCTYPE HTML><html>", "a web page"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_beginning(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """Not by what its bytes say as text: "Save the file as UTF-8" leads nowhere for a workbook."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=f"{name} is .*{words}") as refused:
        read(tmp_path / name, TEXT)
    assert refused.value.reason == "UnreadableFile"


def test_byte_order_marks_where_files_were_joined(tmp_path: Path) -> None:
    part = '{"text": "a"}\n'.encode("utf-8-sig")
    (tmp_path / "rows.jsonl").write_bytes(part + b"\xef\xbb\xbf\n" + part)
    good, bad = read(tmp_path / "rows.jsonl", TEXT)
    assert ([row.line for row in good], bad) == ([1, 3], [])


@pytest.mark.parametrize(
    ("head", "row", "possible"),
    [("text,label", "a,b", LABELLED), ('"text","label"', '"a","b"', LABELLED), ("text", "a", TEXT)],
)
def test_a_header_behind_a_byte_order_mark_is_no_example(
    tmp_path: Path, head: str, row: str, possible: Sequence[RowFormat]
) -> None:
    (tmp_path / "rows.csv").write_bytes(2 * f"{head}\r\n{row}\r\n".encode("utf-8-sig"))
    good, bad = read(tmp_path / "rows.csv", possible)
    assert [row.content.text for row in good] == ["a", "a"]
    assert [(row.line, row.reason.split(",")[0]) for row in bad] == [(3, "repeats the header")]


def test_a_line_of_csv_that_is_too_long_is_not_cut_into_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_files, "_LONGEST", 1 << 10)
    long = "words and " * 1000
    (tmp_path / "rows.csv").write_text(f"label,text\n1,a\n1,{long}\n0,b\n")
    good, bad = read(tmp_path / "rows.csv")
    assert [row.content.text for row in good] == ["a", "b"]
    assert [(row.line, row.reason.split(" than")[0]) for row in bad] == [(3, "is longer")]
    (tmp_path / "rows.csv").write_text(f"text\na\n{long}\nb\n")
    assert [len(rows) for rows in read(tmp_path / "rows.csv", TEXT)] == [2, 1]


def test_what_a_folder_holds_beside_files_is_told(tmp_path: Path) -> None:
    for name in ("data/a.jsonl", "more/b.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "..data").symlink_to(tmp_path / "more")
    os.mkfifo(tmp_path / "data" / "pipe")
    found, left_out = source_files.find(tmp_path / "data", uri="file:///data")
    assert [path.name for path in found] == ["a.jsonl"]
    assert left_out == ["linked/", "pipe"]
    (tmp_path / "data" / "c.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(StageError, match=r"c\.jsonl is a link to gone\.jsonl, which is not there") as missing:
        source_files.find(tmp_path / "data", uri="file:///data")
    assert missing.value.reason == "MissingFile"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name, TEXT) == ([], [])


# -- quarantine -------------------------------------------------------------------------------------------------------


def bad_row(line: int, reason: str = "is empty") -> BadRow:
    return BadRow(source="a", file="rows.jsonl", line=line, field="text", reason=reason, raw="{}")


def test_the_quarantine_counts_all_and_names_the_first_of_each_kind() -> None:
    quarantine = Quarantine(limit=2)
    for line in range(1, 6):
        quarantine.add(bad_row(line, "is missing" if line == 5 else "is empty"))
        assert quarantine.exceeded == (line > 2)
    error = quarantine.error(rows_read=100)
    assert (error.reason, error.exit_code) == ("TooManyBadRows", ExitCode.BAD_DATA)
    assert error.message.startswith(
        'data.maxBadRows: 2, and 5 of 100 rows cannot be used: rows.jsonl line 1: "text" is empty; rows.jsonl line 5:'
        ' "text" is missing; and 3 more'
    )
    assert len(quarantine.to_text().splitlines()) == 5


def test_the_quarantine_keeps_what_the_limit_allows() -> None:
    quarantine = Quarantine(limit=1500)
    for line in range(3000):
        quarantine.add(bad_row(line))
    assert (quarantine.count, len(quarantine.rows)) == (3000, 1500)
