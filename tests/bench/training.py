"""`make bench-training`: our training beside a plain TRL script on the same work. Last line: one JSON object.

Each run is a fresh process: SmolLM2-135M, LoRA of rank 16, the same chats, batch and number of steps. Rates are
non-padding tokens per second of the training loop. Peak memory is of the largest process. Other load on the machine
distorts the ratio, so its one-minute average is among the figures; runs take turns to even out what is left.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from demo import assets

from finetune_api.run import Optimisation
from finetune_trainer.process.gang import Gang
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.tokens import Tokens
from finetune_trainer.training.batches import Batches
from finetune_trainer.training.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, MICRO_BATCH, MAX_LENGTH, RANK = 8, 16, 8, 128, 16
ROUNDS = 2
"""Times that ours and TRL take turns."""
PROCESSES = 2
PACKING_STEPS, PACKING_MAX_LENGTH = 4, 512
"""Packing pays where lengths differ: chats of one to eight turns."""
LEARNING_RATE, SEED = 1e-4, 3
LIMIT_SECONDS = 900.0
_CHECKPOINT = re.compile(r"training waited ([\d.]+) s")

METHOD = {"type": "LoRA", "lora": {"rank": RANK, "alpha": 2 * RANK, "dropout": 0.0, "targetModules": ["all-linear"]}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One process's run."""

    tokens: int
    """Non-padding ones."""
    seconds: float
    """Of the training loop."""
    start_to_first_step_s: float
    """From the start of the process to the end of the first optimiser step."""
    peak_memory_mb: float
    checkpoint_s: float | None = None
    mfu: float | None = None

    @property
    def rate(self) -> float:
        """Non-padding tokens per second."""
        return self.tokens / self.seconds


def watched(
    command: list[str], *, environment: Mapping[str, str], is_first_step: Callable[[str], bool]
) -> tuple[list[str], float, float]:
    """Run a process: its output lines, seconds to the first step, and peak memory (MB). Fails loudly."""
    began, first = time.monotonic(), None
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if first is None and is_first_step(line):
            first = time.monotonic() - began
        if time.monotonic() - began > LIMIT_SECONDS:
            process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or first is None:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{''.join(lines[-40:])}")
    return lines, first, usage.ru_maxrss / 1024


def ours(
    folder: Path,
    prepared: dict[str, Any],
    *,
    name: str,
    common: dict[str, Any],
    tokens: bool = True,
    strategy: str | None = None,
    **changes: Any,
) -> Outcome:
    """`python -m finetune_trainer`, as its container would run it; with the tokens of Prepare, or making its own. With
    a strategy in several processes.
    """
    run = f"file://{folder}/{name}"
    (folder / name).mkdir()
    for made in ("data", "rehearsal", "tokens") if tokens else ("data", "rehearsal"):
        (folder / name / made).symlink_to(folder / "prepared" / made)
    optimisation = {
        "epochs": None,
        "maxSteps": STEPS,
        "learningRate": LEARNING_RATE,
        "scheduler": "Linear",
        "warmupFraction": 0.0,
        "weightDecay": 0.0,
        "maxGradNorm": 1.0,
        "globalBatchSize": BATCH,
        "microBatchSize": MICRO_BATCH,
        "maxLength": MAX_LENGTH,
        "packing": False,
        "precision": "Auto",
        "seed": SEED,
        "earlyStoppingPatience": None,
    } | changes
    order = common | {
        "stage": "Train",
        "locations": common["locations"] | {"run": run},
        "base": prepared["base"],
        "dataDigest": prepared["dataDigest"],
        "method": METHOD,
        "optimisation": optimisation,
        "checkpoint": {"everySteps": 3, "keep": 1, "resume": "Latest"},
        "nodes": 1,
        "processesPerNode": PROCESSES if strategy else 1,
        "strategy": strategy or "DDP",
    }
    lines, first, peak = stage(folder, order, name=name, is_first_step=lambda line: "meter: step " in line)
    result = json.loads((folder / f"{name}.term").read_text())
    stalls = [float(found.group(1)) for line in lines if (found := _CHECKPOINT.search(line))]
    training_log = [
        json.loads(line) for line in (folder / name / "training_log.jsonl").read_text().rstrip("\n").split("\n")
    ]
    shares = [float(found.group(1)) / 100 for line in lines if (found := re.search(r"MFU ([\d.]+)%", line))]
    return Outcome(
        tokens=result["tokens"],
        seconds=next(line["time"] for line in reversed(training_log) if "loss" in line),
        start_to_first_step_s=first,
        peak_memory_mb=peak,
        checkpoint_s=median(stalls) if stalls else None,
        mfu=median(shares) if shares else None,
    )


