"""Probes of a pod's container, as kubelet does them: startup first, then readiness and liveness side by side.

Only HTTP GETs, which is what our containers have. Asking on loopback costs nothing, so what is not ready yet is asked
oftener than its probe says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from finetune_operator.local.services import HOST

_IMPATIENT_SECONDS = 0.25


async def watch(
    *,
    container: Mapping[str, Any],
    ports: Mapping[str, int],
    on_ready: Callable[[bool], None],
    on_dead: Callable[[str], None],
) -> None:
    """Probe a container from its start until it is given up or this is cancelled."""
    if "startupProbe" in container and not await _started(container["startupProbe"], ports):
        on_dead("the startup probe failed")
        return
    async with asyncio.TaskGroup() as group:
        if "readinessProbe" in container:
            group.create_task(_watch_readiness(container["readinessProbe"], ports, on_ready=on_ready))
        else:
            on_ready(True)  # noqa: FBT003 - what it is told
        if "livenessProbe" in container:
            group.create_task(_watch_liveness(container["livenessProbe"], ports, on_dead=on_dead))


async def _started(probe: Mapping[str, Any], ports: Mapping[str, int]) -> bool:
    loop = asyncio.get_running_loop()
    due = loop.time() + probe.get("failureThreshold", 3) * _period(probe)
    while not await _answers(probe, ports):
        if loop.time() >= due:
            return False
        await asyncio.sleep(min(_IMPATIENT_SECONDS, _period(probe)))
    return True


async def _watch_readiness(
    probe: Mapping[str, Any], ports: Mapping[str, int], *, on_ready: Callable[[bool], None]
) -> None:
    ready, failures = False, 0
    while True:
        answered = await _answers(probe, ports)
        failures = 0 if answered else failures + 1
        if answered != ready and (answered or failures >= probe.get("failureThreshold", 3)):
            ready = answered
            on_ready(ready)
        await asyncio.sleep(_period(probe) if ready else min(_IMPATIENT_SECONDS, _period(probe)))


async def _watch_liveness(
    probe: Mapping[str, Any], ports: Mapping[str, int], *, on_dead: Callable[[str], None]
) -> None:
    failures = 0
    while failures < probe.get("failureThreshold", 3):
        await asyncio.sleep(_period(probe))
        failures = 0 if await _answers(probe, ports) else failures + 1
    on_dead("the liveness probe failed")


async def _answers(probe: Mapping[str, Any], ports: Mapping[str, int]) -> bool:
    """Whether the container answers with a status from 200 to 399."""
    get = probe["httpGet"]
    port = ports.get(get["port"]) if isinstance(get["port"], str) else get["port"]
    try:
        async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                request = f"GET {get.get('path', '/')} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status = (await reader.readline()).split()[1:2]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return bool(status) and status[0].isdigit() and 200 <= int(status[0]) < 400


def _period(probe: Mapping[str, Any]) -> float:
    return float(probe.get("periodSeconds", 10))
