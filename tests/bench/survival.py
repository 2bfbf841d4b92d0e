"""`python -m tests.bench.survival`: one training per strategy that is interrupted at random, beside an undisturbed one.

By hand: three minutes per strategy on two cores. Two processes train; a signal to any of them, the newest checkpoint
torn or lost. The weights must be those of the undisturbed run, bit for bit. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.small_run import SmallRun, SmallRuns, wait_for

STRATEGIES = ("DDP", "FSDP2", "DeepSpeedZeRO1", "DeepSpeedZeRO2", "DeepSpeedZeRO3")
KINDS = ("SIGKILL", "SIGTERM", "torn", "lost")
EVERY_STEPS, KEEP, STEPS_A_KILL = 2, 3, 6
LATEST_SECONDS = 1.0
"""After a checkpoint, until something happens."""


@dataclass(kw_only=True)
class Soak:
    """A training, and what became of it."""

    run: SmallRun
    order: dict[str, Any]
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    steps_lost_on_sigterm: int = 0

    def disturb(self) -> bool:
        """Start it, and interrupt it when it has come further. False where it came to its end."""
        newest = max(self.run.steps(), default=0)
        places = self.run.root / "processes"
        shutil.rmtree(places, ignore_errors=True)
        places.mkdir()
        process = self.run.stage(self.order, "train", python=forked_python(), TMPDIR=str(places))
        wait_for(lambda: process.poll() is not None or max(self.run.steps(), default=0) > newest, what="a checkpoint")
        time.sleep(self.chance.uniform(0, LATEST_SECONDS))
        kind = self.chance.choice(KINDS)
        if not self._signal(places, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL):
            assert process.wait(timeout=HANGS_S) == 0, self.run.log("train")
            return False
        code = process.wait(timeout=HANGS_S)
        if code == 0:  # it was told at its last step
            return False
        assert code == (75 if kind == "SIGTERM" else 70), (kind, code, self.run.log("train")[-3000:])
        if kind == "SIGTERM":
            self.steps_lost_on_sigterm += self.run.message("train")["checkpointStep"] - self.run.steps()[-1]
        elif kind != "SIGKILL":
            self._damage(self.run.folder / "checkpoints" / f"step-{self.run.steps()[-1]}", torn=kind == "torn")
        self.done[kind] += 1
        return True

    def _signal(self, places: Path, number: int) -> bool:
        """To one of the processes that have said to the launcher who they are."""
        pids = sorted(int(path.name.removeprefix("pid-")) for path in places.glob("finetune-outcomes-*/pid-*"))
        try:
            os.kill(self.chance.choice(pids), number)
        except (IndexError, ProcessLookupError):
            return False
        return True

    def _damage(self, checkpoint: Path, *, torn: bool) -> None:
        if not torn:
            shutil.rmtree(checkpoint)
            return
        path = self.chance.choice([path for path in sorted(checkpoint.iterdir()) if path.name != "COMPLETE"])
        path.write_bytes(path.read_bytes()[: self.chance.randrange(path.stat().st_size)])


def soaked(runs: SmallRuns, *, strategy: str, kills: int, seed: int) -> dict[str, Any]:
    """Figures of one strategy."""
    checkpoint = {"everySteps": EVERY_STEPS, "keep": KEEP, "resume": "Latest"}
    overrides = {"maxSteps": STEPS_A_KILL * kills}
    unbroken, run = (
        runs.new(f"{name}-{strategy}", processes=2, overrides=overrides) for name in ("unbroken", "soaked")
    )
    began = time.monotonic()
    unbroken.train(unbroken.order(runs.prepared, strategy=strategy, checkpoint=checkpoint | {"everySteps": 10_000}))
    order = run.order(runs.prepared, strategy=strategy, checkpoint=checkpoint)
    soak = Soak(run=run, order=order, chance=random.Random(f"{seed} {strategy}"))
    while soak.done.total() < kills and soak.disturb():
        pass
    result = run.train(order)
    log = (run.root / "train.log").read_text()
    return {
        "strategy": strategy,
        "interruptions": dict(sorted(soak.done.items())),
        "steps": result["steps"],
        "steps_lost_on_sigterm": soak.steps_lost_on_sigterm,
        "checkpoints_passed_over": log.count("is not complete and is ignored"),
        "same_weights": run.weights() == unbroken.weights(),
        "digest": run.weights()[:16],
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    """All strategies that are asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="finetune-survival-") as folder:
        runs = SmallRuns.make(Path(folder))
        found = []
        for strategy in asked.strategies:
            found.append(soaked(runs, strategy=strategy, kills=asked.kills, seed=asked.seed))
            print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"survival": found, "all_same": all(each["same_weights"] for each in found)}))


if __name__ == "__main__":
    main()
