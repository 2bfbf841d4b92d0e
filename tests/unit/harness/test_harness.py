"""The parts of the test harness that need no Kubernetes: what they promise in their docstrings."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.harness.errors import HarnessError, MissingPrerequisite, Timeout
from tests.harness.processes import Daemon, ProcessId, read_record, write_record
from tests.harness.storage import Storage
from tests.harness.store import digest
from tests.harness.tools import ToolModule
from tests.harness.waiting import wait_until


def test_a_wait_ends_in_time_and_says_what_it_saw() -> None:
    with pytest.raises(Timeout, match=r"the moon: not within 0\.05 s\nlast seen: a cloud"):
        wait_until(lambda: None, what="the moon", timeout_s=0.05, interval_s=0.01, explain=lambda: "last seen: a cloud")


def test_a_wait_returns_what_was_found() -> None:
    answers = iter([None, "", "found"])
    assert wait_until(lambda: next(answers), what="x", timeout_s=5, interval_s=0) == "found"


@pytest.mark.parametrize("change", ["content", "name", "mode", "moved"])
def test_a_digest_changes_with_a_tree(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "code"
    (folder / "sub").mkdir(parents=True)
    file = folder / "sub" / "a.py"
    file.write_text("1")
    before = digest(paths=[folder])
    match change:
        case "content":
            file.write_text("2")
        case "name":
            file.rename(file.with_name("b.py"))
        case "mode":
            file.chmod(0o755)
        case "moved":
            file.rename(folder / "a.py")
    assert digest(paths=[folder]) != before


def test_a_digest_ignores_byte_code_and_where_the_checkout_is(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "code").mkdir(parents=True)
        (tmp_path / root / "code" / "a.py").write_text("1")
    (tmp_path / "two" / "code" / "__pycache__").mkdir()
    (tmp_path / "two" / "code" / "__pycache__" / "a.pyc").write_text("x")
    assert digest(paths=[tmp_path / "one" / "code"]) == digest(paths=[tmp_path / "two" / "code"])


def test_a_process_with_a_recycled_pid_is_another_one(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        identity = ProcessId.of(pid=process.pid)
        write_record(tmp_path / "sleep.json", identity)
        assert read_record(tmp_path / "sleep.json") == identity
        write_record(tmp_path / "sleep.json", ProcessId(pid=process.pid, started=identity.started - 1))
        assert read_record(tmp_path / "sleep.json") is None
    finally:
        process.kill()
        process.wait()
    assert not identity.alive()


def test_a_daemon_is_found_by_another_object_and_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(60)"]
    Daemon(name="sleeper", command=command, folder=tmp_path).start()
    again = Daemon(name="sleeper", command=command, folder=tmp_path)
    process = again.process()
    assert process is not None
    with pytest.raises(HarnessError, match="sleeper runs already"):
        again.start()
    wait_until(lambda: "started" in again.log.read_text(), what="its first line", timeout_s=10)
    again.stop()
    assert not process.alive()
    with pytest.raises(HarnessError, match=r"sleeper does not run\n--- .*/sleeper.log \(last lines\) ---\nstarted"):
        again.require_alive()


def test_tools_are_built_anew_when_their_sources_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    plain = ToolModule(name="etcd", programs={})
    flagged = ToolModule(name="etcd", programs={}, linker_flags="-X a=b")
    folders = {
        plain.built(go_version="go1.26.0"),
        plain.built(go_version="go1.26.1"),
        flagged.built(go_version="go1.26.0"),
    }
    assert len(folders) == 3
    plain.built(go_version="go1.26.0").mkdir(parents=True)
    assert plain.built(go_version=None) == plain.built(go_version="go1.26.0")


def test_missing_go_is_a_reason_to_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.harness import prerequisites, tools

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(tools, "go_version", lambda: None)
    with pytest.raises(MissingPrerequisite, match="Go is missing"):
        prerequisites.require_for_api()


def test_missing_debian_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.harness import prerequisites

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MissingPrerequisite, match=r"apt-get install --no-install-recommends containerd$"):
        prerequisites.install_debian_packages({"containerd": "/nonexistent/a", "coreutils": "/bin/true"})


def test_an_images_layers_are_chained(tmp_path: Path) -> None:
    identity = "ab" * 32
    config = json.dumps({"rootfs": {"diff_ids": ["sha256:one", "sha256:two"]}})
    storage = tmp_path / "storage"
    _write(storage / "overlay-images" / "images.json", [{"id": identity, "names": ["localhost/x:1"], "layer": "upper"}])
    layers = [
        {"id": "lower", "diff-digest": "sha256:one"},
        {"id": "upper", "parent": "lower", "diff-digest": "sha256:two"},
    ]
    _write(storage / "overlay-layers" / "layers.json", layers)
    data = storage / "overlay-images" / identity
    data.mkdir()
    key = base64.b64encode(f"sha256:{identity}".encode()).decode()
    (data / "manifest").write_text("{}")
    (data / f"={key}").write_text(config)
    image = Storage(folder=tmp_path).image("localhost/x:1")
    assert [layer.folder for layer in image.layers] == [
        storage / "overlay" / name / "diff" for name in ("lower", "upper")
    ]
    assert [layer.parent for layer in image.layers] == ["", "sha256:one"]
    # sha256("sha256:one sha256:two"), the specification's rule for the chain id of the second layer
    assert image.layers[1].chain_id == "sha256:3a5439ca836ab36056ee07b434b26004a1764231b4d9ba85a6c21f5d3c4f35e5"
    with pytest.raises(HarnessError, match="localhost/y:1 is not built"):
        Storage(folder=tmp_path).image("localhost/y:1")


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
