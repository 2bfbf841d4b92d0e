"""Train one model, in as many processes as the order says: `work` is one of them (launch.py starts them).

`_run` is the whole training, to be read from top to bottom. What a step does is a pure function of the order and the
step's number (schedule.py), so a run that goes on from a checkpoint has bit for bit the weights of an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from finetune_api.results import ExitCode, TrainResult
from finetune_api.run import TrainRun
from finetune_api.shared_fields import Artifact
from finetune_trainer import base_model, held_out_probes, json_lines, saved_model
from finetune_trainer.checkpoint import Checkpoints, TrainingState
from finetune_trainer.dataset import data_folder, read_manifest, read_split
from finetune_trainer.encoding import IGNORED, Batch, Encoded, encode, pack, packed_batch, padded_batch
from finetune_trainer.errors import StageError, bad_data
from finetune_trainer.gang import Gang, joined, lost_peers_named
from finetune_trainer.limits import padding_of
from finetune_trainer.locations import join
from finetune_trainer.progress import ProgressReporter, show_life
from finetune_trainer.rehearsal import Rehearsal, rehearse
from finetune_trainer.schedule import Schedule
from finetune_trainer.stopping import StopSignal
from finetune_trainer.storage import Storage
from finetune_trainer.throughput import flops_per_token, peak_flops
from finetune_trainer.trainable import LossOf, trainable_parameters, with_method

log = logging.getLogger(__name__)
TRAINING_LOG = "training_log.jsonl"
_LOG_SECONDS = 2.0
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run works with; the same in every process but for the rank."""

    run: TrainRun
    storage: Storage
    gang: Gang
    accelerator: Accelerator
    tokenizer: Any
    model: Any
    loss_of: Any
    """LossOf(model), wrapped for gradient exchange where there are several processes."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    examples: Sequence[Encoded]
    validation: Sequence[Encoded]
    checkpoints: Checkpoints
    labels: Sequence[str] | None


def work(run: TrainRun) -> TrainResult:
    """One process's part of the training. Raises StageError: 75 when it stopped after a checkpoint."""
    stop = StopSignal()
    stop.listen()
    storage = Storage(locations=run.locations)
    model_uri, digest = join(run.locations.run, "model"), input_digest(run)
    finished = storage.read_complete(model_uri)
    if finished is not None and finished.input_digest == digest:
        log.info("the model of these orders is there already: %s", model_uri)
        result = TrainResult.model_validate(finished.extra["result"])
        artifact = Artifact(
            uri=model_uri, digest=finished.digest, format=result.artifact.format, size_bytes=finished.size_bytes
        )
        return result.model_copy(update={"reused": True, "artifact": artifact})
    show_life()
    gpus = torch.cuda.is_available() and run.processes_per_node >= 1
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - torch's own signature
    with (
        joined(gpus=gpus) as gang,
        lost_peers_named(),
        base_model.local_folder(run.base, storage=storage, verify=gang.local_rank == 0) as base_folder,
        ProgressReporter(environment=None if gang.is_first else {}) as progress,
    ):
        setup = _set_up(run, storage=storage, gang=gang, base_folder=base_folder)
        return _run(setup, stop=stop, progress=progress, base_folder=base_folder, model_uri=model_uri)


def _rehearse(run: TrainRun, *, labels: Sequence[str] | None, storage: Storage, base_folder: Path) -> None:
    """What Prepare could not try; the other processes come to the first exchange and wait there."""
    order = Rehearsal(
        locations=run.locations,
        model=run.model,
        base=run.base,
        method=run.method,
        packing=run.optimisation.packing,
        labels=labels,
    )
    rehearse(order, base_folder=base_folder, storage=storage)


