"""The processes of the gateway's benchmark: each on one core, and stopped while others are measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.harness.store import ROOT, cache, digest, locked
from tests.local.gateway.conftest import free_port

LITELLM_LOCK = ROOT / "requirements" / "bench-litellm.txt"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that listens on loopback."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def pause(self) -> None:
        """Not even its timers run while others are measured."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def rss_mb(self) -> float:
        """Resident memory now."""
        line = next(each for each in self._proc("status").splitlines() if each.startswith("VmRSS:"))
        return round(int(line.split()[1]) / 1024, 1)

    @property
    def cpu_seconds(self) -> float:
        """Processor time since its start."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text()


@contextmanager
def running(
    *,
    name: str,
    command: Sequence[str],
    port: int,
    folder: Path,
    core: int | None,
    environment: Mapping[str, str] | None = None,
    path: str = "/v1/chat/completions",
    ready_seconds: float = 30.0,
) -> Iterator[Server]:
    """Start a server and wait until it answers. Ended with the context, whatever state it is in."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    inherited = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
    log_path = folder / f"{name}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command],
            env=inherited | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"} | dict(environment or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=pin,
            start_new_session=True,
        )
    server = Server(name=name, port=port, process=process)
    try:
        _await_answer(server, path=path, seconds=ready_seconds, log=log_path)
        yield server
    finally:
        _end(process)


def _await_answer(server: Server, *, path: str, seconds: float, log: Path) -> None:
    body = b'{"model": "router", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}'
    url = f"http://127.0.0.1:{server.port}{path}"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError, urllib.error.URLError):
            request = urllib.request.Request(url, data=body, headers=headers)
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-1500:]
    raise RuntimeError(f"{server.name} did not answer within {seconds:g} s: {tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole session: LiteLLM has children of its own."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running_upstream(*, name: str, folder: Path, core: int | None) -> Iterator[Server]:
    """A replayed model server."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.gateway_servers", "upstream", str(port)]
    with running(name=name, command=command, port=port, folder=folder, core=core) as server:
        yield server


@contextmanager
def running_floor(*, upstream: Server, folder: Path, core: int | None) -> Iterator[Server]:
    """The least that a proxy written with aiohttp costs."""
    port = free_port()
    url = f"http://127.0.0.1:{upstream.port}"
    command = [sys.executable, "-m", "tests.bench.gateway_servers", "floor", str(port), url]
    with running(name="floor", command=command, port=port, folder=folder, core=core) as server:
        yield server


@contextmanager
def running_gateway(*, stable: Server, candidate: Server | None, folder: Path, core: int | None) -> Iterator[Server]:
    """`python -m finetune_gateway` with its defaults, access log included. With a candidate: all requests mirrored."""
    port = free_port()
    name = "gateway" if candidate is None else "shadow"
    routes = _routes(stable=stable, candidate=candidate)
    (folder / f"{name}.json").write_text(json.dumps(routes))
    variables = {
        "ENDPOINT": "router",
        "NAME": "gateway-0",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "STATUS_PORT": str(free_port()),
        "ROUTES_FILE": str(folder / f"{name}.json"),
        "OBSERVATIONS_FILE": str(folder / f"{name}-observations.json"),
        "DRAIN_SECONDS": "1",
    }
    with running(
        name=name,
        command=[sys.executable, "-m", "finetune_gateway"],
        port=port,
        folder=folder,
        core=core,
        environment={f"FINETUNE_GATEWAY_{key}": value for key, value in variables.items()},
    ) as server:
        yield server


def _routes(*, stable: Server, candidate: Server | None) -> dict[str, object]:
    """As the operator writes them while one version serves everybody, or while another one is its shadow."""
    served = {each.name: each for each in (stable, candidate) if each is not None}
    routes: dict[str, object] = {
        "epoch": 1,
        "endpoint": "router",
        "model": "router",
        "task": "Chat",
        "variants": {
            name: {"name": name, "url": f"http://127.0.0.1:{server.port}", "ready": True}
            for name, server in served.items()
        },
        "rules": [{"name": "default", "weights": {stable.name: 100}}],
    }
    if candidate is not None:
        order = {"candidate": candidate.name, "stable": stable.name, "percent": 100, "timeoutSeconds": 30}
        # All of one user's requests are copied: the load names none.
        routes |= {"shadow": order, "judging": {"latencyLimitSeconds": 2.0, "userWeightCap": 1_000_000}}
    return routes


def shadow_counts(folder: Path) -> dict[str, int]:
    """How many requests were mirrored, and how many were shed."""
    counts = json.loads((folder / "shadow-observations.json").read_text())["shadow"]
    return {key: sum(each.get(key, 0) for each in counts) for key in ("sampled", "dropped")}


# -- LiteLLM ----------------------------------------------------------------------------------------------------------


def litellm_python(uv: str) -> Path:
    """The interpreter of an environment with LiteLLM's proxy, made when missing. Raises RuntimeError: why not."""
    folder = cache() / f"bench-litellm-{digest(paths=[LITELLM_LOCK])}"
    python = folder / "bin" / "python"
    with locked("bench-litellm"):
        if (folder / ".ready").exists():
            return python
        make = [uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)]
        fill = [uv, "pip", "sync", "-q", "--python", str(python), "--require-hashes", str(LITELLM_LOCK)]
        for command in (make, fill):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise RuntimeError(f"LiteLLM cannot be installed: {error}") from error
            if done.returncode != 0:
                raise RuntimeError(f"LiteLLM cannot be installed: {done.stderr.strip()[-500:]}")
        (folder / ".ready").touch()
    return python


@contextmanager
def running_litellm(*, python: Path, upstream: Server, folder: Path, core: int | None) -> Iterator[Server]:
    """LiteLLM's proxy with one worker, one model, no database, and no logging but errors."""
    port = free_port()
    model = {
        "model": "openai/router",
        "api_base": f"http://127.0.0.1:{upstream.port}/v1",
        "api_key": "none",
    }
    config = {
        "model_list": [{"model_name": "router", "litellm_params": model}],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False, "set_verbose": False, "num_retries": 0},
    }
    (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    program = str(python.parent / "litellm")
    command = [program, "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(port)]
    with running(
        name="litellm",
        command=[*command, "--num_workers", "1", "--telemetry", "False"],
        port=port,
        folder=folder,
        core=core,
        environment=environment,
        ready_seconds=120.0,
    ) as server:
        yield server


def litellm_version(python: Path) -> str:
    """What is installed."""
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
