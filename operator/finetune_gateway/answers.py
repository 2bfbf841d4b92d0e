"""PURE: what became of a request at one version. Clients' requests, shadow copies and probes, of whichever version, are
judged here and by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_gateway.event_stream import EventStream
from finetune_gateway.openai_format import read_answer, text_of

_LONGEST_READ = 1 << 20
"""Bytes. Longer answers are handed on but not judged: judging must not cost memory."""
Measures = dict[str, tuple[bool, bool]]
"""By metric: whether the candidate's answer is bad, and whether stable's is."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One version's answer to one request."""

    status: int
    """0: none came."""
    text: str | None = None
    """None: it has no text that could be judged (a tool call, an answer that is too long)."""
    seconds: float = 0.0
    """That the version took; a client that reads slowly is not its fault."""
    fault: str | None = None
    """What is wrong with it although its status is good."""
    finish: str | None = None
    document: dict[str, Any] = field(default_factory=dict, compare=False)
    """What came, where it came at once."""

    @property
    def problem(self) -> str | None:
        """Why the version has failed the request; None: it has not. To be too busy is a failure, and so is whatever is
        neither an answer nor a refusal: a redirection, or nothing."""
        if self.status == 200 or self.refused:
            return self.fault
        return f"status {self.status}" if self.status else "no answer"

    @property
    def failed(self) -> bool:
        """No usable answer."""
        return self.problem is not None

    @property
    def refused(self) -> bool:
        """The version calls the request wrong. Whether it is, only another version's answer can tell."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


def whole(*, status: int, body: bytes, seconds: float) -> Answer:
    """An answer that came at once."""
    document, fault = read_answer(body=body)
    if status != 200:
        return Answer(status=status, seconds=seconds, document=document)
    text, finish = text_of(document)
    text = text if len(body) <= _LONGEST_READ else None
    return Answer(status=200, text=text, seconds=seconds, fault=fault, finish=finish, document=document)


def streamed(*, events: EventStream, seconds: float) -> Answer:
    """An answer that came in events, now that it has ended."""
    return Answer(status=200, text=events.text, seconds=seconds, fault=events.fault, finish=events.finish)


def measures(
    candidate: Answer, stable: Answer, *, bad: Callable[[Answer], bool], latency_limit: float | None
) -> Measures:
    """The same request at both versions. A refusal that the other one did not give is a failure; one that both gave is
    the request's own fault."""
    pair = (candidate, stable)
    failed = [one.failed or (one.refused and not (other.refused or other.failed)) for one, other in (pair, pair[::-1])]
    worse = [lost or (not one.refused and bad(one)) for lost, one in zip(failed, pair, strict=True)]
    found: Measures = {"error_rate": (failed[0], failed[1]), "quality": (worse[0], worse[1])}
    if latency_limit is not None:
        slow = [lost or one.seconds > latency_limit for lost, one in zip(failed, pair, strict=True)]
        found["latency_seconds"] = (slow[0], slow[1])
    return found
