"""A serving process as its container would run it, and artifacts for it to serve."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.small_run import ROOT

from finetune_api.run import Locations, ModelOrder
from finetune_api.shared_fields import Artifact, ResolvedModel, Task
from finetune_trainer.models import base_model
from finetune_trainer.store.storage import Storage

ENDPOINT = "router"


def storage_in(folder: Path, *, base: Path) -> Storage:
    roots = [f"file://{folder}", f"file://{base}"]
    return Storage(locations=Locations(run=f"file://{folder}/run", cache=f"file://{folder}/cache", allowed_roots=roots))


def publish(
    model: Any, tokenizer: Any, *, folder: Path, base: Path, task: Task, companions: Mapping[str, str]
) -> dict[str, Any]:
    """Store a model as training would have; what an order says of it (`artifact`, `base`, `task`)."""
    storage = storage_in(folder, base=base)
    uri = f"{storage.locations.run}/model"
    with storage.staging_folder(uri) as staging:
        model.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))
        (staging / "README.md").unlink(missing_ok=True)
        for name, text in companions.items():
            (staging / name).write_text(text)
        complete = storage.publish(staging, to=uri, input_digest="sha256:input", extra={})
    adapter = hasattr(model, "peft_config")
    artifact = Artifact(
        uri=uri,
        digest=complete.digest,
        format="Adapter" if adapter else "Full",
        size_bytes=complete.size_bytes,
    )
    resolved = ResolvedModel(uri=f"file://{base}", digest="sha256:" + "0" * 64)
    if adapter:
        resolved = base_model.resolve(ModelOrder(uri=f"file://{base}", task="Chat"), storage=storage)
    return {"artifact": artifact.to_dict(), "base": resolved.to_dict(), "task": task}


def order_for(served: Mapping[str, Any], *, folder: Path, **changes: Any) -> dict[str, Any]:
    """The order to serve what `publish` stored; `folder` is the server's own."""
    classifier = served["task"] in ("SequenceClassification", "Seq2Seq")
    stored = Path(served["artifact"]["uri"].removeprefix("file://")).parents[1]
    base = served["base"].get("materializedUri") or served["base"]["uri"]
    return {
        "stage": "Serve",
        "endpoint": ENDPOINT,
        "version": {"name": "router-7", "uid": "uid-7"},
        "runtime": "FastAPI" if classifier else "Transformers",
        "locations": {
            "run": f"file://{folder}/own",
            "cache": f"file://{folder}/cache",
            "allowedRoots": [f"file://{stored}", base],
        },
        **served,
        **changes,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class ServerProcess:
    """`python -m finetune_trainer serve` on a loopback port."""

    folder: Path
    order: dict[str, Any]
    program: tuple[str, ...] = ("-m", "finetune_trainer", "serve")
    variables: dict[str, str] = field(default_factory=dict)
    python: str = field(default_factory=forked_python)
    """The real interpreter for tests that are about the process itself."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def last_words(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "termination").read_text())
        return loaded

    @property
    def cpu_seconds(self) -> float:
        """What it has used of all processors: what others do on the machine does not count."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(json.dumps(self.order))
        variables = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "FINETUNE_TERMINATION_LOG": str(self.folder / "termination"),
            "FINETUNE_SERVE_HOST": "127.0.0.1",
            "FINETUNE_SERVE_PORT": str(self.port),
            **self.variables,
        }
        command = [self.python, *self.program, "--run-file", str(self.folder / "run.json")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, *, seconds: float = HANGS_S) -> int:
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_until_ready(self, *, seconds: float = HANGS_S) -> None:
        import urllib.error
        import urllib.request

        deadline = time.monotonic() + seconds
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=HANGS_S):  # noqa: S310 - loopback
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, self.log
                time.sleep(0.1)

    def access_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.rstrip("\n").split("\n") if line.startswith("{")]


@contextmanager
def serving(folder: Path, order: dict[str, Any], **settings: Any) -> Iterator[ServerProcess]:
    """A server that is ready."""
    server = ServerProcess(folder=folder, order=order, **settings)
    try:
        server.start()
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


async def post(url: str, document: Any, *, raw: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    body = json.dumps(document).encode() if raw is None else raw
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()
