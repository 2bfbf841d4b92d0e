"""Turns changes in the cluster into keys (ports.WatchSource), with kopf as the source of events.

Of kopf only the low-level event handlers are used: no finalizers, no annotations, no timers. A handler reads which of
our objects is concerned and puts its key on the queue, nothing else.

kopf runs in a thread with an event loop of its own. At its end it cancels every task of its loop that began after it,
which in a shared loop would be our workers, servers and the election; and it takes over SIGTERM where it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.request import getproxies

import aiohttp
import kopf
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetune_api import GROUP, VERSION
from finetune_operator.core.names import OWNED_LABEL
from finetune_operator.core.ports import Enqueue, Key, Kind, Manifest, NotFoundError, UnavailableError
from finetune_operator.core.status_writing import key_of
from finetune_operator.kinds import FOLLOWED, RECONCILED, concerned, has_ended
from finetune_operator.kube.api import PAGE_SIZE, Api
from finetune_operator.kube.kinds import PLACES

log = logging.getLogger(__name__)

CHILD_KINDS: tuple[Kind, ...] = ("Job", "Pod", "Deployment")
"""What tells of a run's progress. ConfigMaps and Services do not, and watching them would need the right to read all
ConfigMaps of the cluster; one that somebody deleted is missed at the next look."""
_OWN_KINDS = (*RECONCILED, *FOLLOWED)
_KINDS = (*_OWN_KINDS, *CHILD_KINDS)
RELIST_SECONDS = 600.0
_RETRY_SECONDS = 2.0
_AGAIN_SECONDS = 10.0
"""After watching ended, until it surely goes on."""
_STOP_SECONDS = 6.0
_PATIENCE_SECONDS = 2.0
_INSIST_SECONDS = 0.5
_GUARD_SECONDS = 1.0


class KopfWatchSource:
    """Watches our objects and their children.

    `configure` loads the connection anew in kopf's own loop. `namespaces`: those watched; empty: all but
    `excluded_namespaces`. `instance`: objects that become, or are no more, another operator's are news.
    """

    def __init__(
        self,
        *,
        api: Api,
        configure: Callable[[], Awaitable[Configuration]],
        namespaces: tuple[str, ...] = (),
        excluded_namespaces: tuple[str, ...] = (),
        instance: str = "",
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._api = api
        self._configure = configure
        self._namespaces = namespaces
        self._instance = instance
        self._selector = ",".join(f"metadata.namespace!={each}" for each in excluded_namespaces)
        self._relist_seconds = relist_seconds
        self._known: set[Key] = set()
        """What was told of. What is no longer listed was deleted while nobody watched, and nobody else will tell."""
        self._missed = asyncio.Event()

    async def run(self, *, enqueue: Enqueue) -> None:
        """Watch until cancelled. kopf is started again whenever it gives up."""

        def tell(key: Key) -> None:
            self._known.add(key)
            enqueue(key)

        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(enqueue=tell), name="watch")
            group.create_task(self._relist(enqueue=tell), name="relist")

    async def _watch(self, *, enqueue: Enqueue) -> None:
        while True:
            if await self._is_served():
                try:
                    await self._run_kopf(enqueue=enqueue)
                except Exception as error:
                    log.warning("watching ended and begins again: %s", error)
                self._missed.set()
            await asyncio.sleep(_RETRY_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing

    async def _is_served(self) -> bool:
        """Whether the apiserver knows our types: kopf looks for them only once, when it starts."""
        try:
            found = await self._api.request(method="GET", path=f"/apis/{GROUP}/{VERSION}")
        except NotFoundError:
            log.error("the CustomResourceDefinitions of %s are not installed; kubectl apply -k manifests/crd", GROUP)
            return False
        except UnavailableError as error:
            log.warning("cannot watch: %s", error)
            return False
        plurals = {resource["name"] for resource in found.get("resources") or ()}
        return {PLACES[kind].plural for kind in _OWN_KINDS} <= plurals

    async def _run_kopf(self, *, enqueue: Enqueue) -> None:
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def notify(key: Key) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(enqueue, key)

        ended = loop.create_future()

        def host() -> None:
            result: BaseException | None = None
            try:
                asyncio.run(self._host_kopf(notify=notify, stop=stop))
            except BaseException as error:
                result = error
            with contextlib.suppress(RuntimeError):  # our loop was not there to see it
                loop.call_soon_threadsafe(_settle, ended, result)

        # A thread that nobody waits for, unlike the loop's own: kopf must not keep the process from ending.
        threading.Thread(target=host, name="kopf", daemon=True).start()
        try:
            await asyncio.shield(ended)
        finally:
            stop.set()
            _, running = await asyncio.wait({ended}, timeout=_STOP_SECONDS)
            if running:
                log.error("kopf did not stop within %.0f s; its events are no longer listened to", _STOP_SECONDS)

    async def _host_kopf(self, *, notify: Enqueue, stop: threading.Event) -> None:
        """Run kopf until told to stop, or until one of its watches has died: it would go on without it, deaf."""
        guard = asyncio.create_task(_a_watch_dies(expected=len(_KINDS) * max(1, len(self._namespaces))))
        operator = asyncio.create_task(
            kopf.operator(
                registry=self._registry(notify=notify),
                settings=_settings(field_selector=self._selector),
                clusterwide=not self._namespaces,
                namespaces=list(self._namespaces),
                standalone=True,
                stop_flag=stop,
            )
        )
        await asyncio.wait({guard, operator}, return_when=asyncio.FIRST_COMPLETED)
        died = guard.done() and not stop.is_set()
        guard.cancel()
        stop.set()
        await _ended(operator)
        if died:
            raise RuntimeError("one of the watches has died")

    def _registry(self, *, notify: Enqueue) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        changes = Changes(instance=self._instance)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return await _session(configuration=await self._configure())

        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            manifest: Any = event["object"]
            key = concerned(manifest)
            if key is not None and changes.is_news(manifest=manifest, type=event["type"]):
                notify(key)

        for kind in _KINDS:
            place = PLACES[kind]
            group, _, version = place.api_version.rpartition("/")
            kopf.on.event(group, version, place.plural, registry=registry)(changed)
        return registry

    async def _relist(self, *, enqueue: Enqueue) -> None:
        """Now and then, and where watching had ended, look at every object that has not ended or is no more, in case
        an event was missed."""
        while True:
            with contextlib.suppress(TimeoutError):
                pause = self._relist_seconds * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
                await asyncio.wait_for(self._missed.wait(), timeout=pause)
                await asyncio.sleep(_AGAIN_SECONDS)
            self._missed.clear()
            known, listed = frozenset(self._known), set[Key]()
            try:
                for namespace, kind in itertools.product(self._namespaces or (None,), RECONCILED):
                    path = PLACES[kind].collection(namespace=namespace)
                    query = [("fieldSelector", self._selector)] if self._selector else []
                    async for item in self._api.pages(path=path, query=query):
                        found = {**item, "kind": kind}  # items of a list do not say it
                        listed.add(key_of(found))
                        if not has_ended(found):
                            enqueue(key_of(found))
            except (NotFoundError, UnavailableError) as error:
                log.warning("relisting failed: %s", error)
                continue
            for key in known - listed:
                enqueue(key)
            self._known -= known - listed


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


class _Forever:
    """Pauses between attempts, without an end: the last failed attempt would kill a watch.

    Short ones: when the apiserver comes back, somebody is waiting.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0), itertools.repeat(2.0))


