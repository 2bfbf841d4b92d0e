"""`make cluster-up`: the test cluster with the operator and, in namespace `ml`, models and data of samples and demo."""

from __future__ import annotations

from demo import assets
from tests.cluster.jobs import give_to_pods, prepare
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
            workspace = prepare(cluster=cluster, namespace=NAMESPACE)
            assets.fill_topics(workspace.folder)
            give_to_pods(workspace.folder)
    print(
        "The operator runs. Open a shell in the cluster's network, and try:\n"
        "  .venv/bin/python -m tests.harness exec -- bash\n"
        "  kubectl apply -n ml -f manifests/samples/topic_classifier.yaml\n"
        "  kubectl get ftj -n ml -w\n"
        "and into production, by an endpoint and a job that names it:\n"
        "  kubectl apply -n ml -f demo/topics.yaml -f demo/job-topics-1.yaml\n"
        "  kubectl wait -n ml --for=condition=Promoted ftj/topics-1 --timeout=10m; kubectl describe mep -n ml topics"
    )


if __name__ == "__main__":
    main()
