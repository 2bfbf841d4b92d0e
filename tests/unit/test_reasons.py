"""Reasons of conditions and Events: all in one place, all in use, all documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.stage_reasons import STAGE_REASONS
from finetune_operator.core.reasons import Reason, page

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = ROOT / "operator" / "finetune_operator"
DECIDING = [path for part in ("attempts", "endpoint", "gates", "job") for path in (OPERATOR / part).rglob("*.py")]
MODULES = [*DECIDING, OPERATOR / "reconcile.py"]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reasons.md").read_text() == page(), "run `make generate`"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(OPERATOR)))
def test_no_reason_is_a_word_in_the_code(module: Path) -> None:
    given = _reasons(ast.parse(module.read_text()))
    found = [f"line {each.lineno}: {each.value}" for each in given if each.value in set(Reason)]
    assert found == [], "write Reason.NAME"


def test_every_reason_is_used() -> None:
    text = "\n".join(path.read_text() for path in MODULES)
    named = set(re.findall(r"\bReason\.([A-Z_]+)\b", text))
    phases = {
        Reason.SHADOWING,
        Reason.CANARY,
        Reason.PENDING,
        Reason.EVALUATING,
        Reason.SUCCEEDED,
    }  # which are the reason while nothing else is to be said
    assert {reason.name for reason in set(Reason) - phases} <= named


def test_every_reason_of_a_container_is_listed_and_given() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "trainer_image").rglob("*.py")]
    assert {reason for tree in trees for reason in _given_by_containers(tree)} == set(STAGE_REASONS)


def _given_by_containers(tree: ast.Module) -> Iterator[str]:
    """What is raised: as the keyword or the default `reason`, or as the first word of the shorter forms."""
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("StageError", "not_found"):
                values = [each.value for each in node.keywords if each.arg == "reason"]
            elif node.func.id in ("bad_data", "bad_configuration"):
                values = node.args[:1]
        elif isinstance(node, ast.FunctionDef) and node.name == "not_found":
            values = [each for each in node.args.kw_defaults if each is not None]
        for value in values:
            chosen = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            yield from (str(each.value) for each in chosen if isinstance(each, ast.Constant))


def _reasons(tree: ast.Module) -> Iterator[ast.Constant]:
    """Constants that are given as a reason: by that name, or as the third part of a condition."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            third = node.args[2:3] if isinstance(node.func, ast.Name) and node.func.id == "Wanted" else []
            values = [*third, *(each.value for each in node.keywords if each.arg == "reason")]
            yield from (part for value in values for part in ast.walk(value) if isinstance(part, ast.Constant))
