"""values.yaml, values.schema.json and the operator's settings speak of the same things."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.chart.helm import CHART, Helm, HelmError
from tests.chart.test_rendering import environment

from finetune_operator.core.config import OperatorConfig

VALUES = CHART / "values.yaml"
ALL_VALUES = CHART / "ci" / "all-values.yaml"
WITH_OWN_KEYS = {"trainer_image", "gateway_image", "namespaces"}
"""Settings that are not under `config`: images have keys of their own, and namespaces decide rights too."""
_COMMENTED = re.compile(r"  # (\w+: .*)")


def documented_config() -> dict[str, Any]:
    """The settings that stand in values.yaml as comments, with the defaults that they show."""
    block = VALUES.read_text().split("\nconfig:\n")[1].split("\n\n")[0]
    lines = [match[1] for line in block.splitlines() if (match := _COMMENTED.fullmatch(line))]
    config: dict[str, Any] = yaml.safe_load("\n".join(lines))
    return config


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def test_every_setting_of_the_operator_is_a_value() -> None:
    settings = {camel_case(name) for name in OperatorConfig.model_fields if name not in WITH_OWN_KEYS}
    assert set(documented_config()) == settings, "describe it in values.yaml under `config`, with its default"
    assert set(schema()["properties"]["config"]["properties"]) == settings, "add it to values.schema.json"


def test_documented_defaults_are_the_operators(helm4: Helm) -> None:
    """What values.yaml shows can be set as it stands, and changes nothing."""
    set_by_hand = environment(helm4.objects({"config": documented_config()}))
    by_default = environment(helm4.objects())
    assert len(set_by_hand) > len(by_default)
    assert OperatorConfig.from_environment(set_by_hand) == OperatorConfig.from_environment(by_default)


def test_every_setting_reaches_the_operator(helm: Helm) -> None:
    given = yaml.safe_load(ALL_VALUES.read_text())["config"]
    read = OperatorConfig.from_environment(environment(helm.objects(ALL_VALUES)))
    default = OperatorConfig(trainer_image="unset")
    assert set(given) == set(documented_config()), "ci/all-values.yaml sets all"
    for name in OperatorConfig.model_fields:
        value = getattr(read, name)
        if name in WITH_OWN_KEYS:
            continue
        assert value != getattr(default, name), name
        expected = None if given[camel_case(name)] == "none" else given[camel_case(name)]
        if name.endswith("_resources"):
            requested = value.model_dump(exclude_none=True)
            assert json.dumps(requested) == json.dumps(_as_text(expected, like=requested)), name
        else:
            assert value == (tuple(expected) if isinstance(expected, list) else expected), name


def _as_text(given: Any, *, like: Any) -> Any:
    """Quantities may be numbers in values, and may be text in the operator."""
    if isinstance(given, dict):
        return {key: _as_text(item, like=like.get(key)) for key, item in given.items()}
    return str(given) if isinstance(like, str) else given


def test_all_values_sets_every_value() -> None:
    """Else "all options on" would not be all."""
    defaults = yaml.safe_load(VALUES.read_text())
    given = yaml.safe_load(ALL_VALUES.read_text())
    unset = {
        f"{key}.{inner}" if inner else key
        for key, default in defaults.items()
        for inner in (default if is_group(key) else [""])
        if key not in given or (inner and inner not in given[key])
    }
    on_already = {f"{key}.enabled" for key in ("crds", "policies", "podDisruptionBudget", "networkPolicy")}
    on_already |= {"crds.keep", "policies.keep", "rbac.create", "serviceAccount.create"}
    assert unset - on_already == {"namespaces", "namespaceOverride", "trainerImage.tag", "gatewayImage.digest"}


def is_group(key: str) -> bool:
    """Whether a value holds values of ours, not a setting of Kubernetes as it is there."""
    return "properties" in _resolved(schema()["properties"][key]) and key not in ("config", "resources")


def test_every_value_is_described() -> None:
    text = VALUES.read_text()
    lines = text.splitlines()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    undescribed = [
        inner.value
        for key, value in root.value
        for inner in ([item for item, _ in value.value] if is_group(key.value) else [key])
        if not _has_description(lines[: inner.start_mark.line])
    ]
    assert undescribed == []


def _has_description(lines: list[str]) -> bool:
    """Whether the comment that the lines end with begins as a description does."""
    above = [line.strip() for line in lines]
    while above and above[-1].startswith("# ") and not above[-1].startswith("# --"):
        above.pop()
    return bool(above) and above[-1].startswith("# -- ")


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    values = yaml.safe_load(VALUES.read_text())
    properties = schema()["properties"]
    assert set(values) == set(properties) - {"global"}
    for key in filter(is_group, values):
        assert set(values[key]) == set(_resolved(properties[key])["properties"]), key


def test_no_object_with_known_keys_takes_others() -> None:
    open_ones = [path for path, part in _objects(schema()) if "properties" in part and part["additionalProperties"]]
    assert open_ones == []


def _objects(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield path, {"additionalProperties": True, **part}
        for key, item in part.items():
            yield from _objects(item, f"{path}/{key}")


def _resolved(part: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    found: dict[str, Any] = schema()["definitions"][reference.rsplit("/", 1)[1]] if reference else part
    return found


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"replcas": 3}, "additional properties 'replcas' not allowed"),
    ({"image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
    ({"config": {"allowedRoot": ["s3://"]}}, "at '/config': additional properties 'allowedRoot' not allowed"),
    ({"replicas": "two"}, "at '/replicas': got string, want integer"),
    ({"image": {"tag": 1.5}}, "at '/image/tag': got number, want string"),
    ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match"),
    ({"image": {"repository": ""}}, "at '/image/repository': minLength: got 0, want 1"),
    ({"image": {"pullPolicy": "always"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
    ({"namespaces": "ml"}, "at '/namespaces': got string, want array"),
    ({"namespaces": ["ml", "ml"]}, "at '/namespaces': items at 0 and 1 are equal"),
    ({"namespaces": ["ML"]}, "at '/namespaces/0': 'ML' does not match"),
    ({"config": {"workers": 0}}, "at '/config/workers': minimum: got 0, want 1"),
    ({"config": {"allowedRoots": []}}, "at '/config/allowedRoots': minItems: got 0, want 1"),
    ({"config": {"allowedRoots": ["s3://a s3://b"]}}, "at '/config/allowedRoots/0': 's3://a s3://b' does not match"),
    ({"config": {"computeResources": {"request": {}}}}, "additional properties 'request' not allowed"),
    ({"config": {"trustRemoteCode": "yes"}}, "at '/config/trustRemoteCode': got string, want boolean"),
    (
        {"podDisruptionBudget": {"maxUnavailable": 0}},
        "at '/podDisruptionBudget/maxUnavailable': minimum: got 0, want 1",
    ),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "at '/podLabels/app.kubernetes.io~1name'"),
    ({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean, want string"),
    ({"serviceMonitor": {"interval": "15"}}, "at '/serviceMonitor/interval': '15' does not match"),
    ({"podMonitors": {"interval": "15"}}, "at '/podMonitors/interval': '15' does not match"),
    ({"prometheusRule": {"runbookUrl": "wiki"}}, "at '/prometheusRule/runbookUrl': 'wiki' does not match"),
    ({"networkPolicy": {"apiserverPorts": [70000]}}, "maximum: got 70,000, want 65,535"),
    ({"config": {"metrics": "off"}}, "at '/config/metrics': value must be one of 'Open'"),
    ({"config": {"metrics": "Off"}, "serviceMonitor": {"enabled": True}}, "set one of the two otherwise"),
    ({"extraArgs": ["debug"]}, "at '/extraArgs/0': 'debug' does not match"),
    ({"namespaces": ["ml"], "config": {"excludedNamespaces": ["sandbox"]}}, "set one of the two"),
]


@pytest.mark.parametrize(
    ("values", "words"), REFUSED, ids=lambda item: json.dumps(item) if isinstance(item, dict) else ""
)
def test_a_wrong_value_is_refused_and_named(helm4: Helm, values: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError) as refusal:
        helm4.objects(values)
    assert words in refusal.value.stderr


def test_helm_3_refuses_alike(helm: Helm) -> None:
    values, words = REFUSED[0]
    with pytest.raises(HelmError) as refusal:
        helm.objects(values)
    assert words in refusal.value.stderr


def test_the_chart_works_as_part_of_another(helm4: Helm) -> None:
    """Helm then gives it `global`."""
    assert helm4.objects({"global": {"imageRegistry": "x"}}) == helm4.objects()
