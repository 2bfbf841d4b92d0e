"""`finetune run`: a FineTuneJob on this machine, from start or restart to its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_operator.cli.errors import EXIT_STATUS_OF_PHASE, CommandError, ExitStatus
from finetune_operator.cli.manifests import folder_of, manifests_from, with_absolute_uris
from finetune_operator.cli.outcome import outcome
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.validate import checked
from finetune_operator.cli.views import LiveView, PlainView, View
from finetune_operator.config import OperatorConfig
from finetune_operator.job.resolve import refusal
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.home import HomeLockedError, LocalHome
from finetune_operator.local.limits import notices, obstacles
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.runtime import LocalRuntime
from finetune_operator.local.settings import local_config
from finetune_operator.ports import InvalidError, Key, Manifest

_LOOK_SECONDS = 0.2
_HINT = "Ctrl-C stops after a checkpoint; the same command goes on from there."
_LOCK_SECONDS = 1.0


async def run(options: argparse.Namespace) -> int:
    """Run or go on with the job; the exit status of its end."""
    manifest = _manifest(options)
    home = LocalHome.at(options.home)
    config = _config(home)
    job = FineTuneJob.from_object({**manifest, "status": {}})
    key = Key(kind="FineTuneJob", namespace=job.metadata.namespace, name=job.metadata.name)
    existing = LocalCluster(home=home).store.read(kind="FineTuneJob", namespace=key.namespace, name=key.name)
    if existing is None:
        _refuse_impossible(job, config=config, home=home)
    command = f"finetune run -f {options.filename}"
    while True:
        try:
            async with LocalRuntime.open(home=home, config=config, keys={key}) as runtime:
                _submit(runtime.cluster, manifest, home=home)
                return await _follow(_Run(runtime=runtime, key=key, home=home, options=options, command=command))
        except HomeLockedError as error:
            if error.takes_jobs:
                _submit(LocalCluster(home=home), manifest, home=home)
            elif existing is None or not _is_same(manifest, existing):
                raise CommandError(str(error)) from error
            print(f"{error.owner} works in {home.root}. It runs {key.name}; following.", file=sys.stderr)
        ended = await _follow_from_outside(key=key, home=home, options=options)
        if ended is not None:
            return ended
        print(f"Nobody works in {home.root} any more; going on with {key.name} here.", file=sys.stderr)


def _manifest(options: argparse.Namespace) -> Manifest:
    """The one job of the file, complete and valid. Raises CommandError."""
    manifests = manifests_from(options.filename)
    if len(manifests) != 1 or manifests[0].get("kind") != "FineTuneJob":
        kinds = ", ".join(str(manifest.get("kind")) for manifest in manifests)
        raise CommandError(f"{options.filename}: run takes one FineTuneJob, found {kinds}")
    manifest = checked(with_absolute_uris(manifests[0], folder=folder_of(options.filename)))
    metadata = dict(manifest["metadata"])
    metadata["namespace"] = metadata.get("namespace") or options.namespace
    if not metadata.get("name"):
        raise CommandError(f"{options.filename}: metadata.name is missing; a run that can be resumed needs a name")
    return {**manifest, "metadata": metadata}


def _config(home: LocalHome) -> OperatorConfig:
    """The operator's settings, with defaults for one machine. Raises CommandError."""
    try:
        return local_config(home=home, environment=os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _refuse_impossible(job: FineTuneJob, *, config: OperatorConfig, home: LocalHome) -> None:
    problem = refusal(job=job, config=config)
    found = [problem.message] if problem is not None else list(obstacles(job, home=home))
    if found:
        raise CommandError("\n".join([f"{job.metadata.name} cannot run here:", *(f"* {each}" for each in found)]))
    for notice in notices(job):
        print(f"note: {notice}", file=sys.stderr)


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

    def __init__(
        self, *, runtime: LocalRuntime, key: Key, home: LocalHome, options: argparse.Namespace, command: str
    ) -> None:
        self.runtime = runtime
        self.key = key
        self.home = home
        self.options = options
        self.command = command
        self.view: View = _view(options, hint=_HINT)
        self.interrupted = False

    def read(self) -> Manifest:
        """The job as it is. Raises CommandError where somebody has deleted it."""
        return _read(self.runtime.cluster, self.key)

    def snapshot(self) -> Snapshot:
        """The job and its newest report."""
        return _snapshot(self.read(), progress=self.runtime.progress)

    def is_held(self, snapshot: Snapshot) -> bool:
        """Suspended as the spec now says, and all of its pods have ended and been looked at."""
        job = snapshot.job
        current = job.status.observed_generation == job.metadata.generation
        return snapshot.phase == "Suspended" and current and not self.runtime.has_living_pods(key=self.key)

    def interrupt(self, number: signal.Signals) -> None:
        """The first time: suspend the job, so that its processes save and end. The second time: end them now."""
        if number == signal.SIGHUP:
            self.view = _Silence()  # the terminal is gone
        if self.interrupted:
            self.view.say("stopping now")
            self.runtime.kill(key=self.key)
            return
        self.interrupted = True
        self.view.say("stopping after a checkpoint; Ctrl-C again stops at once")
        current = self.read()
        if (current.get("status") or {}).get("phase") not in TERMINAL_PHASES:
            self.runtime.cluster.submit(manifest={**current, "spec": {**current["spec"], "suspend": True}})


async def _follow(run: _Run) -> int:
    with _logs_to(run), _signals_to(run):
        snapshot = run.snapshot()
        try:
            while not (snapshot.phase in TERMINAL_PHASES or run.is_held(snapshot) or _waits_for_endpoint(snapshot)):
                run.view.show(snapshot)
                await asyncio.sleep(_LOOK_SECONDS)
                snapshot = run.snapshot()
            run.view.show(snapshot)
        finally:
            run.view.close()
    if _waits_for_endpoint(snapshot):
        return _proven(run, snapshot)
    if snapshot.phase not in TERMINAL_PHASES:
        return _held(run, snapshot)
    print(outcome(snapshot.job, home=run.home, logs=_newest_log(run)))
    return EXIT_STATUS_OF_PHASE[snapshot.phase]


def _waits_for_endpoint(snapshot: Snapshot) -> bool:
    """The version is there; what becomes of it is up to its endpoint, which this process does not work on."""
    return snapshot.job.status.rollout is not None and snapshot.phase not in TERMINAL_PHASES


def _proven(run: _Run, snapshot: Snapshot) -> int:
    print(outcome(snapshot.job, home=run.home, logs=None))
    endpoint = snapshot.job.spec.endpoint_ref.name if snapshot.job.spec.endpoint_ref else ""
    print(f"It waits for the endpoint {endpoint}, which goes on with it: finetune up -f ENDPOINT.yaml")
    return ExitStatus.DONE


def _held(run: _Run, snapshot: Snapshot) -> int:
    checkpoint = snapshot.job.status.checkpoint
    where = f" at step {checkpoint.step}" if checkpoint else ""
    if not run.interrupted:
        print(f"{run.key.name} is suspended{where}: its manifest says spec.suspend: true")
        return ExitStatus.DONE
    run.view.say(f"{run.key.name} is stopped{where}. It goes on with: {run.command}")
    return ExitStatus.INTERRUPTED


async def _follow_from_outside(*, key: Key, home: LocalHome, options: argparse.Namespace) -> int | None:
    """Show a run that another process works on. Ctrl-C ends the showing, not the run. None: that process has ended."""
    cluster = LocalCluster(home=home)
    progress = FileProgress(store=cluster.store, home=home, clock=utc_now)
    view = _view(options, hint="Another process runs this; Ctrl-C only ends the view.")
    looked = time.monotonic()
    try:
        while True:
            snapshot = _snapshot(_read(cluster, key), progress=progress)
            view.show(snapshot)
            if snapshot.phase in TERMINAL_PHASES:
                break
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() - looked >= _LOCK_SECONDS:
                looked = time.monotonic()
                if not home.is_in_use:
                    return None
    finally:
        view.close()
    print(outcome(snapshot.job, home=home, logs=None))
    return EXIT_STATUS_OF_PHASE[snapshot.phase]


def _read(cluster: LocalCluster, key: Key) -> Manifest:
    found = cluster.store.read(kind=key.kind, namespace=key.namespace, name=key.name)
    if found is None:
        raise CommandError(f"{key.name} was deleted", status=ExitStatus.FAILED)
    return found


def _snapshot(manifest: Manifest, *, progress: FileProgress) -> Snapshot:
    job = FineTuneJob.from_object(manifest)
    newest = progress.latest(uid=job.metadata.uid)
    return Snapshot.of(job=job, now=utc_now(), trainer=newest.status if newest else job.status.trainer_status)


def _view(options: argparse.Namespace, *, hint: str) -> View:
    if options.plain or not sys.stdout.isatty():
        return PlainView()
    return LiveView(hint=hint)


def _newest_log(run: _Run) -> Path | None:
    folder = run.home.logs(namespace=run.key.namespace, job=run.key.name)
    return max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


class _Silence:
    """Shows nothing: there is nobody to show it to."""

    def show(self, snapshot: Snapshot) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class _ViewHandler(logging.Handler):
    """What the operator logs, as lines of the view."""

    def __init__(self, run: _Run) -> None:
        super().__init__(level=logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._run.view.say(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _logs_to(run: _Run) -> Iterator[None]:
    handler = _ViewHandler(run)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def _signals_to(run: _Run) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, run.interrupt, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
