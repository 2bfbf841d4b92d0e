"""HTTP calls to the apiserver: one function, plain dictionaries, and the errors of the ports.

The Kubernetes client does what is hard (kubeconfig, exec plug-ins, tokens that rotate, TLS, connection reuse). Its
generated classes stay out of it: objects pass through unread, so a field this client has never heard of survives.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from finetune_operator.core.ports import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    Manifest,
    NotAllowedError,
    NotFoundError,
    UnavailableError,
)

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Query = Sequence[tuple[str, str]]
Observer = Callable[[str, str, int, float], None]
"""Called after each request with its method and path, the HTTP status (0: no answer) and the seconds it took."""

JSON = "application/json"
YAML = "application/yaml"
APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
PAGE_SIZE = 500
CONNECTIONS = 32
CONNECT_SECONDS = 5.0

# A 403 is either a policy that refuses the object, which no retry changes, or something about ourselves that an
# administrator can change at any time (RBAC, quota, a namespace going away). Only the message tells them apart.
_REFUSED_BY_POLICY = re.compile(r"ValidatingAdmissionPolicy|admission webhook|denied the request|violates PodSecurity")

# Server-side apply of a field that the type does not have is an internal error (500) to the apiserver.
_NOT_IN_SCHEMA = "failed to create typed patch object"

# A webhook with failurePolicy Fail whose pods are away: the apiserver itself is well.
_DOES_NOT_ANSWER = "failed calling webhook"


async def load_configuration(*, kubeconfig: str | None, context: str | None) -> Configuration:
    """Where the cluster is and who we are: the pod's service account, or else a kubeconfig (None: kubectl's default).

    Raises UnavailableError where there is neither.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                load_incluster_config(client_configuration=configuration)
            except ConfigException:
                await load_kube_config(client_configuration=configuration)
        else:
            await load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    except ConfigException as error:
        raise UnavailableError(f"no cluster is configured: {error}; set KUBECONFIG or pass --kubeconfig") from error
    return configuration


class Api:
    """A client of one apiserver. Every call may raise the errors of the ports; UnavailableError covers all that is
    not an answer about the object: timeouts, refused connections, 401, 403 by RBAC, 429 and 5xx."""

    def __init__(
        self,
        *,
        configuration: Configuration,
        timeout_seconds: float = 15.0,
        observer: Observer | None = None,
        user_agent: str = "finetune-operator",
    ) -> None:
        configuration.connection_pool_maxsize = CONNECTIONS
        # Reading the proxies of the environment costs two thread switches for each request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        self._client = ApiClient(configuration=configuration)
        self._client.user_agent = user_agent
        self._timeout = timeout_seconds
        self._observer = observer

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def request(
        self,
        *,
        method: Method,
        path: str,
        query: Query = (),
        body: Manifest | str | None = None,
        content_type: str = JSON,
        timeout_seconds: float | None = None,
    ) -> Manifest:
        """The answer's JSON object. `timeout_seconds` covers the whole exchange; default: the client's."""
        status, answer = await self._call(
            method=method,
            path=path,
            query=query,
            body=body,
            headers={"Accept": JSON, "Content-Type": content_type},
            timeout_seconds=timeout_seconds or self._timeout,
        )
        if status >= 400:
            raise error_of(status=status, answer=answer, request=f"{method} {path}")
        return answer

    async def stream(self, *, path: str, query: Query = ()) -> AsyncIterator[bytes]:
        """What a GET answers with, in pieces, for as long as they come. Raises UnavailableError where it breaks off."""
        try:
            request = await self._client.param_serialize(
                "GET", path, query_params=list(query), header_params={}, auth_settings=["BearerToken"]
            )
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            async with (await self._client.call_api(*request, _request_timeout=timeout)).response as answer:
                if answer.status >= 400:
                    told = _parsed(await answer.read())
                    raise error_of(status=answer.status, answer=told, request=f"GET {path}")
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"GET {path}: {error or type(error).__name__}") from error

    async def pages(self, *, path: str, query: Query = ()) -> AsyncIterator[Manifest]:
        """The items of a collection, read page by page."""
        token = ""
        while True:
            status, answer = await self._call(
                method="GET",
                path=path,
                query=[*query, ("limit", str(PAGE_SIZE)), *([("continue", token)] if token else [])],
                body=None,
                headers={"Accept": JSON},
                timeout_seconds=self._timeout,
            )
            # 410: the snapshot that the pages came from was compacted away. The answer then holds a token that goes on
            # from the same place in the newest state, which is all that a level-triggered reader needs.
            token = str((answer.get("metadata") or {}).get("continue") or "")
            if status >= 400 and not (status == 410 and token):
                raise error_of(status=status, answer=answer, request=f"GET {path}")
            for item in answer.get("items") or ():
                yield item
            if not token:
                return

    async def _call(
        self,
        *,
        method: Method,
        path: str,
        query: Query,
        body: Manifest | str | None,
        headers: dict[str, str],
        timeout_seconds: float,
    ) -> tuple[int, Manifest]:
        started = time.monotonic()
        status = 0
        try:
            request = await self._client.param_serialize(
                method, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            # The client hands its timeout argument to aiohttp as it is.
            answer = await self._client.call_api(
                *request, _request_timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
            )
            text = await answer.read()
            status = int(answer.status)
            return status, _parsed(text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            if self._observer is not None:
                self._observer(method, path, status, time.monotonic() - started)


def error_of(*, status: int, answer: Manifest, request: str) -> Exception:
    """The port's error for an answer of status 400 and above. `answer` is the Status object, as far as there is one."""
    reason = str(answer.get("reason", ""))
    message = str(answer.get("message") or f"{request}: HTTP {status}")
    if status in (404, 410):
        return NotFoundError(message)
    if status == 409:
        return AlreadyExistsError(message) if reason == "AlreadyExists" else ConflictError(message)
    refused = status in (400, 413, 415, 422)
    by_policy = status == 403 and _REFUSED_BY_POLICY.search(message)
    by_schema = status == 500 and _NOT_IN_SCHEMA in message
    if refused or by_policy or by_schema:
        return InvalidError(message)
    not_now = status == 403 or (status == 500 and _DOES_NOT_ANSWER in message)
    return NotAllowedError(message) if not_now else UnavailableError(message)


def _parsed(text: bytes) -> Manifest:
    """The JSON object, or an empty one: a proxy in between answers HTML."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
