"""The HTML report in a real browser: complete, harmless whatever models and users wrote, readable on every screen."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.harness.prerequisites import require_for_browser
from tests.made_report import HOSTILE, chat_report, classifier_report
from tests.patience import HANGS_S

from finetune_trainer.evaluation.report import Report, to_html

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("chromium")

# Runs in the page, which itself has no script: where are the texts, which colours do they have?
PROBE = """<script>
const page = document.documentElement, probed = {};
const paper = element => {
  for (let e = element; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c;
  }
};
const texts = ['h1', '.badge', '.headline', '.meaning', '.why', 'td.n', 'mark', 'dt', 'dd', '.scores', '.role'];
for (const selector of texts)
  for (const e of document.querySelectorAll(selector)) probed[selector] = [getComputedStyle(e).color, paper(e)];
const wide = [...document.querySelectorAll('main *')]
  .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > window.innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80));
parent.document.documentElement.setAttribute('data-probe', JSON.stringify({
  scroll: page.scrollWidth, inner: window.innerWidth, wide, probed, paper: paper(document.body)
}));
</script>"""


class Dom(HTMLParser):
    """What the browser made of a page: elements with attributes, and the text of the body."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.titles: list[str] = []  # the page's, then those of the drawings
        self._inside: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("title", "style", "script"):
            self._inside.append(tag)
        if tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["title"]:
            self.titles[-1] += data
        elif not self._inside:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, str]:
    """The page's DOM after loading, and what the browser logged."""
    command = [require_for_browser(), *FLAGS, f"--user-data-dir={folder}", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=True)
    return done.stdout, done.stderr


def load(report: Report, tmp_path: Path, *flags: str) -> tuple[Dom, str]:
    page = tmp_path / "report.html"
    page.write_text(to_html(report))
    dom, log = browse(page, tmp_path / "profile", *flags)
    return Dom(dom), log


def probe(report: Report, tmp_path: Path, *flags: str, width: int = 1000) -> Any:
    """Measure the page with a script that is let in for the purpose, in a frame: windows have a least width."""
    html, policies = re.subn(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", to_html(report))
    assert policies == 1
    framed = escape(html.replace("</body>", PROBE + "</body>"))
    page = tmp_path / "probed.html"
    page.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><iframe style="border:0;width:{width}px;height:900px" srcdoc="{framed}">'
    )
    dom, _ = browse(page, tmp_path / "profile", *flags)
    return json.loads(next(attrs["data-probe"] or "" for tag, attrs in Dom(dom).elements if tag == "html"))


def contrast(colours: list[str]) -> float:
    """WCAG 2.1's contrast ratio of text and background."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("verdict", ["Pass", "Fail", "Inconclusive"])
def test_the_page_shows_verdict_metrics_curves_and_examples(verdict: str, tmp_path: Path) -> None:
    dom, log = load(chat_report(verdict=verdict), tmp_path)
    assert dom.titles[0] == f"{verdict}: ml/support-router-7"
    ids = {attrs.get("id") for _, attrs in dom.elements}
    assert {"verdict", "metrics", "training", "examples", "run"} <= ids
    assert {"metric-exact_match", "metric-loss", "metric-token_f1", "metric-bleu"} <= ids
    classes = [attrs.get("class") for _, attrs in dom.elements]
    assert classes.count("interval") == 4
    assert classes.count("chart") == 1
    assert classes.count("example") > 20
    assert "CONSOLE" not in log


def test_a_classifiers_page_shows_its_classes(tmp_path: Path) -> None:
    dom, log = load(classifier_report(), tmp_path)
    assert "classes" in {attrs.get("id") for _, attrs in dom.elements}
    assert "CONSOLE" not in log


@pytest.mark.parametrize("make", [chat_report, classifier_report])
def test_hostile_text_stays_text(make: Any, tmp_path: Path) -> None:
    dom, log = load(make(), tmp_path)
    assert "pwned" not in dom.titles[0]
    assert [dom.count(tag) for tag in ("script", "img", "iframe", "object", "link")] == [0] * 5
    assert not [name for _, attrs in dom.elements for name in attrs if name.startswith("on")]
    assert HOSTILE[0] in dom.text
    assert HOSTILE[1] in dom.text
    assert "7 * 7" in dom.text
    assert "\x07" not in dom.text
    assert dom.count("html") == dom.count("main") == 1
    assert "CONSOLE" not in log


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    dom, log = load(chat_report(), tmp_path)
    links = [value for _, attrs in dom.elements for name, value in attrs.items() if name in ("src", "href", "data")]
    assert links == []
    assert "ERR_" not in log


@pytest.mark.parametrize("make", [chat_report, classifier_report])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_fits_the_screen(make: Any, width: int, tmp_path: Path) -> None:
    measured = probe(make(), tmp_path, "--window-size=1500,900", width=width)
    assert measured["inner"] == width
    assert measured["wide"] == []
    assert measured["scroll"] <= width


@pytest.mark.parametrize(("preferred", "paper"), [(1, "rgb(255, 255, 255)"), (0, "rgb(0, 0, 0)")])
def test_text_can_be_read_in_light_and_dark(preferred: int, paper: str, tmp_path: Path) -> None:
    measured = probe(chat_report(), tmp_path, f"--blink-settings=preferredColorScheme={preferred}")
    assert contrast([measured["paper"], paper]) < 1.2
    assert len(measured["probed"]) == 11
    low = {selector: colours for selector, colours in measured["probed"].items() if contrast(colours) < 4.5}
    assert low == {}


def test_a_picture_of_the_page_can_be_taken(tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(to_html(chat_report()))
    flags = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,1600", f"--screenshot={picture}"]
    subprocess.run(
        [require_for_browser(), *FLAGS, *flags, page.as_uri()], capture_output=True, timeout=HANGS_S, check=True
    )
    # An empty page of this size is a picture of some 10 KB.
    assert picture.stat().st_size > 60_000
