"""The same promises on an object store, with a real S3 server (versitygw) on a loopback port."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer.s3 import serve_s3

from finetune_api.results import ExitCode
from finetune_api.run import Locations
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The client's variables for a running server with the bucket `models`."""
    with serve_s3(tmp_path_factory.mktemp("s3"), bucket="models") as environment:
        yield environment


@pytest.fixture
def storage(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    root = f"s3://models/{request.node.name}"
    return Storage(locations=Locations(run=f"{root}/run", cache=f"{root}/cache", allowed_roots=["s3://models"]))


def test_publish_read_and_reuse(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.run}/model"
    assert storage.read_complete(uri) is None
    with storage.staging_folder(uri) as folder:
        (folder / "weights").write_bytes(os.urandom(3 << 20))
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
        written = storage.publish(folder, to=uri, input_digest="sha256:input", extra={"step": 3})
    assert storage.read_complete(uri) == written
    assert storage.is_folder(uri)
    with storage.finished_copy(uri) as found:
        assert found is not None
        copy, manifest = found
        assert manifest == written
        assert (copy / "sub" / "config.json").read_text() == "{}"
    assert not copy.exists()


def test_a_lost_or_changed_object_makes_the_folder_torn(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"{storage.locations.run}/model"
    for damage, named in ((b"abcdefghij", "another sha256"), (b"abc", "3 bytes instead of 10"), (None, "is missing")):
        with storage.staging_folder(uri) as folder:
            (folder / "weights").write_bytes(b"0123456789")
            (folder / "config").write_text("x")
            storage.publish(folder, to=uri, input_digest="sha256:input", extra={})
        if damage is None:
            storage.remove(f"{uri}/weights")
        else:
            storage.write_atomic(f"{uri}/weights", damage)
        caplog.clear()
        assert storage.read_complete(uri) is None
        assert named in caplog.text
        with storage.finished_copy(uri) as copy:
            assert copy is None
        assert caplog.text.count(named.split(" instead")[0]) == 2


def test_publishing_replaces_what_was_there(storage: Storage) -> None:
    uri = f"{storage.locations.run}/model"
    for name in ("old", "new"):
        with storage.staging_folder(uri) as folder:
            (folder / name).write_text(name)
            storage.publish(folder, to=uri, input_digest="sha256:input", extra={})
    assert [entry.path for entry in storage.list_files(uri)] == ["COMPLETE", "new"]


def test_another_process_sees_a_change_at_once(storage: Storage) -> None:
    uri = f"{storage.locations.run}/late.txt"
    assert not storage.exists(uri)
    Storage(locations=storage.locations).write_atomic(uri, "content")
    assert storage.exists(uri)
    assert storage.read_text(uri) == "content"


@pytest.mark.parametrize(
    ("uri", "reason", "code"),
    [
        ("s3://models/none.jsonl", "InputNotFound", ExitCode.INPUT_NOT_FOUND),
        ("s3://nobucket/none.jsonl", "OutsideAllowedRoots", ExitCode.BAD_CONFIGURATION),
    ],
)
def test_what_is_not_there(storage: Storage, uri: str, reason: str, code: ExitCode) -> None:
    with pytest.raises(StageError) as refused:
        storage.read_text(uri)
    assert (refused.value.reason, refused.value.exit_code) == (reason, code)


def test_wrong_credentials_are_not_found_to_be_an_empty_folder(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StageError) as refused:
        storage.read_text("s3://models/rows.jsonl")
    assert (refused.value.reason, refused.value.exit_code) == ("InputForbidden", ExitCode.INPUT_NOT_FOUND)


def test_a_server_that_does_not_answer_is_worth_another_attempt(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StageError) as failed:
            storage.read_text("s3://models/rows.jsonl")
    assert (failed.value.reason, failed.value.exit_code) == ("StorageUnavailable", ExitCode.INTERNAL_ERROR)
