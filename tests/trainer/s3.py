"""A real S3 server (versitygw) on a loopback port, with a folder as its store."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.harness import MissingPrerequisite, tools
from tests.patience import HANGS_S


@contextmanager
def serve_s3(folder: Path, *, bucket: str) -> Iterator[dict[str, str]]:
    """A server with one bucket, whose objects are files under `folder`/buckets; the AWS_* variables of a client."""
    try:
        program = tools.program("versitygw")
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
    (folder / "buckets" / bucket).mkdir(parents=True)
    (folder / "meta").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"127.0.0.1:{port}", folder / "meta", folder / "buckets"],
            env={**os.environ, "ROOT_ACCESS_KEY": "finetune", "ROOT_SECRET_KEY": "finetune-secret"},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(port, process, folder / "log")
        yield {
            "AWS_ACCESS_KEY_ID": "finetune",
            "AWS_SECRET_ACCESS_KEY": "finetune-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANGS_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start: {log.read_text()}")
