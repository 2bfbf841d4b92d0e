"""The container's process: exit codes, termination messages, signals, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo import assets
from tests.forking import forked_python
from tests.patience import HANGS_S

from finetune_api.results import (
    MAXIMUM_MESSAGE_BYTES,
    EvaluateResult,
    ExitCode,
    Failure,
    PrepareResult,
    TrainResult,
    result_adapter,
)
from finetune_api.shared_fields import Artifact, MetricResult, ResolvedModel
from finetune_trainer.process import termination
from finetune_trainer.process.errors import from_write_failure

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0" * 64
BASE = ResolvedModel(uri="hf://acme/model", digest=DIGEST)


def order(tmp_path: Path, **options: Any) -> dict[str, Any]:
    data = tmp_path / "topics.jsonl"
    if not data.exists():
        assets.topic_labelled(data)
    return {
        "stage": "Prepare",
        "identity": {"namespace": "ml", "job": "router", "uid": "1", "attempt": 1},
        "locations": {
            "run": f"file://{tmp_path}/run",
            "cache": f"file://{tmp_path}/cache",
            "allowedRoots": [f"file://{tmp_path}", f"file://{assets.minilm()}"],
        },
        "model": {"uri": f"file://{assets.minilm()}", "task": "SequenceClassification"},
        "sources": [{"name": "topics", "uri": f"file://{data}"}],
        "maxBadRows": 0,
        "maxTruncatedFraction": 0.01,
        "maxLength": 128,
        "split": {"fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}, "salt": "ml/router"},
        **options,
    }


def environment(tmp_path: Path, run: dict[str, Any] | str) -> dict[str, str]:
    (tmp_path / "run.json").write_text(run if isinstance(run, str) else json.dumps(run))
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer_image",
        "FINETUNE_RUN_FILE": f"{tmp_path}/run.json",
        "FINETUNE_TERMINATION_LOG": f"{tmp_path}/termination",
    }


def message(tmp_path: Path) -> PrepareResult | TrainResult | EvaluateResult | Failure:
    return result_adapter.validate_json((tmp_path / "termination").read_bytes())


def run_container(
    tmp_path: Path, run: dict[str, Any] | str, *prefix: str, python: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, python or forked_python(), "-m", "finetune_trainer"],
        env={**environment(tmp_path, run), **variables},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )


# -- the process ------------------------------------------------------------------------------------------------------


def test_prepare_ends_with_its_result(tmp_path: Path) -> None:
    done = run_container(tmp_path, order(tmp_path), python=sys.executable)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    result = message(tmp_path)
    assert isinstance(result, PrepareResult)
    assert result.summary.rows_read == 840
    assert "attempt 1 of job ml/router" in done.stdout
    assert "split       train" in done.stdout


@pytest.mark.parametrize(
    ("run", "code", "reason", "named"),
    [
        ("{", ExitCode.BAD_CONFIGURATION, "BadRunFile", "Invalid JSON"),
        ('{"stage": "Dance"}', ExitCode.BAD_CONFIGURATION, "BadRunFile", "Dance"),
        ({"newerField": 1}, ExitCode.BAD_CONFIGURATION, "BadRunFile", "newerField"),
        (
            {"sources": [{"name": "a", "uri": "file:///none"}]},
            ExitCode.BAD_CONFIGURATION,
            "OutsideAllowedRoots",
            "/none",
        ),
        ({"maxLength": 9}, ExitCode.BAD_DATA, "TooManyTruncated", "training.maxLength: 9"),
    ],
)
def test_orders_that_fail_for_good(
    tmp_path: Path, run: str | dict[str, Any], code: ExitCode, reason: str, named: str
) -> None:
    done = run_container(tmp_path, run if isinstance(run, str) else order(tmp_path, **run))
    failure = message(tmp_path)
    assert (done.returncode, isinstance(failure, Failure)) == (code, True)
    assert isinstance(failure, Failure)
    assert failure.reason == reason
    assert named in failure.message
    assert f"{reason} (exit {code:d})" in done.stdout


def test_a_message_with_the_bytes_of_a_file_name_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/r\xffws.jsonl")).write_text("{}")
    done = run_container(tmp_path, order(tmp_path, sources=[{"name": "a", "uri": f"file://{folder}"}]))
    failure = message(tmp_path)
    assert done.returncode == ExitCode.BAD_DATA
    assert isinstance(failure, Failure)
    assert failure.reason == "BadFileName"


def test_without_a_run_file(tmp_path: Path) -> None:
    done = run_container(tmp_path, "", FINETUNE_RUN_FILE="")
    assert done.returncode == ExitCode.BAD_CONFIGURATION
    assert "FINETUNE_RUN_FILE" in done.stdout


def test_the_exit_code_does_not_need_the_termination_log(tmp_path: Path) -> None:
    done = run_container(tmp_path, "{", FINETUNE_TERMINATION_LOG=f"{tmp_path}/no/such/folder")
    assert done.returncode == ExitCode.BAD_CONFIGURATION
    assert "termination message could not be written" in done.stdout


def test_sigterm_stops_at_once_and_is_no_failure(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer"],
        env=environment(tmp_path, order(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "Prepare, attempt 1" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=HANGS_S)
    finally:
        process.kill()
        process.wait()
    failure = message(tmp_path)
    assert process.returncode == ExitCode.STOPPED_AFTER_CHECKPOINT, output
    assert isinstance(failure, Failure)
    assert failure.reason == "Stopped"


def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    """A real file system of 64 KiB, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    run = order(tmp_path)
    run["locations"]["run"] = f"file://{small}/run"
    script = f'mount -t tmpfs -o size=64k none "{small}" && exec "$@"'
    inside = ("unshare", "--mount", "--map-root-user", "bash", "-c", script, "bash")
    done = run_container(tmp_path, run, *inside, python=sys.executable)
    failure = message(tmp_path)
    assert done.returncode == ExitCode.CANNOT_WRITE, done.stdout + done.stderr
    assert isinstance(failure, Failure)
    assert failure.reason == "CannotWrite"
    assert "No space left on device" in failure.message


