"""`finetune run`: a FineTuneJob on this machine, from start or restart to its end."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_api.streams import tell
from finetune_operator.cli.errors import EXIT_STATUS_OF_PHASE, CommandError, ExitStatus
from finetune_operator.cli.manifests import folder_of, manifests_from, with_absolute_uris
from finetune_operator.cli.outcome import outcome
from finetune_operator.cli.run_view import RunShows
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.validate import complete, config_maps
from finetune_operator.cli.view import View, stopped_by
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import InvalidError, Key, Manifest, UnavailableError
from finetune_operator.job.resolve import refusal
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.home import HomeLockedError, LocalHome
from finetune_operator.local.limits import notices, obstacles
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.runtime import LocalRuntime

_DEFAULTS = {
    "FINETUNE_TRAINER_IMAGE": "local",
    "FINETUNE_GATEWAY_IMAGE": "local",
    "FINETUNE_ALLOWED_ROOTS": "file:/// pvc:// s3:// gs:// hf://",
    # Nobody else will make what the job names.
    "FINETUNE_REFERENCE_DEADLINE_SECONDS": "1",
    "FINETUNE_IMAGE_PULL_DEADLINE_SECONDS": "1",
}
"""Settings of the operator on one machine."""
_LOOK_SECONDS = 0.2
_HINT = "Ctrl-C stops after a checkpoint; the same command goes on from there."
_LOCK_SECONDS = 1.0
_LEAVE_SECONDS = 5.0
"""After a second Ctrl-C: how long to wait until the job says that it is suspended."""


async def run(options: argparse.Namespace) -> int:
    """Run or go on with the job; the exit status of its end."""
    manifest, beside = _manifests(options)
    home = LocalHome.at(options.home)
    config = config_of(home)
    job = FineTuneJob.from_object({**manifest, "status": {}})
    key = Key(kind="FineTuneJob", namespace=job.metadata.namespace, name=job.metadata.name)
    existing = LocalCluster(home=home).store.read(kind="FineTuneJob", namespace=key.namespace, name=key.name)
    _put(beside, namespace=key.namespace, home=home)
    if existing is None:
        problem = refusal(job=job, config=config)
        found = [problem.message] if problem is not None else list(obstacles(job, home=home))
        refuse(found, what=f"{job.metadata.name} cannot run", notices=notices(job))
    while True:
        try:
            async with LocalRuntime.open(home=home, config=config, keys={key}) as runtime:
                _submit(runtime.cluster, manifest, home=home)
                return await _follow(_Run(runtime=runtime, key=key, home=home, options=options))
        except HomeLockedError as error:
            if error.takes_jobs:
                _submit(LocalCluster(home=home), manifest, home=home)
            elif existing is None or not _is_same(manifest, existing):
                raise CommandError(str(error)) from error
            tell(f"{error.owner} works in {home.root}. It runs {key.name}; following.", error=True)
        ended = await _follow_from_outside(key=key, home=home, options=options)
        if ended is not None:
            return ended
        tell(f"Nobody works in {home.root} any more; going on with {key.name} here.", error=True)


def _manifests(options: argparse.Namespace) -> tuple[Manifest, list[Manifest]]:
    """The one job of the file, complete and valid, and ConfigMaps that it may name. Raises CommandError."""
    found = manifests_from(options.filename)
    beside = config_maps(found)
    manifests = [each for each in found if each not in beside]
    if len(manifests) != 1 or manifests[0].get("kind") != "FineTuneJob":
        kinds = ", ".join(str(manifest.get("kind")) for manifest in manifests)
        raise CommandError(f"{options.filename}: run takes one FineTuneJob, found {kinds}")
    manifest = with_absolute_uris(manifests[0], folder=folder_of(options.filename))
    return complete(manifest, source=options.filename, namespace=options.namespace, beside=beside), beside


def _put(config_maps: list[Manifest], *, namespace: str, home: LocalHome) -> None:
    """Make the file's ConfigMaps, or change them as the file says. Raises CommandError."""
    cluster = LocalCluster(home=home)
    for each in config_maps:
        name = str((each.get("metadata") or {}).get("name") or "")
        existing = cluster.store.read(kind="ConfigMap", namespace=namespace, name=name)
        if not name or (existing is not None and existing["metadata"].get("ownerReferences")):
            raise CommandError(f'ConfigMap "{name}": the name is missing or belongs to a run; give it another one')
        try:
            cluster.submit(manifest={**each, "metadata": {"name": name, "namespace": namespace}})
        except InvalidError as error:
            raise CommandError(str(error)) from error


def config_of(home: LocalHome) -> OperatorConfig:
    """The operator's settings, with defaults for one machine. Raises CommandError."""
    defaults = {**_DEFAULTS, "FINETUNE_CLAIM_MOUNT_ROOT": str(home.claims)}
    try:
        return OperatorConfig.from_environment({**defaults, **os.environ})
    except ValueError as error:
        raise CommandError(str(error)) from error


def refuse(found: list[str], *, what: str, notices: Iterable[str]) -> None:
    """Raise CommandError with all that was found, or say what is different here."""
    if found:
        raise CommandError("\n".join([f"{what} here:", *(f"* {each}" for each in found)]))
    for notice in notices:
        tell(f"note: {notice}", error=True)


def _submit(cluster: LocalCluster, manifest: Manifest, *, home: LocalHome) -> None:
    """Create the job, or let it go on. Raises CommandError where it exists with another spec."""
    artifacts = str(manifest["spec"]["artifacts"]["uri"])
    if artifacts.startswith("pvc://"):
        (home.claims / artifacts.removeprefix("pvc://").split("/", 1)[0]).mkdir(parents=True, exist_ok=True)
    try:
        cluster.submit(manifest=manifest)
    except InvalidError as error:
        raise CommandError(
            f"{error}\n{manifest['metadata']['name']} has already been run in {home.root} with another spec, and a run"
            " is a record: give the changed one another metadata.name"
        ) from error


