"""Jobs as processes: real processes, real signals, real crashes. The containers are small Python programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.local.eventually import eventually

from finetune_operator.attempts.manifests import FAILURE_RULES
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Manifest
from finetune_operator.local import shim
from finetune_operator.local.home import LocalHome
from finetune_operator.local.processes import ENDED_FILE
from finetune_operator.local.runtime import LocalRuntime

CONFIG = OperatorConfig(trainer_image="local")


@pytest.fixture
def home(tmp_path: Path) -> LocalHome:
    return LocalHome.at(tmp_path / "home")


@pytest.fixture
async def runtime(home: LocalHome) -> AsyncIterator[LocalRuntime]:
    async with LocalRuntime.open(home=home, config=CONFIG) as opened:
        yield opened
        for pod in opened.cluster.store.find(kind="Pod"):
            opened.kill_pod(pod)


def job(program: str, *, pods: int = 1, grace: int = 20, name: str = "work", **spec: Any) -> Manifest:
    container = {
        "name": "trainer",
        "image": "local",
        "command": ["python", "-c", textwrap.dedent(program)],
        "env": [
            {"name": "FINETUNE_RUN_FILE", "value": "/etc/finetune/run.json"},
            {"name": "FINETUNE_MASTER_ADDR", "value": "work-0.work"},
            {"name": "FINETUNE_MASTER_PORT", "value": "29500"},
            {"name": "GLOO_SOCKET_IFNAME", "value": "net1"},
        ],
        "volumeMounts": [
            {"name": "run", "mountPath": "/etc/finetune"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "claim", "mountPath": "/mnt/claims/models"},
        ],
    }
    volumes = [
        {"name": "run", "configMap": {"name": "orders"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "models"}},
    ]
    template = {"spec": {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": grace}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "ml"},
        "spec": {
            "completions": pods,
            "parallelism": pods,
            "podFailurePolicy": {"rules": list(FAILURE_RULES)},
            "template": template,
            **spec,
        },
    }


async def start(runtime: LocalRuntime, home: LocalHome, manifest: Manifest) -> Manifest:
    (home.claims / "models").mkdir(parents=True, exist_ok=True)
    orders = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "orders", "namespace": "ml"}}
    if await runtime.cluster.get(kind="ConfigMap", namespace="ml", name="orders") is None:
        await runtime.cluster.create(manifest={**orders, "data": {"run.json": '{"stage": "Train"}'}})
    return await runtime.cluster.create(manifest=manifest)


async def until(runtime: LocalRuntime, condition: str, *, name: str = "work") -> Manifest:
    """Wait until the Job has a condition."""

    async def look() -> Manifest | None:
        found = await runtime.cluster.get(kind="Job", namespace="ml", name=name)
        conditions = ((found or {}).get("status") or {}).get("conditions") or ()
        return found if any(each["type"] == condition for each in conditions) else None

    found = await eventually(look)
    assert found is not None
    return found


async def pods_of(runtime: LocalRuntime) -> list[Manifest]:
    return await runtime.cluster.list(kind="Pod", namespace="ml")


async def no_pods(runtime: LocalRuntime) -> bool:
    return not await pods_of(runtime)


async def remaining_pods(runtime: LocalRuntime) -> list[Manifest]:
    """The pods, as soon as none is left that was deleted: for a moment those still show how they ended."""
    pods = await pods_of(runtime)
    return [] if any("deletionTimestamp" in pod["metadata"] for pod in pods) else pods


async def running_pods(runtime: LocalRuntime, *, count: int = 1) -> list[Manifest]:
    async def look() -> list[Manifest]:
        pods = [pod for pod in await pods_of(runtime) if pod["status"]["phase"] == "Running"]
        return pods if len(pods) >= count else []

    return await eventually(look)


def ended(pod: Manifest) -> dict[str, Any]:
    state: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def test_each_index_gets_its_process_and_what_a_container_has(runtime: LocalRuntime, home: LocalHome) -> None:
    program = """
        import json, os, pathlib, tempfile
        environment = os.environ
        pathlib.Path(tempfile.gettempdir(), "scratch").write_text("x")
        print("hello from", environment["JOB_COMPLETION_INDEX"])
        pathlib.Path(environment["FINETUNE_TERMINATION_LOG"]).write_text(json.dumps({
            "index": environment["JOB_COMPLETION_INDEX"],
            "orders": pathlib.Path(environment["FINETUNE_RUN_FILE"]).read_text(),
            "meet": environment["FINETUNE_MASTER_ADDR"] + ":" + environment["FINETUNE_MASTER_PORT"],
            "gpus": environment["CUDA_VISIBLE_DEVICES"],
            "interface": environment.get("GLOO_SOCKET_IFNAME"),
            "scratch": tempfile.gettempdir(),
        }))
    """
    created = await start(runtime, home, job(program, pods=2))
    finished = await until(runtime, "Complete")
    assert finished["status"]["succeeded"] == 2
    pods = await pods_of(runtime)
    said = [json.loads(ended(pod)["message"]) for pod in pods]
    assert [each["index"] for each in said] == ["0", "1"]
    assert {each["orders"] for each in said} == {'{"stage": "Train"}'}
    assert {each["gpus"] for each in said} == {""}
    assert {each["interface"] for each in said} == {None}, "a machine need not have what a cluster's pods have"
    (meeting,) = {each["meet"] for each in said}
    assert meeting.startswith("127.0.0.1:")
    assert not meeting.endswith(":29500"), "another run on this machine may have that port"
    for pod, each in zip(pods, said, strict=True):
        assert pod["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
        assert pod["status"]["phase"] == "Succeeded"
        assert (ended(pod)["exitCode"], ended(pod)["reason"]) == (0, "Completed")
        assert runtime.files(pod).log.read_text() == f"hello from {each['index']}\n"
        assert not os.path.exists(each["scratch"]), "/tmp goes with the container"  # noqa: PTH110, ASYNC240


async def test_an_interpreter_below_a_mount_point_is_found(runtime: LocalRuntime, home: LocalHome) -> None:
    """As in a checkout below /tmp, where every container has a volume."""
    manifest = job("print('here')")
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["volumeMounts"].append({"name": "tmp", "mountPath": str(Path(sys.executable).parent)})
    del container["command"]  # the trainer's own
    await start(runtime, home, manifest)
    await until(runtime, "Failed")
    (pod,) = await pods_of(runtime)
    assert ended(pod)["exitCode"] == 78, "the trainer has run, and does not like its orders"


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (75, "PodFailurePolicy", "failed with exit code 75 matching FailJob rule at index 0"),
        (65, "PodFailurePolicy", "failed with exit code 65 matching FailJob rule at index 1"),
        (70, "BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    ],
)
async def test_one_failure_ends_the_gang(
    runtime: LocalRuntime, home: LocalHome, code: int, reason: str, message: str
) -> None:
    program = f"""
        import os, sys, time
        time.sleep(0.3)
        if os.environ["JOB_COMPLETION_INDEX"] == "1":
            sys.exit({code})
        time.sleep(60)
    """
    await start(runtime, home, job(program, pods=2))
    failed = await until(runtime, "Failed")
    condition = next(each for each in failed["status"]["conditions"] if each["type"] == "Failed")
    assert condition["reason"] == reason
    assert condition["message"].endswith(message)
    (pod,) = await eventually(lambda: remaining_pods(runtime))
    assert ended(pod)["exitCode"] == code, "the other one is deleted, as by a Job"


async def test_deleting_a_job_asks_first_and_kills_later(runtime: LocalRuntime, home: LocalHome) -> None:
    polite = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
        print("ready", os.getpid(), flush=True)
        time.sleep(60)
    """
    stubborn = polite.replace('lambda *_: (print("saved", flush=True), sys.exit(75))', "signal.SIG_IGN")
    for name, program, grace in (("polite", polite, 20), ("stubborn", stubborn, 1)):
        created = await start(runtime, home, job(program, grace=grace, name=name))
        (pod,) = await running_pods(runtime)
        log = runtime.files(pod).log
        await eventually(lambda: log.read_text().endswith("\n"))  # noqa: B023 - called at once
        pid = int(log.read_text().removeprefix("ready "))
        began = time.monotonic()
        metadata = created["metadata"]
        await runtime.cluster.delete(kind="Job", namespace="ml", name=name, uid=metadata["uid"])
        marked = await runtime.cluster.get(kind="Pod", namespace="ml", name=pod["metadata"]["name"])
        assert marked is not None
        assert marked["metadata"]["deletionTimestamp"], "it is there until its process has ended"
        await eventually(lambda: not is_alive(pid))  # noqa: B023 - called at once
        took = time.monotonic() - began
        assert ("saved" in log.read_text()) == (name == "polite")
        assert (took >= 0.9) == (name == "stubborn"), f"{name}: {took:.2f} s"
        await eventually(lambda: no_pods(runtime))


