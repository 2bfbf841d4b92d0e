"""The VLLM runtime by vLLM itself, on CPUs: answers, turn ends, shadow, canary, rollback, drain.

One endpoint lives through the tests in their order; each takes it up as the one before has left it. Three versions are
started in all, at most two at a time: a start takes minutes of processor time, and 4 GB.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.harness.store import cache
from tests.local.conftest import Workspace
from tests.vllm.installed import vllm_python
from tests.vllm.served import CHATS, Served, end, get, traffic
from tests.vllm.versions import ENDPOINT, LONG_QUESTION, QUESTIONS, Maker

pytestmark = pytest.mark.timeout(5000)
METRICS = [
    {"name": "error_rate", "maxRegression": 0.4},
    {"name": "quality", "maxRegression": 0.4},
    {"name": "client_error_rate", "maxRegression": 0.4},
    # Only so that nothing is overdue on a busy machine: after twice the limit.
    {"name": "latency_seconds", "limit": 300, "maxRegression": 0.9},
]
STEPS = [{"name": "half", "percent": 50, "minSamples": 6}]
SHADOW = {"percent": 100, "minSamples": 6, "timeoutSeconds": 600, "probe": {"ratePerSecond": 1}}


def endpoint(**rollout: Any) -> dict[str, Any]:
    resources = {"limits": {"cpu": 2, "memory": "4Gi"}}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": ENDPOINT, "namespace": "default"},
        "spec": {
            "task": "Chat",
            "serving": {"runtime": "VLLM", "gpus": 0, "replicas": 1, "resources": resources},
            "gateway": {"replicas": 1, "limits": {"timeoutSeconds": 1200}},
            "rollout": {"guard": {"durationSeconds": 0}, "metrics": METRICS, "steps": STEPS} | rollout,
        },
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    python = vllm_python(str(cache() / "uv" / "bin" / "uv"))
    workspace = Workspace(folder=tmp_path_factory.mktemp("up"))
    (workspace.folder / "endpoint.yaml").write_text(yaml.safe_dump(endpoint(shadow=SHADOW)))
    served = Served(workspace=workspace, vllm=python)
    try:
        served.start()
        served.until(lambda: served.status().get("phase") == "Empty", what="looking at the endpoint")
        yield served
    finally:
        served.close()


@pytest.fixture(scope="module")
def first(served: Served, made: Maker) -> dict[str, Any]:
    """A full model, in production."""
    version = served.submit(made.full())
    served.until(lambda: served.status().get("phase") == "Idle", what="the first version")
    return version


def test_a_full_model_answers_as_in_the_evaluation_and_ends_its_turns(
    served: Served, made: Maker, first: dict[str, Any]
) -> None:
    for stream in (False, True):
        found = {question: served.ask(question, stream=stream) for question in QUESTIONS}
        assert {question: text for question, (_, text, _) in found.items()} == made.answers["v1"]
        ends = [finish for _, _, finish in found.values()]
        assert ends == ["stop", "length", "stop", "stop", "length"], "no tokenizer names this end, only the template"


def test_nothing_but_the_model_is_open_and_it_hands_out_probes(served: Served, first: dict[str, Any]) -> None:
    url = served.url("v1")
    assert [get(url + path)[0] for path in ("/health", "/v1/models", "/docs", "/version")] == [200, 200, 404, 404]
    probes = json.loads(get(f"{url}/finetune/probes")[1])["probes"]
    assert {probe["request"]["messages"][0]["content"] for probe in probes} == set(QUESTIONS)
    assert {probe["path"] for probe in probes} == {CHATS}
    assert f'vllm:generation_tokens_total{{engine="0",model_name="{ENDPOINT}"}}' in get(f"{url}/metrics")[1]
    assert "GET /health" not in served.log("v1")


def test_an_adapter_goes_through_shadow_probes_and_canary(served: Served, made: Maker, first: dict[str, Any]) -> None:
    def probes() -> int:
        files = served.workspace.home.root.glob("pods/*/*/observations.json")
        pairs = [pair for path in files for pair in json.loads(path.read_text())["pairs"]]
        return sum(pair["source"] == "Probe" for pair in pairs)

    served.submit(made.adapter(first))
    with traffic(served, *QUESTIONS) as clients:
        served.until(probes, what="probes at both versions")
        served.until(lambda: served.status()["stable"]["name"] == "v2", what="the promotion")
    assert [each["outcome"] for each in served.status()["versions"]] == ["Promoted", "Promoted"]
    assert {status for _, status, _ in clients.got} == {200}
    for question, _, text in clients.got:
        assert text in (made.answers["v1"][question], made.answers["v2"][question])
    phases = ["Shadowing: ", "Canary: "]
    assert sorted(phases, key=served.said().index) == phases
    served.until(lambda: len(served.servers()) == 1, what="the end of the first version's server")
    assert made.answers["v1"] != made.answers["v2"], "else the untuned base could have answered"
    assert {question: served.ask(question)[1] for question in QUESTIONS} == made.answers["v2"]


def test_a_merged_version_that_refuses_what_stable_answers_is_rolled_back(
    served: Served, made: Maker, first: dict[str, Any]
) -> None:
    """Its context is too short for what clients ask."""
    served.submit(endpoint())
    stable = first | {"metadata": {"name": "v2"}}
    stable = stable | {"spec": {"artifact": {"digest": served.status()["stable"]["digest"]}}}
    served.submit(made.merged(stable, context=64))
    served.until(lambda: served.status()["phase"] == "Canary", what="the canary")
    answers = {question: served.ask(question, url=served.url("v3"))[1] for question in QUESTIONS}
    assert answers == made.answers["v3"]
    with traffic(served, LONG_QUESTION) as clients:
        served.until(lambda: served.status()["versions"][-1]["name"] == "v3", what="the rollback")
    assert served.status()["versions"][-1]["outcome"] == "RolledBack"
    assert served.status()["stable"]["name"] == "v2"
    assert {status for _, status, _ in clients.got} == {200, 400}
    served.until(lambda: len(served.servers()) == 1, what="the end of its server")
    assert served.ask(LONG_QUESTION)[0] == 200


def test_sigterm_loses_nothing_that_is_under_way(served: Served, first: dict[str, Any]) -> None:
    expected = served.ask(LONG_QUESTION, tokens=48)
    got: list[tuple[int, str, str]] = []

    def ask(stream: bool) -> None:
        got.append(served.ask(LONG_QUESTION, tokens=48, stream=stream))

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    running = f'vllm:num_requests_running{{engine="0",model_name="{ENDPOINT}-base"}} 4.0'
    served.until(lambda: running in get(f"{served.url('v2')}/metrics")[1], what="four requests under way")
    end(served.pid("v2"))
    for thread in threads:
        thread.join()
    assert got == [expected] * 4
