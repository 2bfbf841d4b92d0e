"""Commands where output or files are not what one hopes for: no traceback reaches a user, and no status lies."""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml
from tests.patience import HANGS_S
from tests.unit.cli.endpoints import canary
from tests.unit.cli.jobs import ended, job_with
from tests.wrong_manifests import valid

from finetune_api.modelversion import ModelVersion
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.errors import ENDS, EXIT_STATUS_OF_PHASE, ExitStatus
from finetune_operator.cli.parser import build_parser
from finetune_operator.core.ports import Manifest
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome

WORDS = "größe → 大"
SHOWING = (
    ["get", "jobs"],
    ["get", "versions", "-o", "yaml"],
    ["get", "endpoints", "-o", "wide"],
    ["describe", "job", "router"],
    ["describe", "version", "router-1"],
    ["describe", "endpoint", "router"],
    ["explain", "job", "router"],
    ["explain", "endpoint", "router"],
    ["report", "router"],
    ["logs", "router"],
    ["pause", "router"],
    ["approve", "router"],
    ["validate", "-f", "job.yaml"],
    ["completion", "bash"],
)
"""Commands that show a user's own words."""
ALL_OF_THEM = """
import json, sys
from finetune_operator.cli import doctor
from finetune_operator.cli.__main__ import main
doctor._TORCH_PROBE = "import json; print(json.dumps({'version': '2.15.0', 'gpus': []}))"  # torch itself takes seconds
print(json.dumps([main(command) for command in json.loads(sys.argv[1])]))
"""


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHome:
    """A home with an object of each kind, whose messages no ASCII terminal can show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    home = LocalHome.at(".finetune")
    job = ended().to_dict()
    job["status"]["message"] = job["status"]["conditions"][0]["message"] = WORDS
    job["status"]["evaluation"]["results"][0] |= {"verdict": "Inconclusive", "reason": WORDS}
    version = valid("version")
    version["spec"]["base"]["licence"] = WORDS
    endpoint = canary(message=WORDS).to_dict()
    for manifest in (job, ModelVersion.model_validate(version).to_dict(), endpoint):
        manifest["metadata"]["namespace"] = "default"
        LocalCluster(home=home).store.write(manifest)
    log = home.logs(namespace="default", job="router") / "router-train-1-0-ab12c.log"
    log.parent.mkdir(parents=True)
    log.write_text(WORDS)
    Path("job.yaml").write_text(yaml.safe_dump(valid("job")))
    Path("wrong.yaml").write_text(yaml.safe_dump({**valid("job"), "spec": {}}))
    return home


def run(*command: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a process; `redirected`: of which streams, in the shell's words."""
    arguments = [sys.executable, "-m", "finetune_operator.cli", *command]
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {redirected}', "bash", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        text=True,
        timeout=HANGS_S,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}],
    ids=["ascii", "narrow"],
)
def test_every_command_shows_what_it_can(environment: dict[str, str]) -> None:
    commands = json.dumps([*SHOWING, ["doctor", "--local"]])
    finished = subprocess.run(
        [sys.executable, "-c", ALL_OF_THEM, commands],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=HANGS_S,
        check=False,
    )
    said = (finished.stdout + finished.stderr).decode()
    assert "Traceback" not in said
    assert json.loads(said[said.rindex("[") : said.rindex("]") + 1])[: len(SHOWING)] == [0] * len(SHOWING), said


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["get", "jobs"], ExitStatus.DONE),
        (["logs", "router"], ExitStatus.DONE),
        (["validate", "-f", "job.yaml", "-f", "wrong.yaml"], ExitStatus.BAD_INPUT),
        (["approve", "router", "--wait", "--timeout", "1"], ExitStatus.FAILED),
    ],
)
def test_a_reader_that_leaves_changes_no_status(command: list[str], status: ExitStatus) -> None:
    finished = run(*command, redirected="2>&1 > >(exec >&- <&-; true)", PYTHONUNBUFFERED="1")
    assert finished.returncode == status, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "Exception ignored" not in finished.stderr


@pytest.mark.parametrize("command", [["get", "jobs"], ["logs", "router"]])
def test_a_full_disk_behind_standard_output_is_said(command: list[str]) -> None:
    finished = run(*command, redirected="> /dev/full")
    assert finished.returncode == ExitStatus.FAILED
    assert finished.stderr == "error: standard output: No space left on device\n"


