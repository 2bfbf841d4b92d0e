"""What a container finds on a cluster, on this machine: files of its volumes, its environment, its command."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.run import (
    INTERFACE_VARIABLES,
    MASTER_ADDRESS_VARIABLE,
    MASTER_PORT_VARIABLE,
    NODE_RANK_VARIABLE,
    TERMINATION_LOG_VARIABLE,
)
from finetune_operator.attempts.manifests import RUN_KEY
from finetune_operator.core.names import ENDPOINT_LABEL, JOB_LABEL
from finetune_operator.core.ports import Cluster, InvalidError, Kind, Manifest
from finetune_operator.local.files import read_json, write_json
from finetune_operator.local.home import LocalHome
from finetune_operator.local.services import HOST

PROGRESS_VARIABLE = "FINETUNE_PROGRESS_FILE"
TRAINER_PACKAGE = "finetune_trainer"
TRAINER_COMMAND = ("-m", TRAINER_PACKAGE)
"""The entry point of the trainer image, for the interpreter that runs us."""
TRAINER_VARIABLE = "FINETUNE_LOCAL_TRAINER"
"""Names a Python file to run in its place, as another trainer image would be run on a cluster."""
_LOOK_AT_SECRETS_SECONDS = 1.0


class ContainerConfigError(Exception):
    """The container cannot be made: a ConfigMap or a Secret is missing. `str()` is kubelet's message."""


@dataclass(frozen=True, kw_only=True)
class PodFiles:
    """The files of a pod on this machine."""

    folder: Path
    log: Path

    @property
    def termination_log(self) -> Path:
        """Where its container leaves its last words."""
        return self.folder / "termination-log"

    @property
    def progress(self) -> Path:
        """Where its container says how far it is."""
        return self.folder / "progress.json"

    @property
    def volumes(self) -> Path:
        """A folder for each volume that is not a claim."""
        return self.folder / "volumes"


def pod_files(*, home: LocalHome, pod: Manifest) -> PodFiles:
    """The files of a pod; its log lies with those of the other pods of its job or endpoint."""
    metadata = pod["metadata"]
    namespace, name, labels = metadata["namespace"], metadata["name"], metadata.get("labels") or {}
    if JOB_LABEL not in labels and ENDPOINT_LABEL in labels:
        logs = home.endpoint_logs(namespace=namespace, endpoint=labels[ENDPOINT_LABEL])
    else:
        logs = home.logs(namespace=namespace, job=labels.get(JOB_LABEL, name))
    return PodFiles(folder=home.pod(namespace=namespace, name=name), log=logs / f"{name}.log")