async def test_nothing_of_a_container_outlives_it(runtime: LocalRuntime, home: LocalHome) -> None:
    program = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print(child.pid, flush=True)
    """
    await start(runtime, home, job(program))
    await until(runtime, "Complete")
    (pod,) = await pods_of(runtime)
    assert not is_alive(int(runtime.files(pod).log.read_text()))


async def test_a_container_that_cannot_be_made_says_why_and_starts_when_it_can(
    runtime: LocalRuntime, home: LocalHome
) -> None:
    manifest = job("print('here')")
    manifest["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": "hf"}}]
    await start(runtime, home, manifest)

    async def look() -> list[Manifest]:
        return [pod for pod in await pods_of(runtime) if "containerStatuses" in pod["status"]]

    (pod,) = await eventually(look)
    waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "CreateContainerConfigError"
    assert waiting["message"] == (f'secret "hf" not found; write KEY=VALUE lines into {home.root}/secrets/hf.env')
    home.secret(name="hf").parent.mkdir()
    home.secret(name="hf").write_text("HF_TOKEN=abc\n")
    await until(runtime, "Complete")


async def test_a_pod_without_enough_gpus_waits_and_says_so(
    runtime: LocalRuntime, home: LocalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    program = """
        import os, time
        print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
        time.sleep(60)
    """

    def wanting(name: str, gpus: int) -> Manifest:
        manifest = job(program, name=name)
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
        return manifest

    await start(runtime, home, wanting("first", 1))
    (first,) = await running_pods(runtime)
    await start(runtime, home, wanting("second", 2))

    async def look() -> list[Manifest]:
        return [pod for pod in await pods_of(runtime) if "conditions" in pod["status"] and pod != first]

    (second,) = await eventually(look)
    (condition,) = second["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("PodScheduled", "False", "Unschedulable")
    assert condition["message"].startswith("2 GPUs are wanted, 1 of this machine's 2 are free")
    text = await eventually(runtime.files(first).log.read_text)
    assert text == "3\n"


CRASHING = """
import asyncio, sys
from finetune_operator.core.config import OperatorConfig
from finetune_operator.local.home import LocalHome
from finetune_operator.local.processes import ENDED_FILE
from finetune_operator.local.runtime import LocalRuntime

