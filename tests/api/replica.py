"""The operator as a real process, with the rights that its service account has and no others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import ApiServer, wait_until
from tests.harness.store import ROOT
from tests.patience import HANGS_S

NAMESPACE = "finetune-system"
SERVICE_ACCOUNT = "finetune-operator"
LEASE_SECONDS = 9
"""A busy machine takes long to start Python."""


class Replica:
    """One operator process. `log` is parsed: one JSON object a line."""

    def __init__(
        self,
        *,
        name: str,
        kubeconfig: Path,
        folder: Path,
        environment: Mapping[str, str],
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        command = [sys.executable, "-m", "finetune_operator", "--log-format=json", f"--kubeconfig={kubeconfig}"]
        options = [
            "--listen=127.0.0.1",
            "--probe-port=0",
            "--door-port=0",
            "--metrics-port=0",
            f"--lease-seconds={lease_seconds}",
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT / "operator"), **environment},
            )

    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far. A line that is no JSON is an error: something printed a traceback."""
        return [json.loads(line) for line in self._log.read_text().split("\n")[:-1]]

    def said(self, message: str) -> bool:
        """Whether a line holds these words."""
        return any(message in entry["message"] for entry in self.log())

    @property
    def probe_url(self) -> str:
        """Of its probes and metrics."""
        return f"http://127.0.0.1:{self._port('probes and metrics on port ')}"

    @property
    def door_port(self) -> int:
        """Of the door, while it leads."""
        return self._port("the door is open on port ")

    @property
    def metrics_port(self) -> int:
        """Of metrics with authentication."""
        return self._port("metrics with authentication on port ")

    def wait_until_says(self, message: str, *, timeout_s: float = HANGS_S) -> None:
        """Wait for a line with these words."""

        def probe() -> bool:
            assert self.process.poll() is None, f"{self.name} ended: {self._log.read_text()[-3000:]}"
            return self.said(message)

        wait_until(probe, what=f"{message!r} from {self.name}", timeout_s=timeout_s, explain=self._log.read_text)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a probe."""
        try:
            with urllib.request.urlopen(self.probe_url + path, timeout=HANGS_S) as answer:  # noqa: S310 - loopback
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, line: str) -> float:
        """The value of a metric, by its name and labels as /metrics prints them; 0 where it is not there."""
        lines = self.get("/metrics")[1].splitlines()
        return next((float(text.rpartition(" ")[2]) for text in lines if text.startswith(f"{line} ")), 0.0)

    @property
    def leads(self) -> bool:
        """What it says of itself."""
        return self.metric("finetune_leader") == 1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_for_end(self, *, timeout_s: float = HANGS_S) -> int:
        """Its exit status."""
        return self.process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=HANGS_S)

    def _port(self, message: str) -> int:
        self.wait_until_says(message)
        entries = [entry["message"] for entry in self.log() if message in entry["message"]]
        return int(entries[-1].rpartition(" ")[2])


@contextmanager
def replicas(
    apiserver: ApiServer,
    folder: Path,
    *names: str,
    environment: Mapping[str, str] | None = None,
    namespace: str = NAMESPACE,
    lease_seconds: int = LEASE_SECONDS,
) -> Iterator[list[Replica]]:
    """Start replicas of an operator that is installed in a namespace, one after the other; the first leads. They end
    with the context."""
    kubeconfig = write_kubeconfig(apiserver, folder, namespace=namespace)
    started: list[Replica] = []
    try:
        for number, name in enumerate(names):
            given = {
                "FINETUNE_TRAINER_IMAGE": "localhost/finetune-trainer:test",
                "POD_NAMESPACE": namespace,
                "POD_NAME": name,
                "POD_IP": f"10.244.9.{number + 1}",
                **(environment or {}),
            }
            started.append(
                Replica(name=name, kubeconfig=kubeconfig, folder=folder, environment=given, lease_seconds=lease_seconds)
            )
            started[-1].wait_until_says("the door is open" if number == 0 else "probes and metrics on port")
        yield started
    finally:
        for replica in started:
            replica.kill()
        apiserver.kubectl.delete("lease", "finetune-operator", namespace=namespace)


def write_kubeconfig(apiserver: ApiServer, folder: Path, *, namespace: str = NAMESPACE) -> Path:
    """A kubeconfig with a token of the operator's service account."""
    content = json.loads(apiserver.kubeconfig.read_text())
    token = apiserver.service_account_token(SERVICE_ACCOUNT, namespace=namespace)
    content["users"][0]["user"] = {"token": token}
    path = folder / "operator.kubeconfig"
    path.write_text(json.dumps(content))
    return path


def seconds_until(condition: Any, *, timeout_s: float = HANGS_S, what: str) -> float:
    """How long a condition took to come true."""
    started = time.monotonic()
    wait_until(condition, what=what, timeout_s=timeout_s, interval_s=0.05)
    return time.monotonic() - started