@pytest.mark.parametrize(
    ("error", "is_write_failure"),
    [
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied"), True),
        (OSError(30, "Read-only file system"), True),
        (RuntimeError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'), True),
        (FileNotFoundError(2, "No such file or directory"), False),
        (ValueError("something else"), False),
    ],
)
def test_write_failures_are_recognised(error: BaseException, is_write_failure: bool) -> None:
    found = from_write_failure("the model", error)
    assert (found is not None and found.exit_code == ExitCode.CANNOT_WRITE) == is_write_failure


# -- the termination message ------------------------------------------------------------------------------------------


def prepared(**options: Any) -> PrepareResult:
    summary: dict[str, Any] = {
        "rowsRead": 1,
        "badRows": 0,
        "duplicateRows": 0,
        "nearDuplicateGroups": 0,
        "tokenLengthP50": 1,
    }
    summary |= {"tokenLengthP95": 1, "tokenLengthMax": 1, "truncatedFraction": 0.0}
    return PrepareResult.model_validate(
        {
            "dataDigest": DIGEST,
            "manifest": "s3://models/run/data/manifest.json",
            "summary": {**summary, "rows": {"train": 1, "validation": 0, "test": 1}},
            "base": BASE,
            **options,
        }
    )


def evaluated(rows: list[MetricResult]) -> EvaluateResult:
    return EvaluateResult(
        verdict="Fail", results=rows, report="s3://models/run/report.html", examples=100, baseline_digest=DIGEST
    )


def metric(name: str, verdict: str, *, reason: str | None = None, report: bool = False) -> MetricResult:
    return MetricResult.model_validate(
        {
            "metric": name,
            "candidate": 0.123456789,
            "baseline": 0.2,
            "verdict": verdict,
            "reason": reason,
            "report": report,
        }
    )


def test_a_small_result_is_written_whole() -> None:
    result = prepared(labels=["a", "b"])
    assert result_adapter.validate_json(termination.message(result)) == result


def test_long_labels_are_left_to_the_manifest(caplog: pytest.LogCaptureFixture) -> None:
    written = termination.message(prepared(labels=[f"label number {index}" for index in range(500)]))
    result = result_adapter.validate_json(written)
    assert len(written) <= MAXIMUM_MESSAGE_BYTES
    assert isinstance(result, PrepareResult)
    assert result.labels is None
    assert "left out of the termination message, which holds 4096 bytes: labels" in caplog.text


def test_sources_go_one_by_one() -> None:
    sources = [{"name": f"source-{index}", "uri": "s3://bucket/" + "x" * 300, "digest": DIGEST} for index in range(20)]
    result = result_adapter.validate_json(termination.message(prepared(sources=sources)))
    assert isinstance(result, PrepareResult)
    assert 5 < len(result.sources) < 20


def test_judged_metrics_stay_longest() -> None:
    rows = [metric(f"reported_{index}", "Pass", reason="r" * 200, report=True) for index in range(20)]
    rows += [metric(f"judged_{index}", "Pass", reason="j" * 400) for index in range(10)]
    rows += [metric("decisive", "Fail", reason="d" * 400)]
    result = result_adapter.validate_json(termination.message(evaluated(rows)))
    assert isinstance(result, EvaluateResult)
    assert {row.metric for row in result.results} == {*(f"judged_{index}" for index in range(10)), "decisive"}
    rows += [metric(f"more_{index}", "Pass") for index in range(40)]
    result = result_adapter.validate_json(termination.message(evaluated(rows)))
    assert isinstance(result, EvaluateResult)
    assert result.results[0].metric == "decisive"
    assert result.verdict == "Fail"


def test_packages_are_left_out_of_a_long_train_result() -> None:
    artifact = Artifact(uri="s3://models/run/model", digest=DIGEST, format="Adapter", size_bytes=1)
    result = TrainResult(artifact=artifact, steps=1, packages={f"package-{index}": "1.2.3" for index in range(400)})
    read = result_adapter.validate_json(termination.message(result))
    assert isinstance(read, TrainResult)
    assert (read.packages, read.artifact) == ({}, artifact)


@pytest.mark.parametrize("text", ["\n" * 3000, "\u00fc" * 3000, "\U0001f600" * 3000, '"' * 3000])
def test_a_failure_fits_whatever_it_says(text: str) -> None:
    written = termination.message(Failure(reason="InternalError", message=text))
    assert len(written) <= MAXIMUM_MESSAGE_BYTES
    read = result_adapter.validate_json(written)
    assert isinstance(read, Failure)
    assert read.message.endswith(" [cut]") or len(read.message) == 3000