def test_a_full_disk_behind_both_outputs_is_told_by_the_status() -> None:
    assert run("get", "jobs", redirected="> /dev/full 2>&1").returncode == ExitStatus.FAILED


@pytest.mark.parametrize(
    ("command", "closed", "status"),
    [
        (["logs", "router"], "<&- >&-", 0),
        (["validate", "-f", "-"], "<&- >&-", 2),
        (["validate", "-f", "-"], "<&- >&- 2>&-", 2),
        (["run", "-f", "-"], "<&- >&-", 2),
    ],
)
def test_closed_streams_are_as_good_as_empty_ones(command: list[str], closed: str, status: int) -> None:
    finished = run(*command, redirected=closed)
    assert finished.returncode == status, finished.stderr
    assert "Traceback" not in finished.stderr


def test_whoever_has_no_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A container's arbitrary user."""

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert main(["get", "jobs"]) == 0
    assert main(["approve", "router"]) == 0
    assert main(["get", "jobs", "--home", "~/nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@contextmanager
def small_files() -> Iterator[None]:
    """As on a full disk: nothing longer than this can be written, by nobody in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("home", "where"), [("/dev/null/home", nullcontext), ("full", small_files)])
def test_a_home_that_cannot_be_written_is_said(
    home: str, where: Callable[[], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = {**valid("endpoint"), "spec": {"task": "Chat", "serving": {"runtime": "Transformers"}}}
    job = job_with({}, data={"sources": [{"name": "a", "uri": f"file://{Path.cwd()}/job.yaml"}]}).to_dict()
    job = {key: job[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "other"}}
    job["spec"] |= {"model": {"uri": f"file://{Path.cwd()}", "task": "Chat"}, "artifacts": {"uri": "file:///tmp/x"}}
    job["spec"].pop("endpointRef", None)
    job["spec"].pop("compute", None)
    job["spec"]["evaluation"] = {"metrics": [{"name": "loss", "maxRegression": 1.0}]}
    for verb, manifest in (("run", job), ("up", endpoint)):
        Path(f"{verb}.yaml").write_text(yaml.safe_dump(manifest))
    for verb in ("run", "up"):
        with where():
            status = main([verb, "-f", f"{verb}.yaml", "--home", home])
        said = capsys.readouterr().err
        assert status == ExitStatus.FAILED, said
        assert "cannot be written: " in said
        assert "; --home names another folder" in said
        assert "Traceback" not in said


def test_a_wish_that_cannot_be_written_is_said(stored: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    lock = stored.objects / ".lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    assert main(["pause", "router"]) == ExitStatus.FAILED
    assert f"error: {lock} cannot be written: Is a directory" in capsys.readouterr().err


def test_what_statuses_mean_is_said_for_commands_that_exist() -> None:
    commands = build_parser().format_help()
    assert all(f"    {name} " in commands for names in ENDS for name in names.split(", "))
    assert set(EXIT_STATUS_OF_PHASE.values()) == set(ENDS["run"]) - {
        ExitStatus.BAD_INPUT,
        ExitStatus.NOT_ENDED,
        ExitStatus.INTERRUPTED,
    }


def test_a_report_before_the_end_is_not_a_failure(stored: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    for name, phase, status in (("a", "Training", 4), ("b", "Failed", 1), ("c", "Rejected", 3)):
        manifest: Manifest = job_with({"phase": phase}, name=name).to_dict()
        manifest["metadata"]["namespace"] = "default"
        LocalCluster(home=stored).store.write(manifest)
        assert main(["report", name]) == status
    assert "a has not been evaluated: Training" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["describe", "job"], ["explain", "job"], ["report"]])
def test_an_object_of_another_version_is_named_without_a_traceback(
    command: list[str], stored: LocalHome, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: Manifest = ended().to_dict()
    manifest["metadata"] |= {"namespace": "default", "name": "old"}
    manifest["spec"]["training"] = {"seed": "of another version"}
    LocalCluster(home=stored).store.write(manifest)
    assert main([*command, "old", "--local"]) == 1
    said = capsys.readouterr().err
    assert all(words in said for words in ("FineTuneJob", "spec.training.seed", "another version"))
