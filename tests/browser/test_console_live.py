"""The console in a real browser while a real rollout goes on: a page that is never loaded again, and a person's yes."""

from __future__ import annotations

import asyncio
import copy
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.devtools import Tab, browsing
from tests.local.conftest import Workspace
from tests.local.eventually import eventually
from tests.local.test_up import NAME, Served, serving, traffic, version

from finetune_operator.local.cluster import LocalCluster

pytestmark = pytest.mark.usefixtures("chromium")
ENDPOINT = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "ModelEndpoint",
    "metadata": {"name": NAME},
    "spec": {
        "task": "SequenceClassification",
        "serving": {"runtime": "FastAPI", "replicas": 1},
        "rollout": {
            "steps": [{"name": "half", "percent": 50, "minSamples": 20}],
            "approval": "Manual",
            "metrics": [{"name": "error_rate", "maxRegression": 0.3}],
        },
    },
}
HERE = "document.querySelector('[aria-current=step]')?.textContent"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An endpoint without a version, served."""
    with serving(Workspace(folder=tmp_path), ENDPOINT) as made:
        yield made


def begin_job(served: Served) -> None:
    """Train the first version, in the process that serves."""
    workspace = served.workspace
    workspace.write_data(rows=60)
    job = workspace.write_job("first", endpointRef={"name": NAME}, training={"maxSteps": 8, "maxLength": 32},
        evaluation={"baseline": "Base", "metrics": [{"name": "accuracy", "maxRegression": 0.9}]})  # fmt: skip
    workspace.start("run", "-f", job, stdout=(workspace.folder / "run.log").open("w"))


def submit_next(served: Served) -> None:
    """A second version, of the first one's files."""
    first = version(served, "first")
    second = {key: value for key, value in copy.deepcopy(first).items() if key != "status"}
    second["metadata"] = {"name": "second", "namespace": "default", "labels": first["metadata"]["labels"]}
    second["spec"]["baseline"] = {"name": "first", "digest": first["spec"]["artifact"]["digest"]}
    LocalCluster(home=served.workspace.home).submit(manifest=second)


async def test_a_rollout_is_seen_and_approved(served: Served, tmp_path: Path) -> None:
    await eventually(lambda: served.phase() == "Empty")
    console = served.workspace.start("console", "--local", "--allow-actions", "--port", "0")
    assert console.stdout is not None
    address = (await asyncio.to_thread(console.stdout.readline)).split()[-1]
    begin_job(served)
    async with browsing(tmp_path / "profile") as tab:
        await tab.open(address)
        await tab.open(address.partition("/login")[0] + f"/default/endpoint/{NAME}")
        await tab.run("window.neverLoadedAgain = true")
        await tab.until("document.getElementById('headline').textContent.includes('serves first (Idle)')")
        with traffic(served) as clients:
            submit_next(served)
            await tab.until(f"{HERE} === 'half 50 %'")
            await tab.until("document.querySelector('#rollout progress')?.value > 0")
            await tab.until(f"{HERE} === 'approval'")
            assert await tab.run("document.querySelectorAll('#rollout .interval').length") > 0
            assert await tab.run("window.neverLoadedAgain"), "all that was seen came by itself"
            await approve(tab)
            await tab.until(f"{HERE} === 'guard 1 h 0 min'")
        assert clients.failures == []
        assert "second Promoted" in await tab.run("document.getElementById('timeline').textContent")
        assert tab.complaints == []
    console.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(console.wait) == 0


async def approve(tab: Tab) -> None:
    """Open the offer and say yes."""
    await tab.until("document.getElementById('offer-approve-second') !== null")
    await tab.run("document.querySelector('#offer-approve-second summary').click()")
    await tab.run("document.querySelector('#offer-approve-second button').click()")
    await tab.until("document.querySelector('.said')?.textContent.includes('second at topics: approved')")