def input_digest(run: TrainRun) -> str:
    """Of everything that the trained weights depend on; the machines and the attempt are not among it."""
    orders = run.to_dict()
    relevant = {key: orders[key] for key in ("model", "base", "dataDigest", "method", "optimisation")}
    relevant["base"] = {"digest": run.base.digest}
    return "sha256:" + hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _run(
    setup: Setup, *, stop: StopSignal, progress: ProgressReporter, base_folder: Path, model_uri: str
) -> TrainResult:
    run, gang, schedule = setup.run, setup.gang, setup.schedule
    parameters = trainable_parameters(setup.model)
    before = _fingerprints(parameters)
    state = None
    if run.checkpoint.resume == "Latest":
        state = setup.checkpoints.load_newest(parameters=parameters, optimizer=setup.optimizer, gang=gang)
    resumed_from = state.step if state is not None else None
    state = state or TrainingState(world=gang.world)
    state.world = gang.world
    saved_at = resumed_from
    meter = _Meter(setup, progress=progress, state=state, resumed_from=resumed_from)
    meter.tell(checkpoint_step=saved_at)

    def checkpoint() -> None:
        nonlocal saved_at
        setup.checkpoints.save(state=state, parameters=parameters, optimizer=setup.optimizer, gang=gang)
        _write_log(setup, state)
        saved_at = state.step
        meter.tell(checkpoint_step=saved_at)

    while state.step < schedule.total_steps and not _is_over(run, state):
        began = time.monotonic()
        loss, tokens = _step(setup, step=state.step)
        state.step += 1
        state.tokens += tokens
        state.seconds += time.monotonic() - began
        meter.stepped(loss=loss, tokens=tokens, seconds=time.monotonic() - began)
        if schedule.ends_epoch(state.step - 1) and setup.validation:
            _validate(setup, state=state, parameters=parameters, meter=meter)
        if gang.any_of(stop.asked):
            if saved_at != state.step:
                checkpoint()
            raise StageError(
                reason="StoppedAfterCheckpoint",
                message=f"stopped by SIGTERM after the checkpoint at step {state.step}; the next attempt goes on there",
                exit_code=ExitCode.STOPPED_AFTER_CHECKPOINT,
                checkpoint_step=state.step,
            )
        if state.step % run.checkpoint.every_steps == 0 and state.step < schedule.total_steps:
            checkpoint()

    stopped_early = state.step < schedule.total_steps
    if run.optimisation.early_stopping_patience is not None and state.best_step not in (None, state.step):
        log.info("taking the weights of step %s, the best validation", state.best_step)
        setup.checkpoints.load_best(parameters=parameters, step=state.best_step or 0)
    _check_changed(before, parameters)
    _write_log(setup, state)
    return _save(
        setup,
        state=state,
        base_folder=base_folder,
        model_uri=model_uri,
        stopped_early=stopped_early,
        resumed_from=resumed_from,
    )


