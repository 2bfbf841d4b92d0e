"""`make bench-rollback`: how long a version that got worse after its promotion goes on answering.

The last line is one JSON object.

Several endpoints at once, each with a real gateway process and 20 requests a second from clients, under one operator:
its real machine over the cluster in memory (rollback_world.py says what is played). On each endpoint, again and again:
a new version comes, passes a canary step, is promoted and answers everybody under guard, the old version warm; then
all of its answers go wrong in one way. Measured from the first bad request's arrival at the version to the first
request that reached the old version after the last that reached the new one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.bench.rollback_samples import samples_to_detect
from tests.bench.rollback_traffic import Answered, Clients
from tests.bench.rollback_upstreams import FAULTS, SLOW_SECONDS, Fault, Upstreams, Visit
from tests.bench.rollback_world import LATENCY_LIMIT_SECONDS, Endpoint, World, service_of

from finetune_api.modelendpoint import ModelEndpointStatus

RATE = 20.0
ROLLOUT: dict[str, Any] = {
    "steps": [{"name": "half", "percent": 50, "minSamples": 40}],
    "approval": "Automatic",
    "guard": {"durationSeconds": 3600},
    "metrics": [
        {"name": "error_rate", "maxRegression": 0.005},
        {"name": "latency_seconds", "limit": LATENCY_LIMIT_SECONDS, "maxRegression": 0.01},
        {"name": "quality", "maxRegression": 0.02},
    ],
}
_HEALTHY_SECONDS = 4.0, 5.0
"""Under guard, before the fault: at any point of the gateways' beat, by which reports come in."""
_LONGEST_SECONDS = 40.0
_QUIET_SECONDS = 1.0
"""Nothing reached the version for this long: it was left."""


@dataclass(frozen=True, kw_only=True)
class Injected:
    """What came of one regression."""

    fault: Fault
    seconds: float
    """From the first bad request to all traffic on stable; infinite: it was not left."""
    bad_requests: int
    """That reached the version while it was broken."""
    by: str
    """What found it: a gateway's breaker, or a metric."""
    failed_by_switch: int
    failed_by_fault: int
    requests: int


async def inject(*, world: World, endpoint: Endpoint, clients: Clients, upstreams: Upstreams, fault: Fault) -> Injected:
    """One round on one endpoint."""
    begun = time.monotonic()
    name = await world.create_version(endpoint)
    guarding = await _until(
        world, endpoint, lambda status: _stage(status) == "Guard" and _stable(status) == name, what=f"guard of {name}"
    )
    assert guarding.stable is not None
    assert guarding.previous is not None
    bad, good = (service_of(endpoint=endpoint, uid=each.uid) for each in (guarding.stable, guarding.previous))
    await asyncio.sleep(random.uniform(*_HEALTHY_SECONDS))
    upstreams.faults[bad] = fault
    left = await _left(upstreams, version=bad, longest=_LONGEST_SECONDS)
    status = await _until(world, endpoint, lambda status: _stable(status) != name, what=f"rollback of {name}")
    await _until(world, endpoint, lambda status: status.step is None, what=f"end of the rollback of {name}")
    # Whatever was in flight to the broken version has had its answer.
    await clients.all_answered(before=left.flipped)
    answered = [each for each in clients.answered if each.began >= begun]
    failed = [each for each in answered if each.status != 200]
    by_switch = [each for each in failed if _by_switch(each, visits=upstreams.visits, flipped=left.flipped)]
    outcome = next(each for each in reversed(status.versions) if each.name == name)
    for each in by_switch:
        print(f"failed by the switch: {each} {upstreams.visits.get(each.name)}", file=sys.stderr, flush=True)
    after = [each for each in upstreams.by_version.get(good, []) if each.at > left.last]
    upstreams.forget(bad, {each.name for each in answered})
    clients.answered.clear()
    return Injected(
        fault=fault,
        seconds=(after[0].at - left.first) if after and left.found else float("inf"),
        bad_requests=left.bad,
        by="breaker" if "a gateway left it" in outcome.reason else outcome.reason.partition(":")[0],
        failed_by_switch=len(by_switch),
        failed_by_fault=len(failed) - len(by_switch),
        requests=len(answered),
    )


@dataclass(frozen=True, kw_only=True)
class _Left:
    first: float
    """First bad request at the version."""
    last: float
    """Last request at the version."""
    flipped: float
    """When it was clear that no more would come."""
    bad: int
    found: bool


async def _left(upstreams: Upstreams, *, version: str, longest: float) -> _Left:
    """Wait until the version is no longer asked."""
    deadline = time.monotonic() + longest
    while True:
        await asyncio.sleep(0.1)
        visits: list[Visit] = upstreams.by_version.get(version, [])
        bad = [each.at for each in visits if each.faulty]
        quiet = bool(bad) and time.monotonic() - visits[-1].at > _QUIET_SECONDS
        if quiet or time.monotonic() > deadline:
            last = visits[-1].at
            return _Left(first=bad[0], last=last, flipped=last, bad=len(bad), found=quiet)


