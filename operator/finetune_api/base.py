"""The base classes of everything that is written in YAML or JSON: camelCase outside, snake_case inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One CEL rule of a schema node, evaluated by the apiserver and by `finetune validate` alike.

    `rule` is CEL over `self` (and `oldSelf` in transition rules). `message` names the field, its value where `{self.field}` (or another expression of `self`) stands, the rule and the way out.
    """

    rule: str
    message: str


STORED_DEFAULT = "x-stored-default"
"""In a field's `json_schema_extra`: a default that the apiserver writes into objects. Only for what must always be there."""


UNSEEN = Field(json_schema_extra={STORED_DEFAULT: {"observedGeneration": -1}})
"""Of a status that the operator has not written yet: kstatus would take an object without one for ready."""


FORM = "x-form"
"""In a field's `json_schema_extra`: the rule of `form`, for the schema."""


def form(words: str, *examples: str, pattern: str | None = None, rule: str | None = None) -> Any:
    """How a text is written: by a pattern, or by a rule (CEL). Who is refused reads it in `words`, with examples."""
    said: dict[str, Any] = {
        "rule": rule or f"self.matches({json.dumps(pattern)})",
        "message": f"must be {words}, such as {', '.join(map(json.dumps, examples))}",
    }
    return Field(pattern=pattern, examples=list(examples), json_schema_extra={FORM: said})


def keyed_by(key: str, *, most: int, least: int | None = None) -> Any:
    """A list in which each value of a field occurs once: whoever applies it changes the items that it names."""
    extra: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return Field(min_length=least, max_length=most, json_schema_extra=extra)


class ApiModel(BaseModel):
    """A node of a resource. Unknown fields are tolerated: a newer apiserver may hold what this version does not know."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary in wire names, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


MAXIMUM_SPEC_BYTES = 262_144
"""What is decided from a spec is recorded in the status of the same object, and etcd keeps objects of 1.5 MiB."""


def size_problem(spec: ApiModel) -> str | None:
    """Why a spec is too large to be worked on, with the way out; None where it is not."""
    size = len(json.dumps(spec.to_dict()).encode())
    if size <= MAXIMUM_SPEC_BYTES:
        return None
    return (
        f"spec has {size:,} bytes as JSON, and at most {MAXIMUM_SPEC_BYTES:,} leave room for the status of the object: "
        "shorten what is long in it (affinity, labels and annotations of podTemplate, tolerations, lists)"
    )


def first_problem(error: ValidationError, *, root: str = "") -> str:
    """The first thing that is wrong, with where it is: `spec.method.type: Input should be ...`. `root`: the name of
    the whole."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or root}: {first['msg']}"


class StrictModel(ApiModel):
    """A node of a run file or a message between our own processes. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


def _rfc3339(value: datetime) -> str:
    return f"{value.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]
"""A UTC time, written as RFC 3339 with whole seconds, as Kubernetes does."""

Name = Annotated[
    str,
    Field(min_length=1, max_length=253),
    form(
        "lower case letters and digits, - and . between them", "router-7", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
    ),
]
"""The name of a Kubernetes object."""
ShortName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    form("lower case letters and digits, - between them", "tickets-2026", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
"""A name that fits into a label and into a file's name."""

Uri = Annotated[str, Field(min_length=1, max_length=2048)]
Digest = Annotated[
    str,
    Field(max_length=71),
    form("sha256: and 64 hexadecimal digits", f"sha256:{'0123456789abcdef' * 4}", pattern=r"^sha256:[0-9a-f]{64}$"),
]


class ObjectReference(ApiModel):
    """Another object of the same namespace, by name."""

    name: Name
    """Its name."""


class VersionReference(ApiModel):
    """A ModelVersion, by name and, once known, by UID: a name can be reused, a UID cannot."""

    name: Name
    """The ModelVersion's name."""
    uid: str | None = None
    """Its UID; unset until the version was seen."""


class SecretReference(ApiModel):
    """A Secret of the same namespace. Its keys become environment variables of the run's containers."""

    name: Name
    """The Secret's name."""


class Condition(ApiModel):
    """The Kubernetes condition (metav1.Condition)."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about, e.g. Ready."""
    status: Literal["True", "False", "Unknown"]
    """True, False, or Unknown."""
    observed_generation: int | None = None
    """The metadata.generation that it was said of."""
    last_transition_time: Time | None = None
    """When the status changed last."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one CamelCase word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in a sentence for people."""


Conditions = Annotated[list[Condition], keyed_by("type", most=32)]
ObservedGeneration = Annotated[int | None, BeforeValidator(lambda value: None if value == -1 else value)]
"""-1, as in UNSEEN, is read as None."""


class ObjectMeta(ApiModel):
    """The part of Kubernetes object metadata that we read."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
