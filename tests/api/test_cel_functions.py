"""The list functions of Kubernetes' CEL: here and in the apiserver the same rules say the same of the same values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.client import open_session
from tests.harness import ApiServer
from tests.patience import HANGS_S

from finetune_operator.validation.cel_rules import check_rules

# Each rule fails for some of the values below; `min` and `max` of an empty list are errors.
RULES = [
    "self.numbers.isSorted()",
    "self.numbers.sum() <= 10.0",
    "self.numbers.min() > 0.0",
    "self.numbers.max() < 5.0",
    "self.numbers.indexOf(2.0) <= 0",
    "self.numbers.lastIndexOf(2.0) <= 1",
    "self.words.isSorted()",
    "self.words.min() < 'm'",
    "self.words.max() < 'x'",
    "self.words.indexOf('b') == self.words.lastIndexOf('b')",
    "self.words.map(word, size(word)).sum() < 6",
    "self.words.map(word, size(word) > 1).isSorted()",
    "self.counts.sum() + 1 == 7",
    "self.counts.filter(count, count > 9).sum() == 0",
    "self.counts.indexOf(7) == -1",
]
VALUES = [
    {"numbers": [], "words": [], "counts": []},
    {"numbers": [1, 2, 2.5], "words": ["a", "b", "c"], "counts": [1, 2, 3]},
    {"numbers": [2.5, 2, 2], "words": ["zz", "b", "b"], "counts": [3, 2, 1]},
    {"numbers": [0, 2, 9.5], "words": ["n", "x"], "counts": [7]},
    {"numbers": [2], "words": ["aaa", "bb", "b"], "counts": [10, -4]},
]
GROUP, PLURAL = "test.finetune.dev", "lists"


def _schema() -> dict[str, Any]:
    def items(type_: str, **limits: int) -> dict[str, Any]:
        return {"type": "array", "maxItems": 8, "items": {"type": type_, **limits}}

    properties = {"numbers": items("number"), "words": items("string", maxLength=8), "counts": items("integer")}
    rules = [{"rule": rule, "message": f"broken: {rule}"} for rule in RULES]
    return {"type": "object", "properties": properties, "x-kubernetes-validations": rules}


@pytest.fixture(scope="module")
def lists(apiserver: ApiServer) -> Iterator[ApiServer]:
    """A type whose `spec` has the rules."""
    name = f"{PLURAL}.{GROUP}"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _schema()}}},
    }
    apiserver.kubectl.create(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {"kind": "Lists", "plural": PLURAL},
                "versions": [version],
            },
        }
    )
    apiserver.kubectl.run(
        "wait", "--for=condition=Established", f"customresourcedefinition/{name}", f"--timeout={HANGS_S}s"
    )
    yield apiserver
    apiserver.kubectl.delete("customresourcedefinition", name)


async def test_both_say_the_same(lists: ApiServer) -> None:
    schema, refused = _schema(), set()
    collection = f"/apis/{GROUP}/v1/namespaces/default/{PLURAL}"
    async with open_session(lists) as session:
        for value in VALUES:
            manifest = {"apiVersion": f"{GROUP}/v1", "kind": "Lists", "metadata": {"name": "x"}, "spec": value}
            async with session.post(collection, params={"dryRun": "All"}, json=manifest) as answer:
                status = await answer.json()
            causes = status.get("details", {}).get("causes", []) if status["kind"] == "Status" else []
            said = {(cause["field"], cause["message"]) for cause in causes}
            assert {(error.field, error.message) for error in check_rules(value, schema, "spec")} == said, value
            refused |= {rule for rule in RULES if any(rule in message for _, message in said)}
    assert refused == set(RULES), "a rule that never fails compares nothing"
