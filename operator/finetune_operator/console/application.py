"""The console over HTTP: who may ask what, pages, their live news, and what a person asks of an endpoint."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from finetune_api.crd import RESOURCES
from finetune_operator.cli.ask import ask
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.target import Target
from finetune_operator.cli.wishes import Verb
from finetune_operator.console.reading import read_answers, read_overview, read_page, report_path, report_uri
from finetune_operator.console.sessions import LASTS_SECONDS, Session, Sessions
from finetune_operator.console.views import Page, Section, tone_of
from finetune_operator.core.ports import InvalidError, NotFoundError, UnavailableError

logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SESSION = web.RequestKey("session", Session)
_NAME = "[a-z0-9][-a-z0-9.]*"
_OBJECT = f"/{{namespace:{_NAME}}}/{{word:{'|'.join(each.word for each in RESOURCES)}}}/{{name:{_NAME}}}"
_OPEN = ("/healthz", "/login", "/static/")
"""Paths for whom has not signed in."""
_STREAMS = 64
_QUIET_SECONDS = 15.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers say `Origin: null` when a form is sent
    "X-Content-Type-Options": "nosniff",
}


class SignIn(Protocol):
    """How somebody becomes a session: with the key of this process, or with a token of the cluster."""

    label: str
    """What the page asks for."""
    by_link: bool
    """The secret may be part of an address."""

    async def __call__(self, secret: str, *, closing: AsyncExitStack) -> tuple[Target, str]:
        """What the user looks at, and who that is. Raises CommandError, UnavailableError."""
        ...


class KeySignIn:
    """Whoever has the address that was printed: the rights are those of whoever started the console."""

    label = "Key (in the address that `finetune console` printed)"
    by_link = True

    def __init__(self, *, target: Target, key: str) -> None:
        self._target, self._key = target, key

    async def __call__(self, secret: str, *, closing: AsyncExitStack) -> tuple[Target, str]:
        """Raises CommandError for another key."""
        if not hmac.compare_digest(secret.encode(), self._key.encode()):
            raise CommandError("this is not the key of this console: use the address that it printed when it started")
        return self._target, await self._target.user_name()


@dataclass(kw_only=True)
class Console:
    """Everything that the pages need."""

    sign_in: SignIn
    hosts: frozenset[str]
    """Names under which browsers may ask for the console, without ports: another one is a rebound DNS name."""
    acts: bool = False
    """Whether people may ask for something, with their own rights."""
    look_seconds: float = 1.0
    sessions: Sessions = field(default_factory=Sessions)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 0

    def build(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=64 * 1024, middlewares=[self._outermost])
        app.router.add_get("/healthz", _healthy)
        app.router.add_get("/login", self._login)
        app.router.add_post("/login", self._sign_in)
        app.router.add_post("/logout", self._sign_out)
        app.router.add_static("/static/", Path(str(files(__package__) / "static")))
        for path in ("/", _OBJECT):
            app.router.add_get(path, self._page)
            app.router.add_get(path.rstrip("/") + "/live", self._live)
        app.router.add_get(_OBJECT + "/report", self._report)
        app.router.add_get(_OBJECT + "/answers", self._answers)
        app.router.add_post(_OBJECT + "/{verb:approve|reject|rollback|pause|resume}", self._act)
        app.on_shutdown.append(self._stop)
        return app

    async def _stop(self, app: web.Application) -> None:
        self.stopping.set()
        await self.sessions.end_all()

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await self._guarded(request, handler)
        except web.HTTPException as error:
            response = self._problem(request, error.reason, status=error.status)
        except CommandError as error:
            response = self._problem(request, str(error), status=404)
        except (InvalidError, NotFoundError) as error:
            response = self._problem(request, str(error), status=409)
        except UnavailableError as error:
            response = self._problem(request, str(error), status=502)
        except ValidationError:
            words = "this object cannot be read, as if another version of finetune had written it"
            response = self._problem(request, words, status=502)
        if not response.prepared:
            response.headers.update({name: value for name, value in _HEADERS.items() if name not in response.headers})
        return response

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = urlsplit(f"//{request.host}").hostname or ""
        if request.path != "/healthz" and host not in self.hosts:
            return _plain(f"{host}: not a name of this console; --host {host} makes it one", status=421)
        if request.method not in ("GET", "HEAD") and urlsplit(request.headers.get("Origin", "")).netloc != request.host:
            return _plain("this was not sent by a page of the console", status=403)
        session = self.sessions.find(request.cookies.get(self._cookie(request), ""))
        if session is not None:
            request[_SESSION] = session
        elif not request.path.startswith(_OPEN):
            if request.path.endswith("/live"):
                return _plain("sign in again", status=401)
            return web.Response(status=303, headers={"Location": "/login"})
        return await handler(request)

    @staticmethod
    def _cookie(request: web.Request) -> str:
        """Cookies know no ports: two consoles on a machine must not end each other's sessions."""
        return f"finetune-console-{urlsplit(f'//{request.host}').port or 0}"

    # -- signing in ----------------------------------------------------------------------------------------------------

    async def _login(self, request: web.Request) -> web.StreamResponse:
        if self.sign_in.by_link and (key := request.query.get("key")):
            return await self._begin(request, secret=key)
        return self._html(request, "login.html.j2", label=self.sign_in.label, problem="")

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        return await self._begin(request, secret=str(form.get("secret", "")).strip())

    async def _begin(self, request: web.Request, *, secret: str) -> web.StreamResponse:
        closing = AsyncExitStack()
        try:
            target, who = await self.sign_in(secret, closing=closing)
        except (CommandError, UnavailableError) as error:
            await closing.aclose()
            problem = str(error)
            return self._html(request, "login.html.j2", status=401, label=self.sign_in.label, problem=problem)
        await self.sessions.end(request.cookies.get(self._cookie(request), ""))
        key = await self.sessions.begin(target=target, who=who, closing=closing)
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            self._cookie(request),
            key,
            max_age=int(LASTS_SECONDS),
            httponly=True,
            samesite="Strict",
            secure=request.headers.get("X-Forwarded-Proto") == "https",
        )
        return response

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        await self._checked_form(request)
        await self.sessions.end(request.cookies[self._cookie(request)])
        return web.Response(status=303, headers={"Location": "/login"})

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def _read(self, request: web.Request) -> Page:
        session, now = request[_SESSION], datetime.now(UTC)
        if "name" not in request.match_info:
            namespace = request.query.get("namespace", session.target.namespace).strip()
            return await read_overview(session.target, namespace=namespace, now=now)
        kind = resource_of(request.match_info["word"]).kind
        return await read_page(_placed(request), kind=kind, name=request.match_info["name"], now=now, acts=self.acts)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        page, said = await self._read(request), request[_SESSION].said
        shown = [said.pop(0) for _ in range(len(said))]
        namespace = request.match_info.get("namespace") or request.query.get("namespace")
        where = request[_SESSION].target.namespace if namespace is None else namespace
        return self._html(request, "page.html.j2", page=page, said=shown, where=where)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Sections that are not as they were, as server-sent events."""
        if self.streams >= _STREAMS:
            return _plain(f"{_STREAMS} pages are renewed already; reload to see news", status=503)
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        self.streams += 1
        try:
            await response.prepare(request)
            await self._tell(request, response)
        except ConnectionError:
            pass
        finally:
            self.streams -= 1
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        shown: dict[str, str] = {}
        quiet = 0.0
        while not self.stopping.is_set() and self.sessions.find(request.cookies[self._cookie(request)]) is not None:
            now = await self._news(request)
            news = {name: text for name, text in now.items() if shown.get(name) != text}
            shown |= news
            quiet = 0.0 if news else quiet + self.look_seconds
            if news:
                await response.write(f"data: {json.dumps(news)}\n\n".encode())
            elif quiet >= _QUIET_SECONDS:
                quiet = 0.0
                await response.write(b": still here\n\n")
            try:
                await asyncio.wait_for(self.stopping.wait(), timeout=self.look_seconds)
            except TimeoutError:
                continue

    async def _news(self, request: web.Request) -> dict[str, str]:
        """The page as it is now, by section; `problem` is "" where it could be read."""
        try:
            page = await self._read(request)
        except (CommandError, UnavailableError, ValidationError) as error:
            return {"problem": f"this page is not renewed now: {error}"}
        sections = {each.id: self._section(each, request) for each in page.sections}
        return {"problem": "", "headline": page.headline, **sections}

    async def _report(self, request: web.Request) -> web.StreamResponse:
        report = await self._report_of(request)
        text = await asyncio.to_thread(report.read_bytes)
        headers = {"Content-Security-Policy": _REPORT_POLICY}
        return web.Response(body=text, content_type="text/html", charset="utf-8", headers=headers)

    async def _answers(self, request: web.Request) -> web.StreamResponse:
        answers = await asyncio.to_thread(read_answers, await self._report_of(request))
        back = request.path.removesuffix("/answers")
        return self._html(request, "answers.html.j2", answers=answers, back=back, name=request.match_info["name"])

    async def _report_of(self, request: web.Request) -> Path:
        target, name = _placed(request), request.match_info["name"]
        raw = await target.read(kind=resource_of(request.match_info["word"]).kind, name=name)
        found = report_path(target, uri=report_uri(raw))
        if found is None:
            raise CommandError(
                f"the report of {name} is not on this machine; `finetune report {name}` says where it is"
            )
        return found

    # -- what people ask for -------------------------------------------------------------------------------------------

    async def _act(self, request: web.Request) -> web.StreamResponse:
        if not self.acts:
            raise web.HTTPForbidden(reason="this console is read-only; --allow-actions lets people ask for something")
        form = await self._checked_form(request)
        verb, name = cast("Verb", request.match_info["verb"]), request.match_info["name"]
        version = str(form.get("version") or "") or None
        try:
            said = (await ask(_placed(request), name=name, verb=verb, version=version)).lines
        except (CommandError, InvalidError, NotFoundError, UnavailableError) as error:
            said = [f"not done: {error}"]
        logger.info("%s asks to %s %s of %s", request[_SESSION].who, verb, version or "", name)
        request[_SESSION].said += said
        return web.Response(status=303, headers={"Location": request.path.rpartition("/")[0]})

    async def _checked_form(self, request: web.Request) -> Any:
        form = await request.post()
        guard = str(form.get("guard", ""))
        if not hmac.compare_digest(guard.encode(), request[_SESSION].guard.encode()):
            raise web.HTTPForbidden(reason="this form is not of your session: reload the page and try again")
        return form

    # -- HTML ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _templates(self) -> Environment:
        made = Environment(
            loader=PackageLoader("finetune_operator.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters["tone"] = tone_of
        return made

    def _html(self, request: web.Request, template: str, *, status: int = 200, **shown: Any) -> web.Response:
        text = self._templates.get_template(template).render(
            **shown, session=request.get(_SESSION), path=request.path, query=request.query_string
        )
        return web.Response(text=text, content_type="text/html", status=status)

    def _section(self, section: Section, request: web.Request) -> str:
        module = self._templates.get_template("section.html.j2")
        return module.render(section=section, guard=request[_SESSION].guard, path=request.path.removesuffix("/live"))

    def _problem(self, request: web.Request, words: str, *, status: int) -> web.Response:
        return self._html(request, "problem.html.j2", status=status, words=words)


def _placed(request: web.Request) -> Target:
    """What the user looks at, in the namespace of the path."""
    return replace(request[_SESSION].target, namespace=request.match_info["namespace"])


def _plain(words: str, *, status: int) -> web.Response:
    return web.Response(text=f"{words}\n", status=status)


async def _healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok")
