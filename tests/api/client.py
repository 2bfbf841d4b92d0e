"""Connections of tests to the apiserver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from tests.harness import ApiServer

from finetune_operator.kube.api import Api, load_configuration


@asynccontextmanager
async def open_api(apiserver: ApiServer, *, timeout_seconds: float = 15.0) -> AsyncIterator[Api]:
    """The operator's own client, as the administrator."""
    configuration = await load_configuration(kubeconfig=str(apiserver.kubeconfig), context=None)
    api = Api(configuration=configuration, timeout_seconds=timeout_seconds)
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def open_session(apiserver: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A bare HTTP session, for tests that look at the answers themselves."""
    configuration = await load_configuration(kubeconfig=str(apiserver.kubeconfig), context=None)
    context = ApiClient(configuration=configuration).rest_client.ssl_context
    async with aiohttp.ClientSession(
        base_url=configuration.host, connector=aiohttp.TCPConnector(ssl=context)
    ) as session:
        yield session
