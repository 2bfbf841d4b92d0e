"""Progress reports against a real HTTPS server: they arrive, they are authorised, and nothing they meet is felt."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tests.patience import HANGS_S
from tests.trainer.local_ca import certificate
from tests.trainer.small_run import wait_for

from finetune_api.progress import CA_VARIABLE, LIFE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from finetune_trainer.process import progress
from finetune_trainer.process.gang import Gang
from finetune_trainer.process.progress import FILE_VARIABLE, ProgressReporter


@dataclass
class Door:
    """What arrived at a local server, and what it answers."""

    url: str = ""
    status: int = 200
    requests: list[tuple[str, str | None, dict[str, object]]] = field(default_factory=list)
    """(path, Authorization, body)"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    found = Door()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append((self.path, self.headers.get("Authorization"), body))
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    certificate(folder=tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    found.url = f"https://127.0.0.1:{server.server_port}/v1/progress/ns/job"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


def environment(tmp_path: Path, url: str, *, ca: str = "tls.crt") -> dict[str, str]:
    (tmp_path / "token").write_text("first\n")
    return {URL_VARIABLE: url, TOKEN_VARIABLE: str(tmp_path / "token"), CA_VARIABLE: str(tmp_path / ca)}


def test_reports_arrive_with_the_token(door: Door, tmp_path: Path) -> None:
    with ProgressReporter(environment=environment(tmp_path, door.url)) as reporter:
        reporter.report(fraction=0.256, remaining_seconds=61.6, metrics={"loss": 1.23456789})
    ((path, authorisation, body),) = door.requests
    assert (path, authorisation) == ("/v1/progress/ns/job", "Bearer first")
    status = body["trainerStatus"]
    assert isinstance(status, dict)
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (25, 62)
    assert status["metrics"] == [{"name": "loss", "value": "1.23457"}]


def test_many_reports_become_few_and_the_last_one_counts(door: Door, tmp_path: Path) -> None:
    variables = environment(tmp_path, door.url)
    with ProgressReporter(environment=variables) as reporter:
        reporter.report(fraction=0.0, remaining_seconds=None, metrics={})
        deadline = time.monotonic() + HANGS_S
        while not door.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        Path(variables[TOKEN_VARIABLE]).write_text("renewed")
        for step in range(1, 101):
            reporter.report(fraction=step / 100, remaining_seconds=0, metrics={"step": float(step)})
    assert len(door.requests) == 2, "the first, and the last on leaving"
    assert [authorisation for _, authorisation, _ in door.requests] == ["Bearer first", "Bearer renewed"]
    assert door.requests[-1][2]["trainerStatus"]["progressPercentage"] == 100  # type: ignore[index]


def test_a_server_that_the_ca_did_not_sign_gets_no_token(door: Door, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate(folder=tmp_path / "other")
    with ProgressReporter(environment=environment(tmp_path, door.url, ca="other/tls.crt")) as reporter:
        reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
    assert door.requests == []


@pytest.mark.parametrize("status", [401, 500])
def test_refusals_are_not_felt(door: Door, tmp_path: Path, status: int) -> None:
    door.status = status
    with ProgressReporter(environment=environment(tmp_path, door.url)) as reporter:
        reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
    assert len(door.requests) == 1


def test_a_server_that_is_down_or_silent_is_not_felt(tmp_path: Path) -> None:
    certificate(folder=tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        variables = environment(tmp_path, f"https://127.0.0.1:{port}/")
        with ProgressReporter(environment=variables) as reporter:  # nobody listens
            reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
        silent.listen()
        began = time.monotonic()
        with ProgressReporter(environment=variables) as reporter:  # nobody answers
            reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
            assert time.monotonic() - began < 2.0, "reporting does not wait"
        assert time.monotonic() - began < 15.0, "leaving waits, but not for ever"


def test_a_lost_token_is_not_felt(door: Door, tmp_path: Path) -> None:
    variables = environment(tmp_path, door.url) | {TOKEN_VARIABLE: str(tmp_path / "gone")}
    with ProgressReporter(environment=variables) as reporter:
        reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
    assert door.requests == []


def test_locally_the_newest_report_is_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with ProgressReporter(environment={FILE_VARIABLE: str(path)}) as reporter:
        for fraction in (0.1, 0.7):
            reporter.report(fraction=fraction, remaining_seconds=5, metrics={"step": 12345678, "loss": 1.23456789})
    shown = json.loads(path.read_text())["trainerStatus"]
    assert shown["progressPercentage"] == 70
    assert [each["value"] for each in shown["metrics"]] == ["12345678", "1.23457"]
    assert [item.name for item in tmp_path.iterdir()] == ["progress.json"], "written whole, then put in place"


def test_what_takes_its_time_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large base is fetched and a model saved for longer than a step may be silent."""
    life = tmp_path / "alive"
    monkeypatch.setenv(LIFE_VARIABLE, str(life))
    monkeypatch.setattr(progress, "_LIFE_SECONDS", 0.01)
    alone = Gang(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    alone.first_does(lambda: wait_for(life.exists, what="a sign of life"))


def test_without_a_place_to_report_to_nothing_happens(tmp_path: Path) -> None:
    with ProgressReporter(environment={}) as reporter:
        reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
    with ProgressReporter(environment={FILE_VARIABLE: str(tmp_path / "no" / "folder.json")}) as reporter:
        reporter.report(fraction=0.5, remaining_seconds=None, metrics={})
    assert list(tmp_path.iterdir()) == []
