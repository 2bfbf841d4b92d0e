"""The console with bearer tokens on a real apiserver: each user sees and does what that user's rights allow."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from tests.api.people import Team
from tests.api.test_cli_endpoints import put
from tests.harness import wait_until
from tests.unit.cli.endpoints import V2, awaiting
from tests.unit.console.worlds import OURS, guard_of

from finetune_api.modelendpoint import APPROVE, REQUESTED_BY
from finetune_operator.console.application import Console
from finetune_operator.console.command import TokenSignIn

Client = TestClient[Any, Any]


@pytest.fixture(scope="module")
def accounts(members: Team) -> Team:
    """Service accounts `looks` (who may also edit) and `approves`."""
    for name, roles in (("looks", ("view", "edit")), ("approves", ("view", "edit", "approve"))):
        members.apiserver.kubectl.run("create", "serviceaccount", name, "-n", members.namespace)
        for role in roles:
            members.bind(user=user_of(members, name), role=f"finetune-{role}")
    wait_until(lambda: members.can(user_of(members, "approves"), "approve"), what="the rights")
    return members


def user_of(team: Team, account: str) -> str:
    return f"system:serviceaccount:{team.namespace}:{account}"


@asynccontextmanager
async def browser(team: Team, folder: Path, *, token: str) -> AsyncIterator[tuple[Client, ClientResponse]]:
    """A browser at a console that lets people act, and what signing in came to."""
    cluster = yaml.safe_load(team.apiserver.kubectl.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = folder / "ca.crt"
    authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    sign_in = TokenSignIn(server=cluster["server"], ca_file=str(authority), namespace=team.namespace)
    console = Console(sign_in=sign_in, hosts=OURS, acts=True)
    async with TestClient(TestServer(console.build())) as client:
        yield client, await client.post("/login", data={"secret": token}, headers=origin(client))


def origin(client: Client) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{client.port}"}


def token_of(team: Team, account: str) -> str:
    return team.apiserver.kubectl.run("create", "token", account, "-n", team.namespace).strip()


async def approve(client: Client, team: Team) -> str:
    """Send the form of the page; what the page says then."""
    where = f"/{team.namespace}/endpoint/router"
    form = {"guard": guard_of(await (await client.get(where)).text()), "version": "v2"}
    return await (await client.post(f"{where}/approve", data=form, headers=origin(client))).text()


async def test_a_token_that_the_apiserver_does_not_know_is_refused(accounts: Team, tmp_path: Path) -> None:
    async with browser(accounts, tmp_path, token="made-up") as (client, answer):
        assert answer.status == 401
        assert "Unauthorized" in await answer.text()
        assert (await client.get("/")).url.path == "/login"


async def test_what_ones_rights_refuse_is_said_in_the_apiservers_words(
    accounts: Team, team: Team, tmp_path: Path
) -> None:
    put(team, awaiting())
    async with browser(accounts, tmp_path, token=token_of(accounts, "looks")) as (client, answer):
        assert "router" in await answer.text()
        elsewhere = await (await client.get("/?namespace=kube-system")).text()
        assert f"User &#34;{user_of(accounts, 'looks')}&#34; cannot list resource" in elsewhere
        said = await approve(client, team)
        assert "not done: " in said
        assert "ClusterRole finetune-approve" in said
    assert team.annotations() == {}


async def test_an_approval_is_in_the_users_own_name(accounts: Team, team: Team, tmp_path: Path) -> None:
    put(team, awaiting())
    async with browser(accounts, tmp_path, token=token_of(accounts, "approves")) as (client, _):
        assert "v2 at router: approved" in await approve(client, team)
    assert team.annotations() == {APPROVE: V2, REQUESTED_BY: user_of(accounts, "approves")}
