"""`make bench-gateway`: what the gateway adds to a request, and how many it can do. Last line: one JSON object.

The upstream is replayed: it answers every request with the same chat completion, at once. The proxies are pinned to one
core; load generator and upstreams have another one, where there are two. In each round the upstream alone and every
proxy get the same load one after the other, the others being stopped; `added` is a quantile of the latency through
a proxy minus the same quantile straight to the upstream in that round, and figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.gateway_load import Load, closed_loop, open_loop
from tests.bench.gateway_processes import (
    Server,
    litellm_python,
    litellm_version,
    running_floor,
    running_gateway,
    running_litellm,
    running_upstream,
    shadow_counts,
)

_BODY = json.dumps(
    {
        "model": "router",
        "messages": [
            {"role": "system", "content": "You are the support desk of a shop. Answer in two or three sentences."},
            {"role": "user", "content": "Hello, I ordered a lamp last week and it has not arrived. Where is it?" * 4},
        ],
        "temperature": 0,
        "max_tokens": 128,
    }
).encode()
_CONNECTIONS = 32
_WARM_UP_SECONDS = 2.0
_LITELLM_RATE = 50.0
DIRECT = "direct"


@dataclass(kw_only=True)
class Figures:
    """One proxy's figures, a value per round. Milliseconds."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    added_p50: list[float] = field(default_factory=list)
    added_p99: list[float] = field(default_factory=list)
    max_rps: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Processor time per request under open load."""
    late_p99: list[float] = field(default_factory=list)
    errors: int = 0
    rss_mb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    rate: float
    seconds: float
    closed_seconds: float


async def measure(*, upstream: Server, proxies: Sequence[Server], plan: Plan) -> dict[str, Figures]:
    """All rounds."""
    figures = {name: Figures() for name in (DIRECT, *(proxy.name for proxy in proxies))}
    for proxy in proxies:
        proxy.pause()
    for number in range(plan.rounds):
        direct = {rate: await _open(upstream, rate=rate, plan=plan, seed=number) for rate in _rates(proxies, plan)}
        _note(figures[DIRECT], direct[plan.rate], direct[plan.rate])
        figures[DIRECT].max_rps.append((await _closed(upstream, plan=plan)).rate)
        for proxy in proxies:
            proxy.resume()
            rate = _rate(proxy, plan)
            await open_loop(port=proxy.port, body=_BODY, rate=rate, seconds=_WARM_UP_SECONDS, seed=99)
            before = proxy.cpu_seconds
            load = await _open(proxy, rate=rate, plan=plan, seed=number)
            mine = figures[proxy.name]
            mine.cpu_ms.append(1000 * (proxy.cpu_seconds - before) / max(1, len(load.latencies)))
            _note(mine, load, direct[rate])
            closed = await _closed(proxy, plan=plan)
            mine.max_rps.append(closed.rate)
            mine.errors += closed.errors
            mine.rss_mb = max(mine.rss_mb, proxy.rss_mb)
            await asyncio.sleep(1.2)  # a report of the gateway
            proxy.pause()
            print(_progress(number, proxy, mine), file=sys.stderr, flush=True)
    return figures


async def _open(server: Server, *, rate: float, plan: Plan, seed: int) -> Load:
    return await open_loop(port=server.port, body=_BODY, rate=rate, seconds=plan.seconds, seed=seed)


async def _closed(server: Server, *, plan: Plan) -> Load:
    return await closed_loop(port=server.port, body=_BODY, connections=_CONNECTIONS, seconds=plan.closed_seconds)


def _rates(proxies: Sequence[Server], plan: Plan) -> list[float]:
    return sorted({plan.rate, *(_rate(proxy, plan) for proxy in proxies)})


def _rate(proxy: Server, plan: Plan) -> float:
    """LiteLLM cannot do 200 a second on one core."""
    return min(_LITELLM_RATE, plan.rate) if proxy.name == "litellm" else plan.rate


def _note(figures: Figures, load: Load, direct: Load) -> None:
    for share, own, added in ((0.5, figures.p50, figures.added_p50), (0.99, figures.p99, figures.added_p99)):
        through = _quantile_ms(load.latencies, share)
        own.append(through)
        added.append(through - _quantile_ms(direct.latencies, share))
    figures.late_p99.append(_quantile_ms(load.late, 0.99))
    figures.errors += load.errors


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def _progress(number: int, proxy: Server, figures: Figures) -> str:
    return (
        f"round {number + 1}: {proxy.name} +{figures.added_p50[-1]:.2f} / +{figures.added_p99[-1]:.2f} ms, "
        f"{figures.cpu_ms[-1]:.2f} ms of processor a request, at most {figures.max_rps[-1]:.0f} a second"
    )


def summary(figures: dict[str, Figures]) -> dict[str, Any]:
    """Medians over rounds. The gateway's own figures have no prefix."""
    out: dict[str, Any] = {}
    for name, each in figures.items():
        prefix = "" if name == "gateway" else f"{name}_"
        if name != DIRECT:
            out[f"{prefix}added_p50_ms"] = round(median(each.added_p50), 3)
            out[f"{prefix}added_p99_ms"] = round(median(each.added_p99), 3)
            out[f"{prefix}cpu_ms"] = round(median(each.cpu_ms), 3)
            out[f"{prefix}rss_mb"] = each.rss_mb
        out[f"{prefix}p50_ms"] = round(median(each.p50), 3)
        out[f"{prefix}p99_ms"] = round(median(each.p99), 3)
        out[f"{prefix}max_rps"] = round(median(each.max_rps))
        out[f"{prefix}errors"] = each.errors
    out["generator_late_p99_ms"] = round(median(figures[DIRECT].late_p99), 3)
    if {"gateway", "floor"} <= figures.keys():
        out["times_floor_p50"] = round(out["added_p50_ms"] / out["floor_added_p50_ms"], 2)
        out["times_floor_p99"] = round(out["added_p99_ms"] / out["floor_added_p99_ms"], 2)
        out["times_floor_cpu"] = round(out["cpu_ms"] / out["floor_cpu_ms"], 2)
    if {"gateway", "shadow"} <= figures.keys():
        ratios = [one / other for one, other in zip(figures["shadow"].p99, figures["gateway"].p99, strict=True)]
        out["shadow_p99_ratio"] = round(median(ratios), 2)
    return out


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the open load")
    parser.add_argument("--seconds", type=float, default=10.0, help="of open load, for each proxy and round")
    parser.add_argument("--closed-seconds", type=float, default=4.0, help="of closed load")
    parser.add_argument("--uv", default="uv", help="program that makes LiteLLM's environment")
    parser.add_argument("--without-litellm", action="store_true")
    options = parser.parse_args()
    plan = Plan(
        rounds=options.rounds, rate=options.rate, seconds=options.seconds, closed_seconds=options.closed_seconds
    )
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, other_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    began, load_before = time.monotonic(), os.getloadavg()[0]
    reason, version = None, None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finetune-bench-")))
        upstream = stack.enter_context(running_upstream(name="stable", folder=folder, core=other_core))
        candidate = stack.enter_context(running_upstream(name="candidate", folder=folder, core=other_core))
        proxies = [
            stack.enter_context(running_floor(upstream=upstream, folder=folder, core=proxy_core)),
            stack.enter_context(running_gateway(stable=upstream, candidate=None, folder=folder, core=proxy_core)),
            stack.enter_context(running_gateway(stable=upstream, candidate=candidate, folder=folder, core=proxy_core)),
        ]
        try:
            if options.without_litellm:
                raise RuntimeError("left out (--without-litellm)")
            python = litellm_python(options.uv)
            version = litellm_version(python)
            proxies.append(
                stack.enter_context(running_litellm(python=python, upstream=upstream, folder=folder, core=proxy_core))
            )
        except RuntimeError as error:
            reason = str(error)
            print(f"no LiteLLM: {reason}", file=sys.stderr)
        if other_core is not None:
            os.sched_setaffinity(0, {other_core})
        gc.freeze()
        gc.disable()
        figures = asyncio.run(measure(upstream=upstream, proxies=proxies, plan=plan))
        shadowed = shadow_counts(folder)
    out = summary(figures)
    if reason is not None:
        out |= dict.fromkeys(("litellm_added_p50_ms", "litellm_added_p99_ms", "litellm_max_rps", "litellm_rss_mb"))
    out |= {
        "rate": plan.rate,
        "litellm_rate": None if reason else min(_LITELLM_RATE, plan.rate),
        "litellm": reason or version,
        "shadow_counts": shadowed,
        "rounds": plan.rounds,
        "open_seconds": plan.seconds,
        "warm_up_seconds": _WARM_UP_SECONDS,
        "cores": len(cores),
        "load_before": round(load_before, 2),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
