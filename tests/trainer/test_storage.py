"""Confinement, atomic writes, and finished folders told from torn ones, on the local file system."""

from __future__ import annotations

import hashlib
import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.results import ExitCode
from finetune_api.run import Locations
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


def storage_in(folder: Path, *, roots: list[str] | None = None, mounts: dict[str, str] | None = None) -> Storage:
    return Storage(
        locations=Locations(
            run=f"file://{folder}/run", cache=f"file://{folder}/cache", allowed_roots=roots or [], mounts=mounts or {}
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return storage_in(tmp_path)


def published(storage: Storage, name: str = "model") -> str:
    uri = f"{storage.locations.run}/{name}"
    with storage.staging_folder(uri) as folder:
        (folder / "weights.safetensors").write_bytes(b"0123456789")
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
        storage.publish(folder, to=uri, input_digest="sha256:input", extra={"step": 3})
    return uri


# -- what may be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roots", "uri"),
    [
        (["file:///{0}/data"], "file:///{0}/data/rows.jsonl"),
        (["file:///{0}/data/"], "file:///{0}//data/./rows.jsonl"),
        (["file:///{0}/data/rows.jsonl"], "file:///{0}/data/rows.jsonl"),
        (["pvc://claim"], "pvc://claim/rows.jsonl"),
        (["pvc://"], "pvc://claim/rows.jsonl"),
        ([], "pvc://claim/rows.jsonl"),
        (["s3://bucket"], "file:///{0}/run/own.txt"),
    ],
)
def test_reads_inside_of_the_allowed_roots(tmp_path: Path, roots: list[str], uri: str) -> None:
    for name in ("data", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("rows.jsonl" if name == "data" else "own.txt")).write_text("content")
    inside = str(tmp_path).lstrip("/")
    storage = storage_in(
        tmp_path, roots=[root.format(inside) for root in roots], mounts={"claim": str(tmp_path / "data")}
    )
    assert storage.read_text(uri.format(inside)) == "content"


@pytest.mark.parametrize(
    ("roots", "uri", "reason"),
    [
        ([], "file:///etc/passwd", "OutsideAllowedRoots"),
        (["s3://acme-data"], "s3://acme-data-secret/x", "OutsideAllowedRoots"),
        (["s3://acme-data/public"], "s3://acme-data/public-not/x", "OutsideAllowedRoots"),
        (["s3://acme-data/public"], "s3://acme-data/public/../private", "BadUri"),
        (["hf://acme"], "hf://other/model", "OutsideAllowedRoots"),
        (["file:///data"], "pvc://claim/x", "OutsideAllowedRoots"),
        (["pvc://other"], "pvc://claim/x", "OutsideAllowedRoots"),
        ([], "pvc://unknown/x", "ClaimNotMounted"),
        ([], "http://example.com/x", "BadUri"),
        ([], "file://relative/x", "BadUri"),
        ([], "rows.jsonl", "BadUri"),
        ([], "s3://", "BadUri"),
        ([], "pvc://claim/a\x00b", "BadUri"),
    ],
)
def test_refuses_everything_else(tmp_path: Path, roots: list[str], uri: str, reason: str) -> None:
    storage = storage_in(tmp_path, roots=roots, mounts={"claim": str(tmp_path / "mount")})
    with pytest.raises(StageError) as refused:
        storage.exists(uri)
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.BAD_CONFIGURATION)


@pytest.mark.parametrize("link", ["secret.txt", "folder"])
def test_a_link_does_not_lead_out_of_a_mount(tmp_path: Path, link: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (tmp_path / "mount").mkdir()
    target = tmp_path / "outside" / ("" if link == "folder" else "secret.txt")
    (tmp_path / "mount" / link).symlink_to(target)
    storage = storage_in(tmp_path, mounts={"claim": str(tmp_path / "mount")})
    with pytest.raises(StageError, match="leads to"):
        storage.read_text("pvc://claim/" + ("folder/secret.txt" if link == "folder" else link))
    with pytest.raises(StageError, match="leads to"):
        storage.list_files("pvc://claim")


def test_a_link_inside_of_a_mount_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "real.txt").write_text("content")
    (tmp_path / "mount" / "link.txt").symlink_to("real.txt")
    storage = storage_in(tmp_path, mounts={"claim": str(tmp_path / "mount")})
    assert storage.read_text("pvc://claim/link.txt") == "content"


