"""When a child is as it should be: told by what was applied and who manages which field, not by values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.settling import APPLIED_ANNOTATION, covers, differences, settled

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
WANTED: Manifest = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "ml", "labels": {"app": "web"}},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "args": ["serve"],
                        "name": "server",
                        "env": [{"name": "A", "value": "1"}],
                        "ports": [{"name": "http", "containerPort": 8000}],
                        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}},
                        "volumeMounts": [],
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}


def container_fields(*, env: str = 'k:{"name":"A"}') -> dict[str, Any]:
    return {
        ".": {},
        "f:name": {},
        "f:args": {},
        "f:env": {env: {".": {}, "f:name": {}, "f:value": {}}},
        "f:ports": {'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:containerPort": {}, "f:name": {}}},
        "f:resources": {"f:requests": {"f:cpu": {}, "f:memory": {}}},
    }


def managed(*, replicas: bool = True, env: str = 'k:{"name":"A"}', others: list[Any] | None = None) -> list[Any]:
    spec: dict[str, Any] = {
        "f:template": {
            "f:spec": {
                "f:containers": {'k:{"name":"server"}': container_fields(env=env)},
                "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:name": {}, "f:emptyDir": {}}},
            }
        }
    }
    fields = {"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": spec | ({"f:replicas": {}} if replicas else {})}
    ours = {"manager": "finetune-operator", "operation": "Apply", "time": "2026-01-05T11:00:00Z", "fieldsV1": fields}
    return [ours, *(others or [])]


def other(manager: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "time": "2026-01-05T11:59:00Z", "fieldsV1": fields}


def live(managers: list[Any], **spec: Any) -> Manifest:
    """What the apiserver shows: quantities in its own words, defaults, and a stamp."""
    applied = settled(wanted=WANTED, live=None, now=NOW).apply
    assert applied is not None
    (container,) = WANTED["spec"]["template"]["spec"]["containers"]
    shown = {
        **container,
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
        "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
    }
    template = {"spec": {"containers": [shown], "volumes": [{"name": "tmp", "emptyDir": {}}], "dnsPolicy": "Default"}}
    metadata = {**applied["metadata"], "uid": "u", "managedFields": managers}
    return {**applied, "metadata": metadata, "spec": {"replicas": 2, "template": template, **spec}}


def test_what_is_not_there_is_made() -> None:
    made = settled(wanted=WANTED, live=None, now=NOW).apply
    assert made is not None
    assert "uid" not in made["metadata"], "create-only"
    assert APPLIED_ANNOTATION in made["metadata"]["annotations"]


def test_values_that_the_apiserver_writes_differently_are_at_rest() -> None:
    found = settled(wanted=WANTED, live=live(managed()), now=NOW)
    assert (found.apply, found.contested, found.look_again) == (None, None, None)


def test_something_else_is_wanted() -> None:
    wanted = {**WANTED, "spec": {**WANTED["spec"], "replicas": 3}}
    found = settled(wanted=wanted, live=live(managed()), now=NOW)
    assert found.apply is not None
    assert found.apply["metadata"]["uid"] == "u"
    assert found.contested is None


SCALED = other("kubectl", {"f:spec": {"f:replicas": {}}})
SET_ENV = other(
    "kubectl-set",
    {
        "f:spec": {
            "f:template": {
                "f:spec": {
                    "f:containers": {'k:{"name":"server"}': {"f:env": {'k:{"name":"A"}': {"f:value": {}}}}}
                }
            }
        }
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("managers", "spec", "words"),
    [
        (managed(replicas=False, others=[SCALED]), {"replicas": 7}, "kubectl changed spec.replicas"),
        (managed(replicas=False, others=[SCALED]), {"replicas": None}, "kubectl changed spec.replicas"),
        ([SCALED], {"replicas": 7}, "kubectl changed spec.replicas"),
    ],
    ids=["changed", "removed", "all managers were reset"],
)
def test_what_somebody_changed_is_put_back_and_said(managers: list[Any], spec: dict[str, Any], words: str) -> None:
    found = settled(wanted=WANTED, live=live(managers, **spec), now=NOW)
    assert found.apply is not None
    assert found.contested is not None
    assert words in found.contested


def test_an_element_of_a_list_that_somebody_took_is_named() -> None:
    changed = live(managed(env='k:{"name":"B"}', others=[SET_ENV]))
    changed["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "2"}]
    path = ("spec", "template", "spec", "containers", "server", "env", "A")
    assert list(differences(wanted=WANTED, live=changed)) == [(path, False)]
    found = settled(wanted=WANTED, live=changed, now=NOW)
    assert found.contested is not None
    assert "kubectl-set changed spec.template.spec.containers.server.env.A" in found.contested


def test_what_others_add_is_theirs() -> None:
    added = live(managed())
    added["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "1"}, {"name": "B"}]
    added["spec"]["template"]["spec"]["containers"].append({"name": "mesh-proxy"})
    assert not list(differences(wanted=WANTED, live=added))


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"args": ["other"]}, "args"),
        ({"resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}, "resources.requests.memory"),
        ({"resources": {"requests": {"cpu": "1"}}}, "resources.requests.memory"),
    ],
)
def test_what_admission_made_of_a_field_is_said_and_left(container: dict[str, Any], words: str) -> None:
    """The field stays ours: to apply it again would have the same come of it."""
    bent = live(managed())
    bent["spec"]["template"]["spec"]["containers"][0] |= container
    found = settled(wanted=WANTED, live=bent, now=NOW)
    assert (found.apply, found.look_again) == (None, None)
    assert found.contested is not None
    assert f"a mutating policy or webhook changed spec.template.spec.containers.server.{words} as" in found.contested


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1000m", "1", True),
        (2, "2", True),
        ("1024Mi", "1Gi", True),
        ("0.5", "500m", True),
        ("1e3", "1k", True),
        ("1M", "1Mi", False),
        ("2", "3", False),
        (True, "1", False),
        (1, True, True),
        ("1..2", "1.2", False),
        ("1e9999999", "1", False),
    ],
)
def test_quantities_are_compared_by_what_they_mean(one: Any, other: Any, same: bool) -> None:
    assert covers(live=other, wanted=one) is same


def test_pauses_grow_while_somebody_goes_on_and_the_quarrel_is_forgotten() -> None:
    """Somebody changes it back whenever we have put it back, for an hour; then no more."""
    taken = managed(replicas=False, others=[SCALED])
    now, found, put_back = NOW, live(taken, replicas=7), []
    for _ in range(3600):
        step = settled(wanted=WANTED, live=found, now=now)
        assert step.contested is not None
        if step.apply is not None:
            put_back.append((now - NOW).total_seconds())
            found["metadata"]["annotations"] = step.apply["metadata"]["annotations"]
        now += timedelta(seconds=1)
    assert put_back == [0, 15, 75, 315, 915, 1515, 2115, 2715, 3315]
    found["metadata"]["managedFields"], found["spec"]["replicas"] = managed(), 2
    assert settled(wanted=WANTED, live=found, now=now).contested is not None, "it is not known yet whether that was all"
    later = settled(wanted=WANTED, live=found, now=now + timedelta(seconds=1200))
    assert (later.apply, later.contested, later.look_again) == (None, None, None)


def test_whoever_takes_the_stamp_away_is_not_raced() -> None:
    found = live(managed())
    del found["metadata"]["annotations"]
    just_applied = datetime(2026, 1, 5, 11, 0, 1, tzinfo=UTC)
    soon = settled(wanted=WANTED, live=found, now=just_applied)
    assert soon.apply is None
    assert soon.look_again is not None
    assert settled(wanted=WANTED, live=found, now=soon.look_again).apply is not None


def test_a_field_manager_without_a_name_is_somebody() -> None:
    """Clients may send neither a name nor a user agent."""
    nameless = {key: value for key, value in SCALED.items() if key != "manager"}
    found = settled(wanted=WANTED, live=live(managed(replicas=False, others=[nameless]), replicas=7), now=NOW)
    assert found.contested is not None
    assert "somebody changed spec.replicas" in found.contested
    bare = live([nameless])
    del bare["metadata"]["annotations"]
    assert settled(wanted=WANTED, live=bare, now=NOW).apply is not None
