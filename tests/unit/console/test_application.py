"""The console over HTTP: who may see, who may ask, and that no text from outside becomes part of a page."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from tests.made_report import HOSTILE
from tests.unit.cli.endpoints import V2, awaiting, canary
from tests.unit.console.worlds import ENDPOINT, KEY, World, guard_of, hostile_job
from tests.wrong_manifests import valid

from finetune_api.modelendpoint import APPROVE
from finetune_operator.cli.target import Target
from finetune_operator.console.sessions import LASTS_SECONDS, Sessions
from finetune_operator.core.ports import NotAllowedError
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Read-only, with an endpoint that waits for approval."""
    made = World(tmp_path)
    made.store(awaiting())
    async with made.client:
        yield made


@pytest.fixture
async def acting(tmp_path: Path) -> AsyncIterator[World]:
    """The same, and people may ask for something."""
    made = World(tmp_path, acts=True)
    made.store(awaiting())
    async with made.client:
        yield made


# -- who may see ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", ENDPOINT, f"{ENDPOINT}/report", f"{ENDPOINT}/answers"])
async def test_nothing_is_shown_to_whom_has_not_signed_in(world: World, path: str) -> None:
    answer = await world.client.get(path, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (303, "/login")


async def test_nor_is_it_renewed_for_them(world: World) -> None:
    assert (await world.client.get(f"{ENDPOINT}/live")).status == 401


async def test_another_key_does_not_sign_in(world: World) -> None:
    for answer in (
        await world.client.get("/login?key=another"),
        await world.client.post("/login", data={"secret": "another"}, headers=world.origin),
    ):
        assert answer.status == 401
        assert "not the key of this console" in await answer.text()
    assert not world.client.session.cookie_jar.filter_cookies(world.client.make_url("/"))


async def test_a_session_ends(world: World) -> None:
    await world.sign_in()
    world.clock.now = LASTS_SECONDS + 1
    assert (await world.client.get(ENDPOINT)).url.path == "/login"


async def test_signing_out_ends_the_session_also_for_a_copy_of_the_cookie(world: World) -> None:
    await world.sign_in()
    guard = guard_of(await world.text("/"))
    kept = {each.key: each.value for each in world.client.session.cookie_jar}
    await world.client.post("/logout", data={"guard": guard}, headers=world.origin)
    answer = await world.client.get(ENDPOINT, cookies=kept)
    assert answer.url.path == "/login"


async def test_the_cookie_is_for_this_console_alone(world: World) -> None:
    answer = await world.client.get(f"/login?key={KEY}", allow_redirects=False)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert cookie.startswith(f"finetune-console-{world.client.port}=")
    assert KEY not in cookie


async def test_a_name_that_leads_here_by_rebinding_is_refused(world: World) -> None:
    await world.sign_in()
    answer = await world.client.get(ENDPOINT, headers={"Host": "attacker.example"})
    assert answer.status == 421
    assert "router" not in await answer.text()


@pytest.mark.parametrize("path", ["/", ENDPOINT, "/login", "/static/console.js", "/no/such/page"])
async def test_every_answer_forbids_scripts_of_others_and_frames(world: World, path: str) -> None:
    await world.sign_in()
    headers = (await world.client.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")


@pytest.mark.parametrize(
    "path",
    [
        "/default/endpoint/another",
        "/default/secret/router",
        "/default/job/..%2F..%2Flock",
        "/%2e%2e/job/x",
        "/favicon.ico",
    ],
)
async def test_what_is_not_there_is_said_in_words(world: World, path: str) -> None:
    await world.sign_in()
    answer = await world.client.get(path)
    assert answer.status == 404
    assert "This cannot be shown" in await answer.text()


async def test_what_ones_rights_refuse_is_said_in_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.sign_in()

    async def refuse(**_: Any) -> Any:
        raise NotAllowedError('modelendpoints.finetune.dev is forbidden: User "bob" cannot list resource')

    monkeypatch.setattr(world.cluster, "list", refuse)
    assert "User &#34;bob&#34; cannot list resource" in await world.text("/")
    answer = await world.client.get(ENDPOINT)
    assert answer.status == 502
    assert "cannot list resource" in await answer.text()


# -- who may ask ------------------------------------------------------------------------------------------------------


async def test_it_is_read_only_unless_told_otherwise(world: World) -> None:
    await world.sign_in()
    assert "<form" not in (await world.text(ENDPOINT)).partition("<main")[2]
    answer = await world.ask("approve")
    assert answer.status == 403
    assert "read-only" in await answer.text()
    assert world.annotations() == {}


async def test_what_a_person_asks_for_is_written_and_said(acting: World) -> None:
    await acting.sign_in()
    answer = await acting.ask("approve")
    assert answer.url.path == ENDPOINT
    assert "v2 at router: approved" in await answer.text()
    assert acting.annotations()[APPROVE] == V2
    assert "approved" not in (await acting.text(ENDPOINT)).partition('id="sections"')[0], "it is said once"


async def test_only_the_version_that_was_shown_is_meant(acting: World) -> None:
    await acting.sign_in()
    answer = await acting.ask("approve", version="v1")
    assert "not done: --version v1" in await answer.text()
    assert acting.annotations() == {}


@pytest.mark.parametrize("origin", [{}, {"Origin": "http://attacker.example"}, {"Origin": "null"}])
async def test_a_form_of_another_site_is_refused(acting: World, origin: dict[str, str]) -> None:
    await acting.sign_in()
    assert (await acting.ask("approve", headers=origin)).status == 403
    assert acting.annotations() == {}


async def test_a_form_without_the_sessions_secret_is_refused(acting: World) -> None:
    await acting.sign_in()
    answer = await acting.ask("approve", guard="guessed")
    assert answer.status == 403
    assert acting.annotations() == {}


async def test_a_read_asks_for_nothing(acting: World) -> None:
    await acting.sign_in()
    assert (await acting.client.get(f"{ENDPOINT}/approve")).status == 405
    assert acting.annotations() == {}


# -- what comes from outside ------------------------------------------------------------------------------------------


async def test_hostile_text_stays_text_everywhere(world: World, tmp_path: Path) -> None:
    job = hostile_job(tmp_path / "evaluation")
    world.store(job)
    version = valid("version")
    version["spec"]["base"]["licence"] = HOSTILE[1]
    world.store(version)
    world.store(canary(message=HOSTILE[2]))
    await world.sign_in()
    name = job["metadata"]["name"]
    pages = ["/", f"/default/job/{name}", f"/default/job/{name}/answers", ENDPOINT]
    pages.append(f"/default/version/{version['metadata']['name']}")
    for path in pages:
        text = await world.text(path)
        assert re.findall("<script[^>]*>", text) == ['<script src="/static/console.js" defer>'], path
        assert "<img" not in text
        assert "</table></html>" not in text.partition("<main")[2].replace("</body>\n</html>", "")
    answers = await world.text(f"/default/job/{name}/answers")
    assert "Of 2 held-out examples the models gave different answers to 1." in answers
    assert "{{ 7 * 7 }}" in answers


async def test_a_report_is_shown_where_it_can_do_nothing(world: World, tmp_path: Path) -> None:
    job = hostile_job(tmp_path / "evaluation")
    world.store(job)
    await world.sign_in()
    answer = await world.client.get(f"/default/job/{job['metadata']['name']}/report")
    assert await answer.text() == f"<p>{HOSTILE[0]}</p>"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


async def test_no_other_file_is_taken_for_a_report(world: World, tmp_path: Path) -> None:
    job = hostile_job(tmp_path / "evaluation")
    job["status"]["evaluation"]["report"] = (tmp_path / "evaluation" / "examples.jsonl").as_uri()
    world.store(job)
    await world.sign_in()
    assert (await world.client.get(f"/default/job/{job['metadata']['name']}/report")).status == 404


# -- live -------------------------------------------------------------------------------------------------------------


async def news(answer: ClientResponse) -> dict[str, str]:
    """The next event of a stream."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            found: dict[str, str] = json.loads(line.removeprefix(b"data: "))
            return found
    raise AssertionError("the stream has ended")


async def test_only_what_changes_is_sent(world: World) -> None:
    await world.sign_in()
    async with world.client.get(f"{ENDPOINT}/live") as answer:
        first = await news(answer)
        assert set(first) == {"problem", "headline", "now", "actions", "rollout", "timeline", "about"}
        world.store(canary(message="v2 at step five"))
        while "rollout" not in (changed := await news(answer)):
            assert set(changed) <= {"about", "now"}, "ages and waits"
        assert 'aria-current="step">five 5 %' in changed["rollout"]
        assert "timeline" not in changed


async def test_a_stream_ends_with_the_session_and_with_the_console(world: World) -> None:
    await world.sign_in()
    async with world.client.get(f"{ENDPOINT}/live") as answer:
        await news(answer)
        world.clock.now = LASTS_SECONDS + 1
        await answer.read()
    assert world.console.streams == 0


async def test_the_oldest_session_makes_room(tmp_path: Path) -> None:
    home = LocalHome.at(tmp_path)
    target, closed = Target(cluster=LocalCluster(home=home), namespace="default", home=home), []
    sessions = Sessions()
    for number in range(501):
        closing = AsyncExitStack()
        closing.callback(closed.append, number)
        key = await sessions.begin(target=target, who="ann", closing=closing)
    assert closed == [0]
    assert sessions.find(key) is not None
