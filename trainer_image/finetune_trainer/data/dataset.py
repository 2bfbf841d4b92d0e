"""The snapshot's examples, as train and evaluate read them.

    data/train.jsonl, validation.jsonl, test.jsonl, one JSON object per line, keys sorted:
    {"group": "sha256hex", "id": "sha256hex", "messages": [{"content": "...", "role": "user"}, ...], "source": "faq"}
    {"group": ..., "id": ..., "source": ..., "text": "..."}
    {"group": ..., "id": ..., "label": "billing", "source": ..., "text": "..."}

A chat's last message is the assistant's answer. A message may also have "learned": false and what only some templates
know (tool_calls, tool_call_id, name); a chat may have "tools" and "reference". `id` is the digest of the content alone:
equal for equal content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from finetune_trainer.process.errors import bad_data
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str
    learned: bool = True
    """For an answer: whether it is a target of the loss."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only some templates know: `tool_calls`, `tool_call_id`, `name`. JSON-ready."""

    def to_dict(self) -> dict[str, Any]:
        """As chat templates want it."""
        return {"role": self.role, "content": self.content, **self.extra}

    def stored(self) -> dict[str, Any]:
        """As the snapshot holds it."""
        return _sorted(self.to_dict() | ({} if self.learned else {"learned": False}))

    @classmethod
    def of_stored(cls, document: Mapping[str, Any]) -> Message:
        """The message of `stored`."""
        own = ("role", "content", "learned")
        return cls(
            **{name: document[name] for name in own if name in document},
            extra={name: value for name, value in document.items() if name not in own},
        )

    @property
    def text(self) -> str:
        """What it says, for people and comparisons: the content, and the tools that it calls."""
        calls = self.extra.get("tool_calls", ())
        return "\n".join([*filter(None, [self.content]), *(_canonical(call) for call in calls)])


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example: a chat (`messages`), a text, or a text with its label."""

    id: str
    """sha256 (hex) of the content, white space and Unicode form normalised."""
    group: str
    """The near-duplicate group: examples of one group are not independent, and never in two splits. sha256 (hex) of one
    of its questions, so that the same group has the same name in other snapshots."""
    source: str
    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    """Descriptions of the tools that the chat may call."""
    reference: str | None = None
    """The right answer as the base model's template writes it, where that is not the content: a call of a tool."""
    text: str | None = None
    label: str | None = None

    @property
    def right_answer(self) -> str | None:
        """What a chat's answer is compared with; None where it is no chat."""
        return None if self.messages is None else self.reference or self.messages[-1].content

    def to_json(self) -> str:
        """The example's line in the snapshot, without the newline."""
        document = {"group": self.group, "id": self.id, "source": self.source} | self._content()
        return _canonical(document if self.reference is None else document | {"reference": self.reference})

    def content_json(self) -> str:
        """What it says, without where it is from."""
        return _canonical(self._content())

    def _content(self) -> dict[str, Any]:
        messages = self.messages and [message.stored() for message in self.messages]
        document = {"messages": messages, "tools": self.tools, "text": self.text, "label": self.label}
        return {name: value for name, value in document.items() if value is not None}

    @classmethod
    def from_json(cls, line: str) -> Example:
        """Read a line of the snapshot."""
        document = json.loads(line)
        if "messages" in document:
            document["messages"] = tuple(map(Message.of_stored, document["messages"]))
        return cls(**document | ({"tools": tuple(document["tools"])} if "tools" in document else {}))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """data/manifest.json: what the snapshot holds."""

    digest: str
    """Equal for equal content, whatever the files were called and however their keys were ordered."""
    splits: dict[SplitName, tuple[str, ...]]
    """The examples' ids (sha256 hex) by split, in the order of the file, repetitions by weight included."""
    groups: dict[SplitName, tuple[str, ...]]
    """The near-duplicate groups that each split has examples of."""
    labels: tuple[str, ...] | None
    """The classes, in the order of the classifier's outputs."""
    statistics: dict[str, Any]
    before: tuple[str, ...] = ()
    """Ids and groups that the version learned from which training went on from, and those before it."""

    @property
    def learned(self) -> tuple[str, ...]:
        """Ids and groups that a model made from this snapshot has seen in training or validation, or before."""
        return tuple(sorted(self._learned_ids | self._learned_groups))

    def learned_from(self, example: Example) -> bool:
        """Whether a model made from this snapshot has seen the example, or a near-duplicate, in training or validation.

        Such an example proves nothing about that model.
        """
        return example.id in self._learned_ids or example.group in self._learned_groups

    def groups_learned(self, examples: Iterable[Example]) -> set[str]:
        """The groups of examples, named as there, that such a model has seen something of.

        A group is named by its members, so it may have another name here: where one member was seen, all are.
        """
        return {example.group for example in examples if self.learned_from(example)}

    @cached_property
    def _learned_ids(self) -> frozenset[str]:
        return frozenset((*self.splits["train"], *self.splits["validation"], *self.before))

    @cached_property
    def _learned_groups(self) -> frozenset[str]:
        return frozenset((*self.groups["train"], *self.groups["validation"], *self.before))

    def to_json(self) -> str:
        """The file's text."""
        document = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name != "before" or self.before
        }
        return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the file's text."""
        document = json.loads(text)
        for name in ("splits", "groups"):
            document[name] = {split: tuple(document[name][split]) for split in SPLITS}
        document["before"] = tuple(document.get("before", ()))
        return cls(**document | {"labels": None if document["labels"] is None else tuple(document["labels"])})


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(_sorted(document), ensure_ascii=False)


def _sorted(document: Mapping[str, Any]) -> dict[str, Any]:
    """Our own keys in one order. What is inside of tools and their calls keeps its own: templates write it as it is."""
    return dict(sorted(document.items()))


def data_folder(run: str) -> str:
    """The URI of a run's snapshot."""
    return join(run, "data")


def read_split(storage: Storage, *, data: str, split: SplitName) -> list[Example]:
    """The examples of a split, in the order of training. `data` is the snapshot's folder (`data_folder(run)`).

    Raises StageError: 66 where there is no such file, 65 where a line is no example.
    """
    uri = join(data, f"{split}.jsonl")
    examples = []
    with storage.open(uri) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                examples.append(Example.from_json(line.decode()))
            except (ValueError, KeyError, TypeError) as error:
                raise bad_data(
                    "BadSnapshot",
                    f"{uri} line {number} is not an example of a snapshot: {error!r}; prepare the data again",
                ) from error
    return examples


def read_manifest(storage: Storage, *, uri: str) -> Manifest:
    """A snapshot's manifest: of `data_folder(run)`, or the one that another version's record names."""
    try:
        return Manifest.from_json(storage.read_text(uri))
    except (ValueError, KeyError, TypeError) as error:
        raise bad_data("BadSnapshot", f"{uri} is not a data manifest: {error!r}") from error


def write_examples(examples: Iterable[Example]) -> str:
    """The text of a split's file."""
    return "".join(example.to_json() + "\n" for example in examples)
