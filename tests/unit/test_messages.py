"""Whoever is refused reads which field is meant, and what stands there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.crd import RESOURCES, object_schema
from finetune_api.run import PrepareRun
from finetune_api.shared_fields import MetricResult
from finetune_operator.gates.policy import Comparison, OnInconclusive, judge
from finetune_trainer.preparation.fields import with_field

ROOT = Path(__file__).resolve().parents[2]
SCALARS = ("string", "number", "integer", "boolean")


def rules_of(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Every rule of a schema over several fields, with its place and the node that it is about."""
    for rule in schema.get("x-kubernetes-validations", ()) if "properties" in schema else ():
        yield f"{path}: {rule['rule']}", schema, rule
    for name, child in schema.get("properties", {}).items():
        yield from rules_of(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from rules_of(schema[key], f"{path}[]")


RULES = {
    place: (node, rule)
    for resource in RESOURCES
    for place, node, rule in rules_of(object_schema(resource=resource), resource.kind)
}


def fields_in(rule: str, node: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """The last name of each field that a rule looks at, and whether it is one plain value that the rule compares."""
    compared = re.sub(r"has\([^)]*\)", "", rule)
    for path in set(re.findall(r"self\.((?:\w+\.)*\w+)\b(?!\()", rule)):
        found: dict[str, Any] = node
        for name in path.split("."):
            found = found.get("properties", {}).get(name, {})
        if found and path != "metadata.name":
            plain = found.get("type") in SCALARS and re.search(rf"self\.{path}\b(?![.\w])", compared) is not None
            yield path.rpartition(".")[2], plain


@pytest.mark.parametrize("place", RULES)
def test_a_rule_names_the_fields_that_it_looks_at_and_their_values(place: str) -> None:
    node, rule = RULES[place]
    message = rule.get("messageExpression", rule["message"])
    names = dict(sorted(fields_in(rule["rule"], node)))
    unnamed = [name for name in names if not re.search(rf"\b{name}\b", message)]
    without_value = [name for name, plain in names.items() if plain and f"{name}: " not in message]
    assert (unnamed, without_value) == ([], [])
    assert re.search(r"\b\w+\b(\[\])?: |\bis immutable\b|\bneeds\b|\bmust\b", message)


# What only the operator's own files can bring about: no field of the job is to blame.
OWN_FAULTS = {
    *("BadArguments", "BadEnvironment", "BadRunFile", "OutsideRunFolder", "ClaimNotMounted"),
    *("ArtifactChanged", "ArtifactTorn", "BadSnapshot", "BaseModelTorn", "BestCheckpointLost", "CheckpointMismatch"),
    *("DataChanged", "DataTorn", "Leakage"),
}
RUN = PrepareRun.model_validate(
    {
        "identity": {"namespace": "ml", "job": "router", "uid": "u", "attempt": 1},
        "locations": {"run": "s3://b/run", "cache": "s3://b/cache", "allowedRoots": []},
        "model": {"uri": "hf://org/base", "task": "Chat"},
        "sources": [
            {"name": "tickets", "uri": "s3://b/tickets.jsonl"},
            {"name": "chats", "uri": "s3://b/tickets"},
            {"name": "bucket", "uri": "s3://b/"},
            {"name": "earlier", "uri": "s3://b/run/model"},
        ],
        "maxBadRows": 0,
        "maxTruncatedFraction": 0,
        "maxLength": 1024,
        "split": {"fractions": {"train": 0.8, "validation": 0.1, "test": 0.1}, "salt": "ml/"},
        "evaluationDataset": {"name": "evaluation", "uri": "s3://b/held-out"},
    }
)


def refusals() -> Iterator[tuple[str, str]]:
    """What the trainer says for good: where, and the message with something for each of its values."""
    for path in sorted((ROOT / "trainer_image" / "finetune_trainer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if (
                path.parent.name == "serving"
                or not isinstance(node, ast.Call)
                or name not in ("bad_data", "not_found", "bad_configuration")
            ):
                continue
            reason, message = (None, node.args[0]) if name == "not_found" else node.args
            said = message if isinstance(message, ast.JoinedStr | ast.Constant) else None
            given = [each.value for each in node.keywords if each.arg == "reason"] + [reason]
            if said is not None and not OWN_FAULTS & {each.value for each in given if isinstance(each, ast.Constant)}:
                yield f"{path.name}: {ast.unparse(said)}", "".join(_filled(said))


def _filled(message: ast.expr) -> Iterator[str]:
    for part in message.values if isinstance(message, ast.JoinedStr) else [message]:
        if isinstance(part, ast.FormattedValue):
            what = ast.unparse(part.value)
            is_place = re.search(r"uri|name$|place", what) is not None
            yield (
                "evaluation.generation.maxNewTokens: 9"
                if what == "where"
                else ("s3://b/tickets.jsonl" if is_place else "7")
            )
        else:
            yield str(getattr(part, "value", ""))


@pytest.mark.parametrize(("where", "message"), list(refusals()), ids=lambda text: text[:60])
def test_what_prepare_refuses_names_a_field_of_the_job(where: str, message: str) -> None:
    assert re.match(r"(model|data|method|training|compute|evaluation)\.[\w.\[\]]+: \S", with_field(message, run=RUN)), (
        where
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("s3://b/tickets.jsonl does not exist", "data.sources[0].uri: "),
        ("chats (s3://b/tickets/one.csv) is damaged", "data.sources[1].uri: "),
        ("s3://b/held-out/a.csv may not be read", "evaluation.dataset.uri: "),
        ("hf://org/base is gated", "model.uri: "),
        ("source chats: the base model's chat template refuses a chat", "data.sources[1].uri: s3://b/tickets: "),
        ("the base model's tokenizer has no chat template", "model.uri: hf://org/base: "),
        ("hf://org/base: no tokenizer", "model.uri: "),
        ("hf://org/base is outside of the allowed roots (s3://b/tickets)", "model.uri: "),
        ("not found: hf://org/base.", "model.uri: "),
        ("hf://org/base-chat does not exist", ""),
        ("hf://org/base.v2 does not exist", ""),
        ("s3://b/run/data: no space left", ""),
        ("s3://b/run-2/a.csv is damaged", "data.sources[2].uri: "),
        ("s3://b/run/model/answers.jsonl is damaged", "data.sources[3].uri: "),
        ("training.maxLength: 9 is more than hf://org/base reads", ""),
        ("memory was not enough", ""),
    ],
)
def test_the_field_is_the_one_that_holds_what_is_meant(message: str, field: str) -> None:
    assert with_field(message, run=RUN) == field + message


@pytest.mark.parametrize("policy", ["Hold", "Reject", "Proceed"])
def test_a_gate_names_the_metric_and_the_policy_with_its_value(policy: OnInconclusive) -> None:
    row = MetricResult(metric="accuracy", verdict="Inconclusive", reason="fewer than 50 examples")
    judged = Comparison(verdict="Inconclusive", rows=[row], examples=9, baseline="Base", on_inconclusive=policy)
    said = judge(judged).message
    assert "accuracy: fewer than 50 examples" in said
    assert f"evaluation.onInconclusive: {policy}" in said
