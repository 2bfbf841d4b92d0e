"""A real Prometheus that scrapes what `finetune up` starts, with our rules."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from tests.harness import tools
from tests.local.eventually import wait_for
from tests.monitoring import rule_groups
from tests.patience import HANGS_S

from finetune_operator.local.services import free_port

_CONFIG = {
    "global": {"scrape_interval": "1s", "evaluation_interval": "2s"},
    "rule_files": ["rules.yaml"],
    # As the monitors: labels of a series that is about an object are its own.
    "scrape_configs": [
        {
            "job_name": "finetune",
            "honor_labels": True,
            "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
        }
    ],
}


@dataclass(kw_only=True)
class Prometheus:
    """It, and what it is told of targets."""

    folder: Path
    targets: Callable[[], dict[str, str]]
    """Whose metrics are where: `the operator`, `the gateway`, `the server of v1` -> URL."""
    endpoint: str
    port: int = field(default_factory=free_port)
    began: float = field(default_factory=time.time)
    ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, *, targets: Callable[[], dict[str, str]], endpoint: str) -> Iterator[Self]:
        """Started, and ended with the block. Raises MissingPrerequisite."""
        program = tools.program("prometheus")
        made = cls(folder=folder, targets=targets, endpoint=endpoint)
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(_CONFIG))
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": rule_groups()}))
        options = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, *options, f"--web.listen-address=127.0.0.1:{made.port}"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        following = threading.Thread(target=made._follow)
        following.start()
        try:
            wait_for(made._ready, what=f"Prometheus ({folder / 'log'})")
            yield made
        finally:
            made.ended.set()
            following.join()
            process.kill()
            process.wait()

    def ever(self, query: str) -> bool:
        """Whether it had an answer at any time since the start."""
        asked = {"query": query, "start": self.began, "end": time.time(), "step": 2}
        return bool(self._ask("query_range", **asked)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their state, once each was evaluated."""
        found = [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    def _ask(self, what: str, **asked: Any) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=HANGS_S) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{asked}: {error.read().decode()}") from error

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=HANGS_S):
                return True
        except OSError:  # not there, or a 503: it loads
            return False

    def _follow(self) -> None:
        """Write where the targets are whenever that changes."""
        known: dict[str, str] = {}
        while not self.ended.wait(0.2):
            if (now := self.targets()) != known:
                known = now
                text = json.dumps([self._target(whose, url) for whose, url in known.items()])
                (self.folder / "new.json").write_text(text)
                (self.folder / "new.json").replace(self.folder / "targets.json")

    def _target(self, whose: str, url: str) -> dict[str, Any]:
        """With the labels that the monitors give it."""
        labels = {"namespace": "default", "pod": whose.replace(" ", "-")}
        if whose != "the operator":
            labels |= {"name": self.endpoint, "version": whose.removeprefix("the server of ")}
        return {"targets": [urllib.parse.urlsplit(url).netloc], "labels": labels}
