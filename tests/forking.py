"""An interpreter that has imported torch and transformers already: forked from one that did so once a session.

Importing takes three processor seconds, several times a run (a stage, its training process, the one that loads what was
saved). `forked_python()` gives a program to use in place of `sys.executable`, also by what it starts itself: it runs
`-m finetune_...`, `-m tests...` and torchrun in a fork and anything else in the real interpreter. For runs whose
processes no test looks at or kills: their command lines are those of the server, and their parents are not who started
them. SIGTERM, SIGINT and SIGHUP are handed on.

    python -m tests.forking SOCKET MODULE...      the server; it ends with the process that started it
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

_ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "finetune_operator.cli.run",
    "torch.distributed.run",
    "finetune_trainer.preparation.prepare",
    "finetune_trainer.training.train",
    "finetune_trainer.evaluation.evaluate",
    "finetune_trainer.models.saved_model",
    "finetune_trainer.serving.process",
    "finetune_trainer.models.adapter_library",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
"""The stages, and what they import only once they know that they need it."""
_START_SECONDS = 120
_CLIENT = """#!{python} -IS
import json, os, signal, socket, struct, sys

words = sys.argv[1:]
words = words[1:] if words[:1] == ["-u"] else words  # from torchrun; what a fork prints is written line by line
if words[:1] != ["-m"] or not words[1].startswith(("finetune_", "tests.", "torch.distributed.")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
order = json.dumps({{"words": words[1:], "environment": dict(os.environ), "folder": os.getcwd()}}).encode()
socket.send_fds(server, [struct.pack("!I", len(order))], [0, 1, 2])
server.sendall(order)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
status = server.recv(4)
if len(status) < 4:
    os.kill(os.getpid(), signal.SIGKILL)
(code,) = struct.unpack("!i", status)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def forked_python() -> str:
    """The program; its server starts with the first call and ends with this process."""
    return start(preloaded=PRELOADED, path=[_ROOT / "operator", _ROOT / "trainer_image"])


def start(*, preloaded: Sequence[str], path: Sequence[Path]) -> str:
    """Start a server that has imported these modules, and make a program for it; the program's path."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-fork-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = folder / "socket"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forking", str(address), *preloaded],
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, _ROOT]))},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=_ROOT,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not address.exists():
        words = (folder / "log").read_text()
        assert server.poll() is None, words
        assert time.monotonic() < deadline, f"no server within {_START_SECONDS} s: {words}"
        time.sleep(0.05)
    program = folder / "python"
    program.write_text(_CLIENT.format(python=sys.executable, socket=str(address)))
    program.chmod(0o755)
    return str(program)


def _serve(address: Path, preloaded: Sequence[str]) -> None:
    _die_with_parent()
    for name in preloaded:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has only the thread that forks"
    gc.freeze()  # the forks' garbage collection need not go through all that was imported, nor copy its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's to wait for
    with socket.socket(socket.AF_UNIX) as server:
        unfinished = address.with_name("unfinished")
        server.bind(str(unfinished))
        server.listen(64)
        unfinished.replace(address)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                os._exit(_keep(client, program=str(address.with_name("python"))))
            client.close()


def _keep(client: socket.socket, *, program: str) -> int:
    """Run the order of one client in a child, and hand on signals one way and its end the other."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, 4, 3)
    size, order = int.from_bytes(head, "big"), b""
    while len(order) < size:
        part = client.recv(size - len(order))
        if not part:  # the client is gone before it has said what to run
            return 1
        order += part
    child = os.fork()
    if child == 0:
        client.close()
        _die_with_parent()
        _run(json.loads(order), files, program=program)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([client, ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                client.sendall(code.to_bytes(4, "big", signed=True))
            return 0
        numbers = client.recv(16)
        for number in numbers or [signal.SIGKILL]:  # the client is gone
            os.kill(child, number)
        if not numbers:
            os.waitpid(child, 0)
            return 0


def _run(order: dict[str, Any], files: list[int], *, program: str) -> None:
    """Become the process that the client was to be."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    tempfile.tempdir = None
    sys.executable = program
    module, *arguments = order["words"]
    sys.argv = [module, *arguments]
    sys.path[0] = order["folder"]
    sys.stdout, sys.stderr = (_stream(number) for number in (1, 2))  # those of the server are on files
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    code = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "found in sys.modules": that is what this is for
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _stream(number: int) -> TextIO:
    errors = "strict" if number == 1 else "backslashreplace"
    return open(number, "w", buffering=1, encoding="utf-8", errors=errors, closefd=False)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