def stage(
    folder: Path, order: dict[str, Any], *, name: str, is_first_step: Callable[[str], bool]
) -> tuple[list[str], float, float]:
    """Run a stage of ours."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(order))
    environment = {
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        "FINETUNE_RUN_FILE": str(path),
        "FINETUNE_TERMINATION_LOG": str(folder / f"{name}.term"),
        "FINETUNE_PROGRESS_FILE": str(folder / f"{name}.progress"),
    }
    return watched([sys.executable, "-m", "finetune_trainer"], environment=environment, is_first_step=is_first_step)


def prepare(folder: Path, data: Path, *, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prepare the data; its message, and what all stages' orders share."""
    common = {
        "identity": {"namespace": "bench", "job": "training", "uid": "uid", "attempt": 1},
        "locations": {
            "run": f"file://{folder}/prepared",
            "cache": f"file://{folder}/cache",
            "allowedRoots": [f"file://{folder}", f"file://{assets.smollm2_folder()}"],
            "mounts": {},
        },
        "model": {"uri": f"file://{assets.smollm2_folder()}", "task": "Chat"},
    }
    order = common | {
        "stage": "Prepare",
        "sources": [{"name": "chats", "uri": f"file://{data}", "format": "Chat", "weight": 1.0}],
        "maxBadRows": 0,
        "maxTruncatedFraction": 0.5,
        "maxLength": max_length,
        "method": METHOD,
        "split": {
            "fractions": {"train": 0.8, "validation": 0.1, "test": 0.1, "strategy": "GroupHash"},
            "salt": "bench",
        },
    }
    stage(folder, order, name="prepare", is_first_step=lambda line: True)
    return json.loads((folder / "prepare.term").read_text()), common


def plain(folder: Path, *, name: str, strategy: str | None = None) -> Outcome:
    """TRL on the same training examples, or with a strategy a loop of one's own in several processes."""
    order = {
        "model": str(assets.smollm2_folder()),
        "data": str(folder / "prepared" / "data" / "train.jsonl"),
        "out": str(folder / name),
        "steps": STEPS,
        "batch": BATCH,
        "micro_batch": MICRO_BATCH,
        "max_length": MAX_LENGTH,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "cpu": not torch.cuda.is_available(),
        "strategy": strategy,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(order))
    processes = PROCESSES if strategy else 1
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "tests.bench.plain_loop"]
    # By path, operator.py beside it would shadow.
    command = [sys.executable, "-m", *(several if strategy else ["tests.bench.plain_trl"]), str(path)]
    # Threads as ours has them: what spinning threads cost on a busy machine is not what is compared here.
    cores = len(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "OMP_WAIT_POLICY": "PASSIVE"}
    if order["cpu"]:
        threads["DS_ACCELERATOR"] = "cpu"
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **threads}
    lines, first, peak = watched(command, environment=environment, is_first_step=lambda line: "first_step" in line)
    found = [json.loads(line) for line in lines if line.startswith('{"tokens"')]
    assert len(found) == processes
    tokens, seconds = sum(each["tokens"] for each in found), max(each["seconds"] for each in found)
    return Outcome(start_to_first_step_s=first, peak_memory_mb=peak, tokens=tokens, seconds=seconds)


def strategies(folder: Path, prepared: dict[str, Any], *, common: dict[str, Any]) -> dict[str, float]:
    """Our rates in several processes by those of plain loops under the same strategy."""
    ratios = {}
    for name, strategy in (("ddp", "DDP"), ("fsdp2", "FSDP2"), ("zero2", "DeepSpeedZeRO2")):
        mine = ours(folder, prepared, name=f"ours-{name}", common=common, strategy=strategy)
        say(strategy, mine)
        theirs = plain(folder, name=f"plain-{name}", strategy=strategy)
        say("plain loop", theirs)
        ratios[f"{name}_ratio"] = round(mine.rate / theirs.rate, 3)
    return ratios


def chats_of_many_lengths(path: Path, *, single: Path) -> Path:
    """Chats of one to eight turns, from the questions of the demo's task."""
    rows = [json.loads(line)["messages"][1:] for line in single.read_text().rstrip("\n").split("\n")]
    chats, first = [], 0
    while first < len(rows):
        turns = 1 + (len(chats) * 5) % 8
        chats.append({"messages": [message for row in rows[first : first + turns] for message in row]})
        first += turns
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


