"""What `finetune` needs of a cluster on behalf of a user: kubectl's context, reads, logs, questions about rights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.kube_config import list_kube_config_contexts

from finetune_operator.core.ports import InvalidError, Kind, Manifest, NotFoundError, UnavailableError
from finetune_operator.kube.api import MERGE_PATCH, Api, load_configuration
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.kinds import PLACES


@dataclass(frozen=True, kw_only=True)
class UserSession:
    """A connection with a user's credentials. `namespace` is the context's."""

    api: Api
    cluster: KubernetesCluster
    namespace: str
    server: str

    async def version(self) -> str:
        """The apiserver's version, e.g. v1.36.3. Raises UnavailableError."""
        answer = await self.api.request(method="GET", path="/version")
        return str(answer.get("gitVersion", ""))

    async def may(self, *, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether the user may do this (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
        review: Manifest = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await self.api.request(method="POST", path=path, body=review)
        return bool((answer.get("status") or {}).get("allowed"))

    async def user_name(self) -> str:
        """Who the apiserver takes the user for (SelfSubjectReview)."""
        review: Manifest = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        answer = await self.api.request(method="POST", path=path, body=review)
        return str(answer["status"]["userInfo"]["username"])

    async def annotate(
        self, *, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str | None]
    ) -> Manifest:
        """Write annotations in one patch; None removes. Raises NotFoundError, InvalidError where a policy refuses."""
        return await self.api.request(
            method="PATCH",
            path=PLACES[kind].item(namespace=namespace, name=name),
            query=[("fieldManager", "finetune")],
            body={"metadata": {"annotations": dict(annotations)}},
            content_type=MERGE_PATCH,
        )

    async def find(self, *, path: str) -> Manifest | None:
        """Any object by its path, None where there is none."""
        try:
            return await self.api.request(method="GET", path=path)
        except NotFoundError:
            return None

    async def log(self, *, namespace: str, pod: str, container: str, follow: bool) -> AsyncIterator[bytes]:
        """What a container said, in pieces; with `follow` until it has ended.

        Raises NotFoundError where the pod is gone or has not started, UnavailableError where the answer breaks off.
        """
        path = f"{PLACES['Pod'].item(namespace=namespace, name=pod)}/log"
        query = [("container", container), ("follow", "true" if follow else "false")]
        try:
            async for piece in self.api.stream(path=path, query=query):
                yield piece
        except (InvalidError, NotFoundError) as error:  # 400: its container has not begun
            raise NotFoundError(f"pod {pod} has no log (yet): {error}") from error
        except UnavailableError as error:
            raise UnavailableError(f"the log of pod {pod}: {error}") from error


@asynccontextmanager
async def open_user_session(*, kubeconfig: str | None, context: str | None) -> AsyncIterator[UserSession]:
    """Connect as kubectl would. Raises UnavailableError where no cluster is configured."""
    configuration = await load_configuration(kubeconfig=kubeconfig, context=context)
    api = Api(configuration=configuration, user_agent="finetune")
    try:
        yield UserSession(
            api=api,
            cluster=KubernetesCluster(api=api),
            namespace=_namespace_of(kubeconfig=kubeconfig, context=context),
            server=configuration.host,
        )
    finally:
        await api.close()


@asynccontextmanager
async def open_token_session(*, server: str, ca_file: str | None, token: str) -> AsyncIterator[UserSession]:
    """Connect as whoever the bearer token belongs to; nothing of this process' own identity goes with it."""
    configuration = Configuration(host=server)
    configuration.ssl_ca_cert = ca_file
    configuration.api_key["BearerToken"] = f"Bearer {token}"
    api = Api(configuration=configuration, user_agent="finetune-console")
    try:
        yield UserSession(api=api, cluster=KubernetesCluster(api=api), namespace="default", server=server)
    finally:
        await api.close()


def _namespace_of(*, kubeconfig: str | None, context: str | None) -> str:
    try:
        contexts, current = list_kube_config_contexts(config_file=kubeconfig)
    except ConfigException:
        return "default"  # a pod's service account: kubectl, too, then asks for -n
    chosen = next((each for each in contexts if each["name"] == context), current) if context else current
    return str(((chosen or {}).get("context") or {}).get("namespace") or "default")
