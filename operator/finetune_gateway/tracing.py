"""Spans of what versions are asked, by OpenTelemetry's names for generative AI, sent to a collector over OTLP/HTTP.

Imported only where a collector is named. No request waits for a span, and none holds anything of prompts or answers.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from finetune_gateway.answers import Answer

_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/classify": "classify"}
_MOST_WAITING, _BATCH = 2048, 512
_SEND_SECONDS, _LAST_SECONDS = 1.0, 5.0
_CONTEXT = TraceContextTextMapPropagator()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a version is asked, while it has not answered."""

    span: Span
    headers: Mapping[str, str] = field(default_factory=dict)
    """By which its server knows of the span."""

    def end(self, *, answer: Answer, code: int) -> None:
        """What became of it. `code`: as in the metrics; 0: no answer came."""
        usage = answer.document.get("usage")
        counted = usage if isinstance(usage, dict) else {}
        for name, key in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            if isinstance(counted.get(key), int):
                self.span.set_attribute(f"gen_ai.usage.{name}_tokens", counted[key])
        if answer.finish is not None:
            self.span.set_attribute("gen_ai.response.finish_reasons", [answer.finish])
        if code:
            self.span.set_attribute("http.response.status_code", code)
        if code != 200:
            self.span.set_attribute("error.type", str(code) if code else "no_answer")
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class Tracing(SpanProcessor):
    """Makes spans, and sends them on. What has no room, or is not taken, is dropped and counted."""

    def __init__(self, *, endpoint: str, gateway: str, on_drop: Callable[[int], object]) -> None:
        """`endpoint`: the collector's URL, such as http://collector:4318. `gateway`: this replica's name."""
        self._on_drop = on_drop
        self._waiting: deque[ReadableSpan] = deque()
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_LAST_SECONDS)
        resource = Resource.create({"service.name": "finetune-gateway", "service.instance.id": gateway})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self)
        self._tracer = provider.get_tracer("finetune_gateway")

    def begin(self, *, parent: dict[str, str], path: str, model: str, version: str, url: str) -> Asked:
        """A version is asked. `parent`: the headers of the client's trace, where it has one."""
        operation, server = _OPERATIONS.get(path, path), urlsplit(url)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "finetune",
            "gen_ai.request.model": model,
            "gen_ai.response.model": version,
            "server.address": server.hostname or "",
            "server.port": server.port or 80,
        }
        context = _CONTEXT.extract(parent)
        span = self._tracer.start_span(f"{operation} {model}", context, kind=SpanKind.CLIENT, attributes=attributes)
        headers: dict[str, str] = {}
        _CONTEXT.inject(headers, set_span_in_context(span))
        return Asked(span=span, headers=headers)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it until the next batch."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(span)
        else:
            self._on_drop(1)

    async def keep_sending(self) -> None:
        """Send what there is, again and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(_SEND_SECONDS)
            await self._send()

    async def close(self) -> None:
        """Send what is left, for as long as a collector may take."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._send()
        except TimeoutError:
            pass
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    async def _send(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            if await asyncio.to_thread(self._exporter.export, batch) is not SpanExportResult.SUCCESS:
                self._on_drop(len(batch))
