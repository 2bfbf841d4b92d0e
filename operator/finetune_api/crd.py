"""CustomResourceDefinitions from the pydantic types: structural schema, CEL rules, columns, short names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel

from finetune_api import GROUP, VERSION
from finetune_api.base import FORM, STORED_DEFAULT, ApiModel, Rule
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion

_KEPT = {
    "type",
    "description",
    "enum",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "format",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
}


_VALUE = re.compile(r"{((?:self|oldSelf)\b[^{}]*)}")
_TYPE_FIELDS = {
    "apiVersion": f"The version of this schema: {GROUP}/{VERSION}.",
    "kind": "The resource that the object is of.",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of `kubectl get`. Priority 1 shows with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where `kubectl scale` and autoscalers find and write the number of pods. The apiserver asks that it is always there:
    the field has a default in the schema."""

    wanted: str
    existing: str
    selector: str
    """As text, of the pods whose load an autoscaler measures."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """How a type is offered by the apiserver."""

    model: type[ApiModel]
    plural: str
    short_name: str
    word: str
    """What people call it: `finetune get jobs`."""
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    scale: Scale | None = None

    @property
    def kind(self) -> ResourceKind:
        """The resource's kind."""
        return cast("ResourceKind", self.model.__name__)


ResourceKind = Literal["FineTuneJob", "ModelVersion", "ModelEndpoint"]
AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")

RESOURCES: tuple[Resource, ...] = (
    Resource(
        model=FineTuneJob,
        plural="finetunejobs",
        short_name="ftj",
        word="job",
        columns=(
            Column(name="Phase", path=".status.phase"),
            Column(name="Progress", path=".status.trainerStatus.progressPercentage", type="integer"),
            Column(name="Version", path=".status.modelVersion.name"),
            Column(name="Endpoint", path=".spec.endpointRef.name"),
            Column(name="Step", path=".status.trainerStatus.metrics[?(@.name=='step')].value", priority=1),
            Column(name="Loss", path=".status.trainerStatus.metrics[?(@.name=='loss')].value", priority=1),
            Column(name="ETA", path=".status.trainerStatus.estimatedRemainingSeconds", type="integer", priority=1),
            Column(name="Message", path=".status.message", priority=1),
            Column(name="Waits-For", path=".status.next.waitsFor[0]", priority=1),
            AGE,
        ),
        # Children carry the name in labels, and their own names are shortened to fit 63 characters.
        rules=(
            Rule(
                rule="size(self.metadata.name) <= 63",
                message="metadata.name: {self.metadata.name} has more than 63 characters",
            ),
        ),
    ),
    Resource(
        model=ModelVersion,
        plural="modelversions",
        short_name="mv",
        word="version",
        columns=(
            Column(name="Endpoint", path=".spec.endpointRef.name"),
            Column(name="Verdict", path=".spec.evaluation.verdict"),
            Column(name="Method", path=".spec.method.type"),
            Column(name="Base", path=".spec.base.uri", priority=1),
            Column(name="Metric", path=".spec.evaluation.results[0].metric"),
            Column(name="Candidate", path=".spec.evaluation.results[0].candidate", type="number"),
            Column(name="Baseline", path=".spec.evaluation.results[0].baseline", type="number"),
            AGE,
        ),
    ),
    Resource(
        model=ModelEndpoint,
        plural="modelendpoints",
        short_name="mep",
        word="endpoint",
        columns=(
            Column(name="Phase", path=".status.phase"),
            Column(name="Stable", path=".status.stable.name"),
            Column(name="Candidate", path=".status.candidate.name"),
            Column(name="Weight", path=".status.step.percent", type="number"),
            Column(name="Samples", path=".status.step.samples", type="integer"),
            Column(name="Message", path=".status.message", priority=1),
            Column(name="Waits-For", path=".status.next.waitsFor[0]", priority=1),
            AGE,
        ),
        # It is the name of the Service that clients call, the model name they send, and the value of a label.
        rules=(
            Rule(
                rule="size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                message="metadata.name: {self.metadata.name} must have at most 63 characters, begin with a letter and have no dots: it names a Service",
            ),
        ),
        scale=Scale(wanted=".spec.serving.replicas", existing=".status.replicas", selector=".status.selector"),
    ),
)


