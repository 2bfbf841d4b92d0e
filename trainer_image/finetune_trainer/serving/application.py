"""The HTTP surface of a server: OpenAI's API for the one model, probes, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from jinja2 import TemplateError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from finetune_api.panics import as_exception
from finetune_api.run import ServeOrder
from finetune_api.tasks import TASKS
from finetune_trainer.data.held_out_probes import HeldOutProbe
from finetune_trainer.serving.classification import Classes, Classifier, Texts
from finetune_trainer.serving.engine import BusyError, Engine, Ticket
from finetune_trainer.serving.generation import Answer, GenerationRequest, Piece, TextModel
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.wire import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    GenerationFormat,
    RequestError,
    classified,
    usage_of,
)
from finetune_trainer.tasks.chat_template import prompt_tokens

log = logging.getLogger(__name__)
Event = TypeVar("Event")
State = Literal["Loading", "WarmingUp", "Ready", "Draining"]
_STREAM = "text/event-stream"
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of streams: nginx would collect them."""
_HUNG_UP = 499
_MOST_CHARACTERS = 4 << 20
"""Of all the texts of one classification together."""


@dataclass(kw_only=True)
class Service:
    """What the routes work with. The model comes when it is loaded."""

    order: ServeOrder
    engine: Engine
    metrics: Metrics
    state: State = "Loading"
    model: TextModel | Classifier | None = None
    probes: tuple[HeldOutProbe, ...] = ()
    # Tokenizers of transformers are not to be used by two threads while one of them sets how to cut.
    _encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="encoder"))

    # -- answers ------------------------------------------------------------------------------------------------------

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """POST /v1/chat/completions."""
        model = self._text_model(body.model, path=request.url.path)
        turns = [message.to_turn() for message in body.messages]
        self._may_fit(sum(len(turn["content"]) for turn in turns), model=model)

        def encode() -> list[list[int]]:
            if not model.tokenizer.chat_template:
                raise RequestError("this model has no chat template; use /v1/completions")
            try:
                return [prompt_tokens(turns, model.tokenizer)]
            except TemplateError as error:
                raise RequestError(f"the model's chat template refuses these messages: {error}") from None

        return await self._generate(body, request, model=model, prompts=await self._off_loop(encode))

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """POST /v1/completions: a choice for each prompt."""
        model = self._text_model(body.model, path=request.url.path)
        for text in body.texts:
            self._may_fit(len(text), model=model)

        def encode(text: str) -> list[int]:
            ids = list(model.tokenizer(text)["input_ids"])
            ends = not model.two_parts and ids[-1:] == [model.tokenizer.eos_token_id]
            return ids[:-1] if ends and len(ids) > 1 else ids

        prompts = await self._off_loop(lambda: [encode(text) for text in body.texts])
        return await self._generate(body, request, model=model, prompts=prompts)

    async def classify(self, body: ClassifyRequest, request: Request) -> Response:
        """POST /v1/classify."""
        model = self._named(body.model, path=request.url.path)
        if not isinstance(model, Classifier):
            raise self._wrong_path(request.url.path)
        characters = sum(len(model.readable(text)) for text in body.texts)
        if characters > _MOST_CHARACTERS:
            raise RequestError(
                f"input: {characters} characters in all; send at most {_MOST_CHARACTERS} in one request",
                status=413,
                param="input",
            )
        texts = await self._off_loop(lambda: [model.encode(text) for text in body.texts])
        if not all(text.ids for text in texts):
            raise RequestError("an empty text has no class", param="input")
        found: Classes | None = None
        async with _hang_up(request, self._submit(model.classify(texts))) as (ticket,):
            async for event in ticket:
                found = event
        if found is None:
            raise _GoneError
        tokens = sum(len(text.ids) for text in texts)
        self.metrics.prompt_tokens.inc(tokens)
        self.metrics.truncated_texts.inc(sum(text.truncated for text in texts))
        _note(request, prompt_tokens=tokens, texts=len(texts))
        document = classified(
            model=self.order.endpoint,
            labels=model.labels,
            probabilities=found.probabilities,
            truncated=[text.truncated for text in texts],
            single=isinstance(body.input, str),
            tokens=tokens,
        )
        return _answer(document)

    async def models(self) -> dict[str, Any]:
        """GET /v1/models: exactly the one."""
        return {"object": "list", "data": [await self.model_card(self.order.endpoint)]}

    async def model_card(self, name: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        if name != self.order.endpoint:
            raise _not_this_model(name, self.order.endpoint)
        return {"id": name, "object": "model", "created": 0, "owned_by": "finetune-operator"}

    async def probe_documents(
        self, offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
    ) -> dict[str, Any]:
        """GET /finetune/probes: held-out requests for this model, ready to be sent."""
        chosen = [probe.to_dict() for probe in self.probes[offset : offset + limit]]
        named = [{**each, "request": {"model": self.order.endpoint, **each["request"]}} for each in chosen]
        return {"probes": named, "total": len(self.probes)}

    async def healthy(self) -> Response:
        """GET /healthz."""
        if self.state in ("Loading", "WarmingUp") or self.engine.is_alive:
            return _answer({"state": self.state})
        return _answer({"state": "Failed", "reason": "the thread that runs the model has ended"}, status=503)

    async def ready(self) -> Response:
        """GET /readyz."""
        return _answer({"state": self.state}, status=200 if self.state == "Ready" else 503)

    async def scrape(self) -> Response:
        """GET /metrics."""
        self.metrics.waiting.set(self.engine.waiting)
        self.metrics.running.set(self.engine.active)
        self.metrics.kept_tokens.set(self.engine.kept_tokens)
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _generate(
        self, body: ChatRequest | CompletionRequest, request: Request, *, model: TextModel, prompts: list[list[int]]
    ) -> Response:
        works = [
            GenerationRequest(
                prompt_ids=tuple(ids),
                max_new_tokens=self._answer_length(body.longest, model=model, prompt_length=len(ids)),
                sampling=body.sampling,
                stop=body.stops,
            )
            for ids in prompts
        ]
        prompt = sum(map(len, prompts))
        shape = GenerationFormat(
            chat=isinstance(body, ChatRequest), model=self.order.endpoint, counted=body.wants_usage
        )
        began = time.monotonic()
        tickets = self._submit(*map(model.answer, works))
        pieces = [aiter(ticket) for ticket in tickets]
        async with _hang_up(request, tickets):
            first = await anext(pieces[0], None)  # an error before the first token is an answer with its own status
            if first is None:
                raise _GoneError
            self.metrics.first_token.observe(time.monotonic() - began)
            if not body.stream:
                answers = [await _whole(first, pieces[0]), *[await _whole(None, each) for each in pieces[1:]]]
                usage = self._count(request, prompt=prompt, answer=sum(last.tokens for _, last in answers))
                return _answer(shape.whole([(text, str(last.finish)) for text, last in answers], usage=usage))
        stream = self._stream(first, pieces[0], tickets[0], body=body, shape=shape, prompt=prompt, request=request)
        return StreamingResponse(stream, media_type=_STREAM, headers=_UNBUFFERED)

    async def _stream(
        self,
        first: Piece,
        rest: AsyncIterator[Piece],
        ticket: Ticket[Piece],
        *,
        body: ChatRequest | CompletionRequest,
        shape: GenerationFormat,
        prompt: int,
        request: Request,
    ) -> AsyncIterator[str]:
        """Server-sent events. Closed early (the client hung up), it ends the generation."""
        tokens = 0
        try:
            tokens = first.tokens
            yield _event(shape.chunk(first, first=True))
            if first.finish is None:
                async for piece in rest:
                    tokens = piece.tokens
                    if piece.text or piece.finish:
                        yield _event(shape.chunk(piece, first=False))
            if body.wants_usage:
                yield _event(shape.usage_chunk(usage_of(prompt=prompt, answer=tokens)))
            yield "data: [DONE]\n\n"
        except Exception:
            log.exception("a streamed answer broke off")
            yield _event(RequestError("the answer broke off: the server failed", status=500).body())
        finally:
            ticket.cancel()
            self._count(request, prompt=prompt, answer=tokens)

    def _count(self, request: Request, *, prompt: int, answer: int) -> dict[str, int]:
        self.metrics.prompt_tokens.inc(prompt)
        self.metrics.generated_tokens.inc(answer)
        _note(request, prompt_tokens=prompt, completion_tokens=answer)
        return usage_of(prompt=prompt, answer=answer)

    @staticmethod
    def _may_fit(characters: int, *, model: TextModel) -> None:
        """Refuse what no tokenizer could make short enough, before it costs anything."""
        if model.longest_prompt is not None and characters > model.longest_prompt:
            raise RequestError(
                f"the prompt has {characters} characters; this model's context is {model.context} tokens, at"
                f" most {model.longest_prompt} characters: shorten the prompt",
                code="context_length_exceeded",
            )

    def _answer_length(self, asked: int | None, *, model: TextModel, prompt_length: int) -> int:
        if prompt_length == 0:
            raise RequestError("the prompt is empty")
        room = model.room(prompt_length)
        if model.context is not None and (prompt_length > model.context or (room or 0) < 1):
            included = "" if model.two_parts else ", the answer's included"
            raise RequestError(
                f"the prompt has {prompt_length} tokens; this model's context is {model.context} tokens{included}:"
                " shorten the prompt",
                code="context_length_exceeded",
            )
        limits = (asked, room, self.order.max_new_tokens)
        return min(limit for limit in limits if limit is not None)

    def _submit(self, *works: Answer | Texts) -> list[Ticket[Any]]:
        try:
            return self.engine.submit(*works)
        except BusyError as error:
            raise RequestError(
                f"{self.order.max_waiting} requests are waiting already; try again later",
                status=429,
                code="rate_limit_exceeded",
                again_after=error.seconds,
            ) from None

    def _named(self, name: str | None, *, path: str) -> TextModel | Classifier:
        if name is not None and name != self.order.endpoint:
            raise _not_this_model(name, self.order.endpoint)
        if self.model is None:
            raise RequestError("the model is being loaded; try again later", status=503)
        return self.model

    def _text_model(self, name: str | None, *, path: str) -> TextModel:
        model = self._named(name, path=path)
        if not isinstance(model, TextModel) or path not in TASKS[self.order.task].paths:
            raise self._wrong_path(path)
        return model

    def _wrong_path(self, path: str) -> RequestError:
        task, use = self.order.task, TASKS[self.order.task].paths[0]
        return RequestError(f"{path} is not offered: this model's task is {task}; use {use}", status=404)

    async def _off_loop(self, work: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoder, work)
        except BaseException as error:
            raise as_exception(error) from None


class _GoneError(Exception):
    """The client hung up; nobody reads the answer."""


def build(service: Service) -> FastAPI:
    """The application with all routes."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.post("/v1/chat/completions")(service.chat)
    app.post("/v1/completions")(service.complete)
    app.post("/v1/classify")(service.classify)
    app.get("/v1/models")(service.models)
    app.get("/v1/models/{name}")(service.model_card)
    app.get("/finetune/probes")(service.probe_documents)
    app.get("/healthz")(service.healthy)
    app.get("/readyz")(service.ready)
    app.get("/metrics")(service.scrape)
    app.exception_handler(_GoneError)(lambda *_: Response(status_code=_HUNG_UP))
    for kind in (RequestError, RequestValidationError, HTTPException, Exception):
        app.exception_handler(kind)(_refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Every error in OpenAI's form."""
    if isinstance(error.__cause__, RequestError):  # raised while the body was read
        error = error.__cause__
    if isinstance(error, RequestValidationError):
        error = _malformed(error)
    elif isinstance(error, HTTPException):
        body = RequestError(str(error.detail), status=error.status_code).body()
        return _answer(body, status=error.status_code, headers=error.headers)
    elif not isinstance(error, RequestError):
        error = RequestError(f"the server failed on this request: {type(error).__name__}", status=500)
    return _answer(error.body(), status=error.status, headers=error.headers)


def _malformed(error: RequestValidationError) -> RequestError:
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return RequestError("the body is not valid JSON")
    # Of the alternatives of a field (a text or a list), the one that has the right type says what is wrong.
    worst = next((problem for problem in problems if not problem["type"].endswith("_type")), problems[0])
    where = ".".join(str(part) for part in worst["loc"][1:] if str(part).isidentifier() or isinstance(part, int))
    words = str(worst["msg"]).removeprefix("Value error, ")  # pydantic's, before what our own validators say
    message = f"{where}: {words}" if where else f"the request is not understood: {words}"
    return RequestError(message[:1000], param=where or None)


async def _whole(first: Piece | None, rest: AsyncIterator[Piece]) -> tuple[str, Piece]:
    """An answer's text and its last piece."""
    text, last = "" if first is None else first.text, first
    async for piece in rest:
        text, last = text + piece.text, piece
    if last is None or last.finish is None:
        raise _GoneError
    return text, last


@contextlib.asynccontextmanager
async def _hang_up(request: Request, tickets: list[Ticket[Event]]) -> AsyncIterator[list[Ticket[Event]]]:
    """Cancel the works when the client is gone before they are done, or when nobody waits for them any more."""

    def cancel() -> None:
        for ticket in tickets:
            ticket.cancel()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield tickets
    except BaseException:
        cancel()
        raise
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


def _answer(document: dict[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as JSON. ASCII: whatever a request may have held can be said in it."""
    body = json.dumps(document, allow_nan=False)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"  # ASCII: some clients end lines at U+2028 too


def _note(request: Request, **facts: int) -> None:
    """For the access log."""
    request.scope.setdefault("state", {})["log"] = facts


def _not_this_model(name: str, served: str) -> RequestError:
    return RequestError(
        f"there is no model {name[:200]!r} here; this server has {served!r} only",
        status=404,
        code="model_not_found",
        param="model",
    )
