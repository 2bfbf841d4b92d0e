"""What commands print, against golden files in tests/data/cli.

To accept what they print now: FINETUNE_ACCEPT=1 pytest tests/unit/cli, and read the difference in git.
"""

from __future__ import annotations

import io
import os
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from rich.text import Text
from tests.unit.cli.endpoints import V1, V2, canary, given, idle, rolling_back, served
from tests.unit.cli.jobs import NOW, at, ended, job_with, reported, snapshot_of, training
from tests.wrong_manifests import valid

from finetune_api.modelendpoint import APPROVE, REQUESTED_BY
from finetune_api.modelversion import ModelVersion
from finetune_operator.cli import words
from finetune_operator.cli.columns import resource_of, resource_part, value_at
from finetune_operator.cli.describe import describe_job, describe_version
from finetune_operator.cli.describe_endpoint import describe_endpoint
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.outcome import outcome
from finetune_operator.cli.report import comparison
from finetune_operator.cli.run_view import RunShows
from finetune_operator.cli.sections import text_of
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.tables import age
from finetune_operator.cli.view import View
from finetune_operator.local.home import LocalHome

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "cli"


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("FINETUNE_ACCEPT"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def job_text(*args: Any, **more: Any) -> str:
    return text_of(describe_job(*args, **more))


def version_text(*args: Any, **more: Any) -> str:
    return text_of(describe_version(*args, **more))


def endpoint_text(*args: Any, **more: Any) -> str:
    return text_of(describe_endpoint(*args, **more))


EVENT = {"eventTime": at(15), "type": "Normal", "reason": "Training", "note": "Prepare is complete"}


def test_describe_a_job_that_trains() -> None:
    assert_golden("describe-training", job_text(training(), events=[EVENT], now=NOW))


def test_describe_says_how_the_model_is_shared_and_why() -> None:
    trains = training()
    prepared = trains.status.stages[0]
    chosen = {"strategy": "FSDP2", "offload": True, "because": "DDP would need 145 GiB"}
    result = {**(prepared.result or {}), "sharing": chosen}
    stages = [prepared.model_copy(update={"result": result}), *trains.status.stages[1:]]
    after = trains.model_copy(update={"status": trains.status.model_copy(update={"stages": stages})})
    line = r"Strategy: +FSDP2 with offload, chosen: DDP would need 145 GiB\n"
    assert re.search(line, job_text(after, events=[], now=NOW))
    before = trains.model_copy(update={"status": trains.status.model_copy(update={"stages": []})})
    assert "Strategy" not in job_text(before, events=[], now=NOW), "not known until Prepare has chosen"


def test_describe_a_job_that_has_ended() -> None:
    assert_golden("describe-ended", job_text(ended(verdict="Inconclusive"), events=[], now=NOW))


def test_describe_a_version() -> None:
    manifest = valid("version")
    manifest["metadata"] |= {"creationTimestamp": at(0)}
    assert_golden("describe-version", version_text(ModelVersion.model_validate(manifest), now=NOW))


def test_a_version_that_is_not_proven_is_described_as_such() -> None:
    let_go = served("v2", V2) | {"proven": False, "unproven": "not decided against v1 (approved by ann)"}
    text = endpoint_text(idle(stable=let_go), events=[], now=NOW)
    assert re.search(r"Stable: +v2 \(.*\), not proven: not decided against v1 \(approved by ann\)", text)


def test_describe_an_endpoint() -> None:
    asked = canary(annotations={APPROVE: V2, REQUESTED_BY: "ann"}, approval=given("the promotion"))
    assert_golden("describe-endpoint-canary", endpoint_text(asked, events=[EVENT], now=NOW))
    assert_golden("describe-endpoint-back", endpoint_text(rolling_back(), events=[], now=NOW))


def test_describe_shows_what_was_compared_again() -> None:
    compared = {
        "version": {"name": "v3", "uid": "u3"},
        "baseline": {"name": "v2", "uid": V2, "digest": f"sha256:{'2' * 64}"},
        "verdict": "Fail",
        "accepted": False,
        "reason": "worse than v2 beyond the margin: accuracy",
        "time": at(300),
    }
    text = endpoint_text(idle(comparisons=[compared]), events=[], now=NOW)
    section = text[text.index("Compared again:") :].split("\n\n")[0]
    assert [line.split(maxsplit=4) for line in section.splitlines()[1:]] == [
        ["NAME", "WITH", "VERDICT", "AGE", "REASON"],
        ["v3", "v2", "Fail", "5m", "worse than v2 beyond the margin: accuracy"],
    ]


def test_describe_says_what_is_void() -> None:
    asked = canary(annotations={APPROVE: V1, REQUESTED_BY: "ann"})
    line = f"Requests:  approve v1 (void: it is for another version, v1 ({V1}), not for v2) (by ann)"
    assert line in endpoint_text(asked, events=[], now=NOW)


@pytest.mark.parametrize("wide", [False, True])
def test_get_endpoints(wide: bool) -> None:
    manifests = [each.to_dict() for each in (canary(), idle())]
    text = resource_part(manifests, resource=resource_of("mep"), wide=wide, with_namespace=wide, now=NOW).text
    assert_golden(f"get-endpoints{'-wide' if wide else ''}", text)


@pytest.mark.parametrize("wide", [False, True])
def test_get_jobs(wide: bool) -> None:
    manifests = [training().to_dict(), ended().to_dict(), job_with({}, name="new").to_dict()]
    text = resource_part(manifests, resource=resource_of("jobs"), wide=wide, with_namespace=wide, now=NOW).text
    assert_golden(f"get-jobs{'-wide' if wide else ''}", text)


def test_the_outcome_of_a_run(tmp_path: Path) -> None:
    home = LocalHome.at("/home/me/.finetune")
    assert_golden("outcome-succeeded", outcome(ended(), home=home, logs=None))
    assert_golden(
        "outcome-inconclusive", outcome(ended(phase="Rejected", verdict="Inconclusive"), home=home, logs=None)
    )
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {number}\n" for number in range(30)))
    failed = job_with({"phase": "Failed", "message": "Train failed: out of memory", "startTime": at(1)})
    text = outcome(failed, home=home, logs=log)
    assert "Train failed: out of memory" in text
    assert text.endswith("  line 28\n  line 29")
    assert "line 17" not in text


def test_report() -> None:
    assert_golden("report", comparison(ended(verdict="Inconclusive")))
    with pytest.raises(CommandError, match=r"^router has not been evaluated: Training \(training on 1 node \(CPU\)\)$"):
        comparison(training())


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = View(RunShows())
    view.show(snapshot_of(job_with({"phase": "Preparing", "message": "reading the data"}), seconds=3))
    view.show(snapshot_of(job_with({"phase": "Preparing", "message": "reading the data"}), seconds=4))
    for seconds, step in ((110, 2), (112, 3), (120, 5), (126, 12)):
        trainer = reported(step=step, loss=2.0 - step / 10)
        view.show(snapshot_of(training(), seconds=seconds, trainer=trainer))
    view.say("warning: something")
    view.show(snapshot_of(ended(), seconds=200))
    lines = [
        line if line.startswith("warning") else line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()
    ]
    assert_golden("plain", "\n".join(lines))


HINT = "Ctrl-C stops after a checkpoint."


def live(*snapshots: Any, width: int = 120) -> str:
    """The last drawing of a live view, as plain text."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, legacy_windows=False)
    shows = RunShows()
    view = View(shows, console=console, hint=HINT)
    for snapshot in snapshots:
        view.show(snapshot)
    view.close()
    drawn = Console(width=width, file=io.StringIO(), color_system=None)
    drawn.print(Group(*shows.drawing(snapshots[-1]), Text(HINT)))
    text = drawn.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    return "\n".join(line.rstrip() for line in text.replace(text[text.find("Train") - 3], "*").splitlines())


def test_live_view() -> None:
    steps = [snapshot_of(training(), trainer=reported(step=step, loss=3.0 - step / 5)) for step in range(1, 13)]
    assert_golden("live-training", live(*steps))
    assert_golden("live-ended", live(snapshot_of(ended())))


def test_a_report_of_an_earlier_attempt_is_not_shown() -> None:
    job = training()
    started = job.status.stages[1].start_time
    assert started is not None
    for seconds, shown in ((-5, False), (5, True)):
        report = reported(step=12, loss=1.0).model_copy(
            update={"last_updated_time": started + timedelta(seconds=seconds)}
        )
        assert (Snapshot.of(job=job, now=NOW, trainer=report).trainer is not None) == shown
    assert Snapshot.of(job=ended(), now=NOW, trainer=reported(step=48, loss=1.0)).trainer is None


def test_live_view_says_what_holds_it() -> None:
    condition = {"type": "Reconciling", "status": "True", "reason": "Restarting", "message": "attempt 2 follows"}
    job = job_with({"phase": "Training", "conditions": [condition]})
    assert "Restarting: attempt 2 follows" in live(snapshot_of(job))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (312, "5m12s"), (3600, "60m"), (12000, "3h20m"), (90000, "25h"),
     (200000, "2d7h"), (900000, "10d")],
)  # fmt: skip
def test_ages_are_kubectls(seconds: int, text: str) -> None:
    start = datetime(2026, 1, 1)
    assert age(since=start, now=start + timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(("value", "text"), [(4.4, "4 s"), (72, "1 min 12 s"), (120, "2 min"), (7500, "2 h 5 min")])
def test_seconds(value: float, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (9437184, "9.4 MB"), (91596648, "92 MB"), (3e12, "3.0 TB")])
def test_sizes(value: float, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".spec.model.task", "Chat"),
        (".spec.data.sources[0].name", "tickets"),
        (".spec.data.sources[?(@.name=='tickets')].format", "Chat"),
        (".spec.data.sources[?(@.name=='other')].format", None),
        (".spec.data.sources[7].name", None),
        (".spec.nothing.at.all", None),
    ],
)
def test_paths_of_columns(path: str, value: str | None) -> None:
    assert value_at(training().to_dict(), path=path) == value


@pytest.mark.parametrize("name", ["jobs", "job", "ftj", "finetunejobs", "FineTuneJob", "finetunejobs.finetune.dev"])
def test_kinds_have_many_names(name: str) -> None:
    assert resource_of(name).kind == "FineTuneJob"


def test_an_unknown_kind() -> None:
    with pytest.raises(CommandError, match=r"no kind 'pods'; expected one of jobs \(ftj\), versions \(mv\)"):
        resource_of("pods")