def step_costs(folder: Path, *, examples: int) -> tuple[float, float]:
    """What comes before the model, over a split of so many examples of ten tokens: milliseconds of a step (median over
    a whole epoch's steps or 200 of them, the first left out), and seconds until the first step's batches are there.
    """
    ids = np.arange(10 * examples, dtype=np.int32) % 1000
    made = Tokens(
        ids=ids,
        targets=ids > 500,
        starts=np.arange(examples + 1, dtype=np.int64) * 10,
        labels=np.full(examples, -1),
        target_counts=(ids > 500).reshape(examples, 10).sum(axis=1, dtype=np.int32),
    )
    made.write(folder, split="train")
    order = Optimisation(
        epochs=1.0, learning_rate=LEARNING_RATE, scheduler="Linear", warmup_fraction=0.0, weight_decay=0.0,
        max_grad_norm=1.0, global_batch_size=BATCH, micro_batch_size=MICRO_BATCH, max_length=MAX_LENGTH, packing=False,
        precision="Auto", seed=SEED,
    )  # fmt: skip
    gang = Gang(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    began = time.monotonic()
    tokens = Tokens.mapped(folder, split="train")
    schedule = Schedule(optimisation=order, examples=len(tokens))
    batches = Batches(task=task_of("Chat"), order=order, pad_id=0, gang=gang)
    batches.of_step(tokens, schedule.indices(0))
    first, took = time.monotonic() - began, []
    for step in range(1, min(200, schedule.total_steps)):
        began = time.monotonic()
        batches.of_step(tokens, schedule.indices(step))
        took.append(1000 * (time.monotonic() - began))
    return median(took), first


def say(name: str, outcome: Outcome) -> None:
    """One line for the reader."""
    print(
        f"{name:<12} {outcome.tokens:6d} tokens in {outcome.seconds:6.1f} s = {outcome.rate:6.1f}/s, first step after "
        f"{outcome.start_to_first_step_s:5.1f} s, peak {outcome.peak_memory_mb:5.0f} MB, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    """Run all and print the figures."""
    with TemporaryDirectory(prefix="finetune-bench-training-") as scratch:
        single, varied = Path(scratch, "single"), Path(scratch, "varied")
        single.mkdir()
        varied.mkdir()
        data = assets.topic_chat(single / "chats.jsonl")
        prepared, common = prepare(single, data, max_length=MAX_LENGTH)
        mine, theirs = [], []
        for number in range(ROUNDS):
            mine.append(ours(single, prepared, name=f"ours-{number}", common=common))
            say("ours", mine[-1])
            theirs.append(plain(single, name=f"trl-{number}"))
            say("TRL", theirs[-1])
        ratios = strategies(single, prepared, common=common)
        untokenised = ours(single, prepared, name="own-tokens", common=common, tokens=False, maxSteps=4)
        say("own tokens", untokenised)
        costs = {}
        for power in (4, 6, 7):
            step_ms, first_s = step_costs(single, examples=10**power)
            costs |= {f"step_before_model_ms_1e{power}": round(step_ms, 3)}
            costs |= {f"first_batches_s_1e{power}": round(first_s, 2)}
        chats = chats_of_many_lengths(varied / "chats.jsonl", single=data)
        prepared, common = prepare(varied, chats, max_length=PACKING_MAX_LENGTH)
        changes = {"maxSteps": PACKING_STEPS, "maxLength": PACKING_MAX_LENGTH}
        padded = ours(varied, prepared, name="padded", common=common, **changes)
        say("ours padded", padded)
        packed = ours(varied, prepared, name="packed", common=common, **changes, packing=True)
        say("ours packed", packed)
    stalls = [outcome.checkpoint_s for outcome in (*mine, padded, packed) if outcome.checkpoint_s is not None]
    # Best of the rounds: what else the machine does can only slow a run down.
    best, best_trl = max(outcome.rate for outcome in mine), max(outcome.rate for outcome in theirs)
    figures = {
        "tokens_per_s_ratio": round(best / best_trl, 3),
        "tokens_per_s": round(best, 1),
        "trl_tokens_per_s": round(best_trl, 1),
        **ratios,
        "packing_gain": round(packed.rate / padded.rate, 3),
        "start_to_first_step_s": round(min(outcome.start_to_first_step_s for outcome in mine), 1),
        "start_to_first_step_own_tokens_s": round(untokenised.start_to_first_step_s, 1),
        **costs,
        "trl_start_to_first_step_s": round(min(outcome.start_to_first_step_s for outcome in theirs), 1),
        "checkpoint_stall_s": round(median(stalls), 3),
        "peak_memory_mb": round(max(outcome.peak_memory_mb for outcome in mine)),
        "trl_peak_memory_mb": round(max(outcome.peak_memory_mb for outcome in theirs)),
        "mfu": mine[-1].mfu,
        "load": round(os.getloadavg()[0], 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
