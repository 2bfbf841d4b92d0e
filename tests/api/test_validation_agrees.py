"""`finetune validate` against the real apiserver: on random changes of right manifests both must say the same.

The curated cases of test_wrong_manifests.py are what a user gets wrong; these are what nobody thought of.
"""

from __future__ import annotations

import asyncio
import copy
import random
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from tests.api.client import open_session
from tests.harness import ApiServer
from tests.wrong_manifests import Manifest, valid

from finetune_api.crd import RESOURCES, object_schema
from finetune_operator.kube.kinds import place_of
from finetune_operator.validation import validate
from finetune_operator.validation.decoding import whole_numbers

CHANGES = 250
SEED = 20261101
SCHEMAS = {resource.kind: object_schema(resource=resource) for resource in RESOURCES}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2.5, 1e-7, 1e25, 2**40, 2**70, "", "x", "file://x", "a\nb", 'q"<&>', "ü" * 300, [],
    ["a", "a"], [None], [{}], [{"name": "a"}, {"name": "a"}], {}, {"a": "b"}, {"a": 1}, {"name": "X y"}, "Full", "LoRA",
]  # fmt: skip
# In these fields of a ModelVersion anything goes, and the apiserver's equality overlooks a key that was renamed.
OPEN = ("method", "training")
NAMES = ["unknown", "name", "labels", "kind", "metadata", "lora", "weight", "Type"]


@pytest.mark.parametrize("kind", ["job", "version", "endpoint"])
@pytest.mark.parametrize("operation", ["create", "update"])
async def test_both_say_the_same(crds: ApiServer, kind: str, operation: str) -> None:
    generator = random.Random(f"{SEED} {kind} {operation}")
    right = valid(kind)
    refused = 0
    async with open_session(crds) as session:
        collection = place_of(manifest=right).collection(namespace="default")
        stored = None
        if operation == "update":
            async with session.post(collection, json=right) as answer:
                stored = await answer.json()
        changed = [_changed(right, generator) for _ in range(CHANGES)]
        answers = await asyncio.gather(*(_ask(session, collection, manifest, stored) for manifest in changed))
        if stored is not None:
            await session.delete(f"{collection}/{stored['metadata']['name']}")
    different = []
    for manifest, said in zip(changed, answers, strict=True):
        ours = {(error.field, error.message) for error in validate(manifest, stored)}
        refused += bool(said)
        if ours != said:
            different.append({"only here": ours - said, "only there": said - ours, "manifest": manifest["spec"]})
    assert not different
    assert refused > CHANGES * 0.4, "the changes are too tame to compare anything"


async def _ask(
    session: aiohttp.ClientSession, collection: str, manifest: Manifest, stored: Manifest | None
) -> set[tuple[str, str]]:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    if stored is None:
        request = session.post(collection, params=query, json=manifest)
    else:
        whole = manifest | {"metadata": stored["metadata"] | manifest["metadata"]}
        request = session.put(f"{collection}/{stored['metadata']['name']}", params=query, json=whole)
    async with request as answer:
        status = await answer.json()
    if status["kind"] != "Status":
        return set()
    unknown = re.findall(r'unknown field "([^"]+)"', status["message"])
    if unknown:
        return {(field, "unknown field") for field in unknown}
    assert "causes" in status.get("details", {}), status
    causes = {(cause["field"], cause["message"]) for cause in status["details"]["causes"]}
    # What the schema refuses in the field that the scale leads to, the apiserver says twice, then by the scale's path.
    return {cause for cause in causes if not cause[0].startswith(".")} or causes


def _changed(right: Manifest, generator: random.Random) -> Manifest:
    manifest = copy.deepcopy(right)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        places = list(_places(manifest["spec"], open_fields=OPEN if manifest["kind"] == "ModelVersion" else ()))
        container, key = generator.choice(places or [(manifest, "spec")])
        action = generator.random()
        if action < 0.25:
            del container[key]
        elif action < 0.4 and isinstance(container, dict):
            container[generator.choice(NAMES)] = generator.choice(VALUES)
        elif action < 0.6 and isinstance(container[key], int | float) and not isinstance(container[key], bool):
            container[key] = container[key] * generator.choice((-1, 0, 2, 1000, 0.3))
        else:
            container[key] = copy.deepcopy(generator.choice(VALUES))
    # kubectl never sends 3.0: its YAML goes through Go's JSON.
    return whole_numbers(manifest)


def _places(node: Any, *, open_fields: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(pairs):
        yield node, key
        if key not in open_fields:
            yield from _places(value, open_fields=open_fields)
