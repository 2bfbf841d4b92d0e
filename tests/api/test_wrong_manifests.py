"""Every wrong manifest is refused: by the apiserver and by `finetune validate`, in the same words."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from tests.api.client import open_session
from tests.harness import ApiServer
from tests.wrong_manifests import WrongManifest, load_cases

from finetune_operator.kube.kinds import place_of
from finetune_operator.validation import validate

CASES = load_cases()
# The apiserver says so where a broken structure kept it from evaluating the rules. It is no objection of its own.
NOTICE = "some validation rules were not checked"
Objections = frozenset[tuple[str, str]]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 36
    assert sum(case.manifest["kind"] == "ModelEndpoint" for case in CASES) >= 20
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_apiserver_refuses_it(objections: dict[str, Objections], case: WrongManifest) -> None:
    assert case.expected, "the case expects nothing"
    assert {objection for objection in objections[case.name] if NOTICE not in objection[1]} == case.expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_finetune_validate_says_the_same(objections: dict[str, Objections], case: WrongManifest) -> None:
    assert {(error.field, error.message) for error in validate(case.manifest, case.before)} == objections[case.name]


@pytest.fixture(scope="module")
def objections(crds: ApiServer) -> dict[str, Objections]:
    """What the apiserver says about each case; empty where it takes the manifest."""
    return asyncio.run(_ask(apiserver=crds))


async def _ask(*, apiserver: ApiServer) -> dict[str, Objections]:
    async with open_session(apiserver) as session:
        return {case.name: await _refusal(session=session, case=case) for case in CASES}


async def _refusal(*, session: aiohttp.ClientSession, case: WrongManifest) -> Objections:
    collection = place_of(manifest=case.manifest).collection(namespace="default")
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    if case.before is None:
        async with session.post(collection, params=query, json=case.manifest) as answer:
            return _objections(await answer.json())
    name = case.before["metadata"]["name"]
    async with session.post(collection, json=case.before) as answer:
        assert answer.status == 201, await answer.text()
        current = await answer.json()
    manifest = case.manifest | {"metadata": current["metadata"]}
    async with session.put(f"{collection}/{name}", params=query, json=manifest) as answer:
        refusal = _objections(await answer.json())
    async with session.delete(f"{collection}/{name}") as answer:
        assert answer.status == 200, await answer.text()
    return refusal


def _objections(status: dict[str, Any]) -> Objections:
    if status["kind"] != "Status":
        return frozenset()
    unknown = re.findall(r'unknown field "([^"]+)"', status["message"])
    if unknown:
        return frozenset((field, "unknown field") for field in unknown)
    causes = status["details"]["causes"]
    return frozenset((cause["field"], cause["message"]) for cause in causes)
