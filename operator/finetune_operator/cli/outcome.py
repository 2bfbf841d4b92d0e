"""What a run came to, in the last lines that `finetune run` prints."""

from __future__ import annotations

from pathlib import Path

from finetune_api.finetunejob import FineTuneJob
from finetune_api.results import TrainResult
from finetune_operator.cli import words
from finetune_operator.cli.report import baseline_of
from finetune_operator.cli.tables import table
from finetune_operator.job.stages import recorded_results
from finetune_operator.local.home import LocalHome

_LOG_LINES = 12


def outcome(job: FineTuneJob, *, home: LocalHome | None, logs: Path | None) -> str:
    """The end of a job, its comparison and where everything is. `home`: where that may be on this machine."""
    status = job.status
    took = ""
    if status.start_time is not None and status.completion_time is not None:
        took = f" after {words.seconds((status.completion_time - status.start_time).total_seconds())}"
    lines = ["", f"{job.metadata.name}: {status.phase}{took}"]
    if status.evaluation is not None:
        lines += ["", table(header=words.METRIC_HEADER, rows=words.metric_rows(status.evaluation.results)), ""]
        lines += [f"Verdict: {status.evaluation.verdict} against {baseline_of(job)}"]
        lines += [f"         {reason}" for reason in words.reasons(status.evaluation.results)]
    else:
        lines.append(status.message or "")
        lines += _end_of(logs) if status.phase == "Failed" else []
    lines += _places(job, home=home)
    return "\n".join(lines)


def _places(job: FineTuneJob, *, home: LocalHome | None) -> list[str]:
    status = job.status

    def place(uri: str) -> str | Path:
        return (home.path_of(uri) if home is not None else None) or uri

    found: dict[str, str | Path | None] = {}
    if status.model_version is not None:
        found["Version"] = status.model_version.name
    trained = recorded_results(status).train
    if isinstance(trained, TrainResult):
        artifact = trained.artifact
        found["Model"] = f"{place(artifact.uri)} ({artifact.format}, {words.size(artifact.size_bytes)})"
    if status.evaluation is not None and status.evaluation.report:
        found["Report"] = place(status.evaluation.report)
    return [f"{name + ':':8} {value}" for name, value in found.items()]


def _end_of(logs: Path | None) -> list[str]:
    if logs is None or not logs.is_file():
        return []
    last = logs.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")[-_LOG_LINES:]
    return ["", f"The end of {logs}:", *(f"  {line}" for line in last)]
