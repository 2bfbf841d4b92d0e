"""Several processes and several pods train one model: they learn what one learns, and stop as one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.pair import pair
from tests.trainer.s3 import serve_s3
from tests.trainer.small_run import SmallRun, SmallRuns, kill_worker, wait_for, workers_of


@pytest.fixture(scope="module")
def unbroken_pair(runs: SmallRuns) -> SmallRun:
    run = runs.new("unbroken-pair", processes=2)
    run.train(run.order(runs.prepared))
    return run


def test_two_processes_learn_what_one_learns(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    # Full training without dropout: the same batches give the same sums, but for rounding.
    single = runs.new("single")
    one, two = single.train(single.order(runs.prepared)), unbroken_pair.message("train")
    assert one["tokens"] == two["tokens"]
    assert one["validationLoss"] == pytest.approx(two["validationLoss"], rel=0.02)


def test_sigterm_to_one_of_two_stops_both_at_one_step(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("pair-sigterm", processes=2)
    order = run.order(runs.prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, signal.SIGTERM, which=1)
    assert process.wait(timeout=HANGS_S) == 75, run.log("train")
    assert "Traceback" not in run.log("train"), "it is no failure"
    assert not workers_of(process)
    result = run.train(order)
    assert result["resumedFromStep"] >= 4
    assert run.weights() == unbroken_pair.weights()


def test_where_each_process_hangs_is_in_the_log(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("pair-hangs", processes=2)
    order = run.order(runs.prepared)
    life = {"FINETUNE_LIFE_FILE": str(run.root / "alive"), "FINETUNE_HANG_SECONDS": "5"}
    process = run.stage(order, "train", **life)
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, signal.SIGSTOP, which=1)
    before = len(run.log("train"))
    wait_for(lambda: " in _run" in run.log("train")[before:], what="where the other one is")
    kill_worker(process, signal.SIGCONT, which=1)
    assert process.wait(timeout=HANGS_S) == 0, run.log("train")
    said = run.log("train")[before:]
    assert all(f" s; process {rank} is here:" in said for rank in range(2))
    assert said.count(" in _run") >= 2, "the one that was stopped says so when it goes on"
    assert run.weights() == unbroken_pair.weights()


def test_kill_9_of_one_of_two_ends_both_and_resumes(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("pair-sigkill", processes=2)
    order = run.order(runs.prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, which=1)
    assert process.wait(timeout=HANGS_S) == 70
    assert run.message("train")["reason"] in ("ProcessKilled", "PeerLost")
    run.train(order)
    assert run.weights() == unbroken_pair.weights()


def test_each_process_takes_part_in_each_forward_pass(runs: SmallRuns) -> None:
    # Steps of seven in micro-batches of one, and a validation split of any size: one process has a batch more.
    run = runs.new("forward", processes=2, overrides={"globalBatchSize": 7, "microBatchSize": 1, "maxSteps": 6})
    (run.root / "order.json").write_text(json.dumps(run.order(runs.prepared)))
    said = pair("-m", "tests.trainer.forward_passes", str(run.root / "order.json"))
    passes = {line for text in said for line in text.split("\n") if line.startswith("passes ")}
    assert len(passes) == 1, passes
    assert passes.pop().endswith(" steps 6 reads 0"), "no step waits for a device"


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2", "DeepSpeedZeRO2", "DeepSpeedZeRO3"])
def test_what_diverges_goes_back_with_half_the_learning_rate(strategy: str, runs: SmallRuns) -> None:
    run = runs.new(f"diverging-{strategy}", processes=2)
    checkpoint = {"everySteps": 4, "keep": 9, "resume": "Latest"}
    order = run.order(runs.prepared, maxRollBacks=2, checkpoint=checkpoint, strategy=strategy)
    (run.root / "order.json").write_text(json.dumps(order))

    def said() -> list[str]:
        shutil.rmtree(run.folder / "model", ignore_errors=True)
        texts = pair("-m", "tests.trainer.diverging", str(run.root / "order.json"))
        return [text.split("SAID ")[1].strip() for text in texts]

    assert said() == ["went back to [4], resumed from 4"] * 2
    weights, log = run.weights(), (run.folder / "training_log.jsonl").read_text()
    assert '"rolled_back_to": 4' in log
    # Whether it is interrupted before it goes back or afterwards: it learns the same.
    for kept in ({4, 8}, {4}) if strategy == "DDP" else ({4},):
        for step in set(run.steps()) - kept:
            shutil.rmtree(run.folder / "checkpoints" / f"step-{step}")
        assert said() == [f"went back to [4], resumed from {max(kept)}"] * 2
        assert run.weights() == weights, kept


def test_votes_are_heard_by_all_at_one_step() -> None:
    program = """
from finetune_trainer.process.gang import Votes, joined
with joined(gpus=False) as gang:
    votes = Votes(gang)
    said = [votes.cast(step == 1 + gang.rank, False, urgent=step == 2 and gang.is_first)[0] for step in range(6)]
    gang.wait()