@pytest.mark.parametrize("name", ["/rows.jsonl", "a//rows.jsonl", "a/../../rows.jsonl", "./rows.jsonl"])
def test_an_object_whose_name_is_no_path_is_named(tmp_path: Path, name: str) -> None:
    """`s3://bucket/data//rows.jsonl` is another object than `data/rows.jsonl`; as a path it would be `/rows.jsonl`."""

    class Objects:
        def invalidate_cache(self) -> None: ...

        def find(self, key: str, *, detail: bool) -> dict[str, Any]:
            return {f"{key}/{name}": {"size": 1}, f"{key}/rows.jsonl": {"size": 1}}

        def exists(self, key: str) -> bool:
            return True

        isdir = exists

        def open(self, key: str, mode: str) -> io.BytesIO:
            return io.BytesIO(key.encode())

    storage = storage_in(tmp_path)
    storage._filesystems["s3"] = Objects()
    with pytest.raises(StageError, match="rename the object") as refused, storage.local_copy("s3://bucket/data"):
        pass
    assert (refused.value.reason, repr(name) in refused.value.message) == ("BadFileName", True)


def test_a_missing_file_says_what_to_do(storage: Storage) -> None:
    with pytest.raises(StageError, match=r"run/none\.txt does not exist.*correct the URI") as missing:
        storage.read_text(f"{storage.locations.run}/none.txt")
    assert missing.value.exit_code == ExitCode.INPUT_NOT_FOUND


# -- what may be written ----------------------------------------------------------------------------------------------


def test_writes_only_into_the_run_and_the_cache(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, roots=[f"file://{tmp_path}"])
    storage.write_atomic(f"file://{tmp_path}/cache/entry", "content")
    with pytest.raises(StageError) as refused:
        storage.write_atomic(f"file://{tmp_path}/elsewhere", "content")
    assert refused.value.reason == "OutsideRunFolder"
    assert not (tmp_path / "elsewhere").exists()


def test_an_atomic_write_replaces_and_leaves_nothing_behind(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.run}/deep/file.txt"
    storage.write_atomic(uri, "old")
    storage.write_atomic(uri, "new")
    assert storage.read_text(uri) == "new"
    assert names(tmp_path / "run" / "deep") == ["file.txt"]


def test_an_atomic_write_that_fails_keeps_the_old_content(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.run}/taken"
    (tmp_path / "run" / "taken").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        storage.write_atomic(uri, "content")
    assert names(tmp_path / "run") == ["taken"]


# -- finished folders -------------------------------------------------------------------------------------------------


def test_the_digest_is_the_documented_one(storage: Storage, tmp_path: Path) -> None:
    complete = storage.read_complete(published(storage))
    assert complete is not None
    lines = [
        f"{hashlib.sha256(b'0123456789').hexdigest()}  weights.safetensors\n",
        f"{hashlib.sha256(b'{}').hexdigest()}  sub/config.json\n",
    ]
    assert complete.digest == "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    shell = "find * -type f ! -path COMPLETE | xargs sha256sum | LC_ALL=C sort | sha256sum"
    printed = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path / "run" / "model", capture_output=True, text=True, check=True
    ).stdout
    assert complete.digest == "sha256:" + printed.split()[0]


def test_a_published_folder_is_complete(storage: Storage) -> None:
    complete = storage.read_complete(published(storage))
    assert complete is not None
    assert (complete.input_digest, complete.extra, complete.size_bytes) == ("sha256:input", {"step": 3}, 12)
    assert [file.path for file in complete.files] == ["sub/config.json", "weights.safetensors"]


