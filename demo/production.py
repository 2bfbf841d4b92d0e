"""An endpoint in local mode with clients, and the switch that makes one of its versions misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from misbehaving import VARIABLE

from finetune_operator.local.environment import TRAINER_VARIABLE
from finetune_operator.local.files import read_json
from finetune_operator.local.home import LocalHome
from finetune_operator.local.services import HTTP_PORT, LocalServices

DEMO = Path(__file__).resolve().parent
NAMESPACE = "default"
REQUESTS_PER_SECOND = 8.0
_LOOK_SECONDS = 0.05
_START_SECONDS = 180
_STOP_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was switched on, and how it ended. Seconds are counted from the switch."""

    version: str
    rolled_back_after: float
    """Until the operator recorded the decision."""
    settled_after: float
    """Until the gateway served everybody from the version before."""
    reason: str
    answers_meanwhile: int
    wrong_meanwhile: int


@dataclass(kw_only=True)
class Clients:
    """Users with questions whose topic is known. One thread asks for all of them."""

    url: str
    questions: list[tuple[str, str]]
    answers: list[tuple[float, bool]] = field(default_factory=list)
    """When, and whether it was the right topic."""
    failures: list[str] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def ask_on(self) -> None:
        """Ask until stopped."""
        number = 0
        while not self._stopped.wait(1.0 / REQUESTS_PER_SECOND):
            question, topic = self.questions[number % len(self.questions)]
            body = json.dumps({"input": question, "user": f"user-{number % 97}"}).encode()
            request = urllib.request.Request(  # noqa: S310 - loopback
                f"{self.url}/v1/classify", data=body, headers={"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
                    self.answers.append((time.monotonic(), json.loads(answer.read())["label"] == topic))
            except (OSError, ValueError) as error:
                self.failures.append(str(error))
            number += 1

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()


class Endpoint:
    """`finetune up` with the endpoint's manifest, in a process of its own."""

    def __init__(self, *, home: Path, manifest: Path) -> None:
        self._home = LocalHome.at(home)
        self.name = manifest.stem
        self.log = home / f"{self.name}-up.log"
        self._switches = home.resolve() / "switches"
        self._switches.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "finetune_operator.cli", "up", "-f", str(manifest), "--home", str(home)]
        variables = {TRAINER_VARIABLE: str(DEMO / "misbehaving.py"), VARIABLE: str(self._switches)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to hand on
            )

    @property
    def url(self) -> str:
        """Where clients ask. Waits for it."""
        services = LocalServices(home=self._home)
        port = self.wait_for(
            lambda: services.known_port(namespace=NAMESPACE, name=self.name, port=HTTP_PORT),
            what="an address",
            seconds=_START_SECONDS,
        )
        return f"http://127.0.0.1:{port}"

    def status(self) -> dict[str, Any]:
        """The endpoint's."""
        found = read_json(self._home.objects / "modelendpoint" / NAMESPACE / f"{self.name}.json") or {}
        return dict(found.get("status") or {})

    def is_available(self) -> bool:
        """Whether clients are answered now."""
        port = LocalServices(home=self._home).known_port(namespace=NAMESPACE, name=self.name, port=HTTP_PORT)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                models = json.loads(answer.read())["data"]
        except (OSError, ValueError):
            return False
        conditions = self.status().get("conditions") or ()
        return bool(models) and any(each["type"] == "Available" and each["status"] == "True" for each in conditions)

    def is_guarding(self, version: str) -> bool:
        """Whether the version serves everybody and is watched."""
        status = self.status()
        return status.get("phase") == "Guarding" and status["stable"]["name"] == version

    def outcome(self, version: str) -> dict[str, Any] | None:
        """What became of a version that was rolled back or rejected; None: it was neither."""
        found = [each for each in self.status().get("versions") or () if each["name"] == version]
        return dict(found[-1]) if found and found[-1]["outcome"] in ("RolledBack", "Rejected") else None

    def switch(self, version: str, mode: str) -> None:
        """Make the version's server misbehave: `wrong`, `failing`, `slow [SECONDS]`."""
        (self._switches / version).write_text(mode)

    def wait_for(self, look: Callable[[], Any], *, what: str, seconds: float) -> Any:
        """The first answer that is not empty. Raises RuntimeError when there is none in time."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if self._process.poll() is not None:
                raise RuntimeError(f"finetune up ended while waiting for {what}; see {self.log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {seconds:.0f} s; see {self.log}")
            time.sleep(_LOOK_SECONDS)
        return found

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def up(*, home: Path, manifest: Path) -> Iterator[Endpoint]:
    """Serve the endpoint while the context lasts."""
    endpoint = Endpoint(home=home, manifest=manifest)
    try:
        yield endpoint
    finally:
        endpoint.stop()


@contextmanager
def clients_of(endpoint: Endpoint, *, questions: list[tuple[str, str]]) -> Iterator[Clients]:
    """Ask while the context lasts."""
    endpoint.wait_for(endpoint.is_available, what="a server", seconds=_START_SECONDS)
    clients = Clients(url=endpoint.url, questions=questions)
    thread = threading.Thread(target=clients.ask_on, name="clients", daemon=True)
    thread.start()
    try:
        yield clients
    finally:
        clients.stop()
        thread.join(timeout=60)


def misbehave_after_promotion(
    endpoint: Endpoint, *, version: str, mode: str, clients: Clients, limit_s: float
) -> Fault | None:
    """Wait for the version's promotion, let it misbehave, and measure; None where it never was promoted.

    Raises RuntimeError when something does not happen in time.
    """
    endpoint.wait_for(
        lambda: endpoint.is_guarding(version) or endpoint.outcome(version),
        what=f"promotion of {version}",
        seconds=limit_s,
    )
    if endpoint.outcome(version) is not None:
        return None
    time.sleep(3.0)  # clients see it well for a moment
    began = time.monotonic()
    endpoint.switch(version, mode)
    outcome = endpoint.wait_for(lambda: endpoint.outcome(version), what=f"rollback of {version}", seconds=limit_s)
    decided = time.monotonic()
    endpoint.wait_for(lambda: endpoint.status().get("phase") == "Idle", what="settled routes", seconds=limit_s)
    settled = time.monotonic()
    meanwhile = [right for when, right in list(clients.answers) if began <= when <= settled]
    return Fault(
        version=version,
        rolled_back_after=decided - began,
        settled_after=settled - began,
        reason=str(outcome["reason"]),
        answers_meanwhile=len(meanwhile),
        wrong_meanwhile=meanwhile.count(False),
    )