async def _a_watch_dies(*, expected: int) -> None:
    """Return when fewer than `expected` watches are alive, once all of them were."""

    complete = False
    while True:
        alive = sum(task.get_name().startswith("watcher for ") for task in asyncio.all_tasks())
        if complete and alive < expected:
            return
        complete = complete or alive >= expected
        await asyncio.sleep(_GUARD_SECONDS)


async def _ended(operator: asyncio.Task[None]) -> None:
    """Wait for kopf to end, and insist after a while. Raises what it failed with.

    Once one watch has failed, kopf cancels the others together with the tasks by which it would pause them. A watch
    that finds itself cancelled and paused takes it for a pause, and connects again (api.stream of kopf 1.45).
    """
    patience = _PATIENCE_SECONDS
    while not (await asyncio.wait({operator}, timeout=patience))[0]:
        for task in asyncio.all_tasks() - {operator, asyncio.current_task()}:
            task.cancel()
        patience = _INSIST_SECONDS
    if not operator.cancelled():
        operator.result()


def _settings(*, field_selector: str) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are ours to write
    settings.scanning.disabled = True  # types are looked up once: no rights on CRDs or namespaces are needed
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = PAGE_SIZE
    for kind in _KINDS:
        place = PLACES[kind]
        group, _, version = place.api_version.rpartition("/")
        if kind in CHILD_KINDS:
            settings.watching.label_selectors[group, version, place.plural] = OWNED_LABEL
        if field_selector:
            settings.watching.field_selectors[group, version, place.plural] = field_selector
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Forever()
    settings.queueing.idle_timeout = 1.0  # a task per object lives this long after its last event
    settings.process.ultimate_exiting_timeout = None  # its thread is ours to end
    return settings


