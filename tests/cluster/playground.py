"""`make cluster-up`: the test cluster with the operator and, in namespace `ml`, a claim with a model and data."""

from __future__ import annotations

from tests.cluster.jobs import prepare
from tests.cluster.operator_install import install
from tests.harness import Cluster
from tests.harness.images import build_images

NAME = "dev"
NAMESPACE = "ml"


def main() -> None:
    """Install into the running cluster `dev` and say what to try."""
    cluster = Cluster.open(NAME).with_images(build_images())
    with cluster.inside():
        install(cluster=cluster)
        if cluster.kubectl.find("namespace", NAMESPACE) is None:
            cluster.kubectl.run("create", "namespace", NAMESPACE)
            cluster.kubectl.run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
            prepare(cluster=cluster, namespace=NAMESPACE)
    print(
        "The operator runs. Open a shell in the cluster's network, and try:\n"
        "  .venv/bin/python -m tests.harness exec -- bash\n"
        "  kubectl apply -n ml -f manifests/samples/topic_classifier.yaml\n"
        "  kubectl get ftj -n ml -w"
    )


if __name__ == "__main__":
    main()
