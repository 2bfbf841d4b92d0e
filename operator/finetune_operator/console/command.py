"""`finetune console`: serve the pages until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from finetune_api.streams import tell
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import Target, open_target
from finetune_operator.console.application import Console, KeySignIn, SignIn
from finetune_operator.kube.user_session import open_token_session

_HERE = ("127.0.0.1", "localhost", "::1")
_CLUSTER_LOOK_SECONDS = 3.0
_END_SECONDS = 2.0


class TokenSignIn:
    """Each user brings a bearer token; every read and write is made with it, and nothing with another."""

    label = "Bearer token of the cluster (for example of `kubectl create token`)"
    by_link = False

    def __init__(self, *, server: str, ca_file: str | None, namespace: str) -> None:
        self._server, self._ca_file, self._namespace = server, ca_file, namespace

    async def __call__(self, secret: str, *, closing: AsyncExitStack) -> tuple[Target, str]:
        """Raises CommandError where there is no token, UnavailableError where the apiserver does not know it."""
        if not secret.isascii() or not secret.isprintable() or not secret or " " in secret:
            raise CommandError("this is no bearer token: paste it as it is, without `Bearer` before it")
        opened = open_token_session(server=self._server, ca_file=self._ca_file, token=secret)
        session = await closing.enter_async_context(opened)
        who = await session.user_name()
        return Target(cluster=session.cluster, namespace=self._namespace, session=session), who


async def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Raises CommandError where the port is in use."""
    async with AsyncExitStack() as opened:
        key, look, sign_in = secrets.token_urlsafe(24), _CLUSTER_LOOK_SECONDS, _token_sign_in(options)
        if sign_in is None:
            target = await opened.enter_async_context(open_target(options))
            look = 1.0 if target.home is not None else look
            sign_in = KeySignIn(target=target, key=key)
        hosts = frozenset((*_HERE, *(host.lower() for host in options.host)))
        console = Console(sign_in=sign_in, hosts=hosts, acts=options.allow_actions, look_seconds=look)
        runner = web.AppRunner(console.build(), access_log=None, shutdown_timeout=_END_SECONDS)
        opened.push_async_callback(runner.cleanup)
        await runner.setup()
        port = await _listen(runner, options=options)
        suffix = f"login?key={key}" if options.apiserver is None else ""
        tell(f"the console is at http://{_address(options.listen)}:{port}/{suffix}")
        tell("people may ask for something there" if options.allow_actions else "it is read-only (--allow-actions)")
        await _stopped()
    return ExitStatus.DONE


def _token_sign_in(options: argparse.Namespace) -> SignIn | None:
    """Where every user brings a token; None where the rights are those of whoever types."""
    if options.apiserver is None:
        if options.listen not in _HERE:
            raise CommandError(
                f"--listen {options.listen}: others could look with your rights; it is for --apiserver, where each user"
                " brings a token"
            )
        return None
    if options.local or options.home or options.kubeconfig or options.context:
        raise CommandError(
            "--apiserver means that each user brings a token: leave out --local, --home, --kubeconfig and --context"
        )
    if not options.apiserver.startswith("https://"):
        raise CommandError(f"--apiserver {options.apiserver}: expected https://..., since users' tokens are sent there")
    if options.ca_file and not Path(options.ca_file).is_file():
        raise CommandError(f"--ca-file {options.ca_file}: there is no such file; name its certificate")
    return TokenSignIn(server=options.apiserver, ca_file=options.ca_file, namespace=options.namespace or "default")


async def _listen(runner: web.AppRunner, *, options: argparse.Namespace) -> int:
    try:
        await web.TCPSite(runner, options.listen or None, options.port).start()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise CommandError(f"port {options.port} of {options.listen}: {why}; choose another one with --port") from error
    return int(runner.addresses[0][1])


def _address(listen: str) -> str:
    return f"[{listen}]" if ":" in listen else listen or "localhost"


async def _stopped() -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