def _set_up(run: TrainRun, *, storage: Storage, gang: Gang, base_folder: Path) -> Setup:
    order = run.optimisation
    data = data_folder(run.locations.run)
    manifest = read_manifest(storage, uri=join(data, "manifest.json"))
    if manifest.digest != run.data_digest:
        raise bad_data("DataChanged", f"{data} is not the data that was prepared for this run; start a new run")
    if gang.is_first:
        _rehearse(run, labels=manifest.labels, storage=storage, base_folder=base_folder)
    tokenizer = base_model.load_tokenizer(base_folder)
    bf16 = gang.device.type == "cuda" and order.precision != "FP32" and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(cpu=gang.device.type == "cpu", mixed_precision="bf16" if bf16 else "no")
    torch.manual_seed(order.seed)  # a new classifier head and new adapters are the same in every process
    frozen_in_bf16 = bf16 and run.method.type == "LoRA"
    base = base_model.load_base(
        base_folder, task=run.model.task, dtype="bfloat16" if frozen_in_bf16 else "float32", labels=manifest.labels
    )
    model = with_method(base, method=run.method, task=run.model.task, base_uri=run.base.uri)
    model.to(gang.device).train()
    torch.manual_seed(order.seed * 1_000_003 + gang.rank)  # dropout differs between processes

    def encoded(split: Any) -> list[Encoded]:
        found = [
            encode(example, tokenizer=tokenizer, max_length=order.max_length, labels=manifest.labels)
            for example in read_split(storage, data=data, split=split)
        ]
        useful = [example for example in found if example.target_count]
        if len(useful) < len(found):
            log.warning("%s: %d of %d examples have nothing to learn after the cut to %d tokens and are left out",
                        split, len(found) - len(useful), len(found), order.max_length)  # fmt: skip
        return useful

    examples = encoded("train")
    if not examples:
        raise bad_data("NothingToLearn", f"no training example has an answer within {order.max_length} tokens")
    loss_of = (
        accelerator.prepare_model(LossOf(model, task=run.model.task))
        if gang.world > 1
        else LossOf(model, task=run.model.task)
    )
    return Setup(
        run=run,
        storage=storage,
        gang=gang,
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=model,
        loss_of=loss_of,
        optimizer=_optimizer(model, weight_decay=order.weight_decay, device=gang.device),
        schedule=Schedule(optimisation=order, examples=len(examples)),
        examples=examples,
        validation=encoded("validation"),
        checkpoints=Checkpoints(
            storage=storage,
            folder=join(run.locations.run, "checkpoints"),
            input_digest=input_digest(run),
            keep=run.checkpoint.keep,
        ),
        labels=manifest.labels,
    )


def _optimizer(model: Any, *, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; biases and norms (one dimension) are not decayed."""
    parameters = list(trainable_parameters(model).values())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def _step(setup: Setup, *, step: int) -> tuple[float, int]:
    """One optimiser step. Mean loss over its targets (nats) and its non-padding tokens, both over all processes."""
    gang, accelerator, order = setup.gang, setup.accelerator, setup.run.optimisation
    chosen = [setup.examples[index] for index in setup.schedule.indices(step)]
    targets = sum(example.target_count for example in chosen)  # over all processes: each knows the whole batch
    batches = _micro_batches(setup, chosen[gang.rank :: gang.world])
    setup.model.train()
    for group in setup.optimizer.param_groups:
        group["lr"] = setup.schedule.learning_rate(step)
    summed = 0.0
    for number, batch in enumerate(batches):
        # Gradients are exchanged once, with the last micro-batch.
        with nullcontext() if number == len(batches) - 1 else accelerator.no_sync(setup.loss_of):
            with accelerator.autocast():
                loss = setup.loss_of(batch.to(gang.device))
            # DistributedDataParallel averages over processes; what is wanted is the mean over all targets.
            (loss * (gang.world / targets)).backward()
        summed += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(trainable_parameters(setup.model).values(), order.max_grad_norm)
    total, tokens = gang.sum_of([summed, float(sum(batch.real_tokens for batch in batches))])
    if not math.isfinite(total):
        raise StageError(
            reason="LossNotFinite",
            message=f"the loss became {total} at step {step + 1}; lower training.learningRate or check the data",
            exit_code=ExitCode.INTERNAL_ERROR,
        )
    setup.optimizer.step()
    setup.optimizer.zero_grad(set_to_none=True)
    return total / targets, round(tokens)


def _micro_batches(setup: Setup, examples: Sequence[Encoded]) -> list[Batch]:
    """This process's share of a step. Never empty: a process without examples still takes part in the exchange."""
    order = setup.run.optimisation
    pad_id = padding_of(setup.model)
    if not examples:
        return [_nothing(setup.examples[0], pad_id=pad_id)]
    if order.packing:
        return [packed_batch(row) for row in pack(examples, max_length=order.max_length)]
    by_length = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    size = order.micro_batch_size
    return [padded_batch(by_length[first : first + size], pad_id=pad_id) for first in range(0, len(by_length), size)]


def _nothing(example: Encoded, *, pad_id: int) -> Batch:
    """A batch whose loss and gradients are zero."""
    batch = padded_batch([example], pad_id=pad_id)
    return Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=None,
        labels=torch.full_like(batch.labels, IGNORED),
        real_tokens=0,
    )