class ContainerBuilder:
    """Makes the volumes and the environment of one pod's container."""

    def __init__(self, *, cluster: Cluster, home: LocalHome, pod: Manifest, files: PodFiles) -> None:
        self._cluster = cluster
        self._home = home
        self._namespace: str = pod["metadata"]["namespace"]
        self._metadata: dict[str, Any] = pod["metadata"]
        self._spec: dict[str, Any] = pod["spec"]
        self._container: dict[str, Any] = pod["spec"]["containers"][0]
        self._files = files

    async def volumes(self) -> dict[str, Path]:
        """Fill the volumes. Mount path -> folder on this machine. Raises ContainerConfigError."""
        folders = {volume["name"]: await self._volume(volume) for volume in self._spec.get("volumes") or ()}
        mounts = {
            mount["mountPath"].rstrip("/"): folders[mount["name"]]
            for mount in self._container.get("volumeMounts") or ()
        }
        for folder in folders.values():
            _adapt_order(folder / RUN_KEY, mounts=mounts)
        return mounts

    async def follow_secrets(self) -> None:
        """Keep the files of Secrets as the Secrets are, as kubelet does. Runs until cancelled."""
        volumes = [volume for volume in self._spec.get("volumes") or () if "secret" in volume]
        while volumes:
            await asyncio.sleep(_LOOK_AT_SECRETS_SECONDS)
            for volume in volumes:
                # One that is gone or cannot be read changes nothing: what was handed out stays.
                with contextlib.suppress(ContainerConfigError, OSError):
                    await self._volume(volume)

    async def environment(
        self, *, mounts: Mapping[str, Path], index: int, meeting_port: int, gpus: str, more: Mapping[str, str]
    ) -> dict[str, str]:
        """The whole environment: this process's own, the container's, what kubelet would add, and what only holds on
        this machine (`more`)."""
        values = dict(os.environ)
        values |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(_package_folders())}
        for source in self._container.get("envFrom") or ():
            values |= await self._keys_of(source)
        for entry in self._container.get("env") or ():
            if entry["name"] in INTERFACE_VARIABLES:
                continue  # of a cluster's pods
            values[entry["name"]] = on_this_machine(await self._value(entry), mounts=mounts)
        values |= {
            NODE_RANK_VARIABLE: str(index),
            TERMINATION_LOG_VARIABLE: str(self._files.termination_log),
            PROGRESS_VARIABLE: str(self._files.progress),
            # As on a cluster, a container sees the GPUs that it asked for and no other.
            "CUDA_VISIBLE_DEVICES": gpus,
        }
        if MASTER_ADDRESS_VARIABLE in values:
            values |= {MASTER_ADDRESS_VARIABLE: "127.0.0.1", MASTER_PORT_VARIABLE: str(meeting_port)}
        if "/tmp" in mounts:  # noqa: S108 - a mount point
            values["TMPDIR"] = str(mounts["/tmp"])  # noqa: S108
        return {**values, **more}

    def command(self, *, mounts: Mapping[str, Path]) -> list[str]:
        """The container's command, or the trainer image's where it has none of its own."""
        arguments = [on_this_machine(word, mounts=mounts) for word in self._container.get("args") or ()]
        own = self._container.get("command")
        # Paths of our own are of this machine, also where they are below a mount point such as /tmp.
        if not own:
            program = os.environ.get(TRAINER_VARIABLE)
            return [sys.executable, *([str(Path(program).absolute())] if program else TRAINER_COMMAND), *arguments]
        interpreter = {"python": sys.executable, "python3": sys.executable}
        return [*(interpreter.get(word, on_this_machine(word, mounts=mounts)) for word in own), *arguments]

    async def _volume(self, volume: Mapping[str, Any]) -> Path:
        if "persistentVolumeClaim" in volume:
            claim: Path = self._home.claims / volume["persistentVolumeClaim"]["claimName"]
            if not claim.is_dir():  # noqa: ASYNC240 - a local file system
                raise ContainerConfigError(f'persistentvolumeclaim "{claim.name}" not found: make the folder {claim}')
            return claim
        folder: Path = self._files.volumes / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
        if "emptyDir" not in volume:
            _make_hold(folder, dict([item async for item in self._files_of(volume)]))
        return folder

    async def _files_of(self, volume: Mapping[str, Any]) -> AsyncIterator[tuple[str, bytes]]:
        """(name, content) of what the volume projects."""
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            for kind, key, reference in _SOURCES:
                if key in source:
                    described = source[key]
                    name = described.get(reference) or described["name"]
                    data = await self._data(kind=kind, name=name, optional=described.get("optional", False))
                    chosen = described.get("items") or [{"key": each, "path": each} for each in data]
                    for item in chosen:
                        yield item["path"], data[item["key"]]

    async def _keys_of(self, source: Mapping[str, Any]) -> dict[str, str]:
        kind: Kind = "Secret" if "secretRef" in source else "ConfigMap"
        reference = source.get("secretRef") or source["configMapRef"]
        data = await self._data(kind=kind, name=reference["name"], optional=reference.get("optional", False))
        return {f"{source.get('prefix', '')}{key}": value.decode() for key, value in data.items()}

    async def _value(self, entry: Mapping[str, Any]) -> str:
        if "valueFrom" not in entry:
            return str(entry.get("value", ""))
        source = entry["valueFrom"]
        field = source.get("fieldRef", {}).get("fieldPath")
        if field in ("metadata.name", "metadata.namespace"):
            return str(self._metadata[field.removeprefix("metadata.")])
        if field == "status.podIP":
            return HOST
        for kind, key in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
            if key in source:
                data = await self._data(kind=kind, name=source[key]["name"], optional=False)  # type: ignore[arg-type]
                if source[key]["key"] not in data:
                    raise ContainerConfigError(
                        f"couldn't find key {source[key]['key']} in {kind} {source[key]['name']}"
                    )
                return data[source[key]["key"]].decode()
        raise ContainerConfigError(f"env {entry['name']}: local mode cannot read {', '.join(source)}")

    async def _data(self, *, kind: Kind, name: str, optional: bool) -> dict[str, bytes]:
        try:
            found = await self._cluster.get(kind=kind, namespace=self._namespace, name=name)
        except InvalidError as error:
            raise ContainerConfigError(str(error)) from error
        if found is None:
            if optional:
                return {}
            way_out = f"; write KEY=VALUE lines into {self._home.secret(name=name)}" if kind == "Secret" else ""
            raise ContainerConfigError(f'{kind.lower()} "{name}" not found{way_out}')
        if kind == "Secret":
            return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        return {key: value.encode() for key, value in (found.get("data") or {}).items()}


_SOURCES: tuple[tuple[Kind, str, str], ...] = (
    ("ConfigMap", "configMap", "name"),
    ("Secret", "secret", "secretName"),
)


def _make_hold(folder: Path, wanted: Mapping[str, bytes]) -> None:
    """Make a volume hold these files and no other: a key that was removed is gone. Readers never see half of a file."""
    for path in [path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)) not in wanted]:
        path.unlink()
    for name, content in wanted.items():
        target = folder / name
        if target.is_file() and target.read_bytes() == content:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.new")
        half.write_bytes(content)
        half.replace(target)


def _adapt_order(path: Path, *, mounts: Mapping[str, Path]) -> None:
    """A server's own folders are paths inside its container; all other URIs in an order are the user's."""
    order = read_json(path)
    if not isinstance(order, dict) or order.get("stage") != "Serve":
        return
    locations = order["locations"]
    for name in ("run", "cache"):
        locations[name] = "file://" + on_this_machine(locations[name].removeprefix("file://"), mounts=mounts)
    write_json(path, order)


def on_this_machine(text: str, *, mounts: Mapping[str, Path]) -> str:
    """A path inside the container as the path that it is here; anything else as it is."""
    for mount in sorted(mounts, key=len, reverse=True):
        if text == mount or text.startswith(f"{mount}/"):
            return f"{mounts[mount]}{text[len(mount) :]}"
    return text


def trainer_is_installed() -> bool:
    """Whether this interpreter has the trainer's code (the extra `local`)."""
    return importlib.util.find_spec(TRAINER_PACKAGE) is not None


def _package_folders() -> list[str]:
    """Where our packages are, for an interpreter that was told so by its own PYTHONPATH."""
    specs = [importlib.util.find_spec(name) for name in ("finetune_api", TRAINER_PACKAGE)]
    folders = [str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys([*folders, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def clear_scratch(*, files: PodFiles, pod: Manifest) -> None:
    """Remove what emptyDir volumes held: on a cluster it goes with the pod."""
    for name in _scratch_volumes(pod):
        shutil.rmtree(files.volumes / name, ignore_errors=True)


def _scratch_volumes(pod: Manifest) -> Iterator[str]:
    return (volume["name"] for volume in pod["spec"].get("volumes") or () if "emptyDir" in volume)
