"""Prepare with everything elsewhere: sources and run on a real S3 server, sources on a hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo import assets
from tests.trainer import hub
from tests.trainer.s3 import serve_s3

from finetune_api.results import PrepareResult
from finetune_api.run import PrepareRun
from finetune_trainer.data.dataset import data_folder, read_manifest, read_split
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


def order(source: str, *, root: str) -> PrepareRun:
    return PrepareRun.model_validate(
        {
            "identity": {"namespace": "ml", "job": "router", "uid": "1", "attempt": 1},
            "locations": {
                "run": f"{root}/runs/router",
                "cache": f"{root}/cache",
                "allowed_roots": [f"file://{assets.minilm()}", "s3://models", "hf://datasets/acme"],
            },
            "model": {"uri": f"file://{assets.minilm()}", "task": "SequenceClassification"},
            "sources": [{"name": "topics", "uri": source}],
            "max_bad_rows": 0,
            "max_truncated_fraction": 0.01,
            "max_length": 128,
            "split": {"fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}, "salt": "ml/router"},
        }
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> PrepareResult:
    """What the same rows give on the local disk."""
    folder = tmp_path_factory.mktemp("local")
    assets.topic_labelled(folder / "topics.jsonl")
    run = order(f"file://{folder}/topics.jsonl", root=f"file://{folder}")
    allowed = [*run.locations.allowed_roots, f"file://{folder}"]
    return prepare(run.model_copy(update={"locations": run.locations.model_copy(update={"allowed_roots": allowed})}))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The root of an empty bucket."""
    with serve_s3(tmp_path, bucket="models") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://models"


def test_sources_and_run_on_an_object_store(tmp_path: Path, s3: str, local: PrepareResult) -> None:
    run = order(f"{s3}/data/topics.jsonl", root=s3)
    storage = Storage(locations=run.locations)
    # A user's own upload, so past the confinement that lets a run write into its own folders only.
    (tmp_path / "buckets/models/data").mkdir()
    assets.topic_labelled(tmp_path / "buckets/models/data/topics.jsonl")
    first = prepare(run)
    assert first.data_digest == local.data_digest
    data = data_folder(run.locations.run)
    assert len(read_split(storage, data=data, split="train")) == first.summary.rows.train
    assert read_manifest(storage, uri=first.manifest).digest == first.data_digest
    assert prepare(run) == first.model_copy(update={"reused": True})

    storage.remove(f"{data}/test.jsonl")
    again = prepare(run)
    assert (again.reused, again.data_digest) == (False, first.data_digest)
    assert storage.read_complete(data) is not None


def test_a_data_set_of_the_hub(tmp_path: Path, local: PrepareResult, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    rows = assets.topic_labelled(tmp_path / "topics.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("train.jsonl", rows[:500]), ("more/train.jsonl", rows[500:])):
        (repository / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "data" / name).write_text("".join(part))
    (repository / "README.md").write_text("# Topics")
    (repository / "script.py").write_text("raise SystemExit")
    with hub.serve(repository="acme/topics", folder=repository, kind="datasets") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        whole = prepare(order("hf://datasets/acme/topics", root=f"file://{tmp_path}"))
        assert whole.data_digest == local.data_digest
        assert sorted(served.fetched) == ["data/more/train.jsonl", "data/train.jsonl"]
        assert "that are not read (2): 'README.md', 'script.py'; rows are read from" in whole.remarks[0]
        served.fetched.clear()
        one_file = prepare(order("hf://datasets/acme/topics@v1/data/train.jsonl", root=f"file://{tmp_path}"))
        assert one_file.summary.rows_read == 500
        assert served.fetched == ["data/train.jsonl"]
        for uri, reason in (
            ("hf://datasets/acme/topics/none", "InputNotFound"),
            ("hf://datasets/acme/other", "InputNotFound"),
            ("hf://datasets/acme/topics@v9", "InputNotFound"),
            ("hf://datasets/acme", "BadUri"),
        ):
            with pytest.raises(StageError) as refused:
                prepare(order(uri, root=f"file://{tmp_path}"))
            assert refused.value.reason == reason, uri
            assert refused.value.message.startswith("data.sources[0].uri: hf://")
    assert json.loads((tmp_path / "runs/router/data/manifest.json").read_text())["digest"] == one_file.data_digest