def _validate(setup: Setup, *, state: TrainingState, parameters: dict[str, Any], meter: _Meter) -> None:
    """Mean validation loss; remembers the best and how long ago it was."""
    gang = setup.gang
    loss_of = setup.loss_of.module if gang.world > 1 else setup.loss_of
    setup.model.eval()
    summed, targets = 0.0, 0
    share = sorted(setup.validation[gang.rank :: gang.world], key=lambda example: len(example.ids))
    with torch.inference_mode(), setup.accelerator.autocast():
        for first in range(0, len(share), 16):
            batch = share[first : first + 16]
            summed += float(loss_of(padded_batch(batch, pad_id=padding_of(setup.model)).to(gang.device)))
            targets += sum(example.target_count for example in batch)
    total, count = gang.sum_of([summed, float(targets)])
    loss = total / max(1.0, count)
    meter.validated(loss=loss)
    if state.best_loss is None or loss < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_without_improvement = loss, state.step, 0
        if setup.run.optimisation.early_stopping_patience is not None:
            setup.checkpoints.save_best(parameters=parameters, step=state.step, gang=gang)
    else:
        state.evaluations_without_improvement += 1


def _is_over(run: TrainRun, state: TrainingState) -> bool:
    patience = run.optimisation.early_stopping_patience
    return patience is not None and state.evaluations_without_improvement >= patience


def _fingerprints(parameters: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        name: (float(p.detach().double().sum()), float(p.detach().double().abs().sum()))
        for name, p in parameters.items()
    }


def _check_changed(before: dict[str, tuple[float, float]], parameters: dict[str, Any]) -> None:
    after = _fingerprints(parameters)
    same = [name for name, fingerprint in after.items() if before[name] == fingerprint]
    if len(same) == len(after):
        raise StageError(
            reason="NothingLearned",
            message="training changed no parameter; raise training.learningRate or the number of steps",
            exit_code=ExitCode.BAD_CONFIGURATION,
        )
    if same:
        log.warning("%d of %d trainable tensors were not changed, %s first", len(same), len(after), same[0])


def _save(
    setup: Setup,
    *,
    state: TrainingState,
    base_folder: Path,
    model_uri: str,
    stopped_early: bool,
    resumed_from: int | None,
) -> TrainResult:
    """The first process saves and verifies; the others wait for it."""
    model = setup.model
    result = TrainResult(
        artifact=Artifact(uri=model_uri, digest="sha256:" + "0" * 64, format="Full", size_bytes=0),
        steps=state.step,
        stopped_early=stopped_early,
        train_loss=next((line["loss"] for line in reversed(state.log) if "loss" in line), None),
        validation_loss=state.best_loss,
        tokens=state.tokens,
        seconds=round(state.seconds, 1),
        resumed_from_step=resumed_from,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=sum(p.numel() for p in model.parameters()),
        packages={name: version(name) for name in _PACKAGES},
    )
    if setup.gang.is_first:
        format_ = "Adapter" if hasattr(model, "peft_config") else "Full"
        stored = result.model_copy(update={"artifact": result.artifact.model_copy(update={"format": format_})})
        artifact = saved_model.save(
            model,
            tokenizer=setup.tokenizer,
            to=model_uri,
            storage=setup.storage,
            base_folder=base_folder,
            task=setup.run.model.task,
            labels=setup.labels,
            probe=saved_model.probe(model, input_ids=setup.examples[0].ids),
            input_digest=input_digest(setup.run),
            extra={"result": stored.to_dict()},
            companions={held_out_probes.FILE_NAME: _probes(setup)},
        )
        result = result.model_copy(update={"artifact": artifact})
    setup.gang.wait()
    return result


