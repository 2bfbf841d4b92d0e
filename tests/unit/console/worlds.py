"""A console over a folder with objects, and hostile ones among them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from tests.made_report import HOSTILE
from tests.unit.cli.jobs import ended

from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli.target import Target
from finetune_operator.console.application import Console, KeySignIn
from finetune_operator.console.sessions import Sessions
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome

KEY = "the-key"
ENDPOINT = "/default/endpoint/router"
OURS = frozenset({"127.0.0.1"})


class Clock:
    """A time that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def guard_of(page: str) -> str:
    """The session's secret, as the forms of a page hold it."""
    found = re.search(r'name="guard" value="([^"]+)"', page)
    assert found is not None
    return found[1]


class World:
    """A home, a console that shows it, and a browser that has not signed in."""

    def __init__(self, folder: Path, *, acts: bool = False) -> None:
        self.home = LocalHome.at(folder / ".finetune")
        self.cluster = LocalCluster(home=self.home)
        self.clock = Clock()
        target = Target(cluster=self.cluster, namespace="default", home=self.home)
        self.console = Console(
            sign_in=KeySignIn(target=target, key=KEY),
            hosts=OURS,
            acts=acts,
            look_seconds=0.01,
            sessions=Sessions(clock=self.clock),
        )
        self.client: TestClient[Any, Any] = TestClient(TestServer(self.console.build()))

    @property
    def origin(self) -> dict[str, str]:
        """What a browser says when it sends a form of a page of the console."""
        return {"Origin": f"http://127.0.0.1:{self.client.port}"}

    def store(self, found: ModelEndpoint | dict[str, Any]) -> None:
        """An object as it is, in the namespace default."""
        manifest = found if isinstance(found, dict) else found.to_dict()
        manifest["metadata"] |= {"namespace": "default", "resourceVersion": "1"}
        manifest["metadata"].setdefault("uid", "u0")
        self.cluster.store.write(manifest)

    async def sign_in(self) -> None:
        """As whoever follows the printed address."""
        answer = await self.client.get(f"/login?key={KEY}")
        assert answer.url.path == "/"

    async def text(self, path: str) -> str:
        """A page."""
        answer = await self.client.get(path)
        assert answer.status == 200, await answer.text()
        return await answer.text()

    async def ask(self, verb: str, *, headers: dict[str, str] | None = None, **form: str) -> ClientResponse:
        """Send the form of a verb, as the page holds it, with `form` in place of its fields."""
        fields = {"guard": guard_of(await self.text(ENDPOINT)), "version": "v2", **form}
        where = f"{ENDPOINT}/{verb}"
        return await self.client.post(where, data=fields, headers=self.origin if headers is None else headers)

    def annotations(self) -> dict[str, str]:
        """Of the endpoint."""
        found = self.cluster.store.read(kind="ModelEndpoint", namespace="default", name="router") or {}
        written: dict[str, str] = found["metadata"].get("annotations") or {}
        return written


def hostile_job(folder: Path) -> dict[str, Any]:
    """A job with hostile messages, and a report with hostile examples beside it."""
    job = ended().to_dict()
    job["status"]["message"] = job["status"]["conditions"][0]["message"] = HOSTILE[0]
    job["status"]["evaluation"]["results"][0] |= {"verdict": "Inconclusive", "reason": HOSTILE[1]}
    job["status"]["evaluation"]["report"] = (folder / "report.html").as_uri()
    folder.mkdir()
    (folder / "report.html").write_text(f"<p>{HOSTILE[0]}</p>")
    said = {"answer": HOSTILE[1], "scores": {"exact_match": 1.0}}
    example = {"prompt": [{"role": "user", "content": HOSTILE[0]}], "reference": HOSTILE[2], "candidate": said}
    lines = [example | {"baseline": {"answer": HOSTILE[3], "scores": {}}}, example | {"baseline": said}, {"prompt": 1}]
    (folder / "examples.jsonl").write_text("\n".join([*map(json.dumps, lines), "torn{"]))
    return job
