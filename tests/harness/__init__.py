"""Real Kubernetes environments for the tests: see README.md beside this file."""

from tests.harness.apiserver import ApiServer
from tests.harness.cluster import Cluster
from tests.harness.errors import HarnessError, MissingPrerequisite, Timeout
from tests.harness.kubectl import Kubectl, KubectlError, Object
from tests.harness.waiting import wait_until

__all__ = [
    "ApiServer",
    "Cluster",
    "HarnessError",
    "Kubectl",
    "KubectlError",
    "MissingPrerequisite",
    "Object",
    "Timeout",
    "wait_until",
]