def _probes(setup: Setup) -> str:
    """The test split's prompts, for whatever serves the model."""
    held_out = read_split(setup.storage, data=data_folder(setup.run.locations.run), split="test")
    return held_out_probes.to_text(held_out_probes.make_probes(held_out, task=setup.run.model.task))


def _write_log(setup: Setup, state: TrainingState) -> None:
    if setup.gang.is_first:
        setup.storage.write_atomic(join(setup.run.locations.run, TRAINING_LOG), json_lines.to_text(state.log))


class _Meter:
    """Logs, records and reports how training goes."""

    def __init__(
        self, setup: Setup, *, progress: ProgressReporter, state: TrainingState, resumed_from: int | None
    ) -> None:
        self._setup = setup
        self._progress = progress
        self._state = state
        self._metrics: dict[str, float] = {} if resumed_from is None else {"resumed_from_step": float(resumed_from)}
        self._logged_at = float("-inf")
        self._since_log: list[tuple[float, int, float]] = []
        peak = peak_flops(setup.gang.device)
        plain = setup.model.get_base_model() if hasattr(setup.model, "peft_config") else setup.model
        self._mfu_per_token_rate = flops_per_token(setup.model, config=plain.config) / peak if peak else None

    def stepped(self, *, loss: float, tokens: int, seconds: float) -> None:
        """A step is done; log it when the last line is some seconds old."""
        self._since_log.append((loss, tokens, seconds))
        now = time.monotonic()
        total = self._setup.schedule.total_steps
        if now - self._logged_at < _LOG_SECONDS and self._state.step < total:
            return
        self._logged_at = now
        spent = sum(item[2] for item in self._since_log)
        rate = sum(item[1] for item in self._since_log) / max(spent, 1e-9) / self._setup.gang.world
        mean = sum(item[0] for item in self._since_log) / len(self._since_log)
        learning_rate = self._setup.schedule.learning_rate(self._state.step - 1)
        self._since_log.clear()
        line = {
            "step": self._state.step,
            "loss": mean,
            "learning_rate": learning_rate,
            "tokens_per_second": rate,
            "time": round(self._state.seconds, 3),
        }
        self._state.log.append(line)
        self._metrics |= {"loss": mean, "learning_rate": learning_rate, "non_padding_tokens_per_second_per_gpu": rate}
        if self._mfu_per_token_rate is not None:
            self._metrics["mfu"] = rate * self._mfu_per_token_rate
        if self._setup.gang.is_first:
            left = self._remaining()
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s%s  %d s left",
                self._state.step,
                total,
                mean,
                learning_rate,
                rate,
                f"  MFU {self._metrics['mfu']:.1%}" if "mfu" in self._metrics else "",
                left,
            )
        self.tell()

    def validated(self, *, loss: float) -> None:
        """A validation is done."""
        self._state.log.append({"step": self._state.step, "validation_loss": loss, "time": self._state.seconds})
        self._metrics["validation_loss"] = loss
        if self._setup.gang.is_first:
            log.info("step %d/%d  validation loss %.4f", self._state.step, self._setup.schedule.total_steps, loss)
        self.tell()

    def tell(self, *, checkpoint_step: int | None = None) -> None:
        """Report now."""
        show_life()
        if checkpoint_step is not None:
            self._metrics["checkpoint_step"] = float(checkpoint_step)
        total = self._setup.schedule.total_steps
        metrics = {"step": float(self._state.step), "total_steps": float(total), **self._metrics}
        self._progress.report(fraction=self._state.step / total, remaining_seconds=self._remaining(), metrics=metrics)

    def _remaining(self) -> float:
        """Seconds left at the pace so far."""
        if not self._state.step:
            return 0.0
        return self._state.seconds / self._state.step * (self._setup.schedule.total_steps - self._state.step)
