"""The folder that local mode lives in, and the lock that keeps a second process out of it.

objects/KIND/NAMESPACE/NAME.json     the objects, as an apiserver would return them
pods/NAMESPACE/POD/                  of each pod: its volumes, what it reports, last words, how it ended
logs/NAMESPACE/JOB/POD.log           what its container said; kept when the pod is gone
endpoint-logs/NAMESPACE/ENDPOINT/    the same of an endpoint's gateway and servers
services/NAMESPACE/NAME.json         where a Service's ports are on this machine
routes/NAMESPACE/ENDPOINT.json       what an endpoint's gateway follows
pvc/CLAIM/                           what pvc://CLAIM means
secrets/NAME.env                     what secretRef NAME means: lines of KEY=VALUE
lock                                 who works here
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_operator.core.ports import UnavailableError

DEFAULT_HOME = ".finetune"


class HomeLockedError(Exception):
    """Another process works in this folder. `str()` says which, and the way out."""

    def __init__(self, message: str, *, owner: str, takes_jobs: bool = False) -> None:
        super().__init__(message)
        self.owner = owner
        """`process 4711 (finetune up -f endpoint.yaml)`."""
        self.takes_jobs = takes_jobs
        """It works on every job of the folder, those to come included."""


@dataclass(frozen=True, kw_only=True)
class LocalHome:
    """Paths below the home folder. Nothing is made before it is needed."""

    root: Path

    @classmethod
    def at(cls, path: str | Path) -> LocalHome:
        """The home at a path, which may be relative and need not exist."""
        return cls(root=Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - fails nowhere, HOME unset or not

    @property
    def objects(self) -> Path:
        """The objects' folder."""
        return self.root / "objects"

    @property
    def claims(self) -> Path:
        """The folder of claims: pvc://NAME is the folder NAME in it."""
        return self.root / "pvc"

    def pod(self, *, namespace: str, name: str) -> Path:
        """The folder of a pod."""
        return self.root / "pods" / namespace / name

    def logs(self, *, namespace: str, job: str) -> Path:
        """The folder with the logs of a job's pods."""
        return self.root / "logs" / namespace / job

    def endpoint_logs(self, *, namespace: str, endpoint: str) -> Path:
        """The folder with the logs of an endpoint's pods."""
        return self.root / "endpoint-logs" / namespace / endpoint

    def routes(self, *, namespace: str, endpoint: str) -> Path:
        """The file with the routes of an endpoint."""
        return self.root / "routes" / namespace / f"{endpoint}.json"

    def service(self, *, namespace: str, name: str) -> Path:
        """The file that says where a Service is."""
        return self.root / "services" / namespace / f"{name}.json"

    def path_of(self, uri: str) -> Path | None:
        """The file or folder behind a URI of this machine; None for one that is elsewhere."""
        if uri.startswith("file://"):
            return Path(uri.removeprefix("file://"))
        return self.claims / uri.removeprefix("pvc://") if uri.startswith("pvc://") else None

    def secret(self, *, name: str) -> Path:
        """The file of a Secret."""
        return self.root / "secrets" / f"{name}.env"

    @contextmanager
    def locked(self, *, takes_jobs: bool = False) -> Iterator[None]:
        """Work here alone: on every job (`takes_jobs`), or on chosen objects. Raises HomeLockedError, UnavailableError.

        The kernel opens the lock when this process ends, in any way.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / ".gitignore").write_text("*\n")
            # Secrets that containers were given are in there.
            (self.root / "pods").mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self.unusable(error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal(os.pread(descriptor, 4096, 0)) from None
            owner = {"pid": os.getpid(), "command": sys.argv[1:], "takesJobs": takes_jobs}
            with suppress(OSError):  # who it is, is only for a message
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(owner).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def unusable(self, error: OSError) -> UnavailableError:
        """Why nothing can be written here, and the way out."""
        where = error.filename or self.root
        return UnavailableError(f"{where} cannot be written: {error.strerror}; --home names another folder")

    @property
    def is_in_use(self) -> bool:
        """Whether a process works here now."""
        try:
            descriptor = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _refusal(self, content: bytes) -> HomeLockedError:
        takes_jobs = False
        try:
            owner = json.loads(content)
            who = f"process {owner['pid']} (finetune {' '.join(owner['command'])})"
            takes_jobs = owner.get("takesJobs", False)
        except (ValueError, KeyError, TypeError):
            who = "another process"
        message = f"{self.root} is in use by {who}; wait for it, or choose another folder with --home"
        return HomeLockedError(message, owner=who, takes_jobs=takes_jobs)
