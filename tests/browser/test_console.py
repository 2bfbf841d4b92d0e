"""The console in a real browser: accessible, usable by keyboard and on a phone, harmless, and live."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.browser.devtools import Tab, browsing
from tests.harness.store import ROOT
from tests.made_report import HOSTILE, chat_report
from tests.unit.cli.endpoints import V2, awaiting, canary, row
from tests.unit.cli.jobs import training
from tests.unit.console.worlds import ENDPOINT, KEY, World, hostile_job
from tests.wrong_manifests import valid

from finetune_api.modelendpoint import APPROVE
from finetune_trainer.evaluation.report import to_html

pytestmark = pytest.mark.usefixtures("chromium")
AXE = (files("axe_core_python") / "axe.min.js").read_text()
VIOLATIONS = (
    "axe.run().then(found => found.violations.map(each => each.id + ': ' + each.nodes.map(n => n.html).join()))"
)
CURVE = "\n".join(f'{{"step": {step}, "loss": {2.5 - step / 30:.3f}}}' for step in range(2, 50, 2))
ANALYSIS = [row("error_rate", samples=212, reason="212 of 300 samples"), row("quality", samples=212, verdict="Pass")]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A console that lets people act, over objects of every kind, hostile ones among them."""
    made = World(tmp_path, acts=True)
    made.store(canary(analysis=ANALYSIS, step={"samples": 212, "needed": 300}))
    job = hostile_job(tmp_path / "evaluation")
    (tmp_path / "evaluation" / "report.html").write_text(to_html(chat_report()))
    made.store(job)
    trains = training().to_dict()
    trains["metadata"] |= {"name": "trains", "uid": "u9"}
    trains["status"]["plan"]["run"] = (tmp_path / "run").as_uri()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_log.jsonl").write_text(CURVE)
    made.store(trains)
    made.store(valid("version"))
    async with made.client:
        yield made


@pytest.fixture
async def tab(world: World, tmp_path: Path) -> AsyncIterator[Tab]:
    """A browser that has followed the printed address."""
    async with browsing(tmp_path / "profile") as opened:
        await opened.screen(width=1100)
        await opened.open(url(world, f"/login?key={KEY}"))
        yield opened


def url(world: World, path: str) -> str:
    return f"http://127.0.0.1:{world.client.port}{path}"


PAGES = ("/", ENDPOINT, "/default/job/router", "/default/job/trains", "/default/job/router/answers", "/nowhere")


async def test_every_page_is_accessible_and_fits_every_screen(world: World, tab: Tab) -> None:
    version = f"/default/version/{valid('version')['metadata']['name']}"
    for dark, width in ((False, 1100), (True, 360)):
        await tab.screen(width=width, dark=dark)
        for path in (*PAGES, version):
            await tab.open(url(world, path))
            await tab.run(AXE + ";0")
            assert await tab.run(VIOLATIONS) == [], path
            assert await tab.run("document.documentElement.scrollWidth <= window.innerWidth"), (path, width)
        paper = await tab.run("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(16, 20, 24)" if dark else "rgb(246, 247, 249)")


async def test_hostile_text_stays_text_and_nothing_is_fetched_from_elsewhere(world: World, tab: Tab) -> None:
    for path in ("/", "/default/job/router", "/default/job/router/answers", "/default/job/router/report"):
        await tab.open(url(world, path))
        assert "pwned" not in await tab.run("document.title")
        assert await tab.run("document.querySelectorAll('img, iframe, object').length") == 0
        assert await tab.run("[...document.scripts].every(each => each.src.endsWith('/static/console.js'))")
    await tab.open(url(world, "/default/job/router"))
    assert HOSTILE[0] in await tab.run("document.body.textContent")
    world.store(canary(message=HOSTILE[0]))
    await tab.open(url(world, ENDPOINT))
    world.store(canary(message=HOSTILE[1]))
    await tab.until("document.getElementById('now').textContent.includes('onerror')")
    assert await tab.run("document.querySelectorAll('img').length + document.scripts.length") == 1
    assert tab.complaints == []
    assert {each for each in tab.requested if not each.startswith((url(world, "/"), "about:"))} == set()


async def test_a_version_is_approved_by_keyboard(world: World, tab: Tab) -> None:
    world.store(awaiting())
    await tab.open(url(world, ENDPOINT))
    await tab.press("Tab")
    assert await tab.run("document.activeElement.textContent") == "Skip to the content"
    await tab.press("Enter")
    await reach(tab, "document.activeElement.textContent.startsWith('Approve v2')")
    await tab.press("Enter")
    await reach(tab, "document.activeElement.matches('button.approve')")
    assert await tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await tab.press("Enter")
    await tab.until("document.querySelector('.said')?.textContent.includes('v2 at router: approved')")
    assert world.annotations()[APPROVE] == V2


async def reach(tab: Tab, script: str) -> None:
    """Press Tab until it is so."""
    for _ in range(40):
        if await tab.run(script):
            return
        await tab.press("Tab")
    raise AssertionError(script)


async def test_a_form_that_is_open_is_not_taken_away(world: World, tab: Tab) -> None:
    world.store(awaiting())
    await tab.open(url(world, ENDPOINT))
    await tab.run("document.querySelector('details').open = true")
    world.store(canary(message="back at step five"))
    await tab.until("document.getElementById('now').textContent.includes('back at step five')")
    assert await tab.run("document.querySelectorAll('details[open]').length") == 1
    await tab.run("document.querySelector('details').open = false")
    await tab.until("document.querySelectorAll('details').length > 0 && waiting.size === 0")


async def test_a_console_that_has_gone_says_so(world: World, tab: Tab) -> None:
    await tab.open(url(world, ENDPOINT))
    await tab.until("document.getElementById('now') !== null")
    await world.client.close()
    await tab.until("document.getElementById('problem').textContent.includes('does not answer')")


@pytest.mark.skipif("FINETUNE_SCREENSHOTS" not in os.environ, reason="writes docs/images, on demand")
async def test_pictures_for_the_documentation(world: World, tab: Tab) -> None:
    folder: Any = ROOT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    shots = (("console-endpoint", ENDPOINT, 1000, False), ("console-job", "/default/job/trains", 1000, True))
    for name, path, width, dark in (*shots, ("console-phone", ENDPOINT, 400, False)):
        await tab.screen(width=width, height=820, dark=dark)
        await tab.open(url(world, path))
        picture = await tab.picture()
        assert len(picture) < 150_000
        (folder / f"{name}.png").write_bytes(picture)