print("SAID", [int(each) for each in said])
"""
    # The first says so after step 1: heard after 2. The other after 2, the last that is not urgent: heard after 3, as
    # is what is said after 3 itself; none of it is heard twice.
    assert [text.split("SAID ")[1].strip() for text in pair("-c", program)] == ["[0, 0, 1, 1, 0, 0]"] * 2


def test_a_base_that_the_first_has_read_is_handed_out() -> None:
    program = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from finetune_trainer.process.gang import joined
from finetune_trainer.training.parallel.fsdp2 import FullySharded
from finetune_trainer.training.sharing import ParallelSettings, Root
sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
config = LlamaConfig(**sizes, tie_word_embeddings=True)
with joined(gpus=False) as gang:
    torch.manual_seed(0)
    read = LlamaForCausalLM(config)
    with torch.device("cpu" if gang.is_first else "meta"):
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict()) if gang.is_first else None
    parallel = FullySharded(gang, ParallelSettings())
    parallel.prepare(Root(model), optimizer=lambda: torch.optim.AdamW(model.parameters()))
    whole = dict(parallel.weights(dict(model.named_parameters())))
    same = all(torch.equal(whole[name], each) for name, each in read.named_parameters())
    buffers = all(torch.equal(*pair) for pair in zip(model.buffers(), read.buffers(), strict=True))
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    gang.wait()
print("SAID", same, buffers, tied, parallel.active())
"""
    assert [text.split("SAID ")[1].strip() for text in pair("-c", program)] == ["True True True True"] * 2


def test_the_processes_of_a_pod_fetch_what_is_remote_once(tmp_path: Path, runs: SmallRuns) -> None:
    run = runs.new("remote", processes=2, overrides={"maxSteps": 6})
    with serve_s3(tmp_path, bucket="models") as environment:
        bucket = tmp_path / "buckets" / "models"
        shutil.copytree(runs.base, bucket / "base")
        for name in ("data", "tokens"):
            shutil.copytree(runs.prepared_run.folder / name, bucket / "run" / name)
        torn = bucket / "run/checkpoints/step-4/parameters-7.safetensors"  # of more processes
        torn.parent.mkdir(parents=True)
        torn.write_bytes(b"half")
        prepared = runs.prepared | {"base": runs.prepared["base"] | {"uri": "s3://models/base"}}
        order = run.order(prepared)
        order["locations"] |= {"run": "s3://models/run", "cache": "s3://models/cache", "allowedRoots": ["s3://models"]}

        def gets(order: dict[str, Any]) -> Counter[str]:
            before = (tmp_path / "log").stat().st_size
            process = run.stage(order, "train", python=forked_python(), **environment)
            assert process.wait(timeout=HANGS_S) == 0, run.log("train")
            return Counter(re.findall(r"\| GET \| /models/(\S+) \|", (tmp_path / "log").read_bytes()[before:].decode()))

        fetched = gets(order)
        assert fetched["run/tokens/train.ids.npy"] == 1
        assert fetched["base/tokenizer.json"] == fetched["base/model.safetensors"] == 1
        # Going on from a checkpoint, and finding the model finished.
        shutil.rmtree(bucket / "run" / "model")
        fetched = gets(order)
        assert [fetched[f"run/checkpoints/step-4/parameters-{rank}.safetensors"] for rank in range(2)] == [2, 2]
        assert run.message("train")["resumedFromStep"] == 4
        assert gets(order)["run/model/model.safetensors"] == 1
        assert run.message("train")["reused"]


def test_what_one_process_of_a_pod_does_for_all() -> None:
    said = sorted(
        line
        for text in pair("-m", "tests.trainer.once_per_node")
        for line in text.split("\n")
        if line.startswith("SAID")
    )
    assert said == [f"SAID ['one', ['two'], None, 'Wrong', 'so it is', 65] {count}" for count in (0, 4)]


def test_what_the_first_process_does_alone_may_take_longer_than_an_exchange() -> None:
    """A rehearsal, a model that is uploaded: the others wait, and fail as it does."""
    program = """
import datetime, time
from finetune_trainer.process import gang as gangs
from finetune_trainer.process.errors import StageError, bad_data
gangs.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=15)  # to meet, too
def work(wrong):
    if wrong:
        raise bad_data("Wrong", "so it is")
    time.sleep(20)
    return "done"
with gangs.joined(gpus=False) as gang:
    said = [gang.first_does(lambda: work(False))]
    try:
        gang.first_does(lambda: work(True))
    except StageError as error:
        said.append(error.reason)
    gang.wait()
print("SAID", said)
"""
    assert [text.split("SAID ")[1].strip() for text in pair("-c", program)] == ["['done', 'Wrong']"] * 2


@pytest.fixture
def two_pods(runs: SmallRuns) -> Iterator[tuple[SmallRun, list[subprocess.Popen[bytes]]]]:
    run = runs.new("two-pods", nodes=2)
    (run.root / "pod-1").mkdir(exist_ok=True)
    processes = []
    for index in range(2):
        settings = {"JOB_COMPLETION_INDEX": str(index), "FINETUNE_MASTER_ADDR": "127.0.0.1"}
        settings["FINETUNE_MASTER_PORT"] = str(29500 + os.getpid() % 1000)
        order = run.order(runs.prepared, strategy="FSDP2")  # DDP does in the tests above
        processes.append(run.stage(order, f"pod-{index}", **settings))
    yield run, processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_two_pods_meet_and_stop_together(two_pods: tuple[SmallRun, list[subprocess.Popen[bytes]]]) -> None:
    run, processes = two_pods
    wait_for(lambda: 4 in run.steps(), what="a checkpoint", seconds=120)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=HANGS_S) for process in processes] == [75, 75], run.log("pod-0") + run.log("pod-1")
    assert {run.message(f"pod-{index}")["checkpointStep"] for index in range(2)} == {run.steps()[-1]}
