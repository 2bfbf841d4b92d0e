"""Train one model, in as many processes as the order says: `work` is one of them (launch.py starts them).

`_run` is the whole training, to be read from top to bottom. What a step does is a pure function of the order and the
step's number (schedule.py), so a run that goes on from a checkpoint has bit for bit the weights of an unbroken one.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from finetune_api.results import ExitCode, TrainResult
from finetune_api.run import OffloadOrder, TrainRun, name_of
from finetune_api.shared_fields import Artifact
from finetune_trainer.data import held_out_probes
from finetune_trainer.data.dataset import MANIFEST, data_folder, read_manifest, read_split
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.models.limits import padding_of
from finetune_trainer.models.parent_model import kept_adapter, take_over
from finetune_trainer.process.errors import StageError, bad_data, not_finite
from finetune_trainer.process.gang import FETCHING_TIMEOUT, Gang, Votes, joined, lost_peers_named
from finetune_trainer.process.packages import versions
from finetune_trainer.process.progress import ProgressReporter, living, show_life
from finetune_trainer.process.stopping import StopSignal
from finetune_trainer.store import json_lines
from finetune_trainer.store.locations import join
from finetune_trainer.store.orders import content_digest, orders_digest
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.batching import stretched_beyond
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Batch
from finetune_trainer.tasks.tokens import LEARNED, TokenOrder, Tokens, check_validation
from finetune_trainer.training.batches import Batches
from finetune_trainer.training.checkpoint import Checkpoints, TrainingState
from finetune_trainer.training.meter import Meter, check_finite
from finetune_trainer.training.methods.choose import Method, method_of, once_each, trainable_parameters
from finetune_trainer.training.objectives.choose import Objective, objective_of
from finetune_trainer.training.parallel.choose import Parallel, halves_base, meets, parallel_of
from finetune_trainer.training.rehearsal import Rehearsal, rehearse
from finetune_trainer.training.schedule import Schedule, back_to
from finetune_trainer.training.sharing import ParallelSettings, Root
from finetune_trainer.training.throughput import Size

log = logging.getLogger(__name__)
TRAINING_LOG = "training_log.jsonl"
_NOT_IN_DIGEST = {
    *("stage", "identity", "locations", "checkpoint"),
    *("nodes", "processesPerNode", "strategy", "offload", "deepspeed", "activationCheckpointing"),
}
"""Who runs it, where, on how many machines, what is kept in memory, how often it is saved: a run goes on where these
are others."""
_LONG_STEP_SECONDS = 1.0
"""Of a step: to stop one later would take too much of the time that is left to save."""
_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run works with; the same in every process but for the rank."""

    run: TrainRun
    storage: Storage
    gang: Gang
    tokenizer: Any
    model: Any
    method: Method
    size: Size
    objective: Objective
    parallel: Parallel
    prepared: Callable[[Callable[[Any], torch.Tensor]], torch.Tensor]
    """Through which the model is asked: under some strategies it is whole only inside of it."""
    parameters: Mapping[str, nn.Parameter]
    """By each of their names, as they were once prepared: around a pass a module may have others, of another shape."""
    autocast: Callable[[], AbstractContextManager[Any]]
    schedule: Schedule
    batches: Batches
    examples: Tokens
    validation: Tokens
    checkpoints: Checkpoints
    labels: Sequence[str] | None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, once each."""
        return {name: each for name, each in once_each(self.parameters).items() if each.requires_grad}


def work(run: TrainRun) -> TrainResult:
    """One process's part of the training. Raises StageError: 75 when it stopped after a checkpoint."""
    stop = StopSignal()
    stop.listen()
    storage = Storage(locations=run.locations)
    model_uri = join(run.locations.run, "model")
    show_life()
    gpus = torch.cuda.is_available() and run.processes_per_node >= 1
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - torch's own signature
    with joined(gpus=gpus, meets=meets(run.strategy)) as gang, lost_peers_named(), ExitStack() as stack:
        finished = gang.once_per_node(lambda: _finished(run, model_uri, storage=storage))
        if not gang.any_of(finished is None):
            return TrainResult.model_validate(finished)
        fetched = gang.once_per_node(
            lambda: str(stack.enter_context(base_model.local_folder(run.base, storage=storage)))
        )
        base_folder = Path(fetched)
        progress = stack.enter_context(ProgressReporter(environment=None if gang.is_first else {}))
        roll_backs: list[int] = []
        while True:
            with ExitStack() as attempt:
                with living(FETCHING_TIMEOUT.total_seconds()):
                    setup = _set_up(run, storage=storage, gang=gang, base_folder=base_folder, stack=attempt)
                attempt.callback(setup.checkpoints.leave)
                try:
                    return _run(
                        setup,
                        stop=stop,
                        progress=progress,
                        base_folder=base_folder,
                        model_uri=model_uri,
                        roll_backs=roll_backs,
                    )
                except StageError as error:  # of all processes alike
                    _go_back(run, error, roll_backs=roll_backs)
            del setup  # before there is another one
            gc.collect()


