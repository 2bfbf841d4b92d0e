"""A real gateway process, real clients, and upstreams that fail in every way they can."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tests.local.gateway.conftest import (
    GatewayProcess,
    OpenDoor,
    Upstream,
    eventually,
    without_an_answer_to_connections,
)
from tests.patience import HANGS_S
from tests.staying import stays

HELLO = {"model": "router", "messages": [{"role": "user", "content": "hello"}]}
CANARY = {"name": "half", "weights": {"new": 50, "old": 50}, "fallback": "old"}


def canary(**breaker: Any) -> list[dict[str, Any]]:
    settings = {"failures": 3, "failureRatio": 0.5, "windowSeconds": 5, "overdueSeconds": 0.5} | breaker
    return [{"name": "all", "weights": {"new": 100, "old": 0}, "fallback": "old", "breaker": settings}]


def arm(gateway: GatewayProcess, variant: str) -> dict[str, Any]:
    arms = [arm for arm in gateway.observations()["arms"] if arm["variant"] == variant]
    total: dict[str, Any] = {}
    for counts in arms:
        for name, value in counts.items():
            if isinstance(value, (int, float)):
                total[name] = total.get(name, 0) + value
    return total


async def post(
    client: aiohttp.ClientSession, gateway: GatewayProcess, body: Any = None, **headers: str
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body if body is not None else HELLO).encode()
    async with client.post(gateway.url + "/v1/chat/completions", data=data, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_the_openai_client_works_unchanged(gateway: GatewayProcess, stable: Upstream) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in await client.models.list()] == ["router"]
        whole = await client.chat.completions.create(model="router", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == "old says hello"
        stream = await client.chat.completions.create(
            model="router", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text.strip() == "old says hello"
        with pytest.raises(openai.NotFoundError, match="serves the model 'router' only"):
            await client.chat.completions.create(model="gpt-4", messages=[])


async def test_a_trace_goes_on_to_the_version_that_answers_and_not_to_copies(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    shadow = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 5, "maxInFlight": 10}
    gateway.route(stable, candidate, rules=[{"name": "all", "weights": {"old": 100}}], shadow=shadow)
    gateway.start()
    await gateway.ready()
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1,b=2"}
    for headers in (trace, {}, {"traceparent": "junk", "tracestate": "a=1"}):
        assert (await post(client, gateway, **headers))[0] == 200
    assert stable.traces == [trace, {}, {}]
    await eventually(lambda: len(candidate.traces) == 3)
    assert candidate.traces == [{}, {}, {}]


async def test_users_stick_and_shares_hold(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=[CANARY])
    gateway.start(ACCESS_LOG="false")
    await gateway.ready()

    async def ask(user: int) -> str:
        _, answer = await post(client, gateway, {**HELLO, "user": f"user-{user}"})
        return str(answer["choices"][0]["message"]["content"]).split()[0]

    first = [await ask(user) for user in range(120)]
    second = [await ask(user) for user in range(120)]
    assert first == second
    assert 40 <= first.count("new") <= 80


async def test_a_key_that_many_share_is_not_one_user(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    keys = gateway.folder / "keys"
    keys.mkdir()
    (keys / "frontend").write_text("key-f\n")
    gateway.route(stable, candidate, rules=[CANARY], judging={"userWeightCap": 2})
    gateway.start(KEYS_FOLDER=str(keys))
    await gateway.ready()
    for _ in range(40):
        await post(client, gateway, Authorization="Bearer key-f")
    await eventually(lambda: arm(gateway, "old")["requests"] + arm(gateway, "new")["requests"] == 40)
    assert min(len(stable.seen), len(candidate.seen)) > 5, "its requests see the step's share"
    for _ in range(40):
        await post(client, gateway, {**HELLO, "user": "ann"}, Authorization="Bearer key-f")
    await eventually(lambda: arm(gateway, "old").get("capped", 0) + arm(gateway, "new").get("capped", 0) == 38)
    assert max(len(stable.seen), len(candidate.seen)) > 45, "a user that it names stays on one side"


async def test_a_candidate_that_answers_500_is_left_and_no_client_sees_it(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=canary())
    gateway.start()
    await gateway.ready()
    candidate.status = 500
    answers = [await post(client, gateway) for _ in range(20)]
    assert {status for status, _ in answers} == {200}
    assert {answer["choices"][0]["message"]["content"] for _, answer in answers} == {"old says hello"}
    assert len(candidate.seen) == 3, "the breaker opened at the third failure"
    await eventually(lambda: gateway.observations()["breakers"])
    assert "status 500" in gateway.observations()["breakers"][0]["reason"]
    assert arm(gateway, "new")["errors"] == 3


async def test_a_candidate_that_hangs_is_left_and_its_clients_are_answered_by_stable(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=canary(), judging={"latencyLimitSeconds": 0.3, "userWeightCap": 50})
    gateway.start()
    await gateway.ready()
    candidate.delay = 60
    began = time.monotonic()
    answers = await asyncio.gather(*[post(client, gateway) for _ in range(5)])
    assert time.monotonic() - began < 30
    assert {status for status, _ in answers} == {200}
    await eventually(lambda: arm(gateway, "new")["errors"] == 5)
    assert arm(gateway, "new")["requests"] == 5
    assert "no answer within 0.5 s" in gateway.observations()["breakers"][0]["reason"]


async def test_one_request_that_is_overdue_is_answered_by_stable(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=canary())
    gateway.start()
    await gateway.ready()
    candidate.delay = 60
    began = time.monotonic()
    status, answer = await post(client, gateway)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "old says hello")
    assert time.monotonic() - began < 30
    await eventually(lambda: arm(gateway, "new")["errors"] == 1)
    assert gateway.observations()["breakers"] == [], "one is too few to leave a version for good"


async def test_a_request_that_hangs_is_answered_by_stable_although_its_version_has_left_the_routes(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=canary(overdueSeconds=1.0))
    gateway.start()
    await gateway.ready()
    candidate.delay = 60
    began = time.monotonic()
    hanging = asyncio.create_task(post(client, gateway))
    await eventually(lambda: candidate.seen)
    epoch = gateway.route(stable)
    await gateway.acknowledged(epoch)
    assert not hanging.done(), "the routes changed while it was under way"
    status, answer = await hanging
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "old says hello")
    assert time.monotonic() - began < 30
    await eventually(lambda: not gateway.observations()["draining"])


async def test_a_candidate_that_is_gone_costs_no_request(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, rules=canary())
    gateway.start()
    await gateway.ready()
    assert (await post(client, gateway))[1]["choices"][0]["message"]["content"] == "new says hello"
    await candidate.stop()
    assert {(await post(client, gateway))[0] for _ in range(10)} == {200}


async def test_a_candidate_that_takes_no_connections_is_left_and_no_client_sees_it(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    """As with a node that is gone: what is sent there is lost without a word."""
    async with without_an_answer_to_connections() as lost:
        gateway.route(stable, lost, rules=canary(overdueSeconds=20))
        gateway.start(FIRST_ANSWER_SECONDS="0")
        await gateway.ready()
        answers = await asyncio.gather(*[post(client, gateway) for _ in range(5)])
    assert {status for status, _ in answers} == {200}
    await eventually(lambda: "ConnectionTimeoutError" in gateway.observations()["breakers"][0]["reason"])


async def goes_after_an_answer(gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    await post(client, gateway)
    await stable.stop()


async def test_a_version_that_takes_no_connections_for_a_moment_costs_no_request(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    """Its Service leads to nothing while its only server is too busy to say that it is ready."""
    await goes_after_an_answer(gateway, stable, client)
    waiting = asyncio.create_task(post(client, gateway))
    await stays(lambda: not waiting.done(), seconds=2)
    await stable.start()
    assert (await waiting)[0] == 200
    await eventually(lambda: (arm(gateway, "old")["requests"], arm(gateway, "old")["errors"]) == (2, 1))


async def test_a_version_that_takes_no_connections_any_more_is_not_waited_for_until_the_limit(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    await goes_after_an_answer(gateway, stable, client)
    began = time.monotonic()
    assert (await post(client, gateway))[0] == 502
    assert 10 <= time.monotonic() - began < 60


@pytest.mark.parametrize("late", ["candidate", "stable"])
async def test_of_a_version_that_is_still_starting_nothing_is_counted(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession, late: str
) -> None:
    """A machine came back: the gateway is there in a second, a model is loaded for minutes."""
    starting = candidate if late == "candidate" else stable
    await starting.stop()
    shadow = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 2, "probe": {"ratePerSecond": 50}}
    all_to_old = [{"name": "all", "weights": {"old": 100}}]
    gateway.route(stable, candidate, rules=canary() if late == "candidate" else all_to_old, shadow=shadow)
    gateway.start()
    await gateway.ready()
    statuses = {(await post(client, gateway))[0] for _ in range(8)}
    assert statuses == ({200} if late == "candidate" else {502})
    await stays(lambda: gateway.observations()["pairs"] == [], seconds=1.5)
    seen = gateway.observations()
    assert (seen["breakers"], [each for each in seen["arms"] if each["requests"] or each["capped"]]) == ([], [])
    await starting.start()
    await eventually(lambda: sum(each["pairs"] for each in gateway.observations()["pairs"]) > 0)
    await post(client, gateway)
    await eventually(lambda: arm(gateway, "new" if late == "candidate" else "old")["requests"] == 1)


async def test_a_switch_under_load_fails_nothing_and_settles_within_a_second(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate)
    gateway.start(ACCESS_LOG="false")
    await gateway.ready()
    stop = asyncio.Event()
    statuses: list[int] = []
    took: list[float] = []

    async def load() -> None:
        while not stop.is_set():
            statuses.append((await post(client, gateway))[0])

    workers = [asyncio.create_task(load()) for _ in range(4)]
    for number in range(6):
        wanted = len(statuses) + 10
        await eventually(lambda: len(statuses) >= wanted)  # noqa: B023 - called at once
        began = time.monotonic()
        epoch = gateway.route(*([candidate, stable] if number % 2 == 0 else [stable, candidate]))
        await gateway.acknowledged(epoch)
        took.append(time.monotonic() - began)
    assert statistics.median(took) < 1
    stop.set()
    await asyncio.gather(*workers)
    assert set(statuses) == {200}


async def test_routes_that_cannot_be_read_change_nothing(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    gateway.route(candidate, schemaVersion=99)
    (gateway.folder / "routes.json").write_text("{ not json")
    await stays(lambda: said_by_old(client, gateway), seconds=0.5)
    (gateway.folder / "routes.json").unlink()
    await stays(lambda: said_by_old(client, gateway), seconds=0.3)
    assert gateway.observations()["acknowledgedEpoch"] == 1


async def test_an_older_epoch_is_refused(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.epoch = 9
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    gateway.route(candidate, epoch=3)
    await stays(lambda: said_by_old(client, gateway), seconds=0.5)


async def said_by_old(client: aiohttp.ClientSession, gateway: GatewayProcess) -> bool:
    """Whether the version `old` answers."""
    status, answer = await post(client, gateway)
    return (status, answer["choices"][0]["message"]["content"]) == (200, "old says hello")


async def test_an_answer_that_breaks_off_is_counted_and_the_client_is_told(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    stable.break_after_chunks = 2
    body = json.dumps({**HELLO, "stream": True})
    async with client.post(gateway.url + "/v1/chat/completions", data=body) as answer:
        text = (await answer.read()).decode()
    assert "old" in text
    assert "the answer broke off" in text
    assert "[DONE]" not in text
    await eventually(lambda: arm(gateway, "old")["errors"] == 1)


async def test_a_client_that_hangs_up_is_no_error_of_the_variant(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    stable.text = "word " * 500
    body = json.dumps({**HELLO, "stream": True})
    answer = await client.post(gateway.url + "/v1/chat/completions", data=body)
    await answer.content.readany()
    answer.close()
    await eventually(lambda: not gateway.observations()["draining"] and arm(gateway, "old"))
    assert arm(gateway, "old")["errors"] == 0
    stable.text = None
    assert (await post(client, gateway))[0] == 200


async def test_bad_requests_are_refused_with_reasons(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start(BODY_BYTES="100000", BODY_TIMEOUT_SECONDS="0.5")
    await gateway.ready()
    for body, status, words in [
        (b"{", 400, "not valid JSON"),
        (b"x" * 10_000_000, 413, "larger than 100000 bytes"),
        ({"model": "other"}, 404, "'router' only"),
    ]:
        seen, answer = await post(client, gateway, body)
        assert (seen, words in answer["error"]["message"]) == (status, True), answer
    async with client.post(gateway.url + "/v1/classify", data=b"{}") as answer:
        assert (answer.status, "task is Chat" in await answer.text()) == (404, True)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    head = await asyncio.wait_for(reader.readline(), timeout=HANGS_S)
    assert b" 408 " in head
    writer.close()
    assert stable.seen == []


async def test_keys_are_checked_and_can_change(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    keys = gateway.folder / "keys"
    keys.mkdir()
    (keys / "team-a").write_text("secret-a\n")
    gateway.route(stable)
    gateway.start(KEYS_FOLDER=str(keys))
    await gateway.ready()
    assert (await post(client, gateway))[0] == 401
    assert (await post(client, gateway, Authorization="Bearer wrong"))[0] == 401
    assert (await post(client, gateway, Authorization="Bearer secret-a"))[0] == 200


async def test_votes_count_once_and_cannot_be_forged(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    request_id = await answered_by(gateway, client)
    statuses = []
    for vote in [request_id, request_id, "forged.id"]:
        async with client.post(gateway.url + "/v1/feedback", json={"request_id": vote, "rating": "down"}) as answer:
            statuses.append(answer.status)
    assert statuses == [200, 409, 404]
    await eventually(lambda: arm(gateway, "old").get("negative") == 1)
    assert arm(gateway, "old")["bad"] == 1


async def test_a_vote_reaches_the_gateway_that_gave_the_answer(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, door: OpenDoor, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = GatewayProcess(folder=tmp_path / "second")
    both = {"gateway-0": gateway, "gateway-1": second}
    try:
        for name, each in both.items():
            each.route(stable)
            each.start(NAME=name, ADDRESS="127.0.0.1", OBSERVATIONS_FILE="", DOOR_URL=door.url)
        for each in both.values():
            await each.ready()
        await eventually(lambda: all(door.told.get(name) for name in both))
        request_id = await answered_by(second, client)
        statuses = [(await vote(client, each, request_id))[0] for each in (gateway, second, gateway)]
        assert statuses == [200, 409, 409], "once, wherever it comes in"
        await eventually(lambda: door.reports["gateway-1"].arms[0].negative == 1)
        assert door.reports["gateway-0"].arms == [], "the one that gave no answer counts none"
        request_id = await answered_by(second, client)
        second.stop()
        status, body = await vote(client, gateway, request_id)
        assert status == 503, "it was there a moment ago"
        assert "try again" in body["error"]["message"]
        await eventually(lambda: door.told["gateway-0"] == {})
        status, body = await vote(client, gateway, request_id)
        assert (status, "is gone" in body["error"]["message"]) == (404, True)
    finally:
        second.stop()


async def answered_by(gateway: GatewayProcess, client: aiohttp.ClientSession) -> str:
    """The request id of an answer."""
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
        assert answer.status == 200
        return answer.headers["X-Request-Id"]


async def vote(client: aiohttp.ClientSession, gateway: GatewayProcess, request_id: str) -> tuple[int, dict[str, Any]]:
    ballot = {"request_id": request_id, "rating": "down"}
    async with client.post(gateway.url + "/v1/feedback", json=ballot) as answer:
        return answer.status, await answer.json()


async def test_shadow_compares_off_the_path_and_sheds(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    shadow = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 90, "maxInFlight": 2}
    gateway.route(stable, candidate, shadow=shadow)
    gateway.start()
    await gateway.ready()
    candidate.text = "  "
    assert (await post(client, gateway))[1]["choices"][0]["message"]["content"] == "old says hello"
    await eventually(lambda: gateway.observations()["pairs"])
    assert (stable.mirrored, candidate.mirrored) == ([None], ["shadow"])
    tables = {pair["metric"]: pair for pair in gateway.observations()["pairs"]}
    assert (tables["quality"]["candidateOnly"], tables["error_rate"]["candidateOnly"]) == (1, 0)
    candidate.delay = 60.0
    began = time.monotonic()
    assert {(await post(client, gateway))[0] for _ in range(10)} == {200}
    assert time.monotonic() - began < 30, "clients do not wait for the shadow"
    await eventually(lambda: gateway.observations()["shadow"][0]["dropped"] == 8)


async def test_of_each_user_a_shadow_copies_as_many_requests_as_are_counted(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    shadow = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 90, "maxInFlight": 20}
    gateway.route(stable, candidate, shadow=shadow, judging={"userWeightCap": 2})
    gateway.start()
    await gateway.ready()
    for user in ["loop"] * 9 + ["other"]:
        assert (await post(client, gateway, HELLO | {"user": user}))[0] == 200
    await eventually(lambda: len(candidate.mirrored) == 3)
    await stays(lambda: len(candidate.mirrored) == 3, seconds=1)


async def test_probes_count_each_prompt_once(gateway: GatewayProcess, stable: Upstream, candidate: Upstream) -> None:
    shadow = {"candidate": "new", "stable": "old", "percent": 0, "timeoutSeconds": 2, "probe": {"ratePerSecond": 50}}
    gateway.route(stable, candidate, shadow=shadow)
    gateway.start()
    await gateway.ready()
    candidate.status = 500

    def pairs() -> int:
        tables = gateway.observations()["pairs"]
        return sum(p["pairs"] for p in tables if (p["metric"], p["source"]) == ("error_rate", "Probe"))

    await eventually(lambda: pairs() == 5)
    await stays(lambda: pairs() == 5, seconds=1.5)
    assert len(stable.seen) == 5
    assert stable.mirrored == candidate.mirrored == ["probe"] * 5


async def test_a_prompt_counts_once_though_the_routes_of_the_same_comparison_are_written_again(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream
) -> None:
    """A guard counts from the promotion on, and asks again; and somebody may put back the routes of any step."""
    probe: dict[str, Any] = {"ratePerSecond": 50}
    shadow = {"candidate": "new", "stable": "old", "percent": 0, "timeoutSeconds": 2, "probe": probe}
    gateway.route(stable, candidate, shadow=shadow)
    gateway.start()
    await gateway.ready()
    candidate.text = ""

    def counted(name: str) -> int:
        tables = gateway.observations()["pairs"]
        return sum(each[name] for each in tables if (each["metric"], each["source"]) == ("quality", "Probe"))

    await eventually(lambda: counted("pairs") == 5)
    gateway.route(stable, candidate, shadow=shadow)
    gateway.route(stable, candidate, shadow={**shadow, "probe": {**probe, "repeat": True}})
    await eventually(lambda: counted("pairs") >= 15)
    assert counted("candidateOnly") == 5, "what it answered worse before is no news"
    rules = [{"name": "all", "weights": {"old": 90, "new": 10}}]
    gateway.route(stable, candidate, rules=rules, shadow=shadow)
    await eventually(lambda: counted("candidateOnly") == 10)  # another step has a comparison of its own


async def test_repeated_probes_count_what_has_changed(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream
) -> None:
    probe = {"ratePerSecond": 50, "repeat": True}
    shadow = {"candidate": "new", "stable": "old", "percent": 0, "timeoutSeconds": 2, "probe": probe}
    gateway.route(stable, candidate, shadow=shadow)
    candidate.text = ""
    gateway.start()
    await gateway.ready()

    def table() -> dict[str, int]:
        tables = gateway.observations()["pairs"]
        found = [each for each in tables if (each["metric"], each["source"]) == ("quality", "Probe")]
        return found[0] if found else {"pairs": 0, "candidateOnly": 0, "stableOnly": 0}

    await eventually(lambda: table()["pairs"] >= 20)
    assert table()["candidateOnly"] == 5, "what it has always answered worse is no news"
    candidate.text = None
    await eventually(lambda: table()["stableOnly"] >= 5)
    stable.text = ""
    before = table()
    await eventually(lambda: table()["pairs"] >= before["pairs"] + 20)
    assert table()["candidateOnly"] == 5


async def test_one_user_cannot_decide(gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession) -> None:
    gateway.route(stable, judging={"userWeightCap": 3})
    gateway.start()
    await gateway.ready()
    for _ in range(10):
        await post(client, gateway, {**HELLO, "user": "loud"})
    await eventually(lambda: arm(gateway, "old")["capped"] == 7)
    assert arm(gateway, "old")["requests"] == 3


async def test_sigterm_lets_requests_finish(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    stable.delay = 1.0
    under_way = asyncio.create_task(post(client, gateway))
    await eventually(lambda: stable.seen)
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGTERM)
    assert (await under_way)[0] == 200
    assert gateway.process.wait(timeout=HANGS_S) == 0


async def test_a_version_that_fails_every_request_fills_no_log(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start(ACCESS_LOG="false")
    await gateway.ready()
    stable.status = 500
    assert {(await post(client, gateway))[0] for _ in range(10)} == {500}
    assert (gateway.folder / "gateway.log").read_text().count("trying the next") in (1, 2)


async def test_metrics_are_exported(gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    await post(client, gateway)
    async with client.post(
        gateway.url + "/v1/chat/completions", data=json.dumps({**HELLO, "stream": True})
    ) as streamed:
        assert b"[DONE]" in await streamed.read()
    async with client.get(f"http://127.0.0.1:{gateway.status_port}/metrics") as answer:
        text = await answer.text()
    assert 'finetune_gateway_requests_total{code="200",variant="old"} 2.0' in text
    assert "finetune_gateway_routes_epoch 1.0" in text
    assert 'finetune_gateway_request_duration_seconds_count{variant="old"} 2.0' in text
    assert 'finetune_gateway_time_to_first_byte_seconds_count{variant="old"} 1.0' in text
