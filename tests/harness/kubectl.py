"""kubectl for tests: objects in, objects out, the server's words in the exception."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.errors import HarnessError, Timeout
from tests.harness.waiting import wait_until
from tests.patience import HANGS_S

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


class KubectlError(HarnessError):
    """kubectl ended with an error; `stderr` holds its (the server's) words."""

    def __init__(self, *, command: Sequence[str], stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(command)}: {stderr.strip()}")
        self.stderr = stderr


@dataclass(frozen=True, kw_only=True)
class Kubectl:
    """kubectl as one user of one cluster."""

    program: Path
    kubeconfig: Path
    prefix: Callable[[], Sequence[str]] = field(default=tuple)
    """What puts the command into the cluster's network."""

    def run(self, *arguments: str, text: str | None = None, timeout_s: float = HANGS_S) -> str:
        """Run `kubectl ARGUMENTS` with `text` on standard input and return standard output."""
        command = [*self.prefix(), str(self.program), f"--kubeconfig={self.kubeconfig}", *arguments]
        try:
            result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise Timeout(f"kubectl {' '.join(arguments)}: no end within {timeout_s:g} s") from error
        if result.returncode != 0:
            raise KubectlError(command=arguments, stderr=result.stderr)
        return result.stdout

    def apply(
        self,
        manifest: Object | Sequence[Object] | str | Path,
        *,
        namespace: str | None = None,
        server_side: bool = True,
    ) -> None:
        """Apply objects, a YAML text, or a file or folder (with a kustomization when it has one)."""
        arguments = ["apply", *_in(namespace), *(["--server-side", "--force-conflicts"] if server_side else [])]
        if isinstance(manifest, Path):
            option = "-k" if (manifest / "kustomization.yaml").exists() else "-f"
            self.run(*arguments, option, str(manifest), timeout_s=HANGS_S)
        else:
            self.run(*arguments, "-f", "-", text=_text(manifest), timeout_s=HANGS_S)

    def create(self, manifest: Object | Sequence[Object] | str, *, namespace: str | None = None) -> None:
        """Create objects; one that exists is an error."""
        self.run("create", *_in(namespace), "-f", "-", text=_text(manifest))

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> Object:
        """One object; `KubectlError` when there is none."""
        found: Object = json.loads(self.run("get", kind, name, *_in(namespace), "-o", "json"))
        return found

    def find(self, kind: str, name: str, *, namespace: str | None = None) -> Object | None:
        """One object, or None."""
        text = self.run("get", kind, name, *_in(namespace), "-o", "json", "--ignore-not-found")
        found: Object | None = json.loads(text) if text.strip() else None
        return found

    def list(self, kind: str, *, namespace: str | None = None, selector: str = "") -> Sequence[Object]:
        """The objects of a kind, of all namespaces when none is named."""
        scope = _in(namespace) if namespace else ["--all-namespaces"]
        found: list[Object] = json.loads(self.run("get", kind, *scope, f"--selector={selector}", "-o", "json"))["items"]
        return found

    def patch(
        self, kind: str, name: str, change: Mapping[str, Any], *, namespace: str | None = None, subresource: str = ""
    ) -> None:
        """A merge patch."""
        extra = [f"--subresource={subresource}"] if subresource else []
        self.run("patch", kind, name, *_in(namespace), *extra, "--type=merge", "-p", json.dumps(change))

    def delete(self, kind: str, name: str, *, namespace: str | None = None, wait: bool = True) -> None:
        """Delete an object; one that is gone already is no error."""
        self.run("delete", kind, name, *_in(namespace), "--ignore-not-found", f"--wait={str(wait).lower()}")

    def wait_for(
        self,
        kind: str,
        name: str,
        condition: Callable[[Object], object],
        *,
        namespace: str | None = None,
        timeout_s: float = HANGS_S,
        what: str = "the condition",
    ) -> Object:
        """Poll an object until `condition(object)` is true; the last state seen is in the error."""
        last: list[Object | None] = [None]

        def probe() -> Object | None:
            last[0] = self.find(kind, name, namespace=namespace)
            return last[0] if last[0] is not None and condition(last[0]) else None

        return wait_until(
            probe,
            what=f"{what} of {kind} {name}",
            timeout_s=timeout_s,
            interval_s=0.2,
            explain=lambda: f"last seen: {json.dumps((last[0] or {}).get('status'), indent=1)}",
        )

    def logs(self, pod: str, *, namespace: str, container: str = "", previous: bool = False) -> str:
        """What a pod printed."""
        extra = [*([f"--container={container}"] if container else []), *(["--previous"] if previous else [])]
        return self.run("logs", pod, f"--namespace={namespace}", *extra)

    def execute(self, pod: str, *command: str, namespace: str, container: str = "", timeout_s: float = HANGS_S) -> str:
        """Run a command in a pod and return its output."""
        extra = [f"--container={container}"] if container else []
        return self.run("exec", pod, f"--namespace={namespace}", *extra, "--", *command, timeout_s=timeout_s)

    def service_account_token(self, name: str, *, namespace: str, audience: str = "", duration_s: int = 3600) -> str:
        """A token of a service account by TokenRequest."""
        extra = [f"--audience={audience}"] if audience else []
        return self.run(
            "create", "token", name, f"--namespace={namespace}", f"--duration={duration_s}s", *extra
        ).strip()


def _in(namespace: str | None) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _text(manifest: Object | Sequence[Object] | str) -> str:
    if isinstance(manifest, str):
        return manifest
    if isinstance(manifest, dict):
        return json.dumps(manifest)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifest)})
