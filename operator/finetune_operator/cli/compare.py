"""`finetune compare`: two versions side by side, from what they record of themselves. Nothing is evaluated again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.shared_fields import MetricResult
from finetune_operator.cli import words
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.sections import Part, text_of
from finetune_operator.cli.target import open_target

Pair = tuple[ModelVersion, ModelVersion]


async def run(options: argparse.Namespace) -> int:
    """Print what they have and where they differ."""
    if options.first == options.second:
        raise CommandError(f"{options.first} is there twice; name two versions")
    async with open_target(options) as target:
        names = (options.first, options.second)
        first, second = [
            ModelVersion.model_validate(await target.read(kind="ModelVersion", name=each)) for each in names
        ]
        found = await target.cluster.list(kind="ModelEndpoint", namespace=target.namespace)
    pair, endpoints = (first, second), [ModelEndpoint.from_object(each) for each in found]
    if options.output == "json":
        print(json.dumps(as_json(pair, endpoints=endpoints), indent=4))
    else:
        print(text_of(compared(pair, endpoints=endpoints)))
    return ExitStatus.DONE


def compared(pair: Pair, *, endpoints: Sequence[ModelEndpoint]) -> list[Part]:
    """The two in parts: what each is, in what their training differs, and what each was measured to do."""
    header = ("", *(each.metadata.name for each in pair))
    facts = zip(*(_facts(each, endpoints=endpoints).items() for each in pair), strict=True)
    settings = [(name, *map(_short, values)) for name, values in differences(pair).items()]
    rows = [
        (metric, *(cell for row in found for cell in _measured(row))) for metric, found in evaluations(pair).items()
    ]
    columns = [f"{what} {each.metadata.name}" for each in pair for what in ("VALUE OF", "LESS ITS BASELINE,")]
    return [
        Part(header=header, rows=[(name, one, other) for (name, one), (_, other) in facts]),
        Part(title="Differs in", header=header, rows=settings, lines=[] if settings else ["no setting"]),
        Part(title="Evaluation", header=("METRIC", *columns), rows=rows, lines=list(notes(pair))),
    ]


def as_json(pair: Pair, *, endpoints: Sequence[ModelEndpoint]) -> dict[str, Any]:
    """The same for programs: of each field the first version's value and the second one's."""
    facts = [_facts(each, endpoints=endpoints) for each in pair]
    return {
        "versions": [each.metadata.name for each in pair],
        "facts": {name: [each[name] for each in facts] for name in facts[0]},
        "differences": {name: list(values) for name, values in differences(pair).items()},
        "evaluation": {
            metric: [None if row is None else row.to_dict() for row in found]
            for metric, found in evaluations(pair).items()
        },
        "notes": list(notes(pair)),
    }


def differences(pair: Pair) -> dict[str, tuple[Any, Any]]:
    """Settings of method and training that are not the same, by their path; None where one has none."""
    first, second = ({**_flat(each.spec.method, "method"), **_flat(each.spec.training, "training")} for each in pair)
    names = dict.fromkeys((*first, *second))
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def evaluations(pair: Pair) -> dict[str, tuple[MetricResult | None, MetricResult | None]]:
    """By metric what each was measured to do, judged ones first; None where one was not."""
    first, second = ({row.metric: row for row in each.spec.evaluation.results} for each in pair)
    judged = sorted((*first.values(), *second.values()), key=lambda row: row.report)
    return {name: (first.get(name), second.get(name)) for name in dict.fromkeys(row.metric for row in judged)}


def notes(pair: Pair) -> Iterator[str]:
    """Why values beside each other may not be compared."""
    first, second = (each.spec for each in pair)
    if first.data.digest != second.data.digest:
        yield "their data differ, and so may the held-out examples: values beside each other need not be comparable"
    if first.baseline.digest != second.baseline.digest:
        yield "their baselines differ: so differences from them are not comparable"


def _facts(version: ModelVersion, *, endpoints: Iterable[ModelEndpoint]) -> dict[str, str]:
    spec = version.spec
    rows, base = spec.data.rows, spec.base
    parent = f", continued from {spec.lineage.parent.name}" if spec.lineage.parent else ""
    return {
        "Base": base.uri + (f" at {base.revision}" if base.revision else ""),
        "Task": spec.task,
        "Method": words.method(spec.method),
        "Data": spec.data.digest,
        "Sources": ", ".join(source.uri for source in spec.data.sources),
        "Examples": f"train {rows.train}, validation {rows.validation}, test {rows.test}",
        "Artifact": f"{spec.artifact.format}, {words.size(spec.artifact.size_bytes)}",
        "Digest": spec.artifact.digest,
        "Made by": f"job {spec.lineage.job.name}{parent}",
        "Verdict": f"{spec.evaluation.verdict} against {spec.baseline.name}",
        "Endpoints": ", ".join(_served(version, endpoints=endpoints)),
    }


def _served(version: ModelVersion, *, endpoints: Iterable[ModelEndpoint]) -> Iterator[str]:
    for endpoint in endpoints:
        status = endpoint.status
        roles = {"stable": status.stable, "candidate": status.candidate, "previous": status.previous}
        found = [role for role, served in roles.items() if served is not None and served.uid == version.metadata.uid]
        if found:
            yield f"{endpoint.metadata.name} ({found[0]})"


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    return {name: leaf for key, each in value.items() for name, leaf in _flat(each, f"{path}.{key}").items()}


def _short(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _measured(row: MetricResult | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    bounds = "" if row.low is None or row.high is None else words.interval(row.low, row.high)
    return words.number(row.candidate), bounds
