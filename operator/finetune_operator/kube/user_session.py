"""What `finetune` needs of a cluster on behalf of a user: kubectl's context, reads, logs, questions about rights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.kube_config import list_kube_config_contexts

from finetune_operator.kube.api import CONNECT_SECONDS, MERGE_PATCH, Api, load_configuration
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.kinds import PLACES
from finetune_operator.ports import Kind, Manifest, NotFoundError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class UserSession:
    """A connection with a user's credentials. `namespace` is the context's."""

    api: Api
    cluster: KubernetesCluster
    namespace: str
    server: str
    configuration: Configuration

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
        headers = {"User-Agent": "finetune"}
        token = await self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        context = ApiClient(configuration=self.configuration).rest_client.ssl_context
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        query = {"container": container, "follow": "true" if follow else "false"}
        path = f"{self.configuration.host}/api/v1/namespaces/{namespace}/pods/{pod}/log"
        connector = aiohttp.TCPConnector(ssl=context)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, proxy=self.configuration.proxy, trust_env=True
                ) as session,
                session.get(path, params=query, headers=headers) as answer,
            ):
                if answer.status in (400, 404):
                    raise NotFoundError(f"pod {pod} has no log (yet): {await _message(answer)}")
                if answer.status >= 400:
                    raise UnavailableError(f"the log of pod {pod}: {await _message(answer)}")
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
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
            configuration=configuration,
        )
    finally:
        await api.close()


def _namespace_of(*, kubeconfig: str | None, context: str | None) -> str:
    try:
        contexts, current = list_kube_config_contexts(config_file=kubeconfig)
    except ConfigException:
        return "default"  # a pod's service account: kubectl, too, then asks for -n
    chosen = next((each for each in contexts if each["name"] == context), current) if context else current
    return str(((chosen or {}).get("context") or {}).get("namespace") or "default")


async def _message(answer: aiohttp.ClientResponse) -> str:
    try:
        return str((await answer.json()).get("message", answer.reason))
    except ValueError:
        return str(answer.reason)