def _go_back(run: TrainRun, error: StageError, *, roll_backs: list[int]) -> None:
    """Note where to go on after a divergence. Raises the error where it is another one, or there were too many."""
    if error.diverged_at is None or len(roll_backs) >= (run.max_roll_backs or 0):
        if error.diverged_at is not None and roll_backs:
            error.message += f"; training had gone back to steps {', '.join(map(str, roll_backs))} already"
        raise error
    step = back_to(diverged_at=error.diverged_at, before=len(roll_backs), every=run.checkpoint.every_steps)
    roll_backs.append(step)
    log.warning("%s. Going back to step %d, with half the learning rate from there on", error.message, step)


def _finished(run: TrainRun, model_uri: str, *, storage: Storage) -> dict[str, Any] | None:
    """The result of an earlier attempt that had these very orders, JSON-ready."""
    finished = storage.read_complete(model_uri)
    if finished is None or finished.input_digest != input_digest(run):
        return None
    log.info("the model of these orders is there already: %s", model_uri)
    result = TrainResult.model_validate(finished.extra["result"])
    artifact = Artifact(
        uri=model_uri, digest=finished.digest, format=result.artifact.format, size_bytes=finished.size_bytes
    )
    return result.model_copy(update={"reused": True, "artifact": artifact}).to_dict()


def input_digest(run: TrainRun) -> str:
    """Of everything that the trained weights depend on: all of the orders but what is named here."""
    return orders_digest(run, apart=_NOT_IN_DIGEST, base={"digest": run.base.digest})  # wherever it lies


def _run(
    setup: Setup,
    *,
    stop: StopSignal,
    progress: ProgressReporter,
    base_folder: Path,
    model_uri: str,
    roll_backs: list[int],
) -> TrainResult:
    """`roll_backs`: those of this process's life; what a checkpoint says of earlier ones is added."""
    run, gang, checkpoints = setup.run, setup.gang, setup.checkpoints
    parameters = setup.trained
    shared: dict[str, Any] = {"gang": gang, "parallel": setup.parallel}
    before = _fingerprints(setup.parallel.weights(parameters))
    state = None
    if run.checkpoint.resume == "Latest" or roll_backs:
        upto = roll_backs[-1] if roll_backs else None
        state = checkpoints.load_newest(upto=upto, parameters=parameters, **shared)
    resumed_from = state.step if state is not None else None
    state = state or TrainingState(world=gang.world)
    state.world = gang.world
    if roll_backs:
        state.log.append({"step": state.step, "rolled_back_to": roll_backs[-1], "time": round(state.seconds, 3)})
    else:
        roll_backs += state.roll_backs
    state.roll_backs = roll_backs
    schedule = replace(setup.schedule, roll_backs=tuple(roll_backs))
    setup = replace(setup, schedule=schedule)
    begun_at = resumed_from
    meter = Meter(
        flops_per_token=setup.size.flops_per_token,
        schedule=schedule,
        gang=gang,
        progress=progress,
        state=state,
        resumed_from=resumed_from,
        grad_norm=setup.parallel.grad_norm,
    )
    meter.tell(checkpoint_step=resumed_from)

    def checkpoint(*, background: bool) -> None:
        nonlocal begun_at
        if begun_at != state.step:
            meter.read()  # no checkpoint of a loss that is not finite
            written = partial(_write_log, setup, list(state.log))
            checkpoints.save(state=state, parameters=parameters, background=background, then=written, **shared)
            begun_at = state.step
        if not background:
            checkpoints.settle(gang)
            meter.saved(checkpoints.saved_at)

    votes = Votes(gang)
    while state.step < schedule.total_steps and not _is_over(run, state):
        began = time.monotonic()
        loss, tokens = _step(setup, step=state.step)
        state.step += 1
        state.tokens += tokens
        meter.stepped(loss=loss, tokens=tokens)
        spent = time.monotonic() - began
        state.seconds += spent
        meter.saved(checkpoints.saved_at)
        lines_due = gang.is_first and meter.due
        stops, logs, failed = votes.cast(stop.asked, lines_due, checkpoints.failed, urgent=spent > _LONG_STEP_SECONDS)
        if failed:
            checkpoints.settle(gang)
        if logs or state.step == schedule.total_steps:
            meter.log()
        if schedule.ends_epoch(state.step - 1) and setup.validation:
            _validate(setup, state=state, meter=meter)
        if stops:
            checkpoint(background=False)
            raise StageError(
                reason="StoppedAfterCheckpoint",
                message=f"stopped by SIGTERM after the checkpoint at step {state.step}; the next attempt goes on there",
                exit_code=ExitCode.STOPPED_AFTER_CHECKPOINT,
                checkpoint_step=state.step,
            )
        is_best = checkpoints.keeps_best and state.best_step == state.step
        if (is_best or state.step % run.checkpoint.every_steps == 0) and state.step < schedule.total_steps:
            checkpoint(background=True)

    checkpoints.settle(gang)
    meter.saved(checkpoints.saved_at)
    stopped_early = state.step < schedule.total_steps
    if checkpoints.keeps_best and state.best_step is not None and state.best_step != state.step:
        log.info("taking the weights of step %d, the best validation", state.best_step)
        checkpoints.load_best(parameters=parameters, step=state.best_step, **shared)
    _check_changed(before, _fingerprints(setup.parallel.weights(parameters)), step=state.step)
    _write_log(setup, state.log)
    result = _save(
        setup,
        state=state,
        base_folder=base_folder,
        model_uri=model_uri,
        stopped_early=stopped_early,
        resumed_from=resumed_from,
    )
    meter.finished()
    return result


