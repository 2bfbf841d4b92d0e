"""An endpoint with runtime VLLM under `finetune up`, and clients of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.local.conftest import Workspace, descendants
from tests.local.eventually import wait_for
from tests.patience import JOB_HANGS_S
from tests.vllm.container import CODE_VARIABLE, PYTHON_VARIABLE
from tests.vllm.versions import ENDPOINT, TOKENS

from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.files import read_json
from finetune_operator.local.listening import assigned_ports
from finetune_operator.local.services import free_port

ROOT = Path(__file__).resolve().parents[2]
CHATS = "/v1/chat/completions"


@dataclass(kw_only=True)
class Served:
    """The endpoint and its processes."""

    workspace: Workspace
    vllm: Path
    """The interpreter that it is installed for."""
    port: int = field(default_factory=free_port)
    up: subprocess.Popen[bytes] | None = None
    sockets: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    """Of vLLM's processes: names of sockets are short, those of a pod's folders are not."""

    def start(self) -> None:
        """Run `finetune up`."""
        code = os.pathsep.join(str(ROOT / name) for name in ("operator", "trainer_image", "."))
        variables = {
            **os.environ,
            "PYTHONPATH": code,
            CODE_VARIABLE: code,
            PYTHON_VARIABLE: str(self.vllm),
            "FINETUNE_VLLM_CPU_IMAGE": "vllm",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_RPC_BASE_PATH": self.sockets.name,
        }
        command = [sys.executable, "-m", "tests.vllm.up", "up", "-f", "endpoint.yaml", "--port", str(self.port)]
        with (self.workspace.folder / "up.log").open("ab") as log:
            self.up = subprocess.Popen(command, cwd=self.workspace.folder, env=variables, stdout=log, stderr=log)

    def close(self) -> None:
        """End all of it, now."""
        if self.up is not None and self.up.poll() is None:
            self.up.kill()
            self.up.wait()
        self.workspace.close()
        self.sockets.cleanup()

    def submit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Apply a manifest."""
        LocalCluster(home=self.workspace.home).submit(manifest=manifest)
        return manifest

    def status(self) -> dict[str, Any]:
        """The endpoint's."""
        found = read_json(self.workspace.home.objects / "modelendpoint" / "default" / f"{ENDPOINT}.json") or {}
        return found.get("status") or {}

    def said(self) -> str:
        """All that `finetune up` has printed."""
        return (self.workspace.folder / "up.log").read_text()

    def server(self, version: str) -> dict[str, Any]:
        """The pod that serves a version."""
        (found,) = [pod for pod in self.servers() if pod["metadata"]["labels"]["finetune.dev/version"] == version]
        return found

    def servers(self) -> list[dict[str, Any]]:
        """All pods of servers."""
        found = (read_json(path) for path in (self.workspace.home.objects / "pod" / "default").glob("[!.]*.json"))
        return [pod for pod in found if pod and pod["metadata"]["labels"].get("finetune.dev/component") == "server"]

    def url(self, version: str) -> str:
        """Past the gateway."""
        return f"http://127.0.0.1:{assigned_ports(self.server(version))['http']}"

    def pid(self, version: str) -> int:
        """vLLM's first process."""
        (shim,) = self.workspace.shims(pod=self.server(version)["metadata"]["name"])
        return descendants(shim)[1]

    def log(self, version: str) -> str:
        """What its server has said."""
        name = self.server(version)["metadata"]["name"]
        return (self.workspace.home.endpoint_logs(namespace="default", endpoint=ENDPOINT) / f"{name}.log").read_text()

    def until(self, look: Callable[[], Any], *, what: str) -> Any:
        """Wait, and tell all that is known when it does not come."""

        def alive() -> Any:
            assert self.up is not None
            assert self.up.poll() is None, self.said()
            return look()

        try:
            return wait_for(alive, seconds=JOB_HANGS_S, what=what)
        except TimeoutError:
            logs = [path.read_text()[-2000:] for path in self.workspace.home.root.glob("endpoint-logs/*/*/*.log")]
            raise AssertionError(f"{what}\n{json.dumps(self.status(), indent=1)}\n{self.said()}\n{logs}") from None

    def ask(
        self, question: str, *, user: str = "ann", stream: bool = False, tokens: int = TOKENS, url: str | None = None
    ) -> tuple[int, str, str]:
        """One request without the model's name: status, text, finish_reason."""
        document = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "user": user}
        document |= {"stream": stream} | ({} if url is None else {"model": ENDPOINT})
        headers = {"Content-Type": "application/json"}
        url = url or f"http://127.0.0.1:{self.port}"
        request = urllib.request.Request(url + CHATS, data=json.dumps(document).encode(), headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=JOB_HANGS_S) as answer:  # noqa: S310
                return answer.status, *_read(answer.read().decode(), stream=stream)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), ""
        except OSError as error:
            return 0, str(error), ""


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=JOB_HANGS_S) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _read(body: str, *, stream: bool) -> tuple[str, str]:
    if not stream:
        (choice,) = json.loads(body)["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", body
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(each["delta"].get("content") or "" for each in choices), choices[-1]["finish_reason"]


@dataclass(kw_only=True)
class Traffic:
    """What clients got: question, status, text."""

    got: list[tuple[str, int, str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


@contextmanager
def traffic(served: Served, *questions: str) -> Iterator[Traffic]:
    """Two clients, each request another user's, every second one streamed."""
    made = Traffic()

    def client(first: int) -> None:
        number = first
        while not made.stopped.is_set():
            question = questions[number // 2 % len(questions)]
            status, text, _ = served.ask(question, user=f"user-{time.monotonic_ns()}", stream=number % 4 < 2)
            made.got.append((question, status, text))
            number += 2

    threads = [threading.Thread(target=client, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.stopped.set()
        for thread in threads:
            thread.join()


def end(pid: int) -> None:
    """As kubelet does."""
    os.kill(pid, signal.SIGTERM)
