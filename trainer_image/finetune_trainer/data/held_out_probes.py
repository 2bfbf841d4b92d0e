"""Probes: held-out prompts that travel with the model, so that whatever serves it can be asked them.

They are written into the model's folder when it is saved, and so are covered by its digest. A gateway sends them to
candidate and stable alike. One line of `probes.jsonl` each:

    {"label": "movies", "path": "/v1/chat/completions", "request": {"messages": [...], "max_tokens": 64, ...}}
    {"label": "movies", "path": "/v1/classify", "request": {"input": "..."}}
    {"path": "/v1/completions", "request": {"prompt": "...", "max_tokens": 128, ...}}

`label` is the answer to compare with, where there is one right answer: a class, or an answer of a chat whose answers
come from a closed set. The request names no model: whoever serves it puts its own name there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.data.dataset import Example
from finetune_trainer.store import json_lines

FILE_NAME = "probes.jsonl"
MOST_PROBES = 200
_LONGEST_PROMPT = 8000
"""Characters. A longer prompt says little about a model that a shorter one does not, and costs as much as many."""
_LONGEST_LABEL = 100
_LABEL_TOKENS = 64
_TEXT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class HeldOutProbe:
    """One prompt, as a request without the model's name."""

    path: str
    request: dict[str, Any]
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As stored, and as a gateway reads it."""
        document: dict[str, Any] = {"path": self.path, "request": self.request}
        return document if self.label is None else document | {"label": self.label}


def make_probes(examples: Sequence[Example], *, prompts: bool = False) -> tuple[HeldOutProbe, ...]:
    """At most `MOST_PROBES` different prompts of a test split, in the order of its examples' ids: the same for the same
    snapshot, and not the first lines of one source. `prompts`: questions are asked as they are, not as chats.
    """
    # The servers take no tools, nor what else only some templates know.
    examples = [
        example
        for example in examples
        if not example.tools and not any(message.extra for message in example.messages or ())
    ]
    answers = [example.right_answer for example in examples if example.right_answer is not None]
    closed = _is_closed_set(answers)
    found: dict[str, HeldOutProbe] = {}
    for example in sorted(examples, key=lambda example: example.id):
        if len(found) == MOST_PROBES:
            break
        probe = _probe(example, with_label=closed, prompts=prompts)
        key = json.dumps(probe.request, sort_keys=True)
        if len(key) <= _LONGEST_PROMPT:
            found.setdefault(key, probe)
    return tuple(found.values())


def to_text(probes: Sequence[HeldOutProbe]) -> str:
    """The file's text."""
    return json_lines.to_text(probe.to_dict() for probe in probes)


def read_probes(folder: Path) -> tuple[HeldOutProbe, ...]:
    """The probes of a model's folder; none where it was saved without."""
    path = folder / FILE_NAME
    if not path.exists():
        return ()
    return tuple(HeldOutProbe(**document) for document in json_lines.read(path.read_text(encoding="utf-8")))


def _probe(example: Example, *, with_label: bool, prompts: bool) -> HeldOutProbe:
    if example.label is not None:
        return HeldOutProbe(path="/v1/classify", request={"input": example.text or ""}, label=example.label)
    decoding = {"max_tokens": _LABEL_TOKENS if with_label else _TEXT_TOKENS, "temperature": 0}
    if example.messages is not None:
        label = example.right_answer if with_label else None
        if prompts:
            request = {"prompt": example.messages[0].content}
            return HeldOutProbe(path="/v1/completions", request=request | decoding, label=label)
        chat = {"messages": [message.to_dict() for message in example.messages[:-1]]}
        return HeldOutProbe(path="/v1/chat/completions", request=chat | decoding, label=label)
    return HeldOutProbe(path="/v1/completions", request={"prompt": _beginning(example.text or "")} | decoding)


def _is_closed_set(answers: Sequence[str]) -> bool:
    """Short answers that repeat, each twice on average: a model is right when it gives the very same one."""
    return bool(answers) and len(set(answers)) * 2 <= len(answers) and max(map(len, answers)) <= _LONGEST_LABEL


def _beginning(text: str) -> str:
    """The first half of a text, cut at a blank: the model goes on with it."""
    half = text[: min(len(text) // 2 + 1, _LONGEST_PROMPT // 4)]
    return half.rsplit(" ", 1)[0] or half