def _set_up(run: TrainRun, *, storage: Storage, gang: Gang, base_folder: Path, stack: ExitStack) -> Setup:
    order = run.optimisation
    method, task = method_of(run.method), task_of(run.model.task)
    fetched = gang.once_per_node(lambda: _tokens(run, storage=storage, base_folder=base_folder, stack=stack))
    folder, labels = fetched
    examples, validation = (Tokens.mapped(Path(folder), split=split) for split in LEARNED)
    check_validation(order, validation)
    rehearsal = Rehearsal.in_train(run, labels=labels)
    gang.first_does(lambda: rehearse(rehearsal, base_folder=base_folder, storage=storage))  # unless Prepare could
    tokenizer = base_model.load_tokenizer(base_folder)
    bf16 = base_model.precision_here(order.precision) == "BF16"
    offload = run.offload or OffloadOrder()
    parallel = parallel_of(
        run.strategy,
        gang=gang,
        settings=ParallelSettings(
            bf16=bf16,
            max_grad_norm=order.max_grad_norm,
            micro_batch_size=order.micro_batch_size,
            offload_optimizer=offload.optimizer,
            offload_parameters=offload.parameters,
            deepspeed=run.deepspeed or {},
        ),
    )
    torch.manual_seed(order.seed)  # a new classifier head and new adapters are the same in every process
    load = partial(
        base_model.load_base,
        base_folder,
        task=task.name,
        dtype="bfloat16" if bf16 and method.frozen_base and halves_base(run.strategy) else "float32",
        labels=labels,
        bits=method.bits,
        device=gang.device,
        packed=order.packing,
    )
    if parallel.hands_out and method.bits is None:  # what is quantised is of types of its own
        loaded = [] if gang.is_first else [load(weights=False)]
        gang.first_does(lambda: loaded.append(load()))
        (base,) = loaded
    else:
        base = load()
    model = method.applied(base, task=task, base_uri=run.base.uri)
    take_over(model, gang.once_per_node(lambda: stack.enter_context(kept_adapter(run.model, storage=storage))))
    if run.activation_checkpointing:
        recompute(model)
    model.train()
    size = Size.of(model)
    torch.manual_seed(order.seed * 1_000_003 + gang.rank)  # dropout differs between processes
    optimizer = partial(_optimizer, model, decayed=_decayed(model), weight_decay=order.weight_decay)
    prepared = parallel.prepare(Root(model), optimizer=optimizer)
    if not parallel.active():
        raise StageError(
            reason="StrategyNotActive",
            message=f"compute.strategy: {run.strategy} is not in force after it was set up; nothing was trained",
            exit_code=ExitCode.INTERNAL_ERROR,
        )
    log.info("strategy %s is in force over %d processes", type(parallel).__name__, gang.world)
    return Setup(
        run=run,
        storage=storage,
        gang=gang,
        tokenizer=tokenizer,
        model=model,
        method=method,
        size=size,
        objective=objective_of(task),
        parallel=parallel,
        prepared=prepared,
        parameters=dict(model.named_parameters(remove_duplicate=False)),
        autocast=partial(torch.autocast, gang.device.type, torch.bfloat16, enabled=bf16),
        schedule=Schedule(optimisation=order, examples=len(examples)),
        batches=Batches(task=task, order=order, pad_id=padding_of(model), gang=gang, beyond=stretched_beyond(model)),
        examples=examples,
        validation=validation,
        checkpoints=Checkpoints(
            storage=storage,
            folder=join(run.locations.run, "checkpoints"),
            input_digest=input_digest(run),
            keep=run.checkpoint.keep,
            keeps_best=order.early_stopping_patience is not None,
        ),
        labels=labels,
    )


