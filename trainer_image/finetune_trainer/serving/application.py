"""The HTTP surface of a server: OpenAI's API for the one model, probes, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from jinja2 import TemplateError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from finetune_api.run import ServeOrder
from finetune_trainer.chat_template import prompt_tokens
from finetune_trainer.held_out_probes import HeldOutProbe
from finetune_trainer.serving.classification import Classes, Classifier
from finetune_trainer.serving.engine import BusyError, Engine, Ticket
from finetune_trainer.serving.generation import GenerationRequest, Piece, TextModel
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

log = logging.getLogger(__name__)
Event = TypeVar("Event")
State = Literal["Loading", "WarmingUp", "Ready", "Draining"]
_STREAM = "text/event-stream"
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

        def encode() -> list[int]:
            if not model.tokenizer.chat_template:
                raise RequestError("this model has no chat template; use /v1/completions")
            try:
                return prompt_tokens(turns, model.tokenizer)
            except TemplateError as error:
                raise RequestError(f"the model's chat template refuses these messages: {error}") from None

        return await self._generate(body, request, model=model, prompt_ids=await self._off_loop(encode))

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """POST /v1/completions."""
        if len(body.prompts) > 1:
            return await self._complete_each(body, request)
        model = self._text_model(body.model, path=request.url.path)
        self._may_fit(len(body.text), model=model)

        def encode() -> list[int]:
            ids = list(model.tokenizer(body.text)["input_ids"])
            ends = model.task != "Seq2Seq" and ids[-1:] == [model.tokenizer.eos_token_id]
            return ids[:-1] if ends and len(ids) > 1 else ids

        return await self._generate(body, request, model=model, prompt_ids=await self._off_loop(encode))

    async def _complete_each(self, body: CompletionRequest, request: Request) -> Response:
        """Several prompts: a choice for each, in their order."""
        answers = [json.loads(bytes((await self.complete(each, request)).body)) for each in body.prompts]
        choices = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
        usage = {name: sum(answer["usage"][name] for answer in answers) for name in answers[0]["usage"]}
        return JSONResponse({**answers[0], "choices": choices, "usage": usage})

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
        async with _hang_up(request, self._submit(model.classify(texts))) as ticket:
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
        return JSONResponse(document)

    def models(self) -> dict[str, Any]:
        """GET /v1/models: exactly the one."""
        return {"object": "list", "data": [self.model_card(self.order.endpoint)]}

    def model_card(self, name: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        if name != self.order.endpoint:
            raise _not_this_model(name, self.order.endpoint)
        return {"id": name, "object": "model", "created": 0, "owned_by": "finetune-operator"}

    def probe_documents(self, *, offset: int, limit: int) -> dict[str, Any]:
        """GET /finetune/probes: held-out requests for this model, ready to be sent."""
        chosen = [probe.to_dict() for probe in self.probes[offset : offset + limit]]
        named = [{**each, "request": {"model": self.order.endpoint, **each["request"]}} for each in chosen]
        return {"probes": named, "total": len(self.probes)}

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _generate(
        self, body: ChatRequest | CompletionRequest, request: Request, *, model: TextModel, prompt_ids: list[int]
    ) -> Response:
        work = GenerationRequest(
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=self._answer_length(body.longest, model=model, prompt_length=len(prompt_ids)),
            sampling=body.sampling,
            stop=body.stops,
        )
        began = time.monotonic()
        ticket = self._submit(model.answer(work))
        chat = isinstance(body, ChatRequest)
        shape = GenerationFormat(chat=chat, model=self.order.endpoint, counted=body.wants_usage)
        if body.stream:
            pieces = aiter(ticket)
            async with _hang_up(request, ticket):
                first = await anext(pieces, None)  # an error before the first token is an answer with its own status
            if first is None:
                raise _GoneError
            self.metrics.first_token.observe(time.monotonic() - began)
            stream = self._stream(
                first, pieces, ticket, body=body, shape=shape, prompt=len(prompt_ids), request=request
            )
            return StreamingResponse(stream, media_type=_STREAM, headers={"Cache-Control": "no-cache"})
        text, last = "", None
        async with _hang_up(request, ticket):
            async for piece in ticket:
                if last is None:
                    self.metrics.first_token.observe(time.monotonic() - began)
                text, last = text + piece.text, piece
        if last is None or last.finish is None:
            raise _GoneError
        usage = self._count(request, prompt=len(prompt_ids), answer=last.tokens)
        return JSONResponse(shape.whole(text=text, finish=last.finish, usage=usage))

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
            raise RequestError(
                f"the prompt has {prompt_length} tokens; this model's context is {model.context} tokens, the answer's"
                " included: shorten the prompt",
                code="context_length_exceeded",
            )
        limits = (asked, room, self.order.max_new_tokens)
        return min(limit for limit in limits if limit is not None)

    def _submit(self, work: Iterator[Event | None]) -> Ticket[Event]:
        try:
            return self.engine.submit(work)
        except BusyError:
            raise RequestError(
                f"{self.order.max_waiting} requests are waiting already; try again later",
                status=429,
                code="rate_limit_exceeded",
            ) from None

    def _named(self, name: str | None, *, path: str) -> TextModel | Classifier:
        if name is not None and name != self.order.endpoint:
            raise _not_this_model(name, self.order.endpoint)
        if self.model is None:
            raise RequestError("the model is being loaded; try again later", status=503)
        return self.model

    def _text_model(self, name: str | None, *, path: str) -> TextModel:
        model = self._named(name, path=path)
        if not isinstance(model, TextModel) or (path == "/v1/chat/completions" and model.task != "Chat"):
            raise self._wrong_path(path)
        return model

    def _wrong_path(self, path: str) -> RequestError:
        use = {"SequenceClassification": "/v1/classify", "Chat": "/v1/chat/completions"}
        task = self.order.task
        return RequestError(
            f"{path} is not offered: this model's task is {task}; use {use.get(task, '/v1/completions')}", status=404
        )

    async def _off_loop(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._encoder, work)


class _GoneError(Exception):
    """The client hung up; nobody reads the answer."""


def build(service: Service) -> FastAPI:
    """The application with all routes."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await service.chat(body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await service.complete(body, request)

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        return await service.classify(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return service.models()

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return service.model_card(name)

    @app.get("/finetune/probes")
    async def probes(
        offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
    ) -> dict[str, Any]:
        return service.probe_documents(offset=offset, limit=limit)

    @app.get("/healthz")
    async def healthy() -> Response:
        if service.state in ("Loading", "WarmingUp") or service.engine.is_alive:
            return JSONResponse({"state": service.state})
        return JSONResponse({"state": "Failed", "reason": "the thread that runs the model has ended"}, status_code=503)

    @app.get("/readyz")
    async def ready() -> Response:
        return JSONResponse({"state": service.state}, status_code=200 if service.state == "Ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        service.metrics.waiting.set(service.engine.waiting)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _add_error_answers(app)
    return app


def _add_error_answers(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        if problems[0]["type"] == "json_invalid":
            return JSONResponse(RequestError("the body is not valid JSON").body(), status_code=400)
        # Of the alternatives of a field (a text or a list), the one that has the right type says what is wrong.
        worst = next((problem for problem in problems if not problem["type"].endswith("_type")), problems[0])
        where = ".".join(str(part) for part in worst["loc"][1:] if str(part).isidentifier() or isinstance(part, int))
        message = f"{where}: {worst['msg']}" if where else f"the request is not understood: {worst['msg']}"
        return JSONResponse(RequestError(message[:1000], param=where or None).body(), status_code=400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, RequestError):  # raised while the body was read
            return await refused(request, error.__cause__)
        return JSONResponse(RequestError(str(error.detail), status=error.status_code).body(), error.status_code)

    @app.exception_handler(_GoneError)
    async def gone(request: Request, error: _GoneError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        message = f"the server failed on this request: {type(error).__name__}"
        return JSONResponse(RequestError(message, status=500).body(), status_code=500)


@contextlib.asynccontextmanager
async def _hang_up(request: Request, ticket: Ticket[Event]) -> AsyncIterator[Ticket[Event]]:
    """Cancel the work when the client is gone before it is done, or when nobody waits for it any more."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield ticket
    except BaseException:
        ticket.cancel()
        raise
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


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
