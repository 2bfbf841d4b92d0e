"""What a backup tool does to an endpoint in place: its objects go, and come again without status under new UIDs."""

from __future__ import annotations

from tests.cluster.endpoints import ENDPOINT, EndpointSpace
from tests.conformance.objects import UNSEEN
from tests.harness import Object
from tests.patience import HANGS_S

_KEPT = ("name", "labels", "annotations")


def recreate(space: EndpointSpace) -> None:
    """Delete endpoint and versions, their children orphaned, and create them from their backup."""
    namespace = space.namespace
    endpoint = space.endpoint()
    backup = [*space.kubectl.list("modelversions", namespace=namespace), endpoint]
    space.kubectl.run("annotate", "modelendpoint", ENDPOINT, "-n", namespace, "finetune.dev/allow-delete=true")
    for each in reversed(backup):
        kind, name = each["kind"].lower(), each["metadata"]["name"]
        space.kubectl.run("delete", kind, name, "-n", namespace, "--cascade=orphan", timeout_s=HANGS_S)
    deployments = space.kubectl.list("deployments", namespace=namespace)
    assert deployments, "the children stay"
    assert not any(each["metadata"].get("ownerReferences") for each in deployments), "and nobody owns them"
    space.kubectl.create([_restored(each) for each in backup], namespace=namespace)
    again = space.kubectl.get("modelendpoint", ENDPOINT, namespace=namespace)
    assert again["metadata"]["uid"] != endpoint["metadata"]["uid"]
    assert again["status"] == UNSEEN


def _restored(found: Object) -> Object:
    metadata = {key: found["metadata"][key] for key in _KEPT if key in found["metadata"]}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata, "spec": found["spec"]}
