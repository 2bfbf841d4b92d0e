"""The report's parts: what is drawn where, which examples are shown, which words are marked, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.made_report import HOSTILE, chat_report, classifier_report

from finetune_api.training_log import TrainingPoint, read_training_log
from finetune_stats import drawing
from finetune_trainer.evaluation.changed_examples import ComparedExample, Said, find_changes, marked, printable
from finetune_trainer.evaluation.report import console_table, interval_bar, to_html, to_json


def example(
    number: int,
    mine: dict[str, float],
    theirs: dict[str, float],
    candidate: str | None = None,
    baseline: str | None = None,
) -> ComparedExample:
    return ComparedExample(
        id=str(number),
        group=str(number),
        prompt="?",
        reference="r",
        candidate=Said(answer=candidate, scores=mine),
        baseline=Said(answer=baseline, scores=theirs),
    )


# -- interval bars ----------------------------------------------------------------------------------------------------


def test_a_bar_has_better_on_the_right_for_metrics_that_should_be_low() -> None:
    rows = {row.metric.name: row for row in chat_report(verdict="Fail").comparison.rows}
    for name in ("exact_match", "loss"):
        bar = interval_bar(rows[name])
        assert bar is not None and bar.limit is not None
        assert bar.low < bar.estimate < bar.high < bar.limit < bar.zero
    assert rows["loss"].difference > 0 > rows["exact_match"].difference


def test_a_bar_fits_its_width_and_reported_metrics_have_no_limit() -> None:
    for row in chat_report().comparison.rows:
        bar = interval_bar(row)
        assert bar is not None
        assert 0 < min(bar.low, bar.zero) <= max(bar.high, bar.zero) < bar.width
        assert (bar.limit is None) == (row.verdict is None)


# -- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "most", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 2.69, [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        (3, 240, [0, 50, 100, 150, 200, 250]),
        (-2e-5, 2e-5, [-2e-5, -1e-5, 0, 1e-5, 2e-5]),
        (7, 7, [2, 4, 6, 8, 10, 12]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_nice_ticks(least: float, most: float, ticks: list[float]) -> None:
    assert drawing.nice_ticks(least, most) == pytest.approx(ticks)


def test_a_chart_keeps_all_points_inside_and_the_last_one() -> None:
    points = [(float(step), 3.0 - step / 1000) for step in range(1, 1700)]
    chart = drawing.line_chart({"training loss": points, "validation loss": []})
    assert chart is not None
    [line] = chart.lines
    assert len(line.dots) <= 401
    assert line.dots[-1].words == "training loss 1.301 at step 1699"
    assert all(chart.left <= dot.x <= chart.width and 0 <= dot.y <= chart.bottom for dot in line.dots)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, float("nan")), (2.0, 2.0), (3.0, float("inf"))]])
def test_no_chart_of_less_than_two_points(points: list[tuple[float, float]]) -> None:
    assert drawing.line_chart({"loss": points}) is None


def test_the_training_log_survives_restarts_and_torn_lines() -> None:
    text = "\n".join(
        [
            '{"step": 10, "loss": 2.0, "learning_rate": 0.001, "time": "2026-11-21T05:00:00Z"}',
            '{"step": 20, "loss": 1.5}',
            '{"step": 20, "loss": 1.25}',
            '{"step": 20, "validation_loss": 1.75}',
            '{"step": 30, "loss": NaN}',
            '["no", "object"]',
            '{"loss": 9.0}',
            '{"step": 40, "lo',
        ]
    )
    assert read_training_log(text) == [
        TrainingPoint(step=10, loss=2.0, learning_rate=0.001),
        TrainingPoint(step=20, loss=1.25, validation_loss=1.75),
        TrainingPoint(step=30),
    ]


# -- examples that changed --------------------------------------------------------------------------------------------


def test_changes_are_sorted_and_counted() -> None:
    right, wrong = {"exact_match": 1.0}, {"exact_match": 0.0}
    examples = [
        example(1, right, wrong, candidate="a", baseline="b"),
        example(2, wrong, right, candidate="b", baseline="a"),
        example(3, wrong, wrong, candidate="b", baseline="c"),
        example(4, wrong, wrong, candidate="b", baseline=" b\n"),
        example(5, right, right, candidate="a", baseline="a"),
    ]
    changes = find_changes(examples)
    assert changes.metric == "exact_match"
    assert changes.counts == {"Gained": 1, "Lost": 1, "Same": 1}
    assert [[each.id for each in changes.shown[kind]] for kind in ("Gained", "Lost", "Same")] == [["1"], ["2"], ["3"]]


def test_a_cut_keeps_gains_and_losses_alike_and_the_largest_first() -> None:
    many = [
        example(number, {"rouge_l": number / 1000}, {"rouge_l": 0.5}, candidate=f"{number}", baseline="x")
        for number in range(1000)
    ]
    changes = find_changes(many, most=100)
    assert changes.metric == "rouge_l"
    assert changes.counts == {"Gained": 499, "Lost": 500, "Same": 1}
    assert [len(changes.shown[kind]) for kind in ("Gained", "Lost", "Same")] == [50, 49, 1]
    assert [each.id for each in changes.shown["Lost"][:2]] == ["0", "1"]
    assert [each.id for each in changes.shown["Gained"][:2]] == ["999", "998"]


def test_without_answers_the_loss_decides() -> None:
    changes = find_changes([example(1, {"loss": 1.0}, {"loss": 2.0}), example(2, {}, {"loss": 2.0})])
    assert changes.metric == "loss"
    assert changes.counts == {"Gained": 1, "Lost": 0, "Same": 0}


@pytest.mark.parametrize(
    ("text", "reference", "pieces"),
    [
        ("the red cat", "the black cat", [("the ", False), ("red", True), (" cat", False)]),
        ("money", "money", [("money", False)]),
        ("money!", "money", [("money", False), ("!", True)]),
        ("food", "money", [("food", True)]),
        ("food", None, [("food", False)]),
        ("", "money", [("", False)]),
    ],
)
def test_words_that_are_not_the_references_are_marked(text: str, reference: str | None, pieces: Any) -> None:
    assert marked(text, reference=reference) == pieces


def test_pieces_make_up_the_text_even_when_it_is_too_long_to_compare() -> None:
    long = "word " * 5000
    for text in ("a b  c\n\n d <x>", long):
        assert "".join(piece for piece, _ in marked(text, reference="a c <y> d")) == text


def test_control_characters_are_made_visible_and_long_texts_cut() -> None:
    assert printable("a\x00b\x1b\tc\n\x85é\x7f") == "a\u2400b\u241b\tc\n\ufffdé\u2421"
    assert printable("x" * 30, longest=10) == "x" * 10 + " … (20 more characters)"


# -- what is written --------------------------------------------------------------------------------------------------


def test_the_json_report_says_everything() -> None:
    document = json.loads(to_json(chat_report()))
    assert document["verdict"] == "Inconclusive"
    assert document["examples"] == document["groups"] == 160
    rows = {row["metric"]: row for row in document["metrics"]}
    assert rows["exact_match"]["demand"] == {"name": "exact_match", "maxRegression": 0.02}
    assert rows["exact_match"]["neededN"] > 160
    assert "cannot be ruled out" in rows["exact_match"]["words"]
    assert rows["bleu"]["report"] is True
    assert document["training"][0]["step"] == 3
    assert json.loads(to_json(classifier_report()))["classes"]["candidate"][0]["label"] == "money"


def test_of_very_many_classes_the_page_shows_the_largest() -> None:
    report = classifier_report()
    rows = [
        {"label": f"class {number}", "examples": number, "predicted": 0, "precision": None, "recall": 0.0, "f1": 0.0}
        for number in range(300)
    ]
    page = to_html(replace(report, classes={"candidate": rows, "baseline": rows}))
    assert "class 299<" in page
    assert "class 240<" in page
    assert "class 239<" not in page
    assert "The 60 classes with the most examples of 300" in page


@pytest.mark.parametrize("hostile", HOSTILE[:3])
def test_no_hostile_text_is_in_the_page_as_it_came(hostile: str) -> None:
    for report in (chat_report(), classifier_report()):
        assert hostile not in to_html(report)


def test_the_console_table() -> None:
    lines = console_table(chat_report(verdict="Fail").comparison).splitlines()
    assert lines[0].split() == ["metric", "candidate", "baseline", "difference", "95", "%", "interval", "verdict"]
    assert [line.split()[0] for line in lines[2:6]] == ["exact_match", "loss", "token_f1", "bleu"]
    assert [line.split()[-1] for line in lines[2:6]] == ["Fail", "Fail", "reported", "reported"]
    assert "exact_match: proven worse by more than the 0.02" in lines[7]