def recompute(model: Any) -> None:
    """Keep what enters each block, and compute the rest again in backward passes, with the same random numbers."""
    plain(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _tokens(
    run: TrainRun, *, storage: Storage, base_folder: Path, stack: ExitStack
) -> tuple[str, Sequence[str] | None]:
    """A folder of this machine with the run's tokens, which stays as long as `stack`, and the classes."""
    order = TokenOrder(
        task=task_of(run.model.task),
        base=run.base.digest,
        data=run.data_digest,
        max_length=run.optimisation.max_length,
    )
    place: dict[str, Any] = {"run": run.locations.run, "storage": storage}
    written = stack.enter_context(order.written(**place))
    if written is not None:
        return str(written[0]), written[1].extra["labels"]
    # Prepare was of an earlier version, or had another version of what makes tokens.
    labels = _labels(run, storage=storage)
    folder = stack.enter_context(TemporaryDirectory(prefix="finetune-tokens-"))
    order.write(Path(folder), tokenizer=base_model.load_tokenizer(base_folder), labels=labels, **place)
    return folder, labels


def _labels(run: TrainRun, *, storage: Storage) -> Sequence[str] | None:
    """The classes, from the snapshot's manifest."""
    data = data_folder(run.locations.run)
    manifest = read_manifest(storage, uri=join(data, MANIFEST))
    if manifest.digest != run.data_digest:
        raise bad_data("DataChanged", f"{data} is not the data that was prepared for this run; start a new run")
    return manifest.labels


def _optimizer(model: Any, *, decayed: Set[str], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW. A parameter's shape cannot be asked any more: its process may hold a part of it."""
    trained = trainable_parameters(model)
    groups = [
        {"params": [each for name, each in trained.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [each for name, each in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def _decayed(model: Any) -> frozenset[str]:
    """All but biases and norms, which have one dimension."""
    return frozenset(name for name, parameter in trainable_parameters(model).items() if parameter.dim() > 1)


def _step(setup: Setup, *, step: int) -> tuple[torch.Tensor, int]:
    """One optimiser step, which waits for no device: this process's part of the mean loss over the step's targets
    (nats; fp64, shape ()), and its non-padding tokens in all processes.
    """
    parallel = setup.parallel
    chosen = setup.schedule.indices(step)
    weight = setup.objective.weight(setup.examples, chosen)
    batches = setup.batches.of_step(setup.examples, chosen)
    setup.model.train()
    losses = []
    for number, batch in enumerate(batches, start=1):
        with parallel.accumulating(last=number == len(batches)):
            loss = _loss(setup, batch)
            parallel.backward(loss, weight=weight)
        losses.append(loss.detach())
    parallel.step(
        setup.trained,
        learning_rate=setup.schedule.learning_rate(step),
        max_norm=setup.run.optimisation.max_grad_norm,
    )
    return torch.stack(losses).double().sum() / weight, setup.batches.tokens(setup.examples, chosen)


def _loss(setup: Setup, batch: Batch) -> torch.Tensor:
    """Summed over the batch's targets; shape ()."""
    moved = batch.to(setup.gang.device)
    show_life()  # steps of many passes, and validations, may take longer than a hang
    with setup.autocast():
        return setup.prepared(lambda model: setup.objective(model, moved))


def _validate(setup: Setup, *, state: TrainingState, meter: Meter) -> None:
    """Mean validation loss; remembers the best and how long ago it was."""
    gang, examples = setup.gang, setup.validation
    meter.read()
    setup.model.eval()
    summed = torch.zeros((), dtype=torch.float64, device=gang.device)
    with torch.no_grad():
        for batch in setup.batches.of_validation(examples):
            summed += _loss(setup, batch)
    (total,) = gang.sum_of(summed.unsqueeze(0))
    loss = total / max(1, setup.objective.weight(examples, range(len(examples))))
    check_finite(loss, what="validation loss", step=state.step)
    meter.validated(loss=loss)
    if state.best_loss is None or loss < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_without_improvement = loss, state.step, 0
    else:
        state.evaluations_without_improvement += 1


def _is_over(run: TrainRun, state: TrainingState) -> bool:
    patience = run.optimisation.early_stopping_patience
    return patience is not None and state.evaluations_without_improvement >= patience


def _fingerprints(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, tuple[float, float]]:
    return {name: (float(whole.double().sum()), float(whole.double().abs().sum())) for name, whole in weights}


def _check_changed(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], *, step: int) -> None:
    odd = next((name for name, sums in after.items() if not all(map(math.isfinite, sums))), None)
    if odd is not None:
        raise not_finite(f"gradients became so large that {odd} is not finite", step=step)
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
    """The first process saves and verifies; the others answer the probe with it, and wait."""
    model = setup.model
    result = TrainResult(
        artifact=Artifact(uri=model_uri, digest="sha256:" + "0" * 64, format=setup.method.saved_as, size_bytes=0),
        steps=state.step,
        stopped_early=stopped_early,
        train_loss=_last("loss", state.log),
        validation_loss=state.best_loss if setup.checkpoints.keeps_best else _last("validation_loss", state.log),
        tokens=state.tokens,
        seconds=round(state.seconds, 1),
        resumed_from_step=resumed_from,
        rolled_back_to=state.roll_backs or None,
        trainable_parameters=setup.size.trainable,
        total_parameters=setup.size.total,
        strategy=_shared_by(setup),
        deepspeed=content_digest(setup.run.deepspeed) if setup.run.deepspeed else None,
        base_bits=setup.method.bits,
        packages=versions((*_PACKAGES, *(("bitsandbytes",) if setup.method.bits else ()))),
    )
    example, device = setup.examples[0], setup.gang.device
    with setup.autocast():
        probe = saved_model.probe(model, example=example, task=setup.run.model.task, ask=setup.prepared, device=device)
    whole = _state(setup)

    def save() -> dict[str, Any]:
        artifact = saved_model.save(
            model,
            tokenizer=setup.tokenizer,
            to=model_uri,
            storage=setup.storage,
            base_folder=base_folder,
            format=setup.method.saved_as,
            task=setup.run.model.task,
            labels=setup.labels,
            probe=probe,
            input_digest=input_digest(setup.run),
            extra={"result": result.to_dict()},
            companions={held_out_probes.FILE_NAME: _probes(setup)},
            state=whole,
            bits=setup.method.bits,
        )
        return artifact.to_dict()

    artifact = Artifact.model_validate(setup.gang.first_does(save))
    return result.model_copy(update={"artifact": artifact})


def _shared_by(setup: Setup) -> str:
    run, world = setup.run, setup.gang.world
    name = name_of(run.strategy, run.offload, recomputes=bool(run.activation_checkpointing))
    return f"{name}, {'1 process' if world == 1 else f'{world} processes'}"


def _state(setup: Setup) -> dict[str, torch.Tensor]:
    """What is to be saved of the model's state dict, in whole tensors, in the first process; empty in the others."""
    if setup.method.saved_as == "Adapter":  # the base stays where it is
        trained = setup.parallel.weights(setup.trained)
        return {name: whole.cpu() for name, whole in trained if setup.gang.is_first}
    named, whole = setup.parameters, {}
    for name, tensor in setup.parallel.weights(once_each(named)):
        if setup.gang.is_first:
            whole[id(named[name])] = tensor.cpu()
    if not setup.gang.is_first:
        return {}
    # Names that share a tensor share it here too: a file holds it once.
    return {
        name: whole[id(named[name])] if name in named else value for name, value in setup.model.state_dict().items()
    }


def _last(name: str, lines: Sequence[dict[str, float]]) -> float | None:
    return next((line[name] for line in reversed(lines) if name in line), None)


def _probes(setup: Setup) -> str:
    """The test split's prompts, for whatever serves the model."""
    held_out = read_split(setup.storage, data=data_folder(setup.run.locations.run), split="test")
    task = setup.batches.task
    if task.two_parts:  # servers refuse what was cut when it was evaluated
        lengths = zip(held_out, task.lengths(held_out, tokenizer=setup.tokenizer), strict=True)
        held_out = [each for each, length in lengths if length <= setup.run.optimisation.max_length]
    return held_out_probes.to_text(held_out_probes.make_probes(held_out, prompts=task.two_parts))


def _write_log(setup: Setup, lines: Sequence[dict[str, float]]) -> None:
    if setup.gang.is_first:
        setup.storage.write_atomic(join(setup.run.locations.run, TRAINING_LOG), json_lines.to_text(lines))
