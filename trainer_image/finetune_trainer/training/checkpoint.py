"""Checkpoints: all that a run needs to go on as if nothing had happened.

    checkpoints/step-N/
        parameters.safetensors   trainable parameters, by name, whole (many: several files, see tensor_files)
        optimizer.safetensors    AdamW's moments: `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`
        (of several processes    parameters-0.safetensors, parameters-1.safetensors, ...: each writes a share)
        random.safetensors       torch's generators of every rank: `<rank>/cpu`, `<rank>/cuda`
        state.json               TrainingState
        COMPLETE                 written last, with the sha256 of each file

A folder without a valid COMPLETE is torn and ignored. Nothing is pickled, and nothing is of one strategy or number of
processes: a run goes on under another one. The best validation, where training ends
with its weights, is a checkpoint too. It stays as long as one that names it, which is worth nothing without it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_api.results import ExitCode
from finetune_trainer.process import memory
from finetune_trainer.process.errors import StageError, bad_configuration, not_finite
from finetune_trainer.process.gang import COLLECTIVE_TIMEOUT, FETCHING_TIMEOUT, Gang, Shares
from finetune_trainer.store.complete import Complete, FileDigest
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.training import tensor_files
from finetune_trainer.training.parallel.choose import Parallel

log = logging.getLogger(__name__)
_PREFIX = "step-"
_WEIGHTS, _MOMENTS = "parameters", "optimizer"
_EARLIER_BEST = "best"
"""Where the best was by itself, as earlier versions left it."""
_BYTES_SAVED = 12
"""Of each number: itself and its two moments."""
_ROOM = 1.1
"""Times the copy that has to be free."""


@dataclass(kw_only=True)
class TrainingState:
    """What is known after `step` optimiser steps, beside the tensors."""

    step: int = 0
    tokens: int = 0
    """Non-padding tokens seen by all processes."""
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    """The lines of training_log.jsonl."""
    world: int = 1
    roll_backs: list[int] = field(default_factory=list)
    """See `Schedule`."""


@dataclass(kw_only=True)
class Checkpoints:
    """The checkpoints of one run. One at most is written at a time."""

    storage: Storage
    folder: str
    """URI of `checkpoints/`."""
    input_digest: str
    """Of the run's orders: a checkpoint of other orders is not ours to go on from."""
    keep: int
    """How many stay, beside the best that they name."""
    keeps_best: bool
    """Whether training ends with the weights of the best validation."""
    saved_at: int | None = None
    """The step of the newest one that is complete, as the first process knows it."""
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "checkpoint"))
    _written: Future[None] | None = None
    """The one under way, or the last one: this process's share, of the first process all of it."""
    _left: float = math.inf
    """When this process left (time.monotonic)."""
    _copied: int = 0
    """Bytes of the last copy: a part of this process's peak."""

    def save(
        self,
        *,
        state: TrainingState,
        parameters: dict[str, nn.Parameter],
        gang: Gang,
        parallel: Parallel,
        background: bool = False,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Save together: every process calls it and writes its share, the first one does `then` when all is written.
        Raises StageError 73 when it cannot be written, LossNotFinite where there is nothing worth saving; checkpoints
        of earlier steps are intact then.

        `background`: training goes on meanwhile, where there is room for a copy of all that is saved. It counts when
        `saved_at` says so; what goes wrong is raised by `settle`, which comes first here.
        """
        began = time.monotonic()
        self.settle(gang)
        generators, text = _generators(gang), json.dumps(asdict(state), sort_keys=True)
        step, best = state.step, state.best_step if self.keeps_best else None
        uri = join(self.folder, f"{_PREFIX}{step}")
        with ExitStack() as stack:
            staging = self._staging(uri, gang=gang, stack=stack)
            writers = [rank for rank, sees in enumerate(gang.gather_bytes(_flag(staging.is_dir()))) if sees]
            background = not gang.any_of(not background or not self._has_room(parameters, gang, writers=len(writers)))
            own, turns = f"-{gang.rank}" if len(writers) > 1 else "", tensor_files.Turns(writers)
            files = [tensor_files.Writer(staging, name=name + own, copies=background) for name in (_WEIGHTS, _MOMENTS)]
            tensors = parallel.weights(parameters), parallel.moments(parameters)
            failures = [
                tensor_files.go_through(each, mine=lambda size: turns.next(size) == gang.rank, keep=file.add)
                for each, file in zip(tensors, files, strict=True)
            ]
            waited, shares = time.monotonic() - began, Shares(gang)

            def write() -> list[dict[str, Any]]:
                for failure in failures:
                    if isinstance(failure, tensor_files.NotFinite):
                        raise not_finite(f"gradients became so large that {failure}", step=step)
                    if failure is not None:
                        raise failure
                written = [path for file in files if gang.rank in writers for path in file.close()]
                if gang.is_first:
                    written += [staging / "random.safetensors", staging / "state.json"]
                    save_file(generators, written[-2])
                    written[-1].write_text(text)
                return [asdict(each) for each in self.storage.put(written, folder=staging, to=uri)]

            def publish() -> None:
                found = shares.made(write, writing=uri, left=lambda: self._left)
                if not gang.is_first:
                    return
                digests = [FileDigest(**each) for share in found for each in share]
                extra = {"step": step, "best_step": best}
                self.storage.finish(staging, files=digests, to=uri, input_digest=self.input_digest, extra=extra)
                self.saved_at = step
                with _logged("old checkpoints"):
                    self._remove_old(newest=step)
                if then is not None:
                    then()
                spent = time.monotonic() - began
                held_up = waited if background else spent
                log.info("checkpoint at step %d in %.3f s, training waited %.3f s: %s", step, spent, held_up, uri)

            self._written = self._thread.submit(_within, stack.pop_all(), publish)
        if gang.any_of(not background or any(failures)):
            self.settle(gang)

    def _staging(self, uri: str, *, gang: Gang, stack: ExitStack) -> Path:
        """Where this process's files are made: a folder of its own before they are uploaded, else the first process's,
        which not all may see. What was there of that step goes: it was not gone on from.
        """

        def begin() -> str:
            self.storage.remove(uri)
            return str(stack.enter_context(self.storage.staging_folder(uri)))

        made = Path(gang.first_does(begin))
        if gang.is_first:
            return made
        target = self.storage.local_path(uri)
        return target.with_name(made.name) if target else stack.enter_context(self.storage.staging_folder(uri))

    @property
    def failed(self) -> bool:
        """Whether one was begun that could not be written: it is for `settle` to say."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def settle(self, gang: Gang) -> None:
        """Wait, all together, for the one under way. Raises what went wrong with it."""
        written = self._written
        if gang.any_of(written is not None and (self.failed or not written.done())):
            gang.first_does(lambda: written and written.result(FETCHING_TIMEOUT.total_seconds()))

    def leave(self) -> None:
        """However it ends: what is under way is finished if that takes no longer than an exchange, and counts then."""
        self._left = time.monotonic()
        if self._written is not None:
            wait([self._written], timeout=COLLECTIVE_TIMEOUT.total_seconds())
        if self.failed:
            log.warning("the last checkpoint was not written: %s", self._written and self._written.exception())

    def _has_room(self, parameters: dict[str, nn.Parameter], gang: Gang, *, writers: int) -> bool:
        """Whether this machine has memory for its processes' copies, beside what they take at their peaks."""
        numbers = sum(getattr(each, "ds_numel", each.numel()) for each in parameters.values())
        size = _BYTES_SAVED * numbers // writers
        peak = max(0, memory.below_peak() - self._copied)
        self._copied = size if memory.available() > gang.of_node * (peak + _ROOM * size) else 0
        return self._copied > 0

    def load_newest(
        self, *, upto: int | None = None, parameters: dict[str, nn.Parameter], gang: Gang, parallel: Parallel
    ) -> TrainingState | None:
        """Go on from the newest valid checkpoint (`upto` a step), everywhere the same; None where there is none."""
        step = gang.first_says(self._newest(upto) if gang.is_first else -1)
        if step < 0:
            return None
        uri = join(self.folder, f"{_PREFIX}{step}")
        with self._on_node(uri, gang=gang) as folder:
            state = TrainingState(**json.loads((folder / "state.json").read_text()))
            _load_weights(folder, parameters, parallel)
            for key, value in tensor_files.read(folder, _MOMENTS):
                name, moment = key.rsplit("/", 1)
                parallel.put_moment(parameters[name], moment, value)
            _load_generators(load_file(folder / "random.safetensors"), saved_world=state.world, gang=gang)
        log.info("going on from the checkpoint at step %d", step)
        return state

    def load_best(self, *, parameters: dict[str, nn.Parameter], step: int, gang: Gang, parallel: Parallel) -> None:
        """Put the parameters of the best validation back. Raises StageError (70) BestCheckpointLost."""
        uri = gang.once_per_node(lambda: self._best(step))
        if uri is None:
            raise StageError(
                reason="BestCheckpointLost",
                message=f"{join(self.folder, f'{_PREFIX}{step}')}, the best validation of this run, is gone or damaged,"
                " and no other weights are saved in its place; the next attempt trains on from a checkpoint whose best"
                " is there, or anew",
                exit_code=ExitCode.INTERNAL_ERROR,
            )
        with self._on_node(uri, gang=gang) as folder:
            _load_weights(folder, parameters, parallel)

    def _best(self, step: int) -> str | None:
        """The URI of the best validation, at that step; None where it is lost."""
        for name in (f"{_PREFIX}{step}", _EARLIER_BEST):
            record = self._record(name)
            if record is not None and record.extra["step"] == step:
                return join(self.folder, name)
        return None

    def _record(self, name: str, *, verify_content: bool = True) -> Complete | None:
        """Of a whole checkpoint of these orders; why another one is none is in the log."""
        found = self.storage.read_complete(join(self.folder, name), verify_content=verify_content)
        if found is not None and found.input_digest != self.input_digest:
            log.warning("checkpoint %s belongs to other orders and is ignored", name)
            return None
        return found

    @contextmanager
    def _on_node(self, uri: str, *, gang: Gang) -> Iterator[Path]:
        """A folder of this machine, fetched once for all of its processes."""
        with ExitStack() as stack:
            yield Path(gang.once_per_node(lambda: str(stack.enter_context(self.storage.local_copy(uri)))))
            gang.wait()

    def _steps(self) -> list[int]:
        names = {entry.path.partition("/")[0] for entry in self.storage.list_files(self.folder)}
        numbers = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)

    def _newest(self, upto: int | None) -> int:
        """The step of the newest valid checkpoint, -1 for none; what is passed over is named in the log."""
        for step in (step for step in self._steps() if upto is None or step <= upto):
            record = self._record(f"{_PREFIX}{step}")
            if record is not None:
                best = record.extra.get("best_step")
                if best in (None, step) or self._best(best) is not None:
                    return step
                log.warning("checkpoint step-%d is ignored: its best validation, step-%d, is lost", step, best)
        return -1

    def _remove_old(self, *, newest: int) -> None:
        """All but the `keep` newest ones up to `newest` and the best that each of these names.

        Later ones are of a future that was given up: torn, of other orders, or without their best.
        """
        steps = self._steps()
        records = ((step, self._record(f"{_PREFIX}{step}", verify_content=False)) for step in steps if step <= newest)
        kept = dict(itertools.islice(((step, record) for step, record in records if record), self.keep))
        needed = {*kept, *(record.extra.get("best_step") for record in kept.values())}
        for step in (step for step in steps if step not in needed):
            with _logged(f"{_PREFIX}{step}"):
                self.storage.remove(join(self.folder, f"{_PREFIX}{step}"))


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Around what clears away: trouble with it ends no attempt whose checkpoint is saved."""
    try:
        yield
    except (OSError, StageError) as error:
        log.warning("%s could not be removed: %s", what, error)


def _within(stack: ExitStack, work: Callable[[], None]) -> None:
    with stack:
        work()


def _load_weights(folder: Path, parameters: dict[str, nn.Parameter], parallel: Parallel) -> None:
    found = set()
    for name, whole in tensor_files.read(folder, _WEIGHTS):
        if name in parameters:
            parallel.put_weight(parameters[name], whole)
        found.add(name)
    odd = sorted(found ^ parameters.keys())
    if odd:
        raise bad_configuration("CheckpointMismatch", f"the checkpoint does not fit the model: {odd[0]}")


def _flag(value: bool) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.uint8)


def _generators(gang: Gang) -> dict[str, torch.Tensor]:
    states: dict[str, torch.Tensor] = {}
    for rank, tensor in enumerate(gang.gather_bytes(torch.get_rng_state())):
        states[f"{rank}/cpu"] = tensor.clone()
    if gang.device.type == "cuda":
        for rank, tensor in enumerate(gang.gather_bytes(torch.cuda.get_rng_state(gang.device))):
            states[f"{rank}/cuda"] = tensor.clone()
    return states


def _load_generators(saved: dict[str, torch.Tensor], *, saved_world: int, gang: Gang) -> None:
    if saved_world != gang.world:
        # Data and batches stay the same; only dropout differs from what an unbroken run would have drawn.
        log.warning(
            "the checkpoint is of %d processes, now there are %d: dropout is drawn anew", saved_world, gang.world
        )
        return
    torch.set_rng_state(saved[f"{gang.rank}/cpu"])
    if gang.device.type == "cuda" and f"{gang.rank}/cuda" in saved:
        torch.cuda.set_rng_state(saved[f"{gang.rank}/cuda"], gang.device)
