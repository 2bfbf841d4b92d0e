"""`make bench-gate`: the error rates and the speed of the statistics, by simulation. Last line: one JSON object.

Figures of many scenarios are summed up by the worst one: `false_promote`, `false_reject` and `live_false_alarm` are
maxima, `pass_equal` a minimum. With some hundred repetitions each, a rate of 2.5 % is known to about a point.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from statistics import median

# One thread per process: the arrays are small, and more threads than cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from tests.bench import gate_live, gate_offline

ROLLOUTS = 240
DETECTIONS = 41

DELAYS: dict[str, Callable[[np.random.Generator], float]] = {
    "guard_all_requests_fail": lambda rng: gate_live.samples_to_detect_dead(rng, failing=1.0),
    "guard_half_of_requests_fail": lambda rng: gate_live.samples_to_detect_dead(rng, failing=0.5),
    "guard_10_points_of_quality": lambda rng: gate_live.samples_to_detect_quality(rng, loss=0.10),
    "guard_30_points_of_quality": lambda rng: gate_live.samples_to_detect_quality(rng, loss=0.30),
    "shadow_10_points_of_quality": lambda rng: gate_live.samples_to_detect_in_shadow(rng, loss=0.10),
    "shadow_30_points_of_quality": lambda rng: gate_live.samples_to_detect_in_shadow(rng, loss=0.30),
    "canary_all_requests_fail": lambda rng: gate_live.samples_to_detect_in_canary(rng, errors=1.0),
    "canary_10_percent_fail": lambda rng: gate_live.samples_to_detect_in_canary(rng, errors=0.1),
}
CANDIDATES = {"no difference": gate_live.STABLE, "exactly at every margin": gate_live.AT_THE_MARGIN}


def offline(index: int) -> gate_offline.Rates:
    """One offline scenario; the last index is all metrics together."""
    if index == len(gate_offline.SCENARIOS):
        return gate_offline.measure_whole_gate(at_the_margin=1500, equal=120)
    return gate_offline.measure(gate_offline.SCENARIOS[index])


def alarms(name: str) -> tuple[str, float]:
    """Share of rollouts of this candidate that were rolled back without reason."""
    rng = np.random.default_rng(5)
    return name, sum(gate_live.false_alarm(rng, CANDIDATES[name]) for _ in range(ROLLOUTS)) / ROLLOUTS


def delay(name: str) -> tuple[str, float]:
    """Median samples to detect; runs with a false alarm before the change are left out."""
    rng = np.random.default_rng(6)
    found = [DELAYS[name](rng) for _ in range(DETECTIONS)]
    return name, median(samples for samples in found if not np.isnan(samples))


def main() -> None:
    """Simulate, print a table, print the JSON line."""
    start = time.monotonic()
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        # The dearest are last in the table: they start first, so that no processor is idle at the end.
        gates = pool.map(offline, reversed(range(len(gate_offline.SCENARIOS) + 1)))
        live = pool.map(alarms, CANDIDATES)
        delays = pool.map(delay, DELAYS)
        print(f"{'offline':36}{'n':>6}{'pass at':>9}{'fail if':>9}{'n that':>11}{'pass if':>9}{'undecided':>10}")
        print(f"{'':36}{'':>6}{'margin':>9}{'equal':>9}{'is enough':>11}{'equal':>9}{'':>10}")
        rates = []
        for found in gates:
            rates.append(found)
            print(
                f"{found.name:36}{found.n:6}{found.false_promote:9.3f}{found.false_reject:9.3f}"
                f"{found.sufficient_n:11}{found.pass_equal:9.3f}{found.inconclusive:10.3f}",
                flush=True,
            )
        false_alarms, medians = dict(live), dict(delays)
    print("\nlive: rollouts with a false alarm; samples to detect (median)")
    for name, share in false_alarms.items():
        print(f"{name:36}{share:.3f}")
    for name, samples in medians.items():
        print(f"{name:36}{samples:.0f}")
    summary = {
        "false_promote": max(found.false_promote for found in rates),
        "false_reject": max(found.false_reject for found in rates),
        "pass_equal": min(found.pass_equal for found in rates),
        "inconclusive_rate": round(sum(found.inconclusive for found in rates) / len(rates), 4),
        "live_false_alarm": max(false_alarms.values()),
        "median_samples_to_detect": medians["guard_10_points_of_quality"],
        "live_alpha": gate_live.ALPHA,
        "live_false_alarms": false_alarms,
        "samples_to_detect": medians,
        "rollouts": ROLLOUTS,
        "scenarios": [asdict(found) for found in rates],
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
