"""Where a command looks: the folder of local mode, or a cluster."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_operator.cli.errors import CommandError
from finetune_operator.core.ports import Cluster, Kind, Manifest
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.home import DEFAULT_HOME, LocalHome
from finetune_operator.local.progress import FileProgress

if TYPE_CHECKING:
    from finetune_operator.kube.user_session import UserSession

_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


_ON_THIS_MACHINE = ("run", "up")
"""Commands that know no other place."""


@dataclass(frozen=True, kw_only=True)
class Shell:
    """How commands are typed here, so that those in an explanation can be copied."""

    namespace: str
    program: str = "finetune"
    flags: tuple[str, ...] = ()
    """What tells the program where to look."""
    local: bool = False
    kubectl_flags: tuple[str, ...] = ()

    def finetune(self, *arguments: str) -> str:
        """One of our own commands."""
        here = arguments[0] in _ON_THIS_MACHINE
        flags = [flag for flag in self.flags if not (here and flag == "--local")]
        return " ".join([self.program, shlex.join([*arguments, *flags])])

    def kubectl(self, *arguments: str) -> str:
        """A command of kubectl."""
        return shlex.join(["kubectl", *arguments, "-n", self.namespace, *self.kubectl_flags])


@dataclass(frozen=True, kw_only=True)
class Target:
    """An open place. Exactly one of `home` and `session` is set."""

    cluster: Cluster
    namespace: str
    home: LocalHome | None = None
    session: UserSession | None = None

    async def read(self, *, kind: Kind, name: str) -> Manifest:
        """An object of the namespace. Raises CommandError where there is none."""
        found = await self.cluster.get(kind=kind, namespace=self.namespace, name=name)
        if found is not None:
            return found
        where = f"in {self.home.root}" if self.home else f"in namespace {self.namespace} of the cluster"
        hint = ""
        if self.home is None and _has_local_home():
            hint = f"; this folder has a {DEFAULT_HOME} of local mode: --local looks there"
        raise CommandError(f"{kind} {name} was not found {where}{hint}")

    def reports(self) -> FileProgress | None:
        """What training says itself, before a job's status does; None: of a cluster, where the operator is told."""
        if self.home is None or not isinstance(self.cluster, LocalCluster):
            return None
        return FileProgress(store=self.cluster.store, home=self.home, clock=utc_now)

    async def user_name(self) -> str:
        """Who types: as the cluster knows the user, or the account on this machine."""
        if self.session is not None:
            return await self.session.user_name()
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # a container's arbitrary user
            return str(os.getuid())

    async def annotate(self, *, kind: Kind, name: str, annotations: Mapping[str, str | None]) -> Manifest:
        """Write annotations at once; None removes. Raises InvalidError where a policy refuses, NotFoundError."""
        if self.session is not None:
            return await self.session.annotate(kind=kind, namespace=self.namespace, name=name, annotations=annotations)
        assert isinstance(self.cluster, LocalCluster)  # noqa: S101 - without a session it is one
        return self.cluster.annotate(kind=kind, namespace=self.namespace, name=name, annotations=annotations)


@asynccontextmanager
async def open_target(options: argparse.Namespace) -> AsyncIterator[Target]:
    """Open what the options name. Raises CommandError, UnavailableError."""
    if options.home or options.local:
        if options.kubeconfig or options.context:
            raise CommandError("--local and --home mean this machine, --kubeconfig and --context a cluster: choose one")
        yield _local(options)
    elif options.kubeconfig or options.context or _names_a_cluster():
        from finetune_operator.kube.user_session import open_user_session

        async with open_user_session(kubeconfig=options.kubeconfig, context=options.context) as session:
            namespace = options.namespace or session.namespace
            yield Target(cluster=session.cluster, namespace=namespace, session=session)
    else:
        yield _local(options)


def shell_of(options: argparse.Namespace, *, target: Target) -> Shell:
    """How commands are typed that look where this one looked."""
    flags = [*(["--local"] if options.local else [])]
    kubectl = []
    for flag, value in (("--home", options.home), ("--kubeconfig", options.kubeconfig), ("--context", options.context)):
        flags += [flag, value] if value else []
        kubectl += [flag, value] if value and flag != "--home" else []
    flags += ["-n", options.namespace] if options.namespace else []
    return Shell(
        namespace=target.namespace,
        program=options.program,
        flags=tuple(flags),
        local=target.home is not None,
        kubectl_flags=tuple(kubectl),
    )


def _local(options: argparse.Namespace) -> Target:
    home = LocalHome.at(options.home or DEFAULT_HOME)
    if not home.root.is_dir():
        raise CommandError(
            f"{home.root} does not exist: no job has run here; `finetune run -f job.yaml` makes it,"
            " --home names another folder, --context a cluster"
        )
    return Target(cluster=LocalCluster(home=home), namespace=options.namespace or "default", home=home)


def _has_local_home() -> bool:
    return Path(DEFAULT_HOME).is_dir()


def _names_a_cluster() -> bool:
    """Whether kubectl would find a cluster without being told of one."""
    files = os.environ.get("KUBECONFIG", "").split(os.pathsep)
    known = [Path(file) for file in files if file] or [Path(os.path.expanduser("~/.kube/config"))]  # noqa: PTH111 - also without HOME
    return any(path.is_file() for path in known) or _IN_CLUSTER.is_file()
