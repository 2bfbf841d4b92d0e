"""Kubernetes' list functions in CEL rules (tests/api asks the real apiserver the same)."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.validation.cel_rules import check_rules


def outcome(rule: str, value: list[Any], *, items: str) -> str:
    """`holds`, or what is said instead."""
    rules = [{"rule": rule, "message": "broken"}]
    schema = {"type": "array", "items": {"type": items}, "x-kubernetes-validations": rules}
    errors = check_rules(value, schema, "spec")
    return errors[0].message.removeprefix("Invalid value: ") if errors else "holds"


@pytest.mark.parametrize(
    ("rule", "items", "value", "expected"),
    [
        ("self.isSorted()", "number", [1, 2, 2, 2.5], "holds"),
        ("self.isSorted()", "number", [2, 1], "broken"),
        ("self.isSorted()", "string", ["a", "b", "a"], "broken"),
        ("self.isSorted()", "boolean", [False, True], "holds"),
        ("self.isSorted()", "boolean", [True, False], "broken"),
        ("self.isSorted()", "integer", [], "holds"),
        ("self.sum() == 6", "integer", [1, 2, 3], "holds"),
        ("self.sum() == 0", "integer", [], "holds"),
        ("self.sum() < 1", "integer", [], "holds"),
        ("1 > self.sum()", "integer", [], "holds"),
        ("self.sum() + 1.5 == 1.5", "number", [], "holds"),
        ("self.sum() <= 0.5", "number", [], "holds"),
        ("self.sum() > 0.5", "number", [], "broken"),
        ("self.sum() >= -0.5", "number", [], "holds"),
        ("self.sum() != 0.0", "number", [], "broken"),
        ("self.sum() - 2.0 == -2.0", "number", [], "holds"),
        ("self.min() == 1", "integer", [3, 1, 2], "holds"),
        ("self.max() == 'c'", "string", ["a", "c", "b"], "holds"),
        ("self.min() == 1", "integer", [], '"array": min called on empty list evaluating rule: broken'),
        ("self.max() == 1", "integer", [], '"array": max called on empty list evaluating rule: broken'),
        ("self.map(x, x * 2).min() == 2", "integer", [2, 1], "holds"),
        ("self.indexOf(2) == 1", "integer", [1, 2, 2], "holds"),
        ("self.lastIndexOf(2) == 2", "integer", [1, 2, 2], "holds"),
        ("self.indexOf('z') == -1 && self.lastIndexOf('z') == -1", "string", ["a"], "holds"),
    ],
)
def test_list_functions(rule: str, items: str, value: list[Any], expected: str) -> None:
    assert outcome(rule, value, items=items) == expected