def custom_resource_definition(*, resource: Resource) -> dict[str, Any]:
    """The CustomResourceDefinition manifest (apiextensions.k8s.io/v1) of a resource."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["finetune", "ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in resource.columns],
                    "subresources": {"status": {}, **_scale(resource.scale)},
                    "schema": {"openAPIV3Schema": object_schema(resource=resource)},
                }
            ],
        },
    }


def object_schema(*, resource: Resource) -> dict[str, Any]:
    """The structural schema of a whole object."""
    models = _models_by_name(resource.model)
    document = resource.model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(document, document.get("$defs", {}), models, resource.model)
    for name, description in _TYPE_FIELDS.items():
        schema["properties"][name] = {"type": "string", "description": description}
    schema["properties"]["metadata"] = {"type": "object"}  # a schema of its own is not allowed here
    schema["required"] = ["spec"]
    rules = [_validation(rule) for rule in resource.rules]
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema


def _column(column: Column) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.priority:
        fields["priority"] = column.priority
    return fields


def _scale(scale: Scale | None) -> dict[str, Any]:
    if scale is None:
        return {}
    paths = {
        "specReplicasPath": scale.wanted,
        "statusReplicasPath": scale.existing,
        "labelSelectorPath": scale.selector,
    }
    return {"scale": paths}


def _validation(rule: Rule) -> dict[str, Any]:
    """With values in it, a message is an expression too; the plain one stands in for it where that cannot be read."""
    found = {"rule": rule.rule, "message": re.sub(f"(: )?{_VALUE.pattern}", "", rule.message)}
    values = ", ".join(_VALUE.findall(rule.message))
    text = json.dumps(_VALUE.sub("%s", rule.message.replace("%", "%%")))
    return {**found, "messageExpression": f"{text}.format([{values}])"} if values else found


def _models_by_name(root: type[BaseModel]) -> dict[str, type[ApiModel]]:
    """All models reachable from `root`, by class name: the names under $defs."""
    found: dict[str, type[ApiModel]] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if issubclass(annotation, ApiModel) and annotation.__name__ not in found:
                found[annotation.__name__] = annotation
                for field in annotation.model_fields.values():
                    visit(field.annotation)
            return
        for argument in getattr(annotation, "__args__", ()):
            visit(argument)

    visit(root)
    return found


def _structural(
    node: dict[str, Any],
    definitions: dict[str, Any],
    models: dict[str, type[ApiModel]],
    model: type[ApiModel] | None = None,
) -> dict[str, Any]:
    """One JSON-schema node of pydantic as a Kubernetes structural schema node: no $ref, no null, no defaults
    but those that a field asks for (STORED_DEFAULT)."""
    outer = {key: value for key, value in node.items() if key in _KEPT}
    if "description" in outer:
        outer["description"] = " ".join(str(outer["description"]).split())
    if FORM in node:
        outer["x-kubernetes-validations"] = [node[FORM]]
    if STORED_DEFAULT in node:
        outer["default"] = node[STORED_DEFAULT]
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/$defs/")
        return {**_structural(definitions[name], definitions, models, models.get(name)), **outer}
    if "anyOf" in node:
        variants = [variant for variant in node["anyOf"] if variant.get("type") != "null"]
        if {variant.get("type") for variant in variants} == {"string", "integer"}:
            return {**outer, "x-kubernetes-int-or-string": True}
        if len(variants) != 1:
            raise ValueError(f"no structural schema for a union: {node}")
        return {**_structural(variants[0], definitions, models), **outer}
    result = dict(outer)
    if "const" in node:
        result["enum"] = [node["const"]]
    if "exclusiveMinimum" in node:
        result |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if "exclusiveMaximum" in node:
        result |= {"maximum": node["exclusiveMaximum"], "exclusiveMaximum": True}
    if "properties" in node:
        result["properties"] = {
            name: _structural(value, definitions, models) for name, value in node["properties"].items()
        }
        required = [name for name in node.get("required", ()) if name != "metadata"]
        result.pop("required", None)
        if required:
            result["required"] = required
    elif node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        additional = node.get("additionalProperties")
        if isinstance(additional, dict):
            result["additionalProperties"] = _structural(additional, definitions, models)
    if "items" in node:
        result["items"] = _structural(node["items"], definitions, models)
    if model is not None and model.cel_rules:
        result["x-kubernetes-validations"] = [_validation(rule) for rule in model.cel_rules]
    return result


__all__ = ["RESOURCES", "Column", "Resource", "Scale", "custom_resource_definition", "object_schema"]
