"""`python -m tests.harness COMMAND`: the test environments from a shell. README.md beside this file explains them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time

from tests.harness import tools
from tests.harness.cluster import Cluster
from tests.harness.errors import HarnessError, MissingPrerequisite
from tests.harness.images import build_images, current_references
from tests.harness.preparation import (
    TEST_PROGRAMS,
    prepare_for_api,
    prepare_for_browser,
    prepare_for_chart,
    prepare_for_cluster,
    prepare_for_local,
    prepare_for_trainer,
)
from tests.harness.prerequisites import require_for_cluster
from tests.harness.storage import Storage
from tests.harness.store import cache, locked


def main(arguments: list[str]) -> int:
    """Run a command; 0 when it did what it says."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.harness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser(
        "prepare", help="build and install all that the tests need, as far as this machine can"
    )
    prepare.set_defaults(run=_prepare)
    build = commands.add_parser("build-tools", help="build Go programs (default: all that the tests need)")
    build.add_argument("names", nargs="*", metavar="NAME", default=TEST_PROGRAMS)
    build.set_defaults(run=_build_tools)
    images = commands.add_parser("images", help="build the images and print their references")
    images.set_defaults(run=_images)
    up = commands.add_parser("up", help="start a cluster")
    up.add_argument("--nodes", type=int, default=2)
    up.set_defaults(run=_up)
    load = commands.add_parser("load", help="build images from this checkout and put them on a cluster's nodes")
    load.set_defaults(run=_load)
    execute = commands.add_parser("exec", help="run a command in a cluster's network, with KUBECONFIG and PATH set")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    execute.set_defaults(run=_exec)
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of a cluster's kubeconfig")
    kubeconfig.set_defaults(run=_kubeconfig)
    down = commands.add_parser("down", help="remove a cluster")
    down.add_argument(
        "--all", action="store_true", help="every cluster on this machine, those of running tests included"
    )
    down.set_defaults(run=_down)
    for command in (up, load, execute, kubeconfig, down):
        command.add_argument("--name", default="dev", help="of the cluster (default: dev)")
    commands.add_parser("status", help="what runs, and what the cache holds").set_defaults(run=_status)
    commands.add_parser("prune", help="drop from the cache what this checkout does not use").set_defaults(run=_prune)
    return parser


def _prepare(options: argparse.Namespace) -> None:
    for prepare in (
        prepare_for_trainer,
        prepare_for_local,
        prepare_for_api,
        prepare_for_cluster,
        prepare_for_chart,
        prepare_for_browser,
    ):
        try:
            prepare()
        except MissingPrerequisite as missing:
            print(f"not prepared: {missing}", file=sys.stderr)


def _build_tools(options: argparse.Namespace) -> None:
    for path in tools.programs(options.names).values():
        print(path)


def _images(options: argparse.Namespace) -> None:
    require_for_cluster()
    for reference in build_images().all():
        print(reference)


def _up(options: argparse.Namespace) -> None:
    require_for_cluster()
    images = build_images()
    began = time.monotonic()
    cluster = Cluster.up(name=options.name, images=images, nodes=options.nodes)
    elapsed = time.monotonic() - began
    print(f"cluster {cluster.name}: {options.nodes} nodes Ready after {elapsed:.1f} s", file=sys.stderr)
    print(f"try: python -m tests.harness exec --name {cluster.name} -- kubectl get nodes -o wide", file=sys.stderr)
    print(cluster.kubeconfig)


def _load(options: argparse.Namespace) -> None:
    images = build_images()
    Cluster.open(options.name).with_images(images)
    for reference in images.all():
        print(reference)


def _exec(options: argparse.Namespace) -> None:
    cluster = Cluster.open(options.name)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise HarnessError("exec: no command; give one after --")
    argv = [*cluster.control.network_prefix(), *command]
    os.execvpe(argv[0], argv, cluster.environment())  # noqa: S606 - no shell is wanted


def _kubeconfig(options: argparse.Namespace) -> None:
    print(Cluster.open(options.name).kubeconfig)


def _down(options: argparse.Namespace) -> None:
    for name in Cluster.names() if options.all else [options.name]:
        Cluster.down(name)


def _status(options: argparse.Namespace) -> None:
    for name in Cluster.names():
        try:
            cluster = Cluster.open(name)
        except HarnessError:
            print(f"cluster {name}: starting, or a start that did not finish")
            continue
        on = [node.name for node in cluster.nodes.values() if node.machine.is_on()]
        print(f"cluster {name}: {', '.join(on) or 'no node'} on; {cluster.kubeconfig}")
    for reference in Storage.default().references():
        print(f"image {reference}{'' if reference in current_references() else ' (stale)'}")
    print(f"cache {cache()}: {_size(str(cache()))}")


def _prune(options: argparse.Namespace) -> None:
    if Cluster.names():
        raise HarnessError(f"clusters use the cache: {', '.join(Cluster.names())}; remove them first (down --all)")
    for folder in tools.stale():
        print(f"removing {folder}")
        shutil.rmtree(folder)
    storage = Storage.default()
    stale = [reference for reference in storage.references() if reference not in current_references()]
    for reference in stale:
        print(f"removing {reference}")
    with locked("images"):
        storage.remove(stale)
    print(f"cache {cache()}: {_size(str(cache()))}")


def _size(path: str) -> str:
    run = subprocess.run(["du", "-sh", path], capture_output=True, text=True, timeout=600, check=False)
    return run.stdout.split("\t")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