async def _session(*, configuration: Configuration) -> kopf.AiohttpSession:
    """A session of kopf's loop that sends the newest token with each request: bound tokens are replaced every hour."""

    async def authenticate(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        authorization = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if authorization:
            request.headers["Authorization"] = authorization
        return await handler(request)

    context = ApiClient(configuration=configuration).rest_client.ssl_context
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=context),
        middlewares=(authenticate,),
        headers={"User-Agent": "finetune-operator (watch)"},
        proxy=configuration.proxy,
        trust_env=bool(getproxies()),
    )
    return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)


# -- which events tell something new -----------------------------------------------------------------------------------


class Changes:
    """Remembers what was seen of each object (a number each), by its UID.

    Half of all events are echoes: of our own status writes, of finalizers that the Job controller puts on pods and
    takes away, of counters in a Job's status. A look at an object costs calls to the apiserver; an echo costs none.
    """

    def __init__(self, *, instance: str = "") -> None:
        """`instance`: whose objects are looked after."""
        self._instance = instance
        self._seen: dict[str, int] = {}

    def is_news(self, *, manifest: Manifest, type: str | None) -> bool:
        """Whether an event is worth a look. `type` is ADDED, MODIFIED, DELETED, or None for an object of a list.

        Listed objects always are: a list begins a new watch, and what happened before it is unknown.
        """
        uid = str(manifest["metadata"].get("uid", ""))
        if type == "DELETED":
            self._seen.pop(uid, None)
            return True
        now = hash(json.dumps(relevant(manifest, instance=self._instance), sort_keys=True))
        before = self._seen.get(uid)
        self._seen[uid] = now
        return type is None or now != before


def relevant(manifest: Manifest, *, instance: str = "") -> list[Any]:
    """The parts of an object that decisions rest on."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    deleted = metadata.get("deletionTimestamp")
    if manifest.get("kind") == "Pod":
        return [deleted, spec.get("nodeName"), status]
    if manifest.get("kind") == "Job":
        return [deleted, spec.get("suspend"), status.get("conditions")]
    if manifest.get("kind") == "Deployment":
        counts = [status.get("replicas"), status.get("readyReplicas")]
        return [deleted, metadata.get("generation"), *counts, status.get("conditions")]
    # Our own types: the status is ours to write, and no news to us unless it says that another operator begins or ends.
    other = (status.get("instance") or instance) != instance
    return [deleted, metadata.get("generation"), metadata.get("labels"), metadata.get("annotations"), other]
