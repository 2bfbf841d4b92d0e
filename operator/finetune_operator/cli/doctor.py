"""`finetune doctor`: can jobs run here, and if not, what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api.crd import RESOURCES, custom_resource_definition
from finetune_operator.cli import words
from finetune_operator.cli.errors import ExitStatus
from finetune_operator.cli.tables import table
from finetune_operator.cli.target import open_target
from finetune_operator.core.ports import UnavailableError
from finetune_operator.local.environment import trainer_is_installed
from finetune_operator.local.gpus import gpus_of_machine
from finetune_operator.local.home import DEFAULT_HOME

if TYPE_CHECKING:
    from finetune_operator.kube.user_session import UserSession

State = Literal["ok", "warning", "failed"]
_LEAST_PYTHON = (3, 11)
_LEAST_MEMORY = 4e9
_LEAST_DISK = 10e9
_LEASE = "finetune-operator"
# Run in a process of its own: importing torch takes seconds and hundreds of megabytes.
_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "gpus": gpus}))
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. `text` says what was found and, unless it is ok, the way out."""

    name: str
    state: State
    text: str

    @classmethod
    def of(cls, name: str, found: str, way_out: str = "", *, state: State = "failed") -> Check:
        """Ok where no way out is needed, else `state`."""
        return cls(name=name, state=state if way_out else "ok", text="; ".join(filter(None, (found, way_out))))


async def run(options: argparse.Namespace) -> int:
    """Check; FAILED when something keeps jobs from running."""
    if options.local or options.home:
        checks = local_checks(folder=Path(options.home or DEFAULT_HOME))
    else:
        checks = await _cluster_checks(options)
    print(table(header=("CHECK", "STATE", "FOUND"), rows=[(each.name, each.state, each.text) for each in checks]))
    return ExitStatus.FAILED if any(each.state == "failed" for each in checks) else ExitStatus.DONE


def local_checks(*, folder: Path) -> list[Check]:
    """What local mode needs of this machine."""
    return [_system(), _python(), _memory(), _disk(folder), *_trainer(), _accelerator()]


def _system() -> Check:
    way_out = "" if platform.system() == "Linux" else "local mode needs Linux, a virtual machine does"
    return Check.of("system", f"{platform.system()} {platform.machine()}", way_out)


def _python() -> Check:
    way_out = "" if sys.version_info >= _LEAST_PYTHON else "install Python 3.11 or newer"
    return Check.of("python", f"{platform.python_version()} ({sys.executable})", way_out)


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = Path("/proc/meminfo").read_text().split("\n")
    available = next((int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line), total)
    text = f"{words.size(available)} of {words.size(total)} available, {os.cpu_count()} cores"
    way_out = "" if available >= _LEAST_MEMORY else "small models only: a 135M model needs 2 to 4 GB"
    return Check.of("memory", text, way_out, state="warning")


def _disk(folder: Path) -> Check:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Check.of("disk", f"{existing} cannot be written", "choose another --home")
    way_out = "" if free >= _LEAST_DISK else "checkpoints of a model need three times its size"
    return Check.of("disk", f"{words.size(free)} free at {existing}", way_out, state="warning")


def _trainer() -> list[Check]:
    if not trainer_is_installed():
        return [Check.of("trainer", "the training code is not installed", "pip install 'finetune-operator[local]'")]
    answer = subprocess.run(
        [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, errors="replace", check=False
    )
    if answer.returncode != 0:
        reason = answer.stderr.strip().split("\n")[-1] or "no reason given"
        return [Check.of("torch", f"it cannot be imported: {reason}", "install it again")]
    found = json.loads(answer.stdout)
    gpus = ", ".join(found["gpus"]) or "CPU only"
    return [Check.of("trainer", "installed"), Check.of("torch", f"{found['version']}, {gpus}")]


def _accelerator() -> Check:
    gpus = gpus_of_machine()
    text = f"{words.count(len(gpus), 'GPU')}: set compute.gpusPerNode to use {'it' if len(gpus) == 1 else 'them'}"
    return Check.of("accelerator", text if gpus else "no GPU: jobs run on the CPU")


async def _cluster_checks(options: argparse.Namespace) -> list[Check]:
    try:
        async with open_target(options) as target:
            if target.session is None:
                return local_checks(folder=Path(DEFAULT_HOME))
            return await _checks_of(target.session, namespace=target.namespace)
    except UnavailableError as error:
        return [Check(name="apiserver", state="failed", text=str(error))]


async def _checks_of(session: UserSession, *, namespace: str) -> list[Check]:
    checks = [Check.of("apiserver", f"{session.server}, {await session.version()}")]
    checks += [await _definition(session, plural=each.plural, kind=each.kind) for each in RESOURCES]
    checks.append(await _operator(session))
    for verb, resource_name in (("create", "finetunejobs"), ("get", "modelversions")):
        allowed = await session.may(verb=verb, group="finetune.dev", resource=resource_name, namespace=namespace)
        what = f"{verb} {resource_name} in {namespace}"
        way_out = "" if allowed else "ask an administrator for the role finetune-edit"
        checks.append(Check.of("permission", f"you may {what}" if allowed else f"you may not {what}", way_out))
    return checks


async def _definition(session: UserSession, *, plural: str, kind: str) -> Check:
    """Whether the cluster has our type, in a version that knows what this one knows."""
    name = f"{plural}.finetune.dev"
    wanted = next(custom_resource_definition(resource=each) for each in RESOURCES if each.plural == plural)
    served = await session.find(path="/apis/finetune.dev/v1alpha1")
    if plural not in {each["name"] for each in (served or {}).get("resources") or ()}:
        return Check.of(kind, f"{name} is not installed", "kubectl apply -k manifests/crd")
    try:
        found = await session.find(path=f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    except UnavailableError:
        return Check.of(kind, f"{name} is served (you may not read its definition)")
    if _schema(found or {}) == _schema(wanted):
        return Check.of(kind, f"{name} is this version's")
    return Check.of(kind, f"{name} is of another version than this command", "update the older one", state="warning")


def _schema(definition: dict[str, object]) -> object:
    versions = (definition.get("spec") or {}).get("versions") or [{}]  # type: ignore[attr-defined]
    return versions[0].get("schema")


async def _operator(session: UserSession) -> Check:
    """Whether somebody leads: the holder of the Lease, wherever the operator is installed."""
    try:
        leases = await session.find(path="/apis/coordination.k8s.io/v1/leases")
    except UnavailableError as error:
        return Check(name="operator", state="warning", text=f"you may not look for it: {error}")
    ours = [each for each in (leases or {}).get("items") or () if each["metadata"]["name"] == _LEASE]
    if not ours:
        return Check.of("operator", "not found", "kubectl apply -k manifests/operator")
    namespace, holder = ours[0]["metadata"]["namespace"], (ours[0].get("spec") or {}).get("holderIdentity")
    if holder:
        return Check.of("operator", f"{holder} leads in {namespace}")
    return Check.of("operator", f"nobody leads in {namespace}", f"kubectl -n {namespace} get pods says why")
