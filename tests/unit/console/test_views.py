"""What pages show, from objects alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cli.endpoints import NOW, V2, awaiting, canary, endpoint, guarding, idle, outcome, row, shadowing
from tests.unit.cli.jobs import NOW as JOB_NOW
from tests.unit.cli.jobs import ended, reported, snapshot_of, training

from finetune_api.modelendpoint import PAUSE, REQUESTED_BY, ModelEndpoint
from finetune_api.training_log import TrainingPoint
from finetune_operator.cli.target import Shell
from finetune_operator.console.views import Page, Section, endpoint_page, job_page, offers, overview

SHELL = Shell(namespace="ml", flags=("-n", "ml"))
EVENT = {"eventTime": "2026-01-05T12:09:00Z", "type": "Normal", "reason": "CanaryStep", "note": "v2 at step five"}
PAUSED = {PAUSE: "true", REQUESTED_BY: "bob"}


def page_of(found: ModelEndpoint, *, acts: bool = False) -> Page:
    return endpoint_page(found, jobs=[], events=[EVENT], now=NOW, shell=SHELL, acts=acts)


def section(page: Page, name: str) -> Section:
    (found,) = (each for each in page.sections if each.id == name)
    return found


@pytest.mark.parametrize(
    ("found", "possible"),
    [
        (awaiting(), {"approve v2", "reject v2", "rollback v2", "pause"}),
        (canary(annotations=PAUSED), {"approve v2", "reject v2", "rollback v2", "resume"}),
        (guarding(), {"approve v2", "rollback v2", "pause"}),
        (idle(), {"rollback v2"}),
        (idle(versions=[outcome("v2", V2, "Promoted")]), set()),
    ],
)
def test_what_can_be_asked_is_what_the_command_line_would_take(found: ModelEndpoint, possible: set[str]) -> None:
    assert {f"{each.verb} {each.version}".strip() for each in offers(found)} == possible
    assert all(each.effect for each in offers(found))


def test_a_console_that_does_not_act_shows_what_can_be_typed_instead() -> None:
    reads, acts = page_of(awaiting()), page_of(awaiting(), acts=True)
    assert section(reads, "actions").is_empty
    assert "finetune approve router -n ml" in dict(section(reads, "now").commands)
    assert section(acts, "actions").offers
    assert not section(acts, "now").commands


@pytest.mark.parametrize(
    ("found", "here"),
    [
        (shadowing(), "shadow 20 %"),
        (canary(), "five 5 %"),
        (awaiting(rollout={"approval": "Manual"}), "approval"),
        (guarding(), "guard 1 h 0 min"),
    ],
)
def test_the_track_shows_where_the_rollout_is(found: ModelEndpoint, here: str) -> None:
    track = section(page_of(found), "rollout").track
    assert [text for text, at in track if at == "now"] == [here]
    states = [at for _, at in track]
    assert states == sorted(states, key=["done", "now", "ahead"].index)


def test_what_is_missing_is_counted() -> None:
    found = section(page_of(shadowing()), "rollout")
    assert found.progress == (212 / 300, "212 of 300 samples of each metric")
    said = [line for part in section(page_of(shadowing()), "now").parts for line in part.lines]
    assert any("at the rate so far" in line for line in said)


@pytest.mark.parametrize(("low", "high", "side"), [(0.01, 0.05, "left"), (-0.05, -0.01, "right")])
def test_more_bad_answers_are_drawn_on_the_left(low: float, high: float, side: str) -> None:
    middle = (low + high) / 2
    measured = row("error_rate", samples=300) | {"low": low, "high": high, "baseline": 0.1, "candidate": 0.1 + middle}
    (bar,) = section(page_of(canary(analysis=[measured])), "rollout").bars
    assert bar.bar.low < bar.bar.estimate < bar.bar.high
    assert (bar.bar.high < bar.bar.zero) == (side == "left")
    assert bar.bar.limit is not None and bar.bar.limit < bar.bar.zero, "what is not accepted is further left"


def test_a_metric_without_an_interval_yet_is_not_drawn() -> None:
    measured = row("error_rate", samples=0) | {"low": None, "high": None, "candidate": None}
    assert section(page_of(canary(analysis=[measured])), "rollout").bars == []


def test_the_timeline_has_events_and_outcomes_the_newest_first() -> None:
    moments = section(page_of(canary()), "timeline").moments
    assert [each.what for each in moments] == ["CanaryStep", "v1 Promoted"]
    assert moments[1].text == "proven (by operator)"


def test_an_endpoint_that_nobody_looked_at_is_shown() -> None:
    page = page_of(endpoint(observedGeneration=None))
    assert "not looked at yet" in page.headline
    assert section(page, "rollout").is_empty


def test_a_job_that_trains_has_progress_and_a_curve() -> None:
    job = training()
    curve = [TrainingPoint(step=step, loss=2.0 - step / 10, validation_loss=0.0) for step in (1, 2, 3)]
    snapshot = snapshot_of(job, trainer=reported(step=12, loss=1.25))
    found = section(job_page(job, snapshot=snapshot, curve=curve, events=[], shell=SHELL, pages={}), "training")
    assert found.progress is not None and found.progress[0] == 0.25
    assert "step 12/48, loss 1.25" in found.progress[1]
    assert found.chart is not None and [line.name for line in found.chart.lines] == ["training loss", "validation loss"]


@pytest.mark.parametrize(("pages", "note"), [({}, "`finetune report router -n ml`"), ({"Report": "/x"}, "")])
def test_a_report_that_is_elsewhere_is_named_in_words(pages: dict[str, str], note: str) -> None:
    job = ended()
    page = job_page(job, snapshot=snapshot_of(job), curve=[], events=[], shell=SHELL, pages=pages)
    found = section(page, "comparison")
    assert found.note.startswith(note) and bool(found.note) == bool(note)
    assert found.pages == pages
    assert found.bars[0].label == "exact_match"


def test_kinds_that_ones_rights_refuse_do_not_hide_the_others() -> None:
    job: Any = ended().to_dict()
    seen: Any = {"ModelEndpoint": "forbidden", "FineTuneJob": [job], "ModelVersion": []}
    endpoints, jobs, versions = overview(seen, namespace="", now=JOB_NOW).sections
    assert (endpoints.note, versions.note) == ("forbidden", "none yet")
    assert jobs.links == ["/ml/job/router"]
    assert jobs.parts[0].header[:2] == ["NAMESPACE", "NAME"]