async def main():
    async with LocalRuntime.open(home=LocalHome.at(sys.argv[1]), config=OperatorConfig(trainer_image="local")):
        print("open", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.contextmanager
def other_process(home: LocalHome) -> Any:
    """Another process that works in the home until it is killed."""
    folder = str(Path(__file__).parents[2] / "operator")
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHING, str(home.root)],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process
    finally:
        process.kill()
        process.wait()


SAVING = """
    import os, pathlib, signal, subprocess, sys, time
    last_words = pathlib.Path(os.environ["FINETUNE_TERMINATION_LOG"])
    signal.signal(signal.SIGTERM, lambda *_: (last_words.write_text("saved"), sys.exit(75)))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    print(os.getpid(), child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_finetune_and_the_next_one_knows_how_it_ended(
    home: LocalHome, number: signal.Signals
) -> None:
    async with LocalRuntime.open(home=home, config=CONFIG) as first:
        await start(first, home, job(SAVING, pods=2, suspend=True))
        stored = await until(first, "Suspended")
    first.cluster.store.write({**stored, "spec": {**stored["spec"], "suspend": False}})
    with other_process(home) as process:
        pods = await running_pods(first, count=2)
        logs = [await eventually(first.files(pod).log.read_text) for pod in pods]
        process.send_signal(number)
        process.wait()
    pids = [int(pid) for text in logs for pid in text.split()]
    assert len(pids) == 4
    async with LocalRuntime.open(home=home, config=CONFIG) as second:
        assert [pid for pid in pids if is_alive(pid)] == [], "who works here next waits for their end"
        await until(second, "Failed")
        again = await pods_of(second)
    assert [(ended(pod)["exitCode"], ended(pod)["message"]) for pod in again] == [(75, "saved")] * 2
    assert [pod["metadata"]["uid"] for pod in again] == [pod["metadata"]["uid"] for pod in pods], "nothing ran twice"


async def test_what_the_machine_lost_is_known_as_lost(home: LocalHome) -> None:
    """Switched off: the pods are there, and neither a process nor a word of how it ended."""
    async with LocalRuntime.open(home=home, config=CONFIG) as first:
        await start(first, home, job(SAVING))
        (pod,) = await running_pods(first)
        since = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        files = first.files(pod)
    (files.folder / ENDED_FILE).write_text(" " * shim.RECORD_BYTES)
    async with LocalRuntime.open(home=home, config=CONFIG) as second:
        await until(second, "Failed")
        (pod,) = await pods_of(second)
        assert (ended(pod)["reason"], ended(pod)["startedAt"]) == ("ContainerStatusUnknown", since)


async def test_killing_a_container_is_seen_as_such(runtime: LocalRuntime, home: LocalHome) -> None:
    await start(runtime, home, job("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    (pod,) = await running_pods(runtime)
    text = await eventually(runtime.files(pod).log.read_text)
    os.kill(int(text), signal.SIGKILL)
    await until(runtime, "Failed")
    (pod,) = await pods_of(runtime)
    assert (ended(pod)["exitCode"], ended(pod)["signal"], ended(pod)["reason"]) == (137, 9, "Error")


async def test_a_container_whose_shim_was_killed_is_told_to_stop_and_counts_as_lost(
    runtime: LocalRuntime, home: LocalHome
) -> None:
    program = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(75)))
        print(os.getppid(), flush=True)
        time.sleep(60)
    """
    await start(runtime, home, job(program))
    (pod,) = await running_pods(runtime)
    log = runtime.files(pod).log
    text = await eventually(log.read_text)
    os.kill(int(text), signal.SIGKILL)
    await until(runtime, "Failed")
    (pod,) = await pods_of(runtime)
    assert ended(pod)["reason"] == "ContainerStatusUnknown"
    assert log.read_text().endswith("told\n")


async def test_jobs_of_a_queue_are_admitted_at_once(runtime: LocalRuntime, home: LocalHome) -> None:
    manifest = job("print('here')", suspend=True)
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    await start(runtime, home, manifest)
    await until(runtime, "Complete")


async def test_a_suspended_job_stops_its_pods(runtime: LocalRuntime, home: LocalHome) -> None:
    created = await start(runtime, home, job("import time; time.sleep(60)"))
    await running_pods(runtime)
    stored = await runtime.cluster.get(kind="Job", namespace="ml", name="work")
    assert stored is not None
    runtime.cluster.store.write({**stored, "spec": {**created["spec"], "suspend": True}})
    await until(runtime, "Suspended")
    await eventually(lambda: no_pods(runtime))
