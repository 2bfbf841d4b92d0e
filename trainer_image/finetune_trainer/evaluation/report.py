"""What an evaluation leaves for people: report.json (everything), report.html (one self-contained page), a table.

The page needs no network and runs no script: its style is inline, its drawings are SVG, and a content security policy
forbids the rest. All text that comes from users or models is escaped by the template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from finetune_api.training_log import TrainingPoint
from finetune_stats import drawing
from finetune_trainer.evaluation import changed_examples
from finetune_trainer.evaluation.changed_examples import Changes
from finetune_trainer.evaluation.compare import Comparison, Row, explain, headline, reason

SCHEMA_VERSION = 1
_MOST_CLASSES = 60


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of facts: name and value."""

    title: str
    facts: Mapping[str, str | int | float | None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that report.json and report.html say."""

    title: str
    """namespace/job."""
    attempt: int
    created: datetime
    baseline: str
    """The baseline's name."""
    comparison: Comparison
    notes: Sequence[str]
    """What a reader must know to read the numbers right: examples left out, a baseline without a trained head."""
    sections: Sequence[Section]
    training: Sequence[TrainingPoint]
    classes: Mapping[str, Sequence[Mapping[str, Any]]] | None
    """Of a classifier: `candidate` and `baseline` -> one row a class (`scores.class_table`)."""
    changes: Changes

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        return headline(self.comparison, baseline=self.baseline)


def to_json(report: Report) -> str:
    """report.json."""
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "title": report.title,
        "attempt": report.attempt,
        "created": report.created.isoformat(timespec="seconds"),
        "verdict": report.comparison.verdict.value,
        "headline": report.headline,
        "baseline": report.baseline,
        "examples": report.comparison.n,
        "groups": report.comparison.groups,
        "neededN": report.comparison.needed_n,
        "notes": list(report.notes),
        "metrics": [_row_document(row) for row in report.comparison.rows],
        "classes": report.classes,
        "changes": {"metric": report.changes.metric, **{kind.lower(): n for kind, n in report.changes.counts.items()}},
        "sections": {section.title: dict(section.facts) for section in report.sections},
        "training": [point.to_dict() for point in report.training],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def to_html(report: Report) -> str:
    """report.html."""
    return (
        _page()
        .render(
            report=report,
            rows=[_row_view(row) for row in report.comparison.rows],
            chart=_loss_chart(report.training),
            classes=_class_views(report.classes),
            changes=report.changes,
        )
        .lstrip()
    )


@cache
def _page() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "signed": _signed,
        "printable": changed_examples.printable,
        "pieces": changed_examples.marked,
    }
    return environment.get_template("report.html.j2")


def console_table(comparison: Comparison) -> str:
    """The rows as lines of text for the log."""
    header = ("metric", "candidate", "baseline", "difference", "95 % interval", "verdict")
    lines = [
        (
            row.metric.name,
            f"{row.result.candidate:.4g}",
            f"{row.result.baseline:.4g}",
            f"{row.difference:+.4g}",
            "none" if row.interval is None else f"{row.interval[0]:+.4g} to {row.interval[1]:+.4g}",
            "reported" if row.verdict is None else row.verdict.value,
        )
        for row in comparison.rows
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *lines]
    ]
    rule = "-" * max(len(line) for line in table)
    doubts = [f"{row.metric.name}: {reason(row)}" for row in comparison.rows if row.to_result().reason]
    return "\n".join([table[0], rule, *table[1:], *([rule, *doubts] if doubts else [])])


def _row_document(row: Row) -> dict[str, Any]:
    """A row with what the operator's record leaves out."""
    return {
        **row.to_result().to_dict(),
        "meaning": row.metric.meaning,
        "demand": row.wanted.to_dict(),
        "candidateInterval": None
        if row.result.candidate_low is None
        else [row.result.candidate_low, row.result.candidate_high],
        "words": explain(row),
    }


def _row_view(row: Row) -> dict[str, Any]:
    """What the template shows of a row."""
    return {
        "row": row,
        "bar": interval_bar(row),
        "demand": _demand(row),
        "words": reason(row),
        "verdict": "Reported" if row.verdict is None else row.verdict.value,
    }


def _class_views(
    classes: Mapping[str, Sequence[Mapping[str, Any]]] | None,
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each class's rates of candidate and baseline; of very many classes those with the most examples."""
    if classes is None:
        return []
    pairs = list(zip(classes["candidate"], classes["baseline"], strict=True))
    return (
        pairs if len(pairs) <= _MOST_CLASSES else sorted(pairs, key=lambda pair: -pair[0]["examples"])[:_MOST_CLASSES]
    )


def interval_bar(row: Row) -> drawing.IntervalBar | None:
    """The drawing of a row, better to the right; None where it has no interval."""
    result = row.result
    if result.low is None or result.high is None:
        return None
    limit = result.floor if row.compared else None
    return drawing.interval_bar(estimate=result.difference, low=result.low, high=result.high, limit=limit)


def _demand(row: Row) -> str:
    """The condition for a pass, in words."""
    wanted, demands = row.wanted, []
    if wanted.max_regression is not None:
        demands.append(f"at most {wanted.max_regression:g} worse" if wanted.max_regression else "not worse")
    if wanted.min_improvement is not None:
        demands.append(f"better by more than {wanted.min_improvement:g}" if wanted.min_improvement else "better")
    if wanted.threshold_range is not None:
        limits = wanted.threshold_range
        demands += [f"at least {limits.min:g}"] if limits.min is not None else []
        demands += [f"at most {limits.max:g}"] if limits.max is not None else []
    return ", ".join(demands) or "shown only"


def _loss_chart(training: Sequence[TrainingPoint]) -> drawing.LineChart | None:
    return drawing.line_chart(
        {
            "training loss": [(point.step, point.loss) for point in training if point.loss is not None],
            "validation loss": [
                (point.step, point.validation_loss) for point in training if point.validation_loss is not None
            ],
        }
    )


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "\u2212") if value else "0"
