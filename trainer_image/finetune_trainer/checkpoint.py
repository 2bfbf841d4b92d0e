"""Checkpoints: all that a run needs to go on as if nothing had happened.

    checkpoints/step-N/
        parameters.safetensors   trainable parameters, by name
        optimizer.safetensors    AdamW's moments: `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`
        random.safetensors       torch's generators of every rank: `<rank>/cpu`, `<rank>/cuda`
        state.json               TrainingState
        COMPLETE                 written last, with the sha256 of each file

A folder without a valid COMPLETE is torn and ignored. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_trainer.errors import StageError, bad_configuration
from finetune_trainer.gang import Gang
from finetune_trainer.locations import join
from finetune_trainer.storage import Storage

log = logging.getLogger(__name__)
_PREFIX = "step-"
BEST = "best"


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


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run."""

    storage: Storage
    folder: str
    """URI of `checkpoints/`."""
    input_digest: str
    """Of the run's orders: a checkpoint of other orders is not ours to go on from."""
    keep: int

    def save(
        self,
        *,
        state: TrainingState,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        gang: Gang,
    ) -> None:
        """Save together: every process calls it, the first one writes. Raises StageError 73 when it cannot be written;
        earlier checkpoints are intact then."""
        began = time.monotonic()
        generators = _generators(gang)
        if gang.is_first:
            uri = join(self.folder, f"{_PREFIX}{state.step}")
            with self.storage.staging_folder(uri) as staging:
                _write(staging, state=state, parameters=parameters, optimizer=optimizer, generators=generators)
                self.storage.publish(staging, to=uri, input_digest=self.input_digest, extra={"step": state.step})
            self._remove_old()
            log.info("checkpoint at step %d in %.3f s: %s", state.step, time.monotonic() - began, uri)
        gang.wait()

    def load_newest(
        self, *, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, gang: Gang
    ) -> TrainingState | None:
        """Go on from the newest valid checkpoint, everywhere the same; None where there is none."""
        step = gang.first_says(self._newest() if gang.is_first else -1)
        if step < 0:
            return None
        uri = join(self.folder, f"{_PREFIX}{step}")
        with self.storage.local_copy(uri) as folder:
            state = TrainingState(**json.loads((folder / "state.json").read_text()))
            _load_parameters(load_file(folder / "parameters.safetensors"), parameters)
            _load_moments(load_file(folder / "optimizer.safetensors"), parameters, optimizer)
            _load_generators(load_file(folder / "random.safetensors"), saved_world=state.world, gang=gang)
        gang.wait()
        log.info("going on from the checkpoint at step %d", step)
        return state

    def save_best(self, *, parameters: dict[str, nn.Parameter], step: int, gang: Gang) -> None:
        """Keep the parameters of the best validation so far."""
        if gang.is_first:
            uri = join(self.folder, BEST)
            with self.storage.staging_folder(uri) as staging:
                save_file(_plain(parameters), staging / "parameters.safetensors")
                self.storage.publish(staging, to=uri, input_digest=self.input_digest, extra={"step": step})
        gang.wait()

    def load_best(self, *, parameters: dict[str, nn.Parameter], step: int) -> None:
        """Put the parameters of the best validation back."""
        uri = join(self.folder, BEST)
        complete = self.storage.read_complete(uri)
        if complete is None or complete.extra.get("step") != step:
            raise bad_configuration("BestCheckpointLost", f"{uri} is not the best checkpoint of step {step} any more")
        with self.storage.local_copy(uri) as folder:
            _load_parameters(load_file(folder / "parameters.safetensors"), parameters)

    def _steps(self) -> list[int]:
        names = self.storage.list_folders(self.folder)
        numbers = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)

    def _newest(self) -> int:
        """The step of the newest valid checkpoint, -1 for none; what is torn is named in the log."""
        for step in self._steps():
            complete = self.storage.read_complete(join(self.folder, f"{_PREFIX}{step}"))
            if complete is None:
                continue
            if complete.input_digest != self.input_digest:
                log.warning("checkpoint step-%d belongs to other orders and is ignored", step)
                continue
            return step
        return -1

    def _remove_old(self) -> None:
        for step in self._steps()[self.keep :]:
            try:
                self.storage.remove(join(self.folder, f"{_PREFIX}{step}"))
            except (OSError, StageError) as error:
                log.warning("the old checkpoint step-%d could not be removed: %s", step, error)


def _write(
    folder: Path,
    *,
    state: TrainingState,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    generators: dict[str, torch.Tensor],
) -> None:
    save_file(_plain(parameters), folder / "parameters.safetensors")
    save_file(_moments(parameters, optimizer), folder / "optimizer.safetensors")
    save_file(generators, folder / "random.safetensors")
    (folder / "state.json").write_text(json.dumps(asdict(state), sort_keys=True))


def _plain(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}


def _moments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{moment}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return tensors


def _load_parameters(saved: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]) -> None:
    if saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())
        raise bad_configuration("CheckpointMismatch", f"the checkpoint does not fit the model: {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _load_moments(
    saved: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    for key, value in saved.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU unless it is fused or capturable.
        device = parameter.device if moment != "step" or optimizer.defaults.get("fused") else value.device
        optimizer.state[parameter][moment] = value.to(device)


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