def _by_switch(failed: Answered, *, visits: dict[str, list[Visit]], flipped: float) -> bool:
    """It met no fault; or it was in flight when the routes changed, and was not answered by the version that works."""
    met = visits.get(failed.name, [])
    return not any(visit.faulty for visit in met) or failed.began <= flipped <= failed.ended


def _stage(status: ModelEndpointStatus) -> str | None:
    return status.step.stage if status.step else None


def _stable(status: ModelEndpointStatus) -> str | None:
    return status.stable.name if status.stable else None


async def _until(
    world: World,
    endpoint: Endpoint,
    condition: Callable[[ModelEndpointStatus], bool],
    *,
    what: str,
    seconds: float = 90.0,
) -> ModelEndpointStatus:
    deadline = time.monotonic() + seconds
    while not condition(status := await world.status(endpoint)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within {seconds:g} s: {status.phase}: {status.message}")
        await asyncio.sleep(0.1)
    return status


async def measure(*, folder: Path, endpoints: int, injections: int) -> list[Injected]:
    """Inject faults on all endpoints at once, kind after kind on each."""
    upstreams = Upstreams()
    results: list[Injected] = []
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(upstreams.serving())
        world = World(upstream_url=url)
        door = await stack.enter_async_context(world.running())
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        left = [FAULTS[number % len(FAULTS)] for number in range(injections)]

        async def one(number: int) -> None:
            name = f"router-{number}"
            await asyncio.to_thread((folder / name).mkdir)
            endpoint = await world.create_endpoint(name=name, folder=folder / name, door=door, rollout=ROLLOUT)
            stack.callback(endpoint.gateway.stop)
            await world.create_version(endpoint)
            await _until(world, endpoint, lambda status: status.phase == "Idle", what="first version")
            await endpoint.gateway.ready()
            clients = Clients(endpoint=name, url=endpoint.gateway.url, rate=RATE)
            sending = asyncio.create_task(clients.send(session))
            try:
                await asyncio.sleep(number * 0.7)  # not all at the same beat
                while left:
                    fault = left.pop()
                    done = await inject(
                        world=world, endpoint=endpoint, clients=clients, upstreams=upstreams, fault=fault
                    )
                    results.append(done)
                    print(f"{len(results)} {name} {done}", file=sys.stderr, flush=True)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

        await _all([lambda number=number: one(number) for number in range(endpoints)])  # type: ignore[misc]
    return results


async def _all(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """The first that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work())  # type: ignore[arg-type]


def summary(results: Sequence[Injected]) -> dict[str, Any]:
    """Quantiles over all injections, and by kind."""
    out: dict[str, Any] = {
        "detect_to_flip_p50_s": _quantile([each.seconds for each in results], 0.5),
        "detect_to_flip_p99_s": _quantile([each.seconds for each in results], 0.99),
        "failed_requests": sum(each.failed_by_switch for each in results),
        "failed_by_fault": sum(each.failed_by_fault for each in results),
        "requests": sum(each.requests for each in results),
        "injections": len(results),
    }
    urgent = [each.seconds for each in results if each.fault != "slow"]
    out["errors_hangs_garbage_p99_s"] = _quantile(urgent, 0.99)
    for fault in FAULTS:
        mine = [each for each in results if each.fault == fault]
        seconds = [each.seconds for each in mine]
        out[fault] = {
            "n": len(mine),
            "p50_s": _quantile(seconds, 0.5),
            "p99_s": _quantile(seconds, 0.99),
            "bad_requests_p50": _quantile([float(each.bad_requests) for each in mine], 0.5),
            "found_by": dict(Counter(each.by for each in mine)),
        }
    return out


def _quantile(values: Sequence[float], share: float) -> float | None:
    """None: there is nothing, or it never came to an end."""
    ordered = sorted(values)
    if not ordered:
        return None
    found = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return None if found == float("inf") else round(found, 3)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--injections", type=int, default=120)
    parser.add_argument("--endpoints", type=int, default=8, help="at the same time")
    parser.add_argument("--repetitions", type=int, default=200, help="of each simulation of samples_to_detect")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        results = asyncio.run(measure(folder=Path(folder), endpoints=options.endpoints, injections=options.injections))
    measured = round(time.monotonic() - began)
    out = summary(results) | {"samples_to_detect": samples_to_detect(repetitions=options.repetitions)}
    out |= {
        "rate": RATE,
        "endpoints": options.endpoints,
        "slow_answer_s": SLOW_SECONDS,
        "latency_limit_s": LATENCY_LIMIT_SECONDS,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "seconds": measured,
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