def _is_same(manifest: Manifest, existing: Manifest) -> bool:
    """Whether the specs agree in what cannot change."""
    free = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
    fixed = [{key: value for key, value in each["spec"].items() if key not in free} for each in (manifest, existing)]
    return fixed[0] == fixed[1]


class _Run:
    """A run that is followed: what it is, how it is shown, and what Ctrl-C does to it."""

    def __init__(self, *, runtime: LocalRuntime, key: Key, home: LocalHome, options: argparse.Namespace) -> None:
        self.runtime = runtime
        self.key = key
        self.home = home
        self.options = options
        self.view = View.chosen(RunShows(), options=options, hint=_HINT)
        self.interrupted = False
        self.leave_at = float("inf")
        """When to end in any case, by time.monotonic(): after the second Ctrl-C."""

    def read(self) -> Manifest:
        """The job as it is. Raises CommandError where somebody has deleted it."""
        return _read(self.runtime.cluster, self.key)

    def snapshot(self) -> Snapshot:
        """The job and its newest report."""
        return _snapshot(self.read(), progress=self.runtime.progress)

    def goes_on(self, snapshot: Snapshot) -> bool:
        """Whether there is more to come here: not where it has ended, is held, or is up to an endpoint."""
        job = snapshot.job
        current = job.status.observed_generation == job.metadata.generation
        held = snapshot.phase == "Suspended" and current and not self.runtime.has_living_pods(key=self.key)
        over = held or snapshot.ended or job.status.rollout is not None
        return not over and time.monotonic() < self.leave_at

    def interrupt(self) -> None:
        """The first time: suspend the job, so that its processes save and end. The second time: end them now."""
        if self.interrupted:
            self.view.say("stopping now")
            self.runtime.kill(key=self.key)
            self.leave_at = time.monotonic() + _LEAVE_SECONDS
            return
        self.interrupted = True
        self.view.say("stopping after a checkpoint; Ctrl-C again stops at once")
        current = self.read()
        if (current.get("status") or {}).get("phase") in TERMINAL_PHASES:
            return
        try:
            self.runtime.cluster.submit(manifest={**current, "spec": {**current["spec"], "suspend": True}})
        except UnavailableError as error:  # its processes are ended with this one all the same
            self.view.say(f"warning: {error}")
            self.leave_at = time.monotonic()


async def _follow(run: _Run) -> int:
    with stopped_by(run.interrupt, view=run.view):
        snapshot = run.snapshot()
        try:
            while run.goes_on(snapshot):
                run.view.show(snapshot)
                await asyncio.sleep(_LOOK_SECONDS)
                snapshot = run.snapshot()
            run.view.show(snapshot)
        finally:
            run.view.close()
    if snapshot.phase in TERMINAL_PHASES:
        run.view.say(outcome(snapshot.job, home=run.home, logs=_newest_log(run)))
        return EXIT_STATUS_OF_PHASE[snapshot.phase]
    if snapshot.job.status.rollout is not None:
        run.view.say(outcome(snapshot.job, home=run.home, logs=None))
        endpoint = snapshot.job.status.rollout.endpoint
        run.view.say(
            f"It waits for the endpoint {endpoint}: finetune up -f ENDPOINT.yaml goes on with it,"
            f" finetune explain endpoint {endpoint} --local says what it waits for"
        )
        return ExitStatus.NOT_ENDED
    checkpoint = snapshot.job.status.checkpoint
    where = f" at step {checkpoint.step}" if checkpoint else ""
    if run.interrupted:
        again = f"finetune run -f {run.options.filename}"
        run.view.say(f"{run.key.name} is stopped{where}. It goes on with: {again}")
        return ExitStatus.INTERRUPTED
    run.view.say(f"{run.key.name} is suspended{where}: its manifest says spec.suspend: true")
    return ExitStatus.NOT_ENDED


async def _follow_from_outside(*, key: Key, home: LocalHome, options: argparse.Namespace) -> int | None:
    """Show a run that another process works on. Ctrl-C ends the showing, not the run. None: that process has ended."""
    cluster = LocalCluster(home=home)
    progress = FileProgress(store=cluster.store, home=home, clock=utc_now)
    view = View.chosen(RunShows(), options=options, hint="Another process runs this; Ctrl-C only ends the view.")
    looked = time.monotonic()
    try:
        while True:
            snapshot = _snapshot(_read(cluster, key), progress=progress)
            view.show(snapshot)
            if snapshot.ended:
                break
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() - looked >= _LOCK_SECONDS:
                looked = time.monotonic()
                if not home.is_in_use:
                    return None
    finally:
        view.close()
    view.say(outcome(snapshot.job, home=home, logs=None))
    return EXIT_STATUS_OF_PHASE[snapshot.phase]


def _read(cluster: LocalCluster, key: Key) -> Manifest:
    found = cluster.store.read(kind=key.kind, namespace=key.namespace, name=key.name)
    if found is None:
        raise CommandError(f"{key.name} was deleted", status=ExitStatus.FAILED)
    return found


def _snapshot(manifest: Manifest, *, progress: FileProgress) -> Snapshot:
    return Snapshot.newest(FineTuneJob.from_object(manifest), reports=progress, now=utc_now())


def _newest_log(run: _Run) -> Path | None:
    folder = run.home.logs(namespace=run.key.namespace, job=run.key.name)
    return max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)
