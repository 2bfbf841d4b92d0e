"""What is served is what was recorded: the cache, several servers at once, links for other servers, probes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.s3 import serve_s3
from tests.trainer.serving.server_process import order_for
from tests.trainer.small_run import SmallRun, small_model

from finetune_api.run import MIDDLEWARE, MIDDLEWARE_FOLDER, ServeOrder
from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.held_out_probes import FILE_NAME, MOST_PROBES, make_probes, read_probes, to_text
from finetune_trainer.process.errors import StageError
from finetune_trainer.serving.artifact import link_files, load, verified_files
from finetune_trainer.store.storage import Storage


def order_of(served: dict[str, Any], folder: Path, **changes: Any) -> tuple[ServeOrder, Storage]:
    order = ServeOrder.model_validate(order_for(served, folder=folder, **changes))
    return order, Storage(locations=order.locations)


def test_local_files_are_verified_and_used_where_they_are(small_chat: dict[str, Any], tmp_path: Path) -> None:
    order, storage = order_of(small_chat, tmp_path)
    with verified_files(order, storage=storage) as files:
        assert f"file://{files.model}" == order.artifact.uri
    assert not (tmp_path / "cache").exists()
    folder = link_files(order, storage=storage)
    link_files(order, storage=storage)  # a container that is started again
    assert (folder / "model" / "adapter_config.json").exists()
    assert (folder / "base" / "config.json").exists()
    module = MIDDLEWARE.partition(".")[0]
    code = f"import sys; sys.path.insert(0, {str(folder / MIDDLEWARE_FOLDER)!r}); import {module} as it"
    made = "print(len(it.OnlyTheModel(None).probes))"  # in vLLM's image nothing else of ours is installed
    done = subprocess.run([sys.executable, "-ISc", f"{code}; {made}"], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100
    loaded = load(order, storage=storage)
    assert not hasattr(loaded.model, "peft_config"), "merged"
    assert len(loaded.probes) == 3


def test_a_remote_artifact_is_copied_once_also_by_servers_that_start_together(
    small_chat: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(small_chat["artifact"]["uri"].removeprefix("file://"))
    with serve_s3(tmp_path, bucket="models") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = tmp_path / "buckets" / "models"
        shutil.copytree(source, bucket / "run" / "model")
        artifact = small_chat["artifact"] | {"uri": "s3://models/run/model"}

        def fetch(number: int) -> str:
            order, storage = order_of(small_chat, tmp_path, artifact=artifact, locations=locations)
            with verified_files(order, storage=storage) as files:
                assert read_probes(files.model)
                return files.model.name

        locations = order_for(small_chat, folder=tmp_path)["locations"]
        locations["allowedRoots"] = [*locations["allowedRoots"], "s3://models"]
        with ThreadPoolExecutor(4) as pool:
            names = set(pool.map(fetch, range(4)))
        cached = tmp_path / "cache" / "served"
        assert names == {path.name for path in cached.iterdir()} == {artifact["digest"].removeprefix("sha256:")}

        shutil.rmtree(bucket / "run")
        assert fetch(0) in names, "it is in the cache"
        shutil.rmtree(cached)
        with pytest.raises(StageError) as gone:
            fetch(0)
        assert gone.value.exit_code == 66

        shutil.copytree(source, bucket / "run" / "model")
        (bucket / "run" / "model" / "adapter_config.json").write_text("{}")
        with pytest.raises(StageError) as torn:
            fetch(0)
        assert torn.value.reason == "ArtifactTorn"
        assert list(cached.iterdir()) == [], "what is not whole is not left behind"


# -- probes -----------------------------------------------------------------------------------------------------------


def chat(number: int, answer: str) -> Example:
    turns = (Message(role="user", content=f"question {number}"), Message(role="assistant", content=answer))
    return Example(id=f"{number:04}", group="g", source="s", messages=turns)


def test_probes_of_a_test_split(tmp_path: Path) -> None:
    classes = [Example(id=str(n), group="g", source="s", text=f"text {n % 300}", label="a") for n in range(900)]
    probes = make_probes(classes)
    assert len({probe.request["input"] for probe in probes}) == len(probes) == MOST_PROBES
    assert (probes[0].path, probes[0].label) == ("/v1/classify", "a")
    (tmp_path / FILE_NAME).write_text(to_text(probes))
    assert read_probes(tmp_path) == probes
    assert make_probes(list(reversed(classes))) == probes
    assert read_probes(tmp_path / "older") == ()


def test_texts_with_any_line_separator_come_back_as_they_were(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj"
    probes = make_probes([chat(n, f"{odd} {n}") for n in range(3)] + [chat(9, odd)])
    asked = make_probes([Example(id="1", group="g", source="s", text=odd, label=odd)])
    for kept in (probes, asked):
        text = to_text(kept)
        (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
        assert read_probes(tmp_path) == kept
        assert len(text.splitlines()) == len(kept), "readers that are not ours break at them too"
    assert asked[0].request["input"] == asked[0].label == odd


def test_an_answer_is_a_label_only_where_answers_come_from_a_closed_set() -> None:
    closed = make_probes([chat(n, ("food", "money")[n % 2]) for n in range(8)])
    assert {probe.label for probe in closed} == {"food", "money"}
    assert closed[0].request["messages"] == [{"role": "user", "content": "question 0"}]
    free = make_probes([chat(n, f"a free answer, number {n}") for n in range(8)])
    assert {probe.label for probe in free} == {None}


def test_very_long_prompts_are_left_out_and_texts_are_begun() -> None:
    texts = [Example(id="1", group="g", source="s", text="once upon a time there was a king")]
    assert make_probes(texts)[0].request["prompt"] == "once upon a time"
    long = Example(id="2", group="g", source="s", text="x" * 9000, label="a")
    assert make_probes([long]) == ()


def test_training_puts_the_test_split_s_prompts_into_the_model(tmp_path: Path) -> None:
    base = small_model(to=tmp_path / "base")
    run = SmallRun(root=tmp_path / "run", base=base, overrides={"maxSteps": 1})
    run.train(run.order(run.prepare()))
    test_split = (run.folder / "data" / "test.jsonl").read_text().splitlines()
    asked = [json.loads(line)["messages"][:-1] for line in test_split]
    probes = read_probes(run.folder / "model")
    assert sorted(probe.request["messages"][0]["content"] for probe in probes) == sorted(
        messages[0]["content"] for messages in asked
    )
    complete = json.loads((run.folder / "model" / "COMPLETE").read_text())
    assert FILE_NAME in {file["path"] for file in complete["files"]}, "the digest covers them"