def test_what_other_users_must_read_is_readable(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.run}/model"
    with storage.staging_folder(uri) as folder:
        (folder / "weights").write_text("x")
        (folder / "weights").chmod(0o600)
        storage.publish(folder, to=uri, input_digest="sha256:input", extra={})
    assert (tmp_path / "run" / "model" / "weights").stat().st_mode & 0o777 == 0o644


def _truncate(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"01234")


def _flip(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"0123456780")


def _remove(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def _add(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"")


def _unmark(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def _cut_mark(folder: Path) -> None:
    text = (folder / "COMPLETE").read_text()
    (folder / "COMPLETE").write_text(text[: len(text) // 2])


def _forge_mark(folder: Path) -> None:
    text = (folder / "COMPLETE").read_text()
    (folder / "COMPLETE").write_text(text.replace('"size": 2', '"size": 3').replace('"sha256:', '"sha256:0', 1))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "weights.safetensors has 5 bytes instead of 10"),
        (_flip, "weights.safetensors has another sha256"),
        (_remove, "weights.safetensors is missing"),
        (_add, "extra.bin is not in its COMPLETE"),
        (_unmark, "has no COMPLETE"),
        (_cut_mark, "cannot be read"),
        (_forge_mark, "its digest does not fit"),
    ],
)
def test_a_torn_folder_is_ignored_and_named(
    storage: Storage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    named: str,
) -> None:
    uri = published(storage)
    damage(tmp_path / "run" / "model")
    assert storage.read_complete(uri) is None
    assert uri in caplog.text
    assert named in caplog.text


def test_no_folder_is_not_a_torn_folder(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    assert storage.read_complete(f"{storage.locations.run}/none") is None
    assert caplog.text == ""


def test_publishing_replaces_what_was_there(storage: Storage, tmp_path: Path) -> None:
    uri = published(storage)
    with storage.staging_folder(uri) as folder:
        (folder / "other").write_text("new")
        storage.publish(folder, to=uri, input_digest="sha256:other", extra={})
    assert names(tmp_path / "run" / "model") == ["COMPLETE", "other"]
    assert names(tmp_path / "run") == ["model"]


def test_a_cache_entry_that_others_may_be_reading_stays(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.cache}/bases/1"

    def publish(content: str, input_digest: str) -> None:
        with storage.staging_folder(uri) as folder:
            (folder / "weights").write_text(content)
            storage.publish(folder, to=uri, input_digest=input_digest, extra={})

    publish("first", "sha256:input")
    publish("second", "sha256:input")
    assert storage.read_text(f"{uri}/weights") == "first"
    publish("third", "sha256:other")
    assert storage.read_text(f"{uri}/weights") == "third"
    (tmp_path / "cache/bases/1/weights").write_text("torn")
    publish("fourth", "sha256:other")
    assert storage.read_text(f"{uri}/weights") == "fourth"


def test_staging_is_removed_after_a_failure_and_invisible_before(storage: Storage, tmp_path: Path) -> None:
    uri = f"{storage.locations.run}/model"
    with pytest.raises(RuntimeError), storage.staging_folder(uri) as folder:
        (folder / "half").write_text("x")
        assert storage.list_files(storage.locations.run) == []
        raise RuntimeError
    assert names(tmp_path / "run") == []


def test_what_a_killed_attempt_left_is_removed(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "run" / ".staging-model-dead").mkdir(parents=True)
    (tmp_path / "run" / ".staging-model-dead" / "half").write_text("x")
    (tmp_path / "cache" / ".staging-base-alive").mkdir(parents=True)
    published(storage)
    with storage.staging_folder(f"{storage.locations.cache}/base"):
        # In the shared cache it may belong to another run at work.
        assert (tmp_path / "cache" / ".staging-base-alive").exists()
    assert names(tmp_path / "run") == ["model"]
