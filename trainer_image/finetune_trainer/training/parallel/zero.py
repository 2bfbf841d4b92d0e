"""DeepSpeed ZeRO (Rajbhandari et al. 2020): the moments (stage 1), gradients (2) and weights (3) are spread over the
processes.

What it saves by itself is pickled and bound to a number of processes; here weights and moments are taken out of it, and
put back, as whole tensors. That needs some of its inner names: `pyproject.toml` pins its minor version.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from finetune_api.memory import DEEPSPEED_BUCKET
from finetune_trainer.process.gang import Gang
from finetune_trainer.training.parallel.receive import blocks_of, is_handed_out, receive
from finetune_trainer.training.parallel.single import Single
from finetune_trainer.training.sharing import ParallelSettings, Root

log = logging.getLogger(__name__)
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero(Single):
    """One of its stages."""

    def __init__(self, gang: Gang, settings: ParallelSettings, *, stage: int) -> None:
        super().__init__(gang, settings)
        self._stage = stage
        self.hands_out = stage == 3

    def prepare(self, root: Root, *, optimizer: Callable[[], torch.optim.Optimizer]) -> nn.Module:
        """Its engine around the root."""
        deepspeed = _deepspeed(gpus=self._gang.device.type == "cuda")
        config = self._config(trained=sum(each.numel() for each in root.parameters() if each.requires_grad))
        if self._gang.is_first:
            log.info("DeepSpeed is told %s", json.dumps(config))
        if self._stage == 3:
            handed_out = is_handed_out(root, gang=self._gang)
            for module in (*blocks_of(root.model), root):
                if handed_out:
                    receive(module, gang=self._gang)
                deepspeed.zero.Init(module=module, config_dict_or_path=config)
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=root, optimizer=optimizer(), config=config, dist_init_required=False
        )
        self._optimizer = self._zero.optimizer
        return self._engine  # type: ignore[no-any-return]

    def active(self) -> bool:
        """Whether its optimiser holds this process's share of what the stage spreads."""
        if self._engine.zero_optimization_stage() != self._stage:
            return False
        mine = sum(part.numel() for part in self._flat())
        trained = [each for each in self._engine.module.parameters() if each.requires_grad]
        whole = sum(getattr(each, "ds_numel", each.numel()) for each in trained)
        spread = self._stage < 3 or all(each.numel() == 0 or self._kept_whole(each) for each in trained)
        return spread and (self._gang.world == 1 or mine < whole)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Its configuration knows of one pass a step; which is the last, it is told."""
        self._last = last
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """It averages over processes; what is wanted is the sum."""
        self._engine.backward(loss * (self._gang.world / weight))
        if not self._last:
            self._engine.step()

    def step(self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, max_norm: float) -> None:
        """It clips as its configuration says."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    def grad_norm(self) -> float | None:
        """As its engine knows it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def moments(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
        """Out of the fragments of all processes."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        steps = [state["step"] for state in self._optimizer.state.values()]
        for name, parameter in parameters.items():
            for moment in _MOMENTS:
                yield f"{name}/{moment}", safe_get_full_optimizer_state(parameter, moment)
            yield f"{name}/step", steps[0].clone()  # files hold no tensor twice

    def put_weight(self, parameter: nn.Parameter, whole: torch.Tensor) -> None:
        """Into the weight that it computes with, and the one that it steps on."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param

        whole = whole.to(self._gang.device)
        if self._stage < 3:
            with torch.no_grad():
                parameter.copy_(whole)
            safe_set_full_fp32_param(parameter, whole)
            return
        with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if self._gang.is_first:
                parameter.copy_(whole)
        self._put_part(parameter, whole, moment=None)

    def put_moment(self, parameter: nn.Parameter, moment: str, whole: torch.Tensor) -> None:
        """Into this process's fragment."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._make_moments()
        if moment == "step":  # one for all
            for state in self._optimizer.state.values():
                state["step"] = whole.to(state["step"].device).clone()
        elif self._stage < 3:
            safe_set_full_optimizer_state(parameter, whole.to(self._gang.device), moment)
        else:
            self._put_part(parameter, whole, moment=moment)

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        if not hasattr(tensor, "ds_id"):
            return tensor
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()

    def _flat(self) -> list[torch.Tensor]:
        """What its optimiser steps on: this process's share of all trained weights, flat."""
        of_stage = "fp32_partitioned_groups_flat" if self._stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._zero, of_stage))

    def _kept_whole(self, parameter: Any) -> bool:
        """Small ones are not worth an exchange each time."""
        return bool(parameter.ds_persist)

    def _make_moments(self) -> None:
        """Make them before the first step, which otherwise would."""
        missing = [part for part in self._flat() if not self._optimizer.state[part]]
        for part in missing:
            zeros = {moment: torch.zeros_like(part) for moment in _MOMENTS}
            self._optimizer.state[part] = {"step": torch.zeros((), dtype=torch.float32), **zeros}
        if missing:
            self._link()

    def _link(self) -> None:
        """Stages 1 and 2 find moments by weight only for groups that were stepped on when the first one was."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _put_part(self, parameter: nn.Parameter, whole: torch.Tensor, *, moment: str | None) -> None:
        """Its own way of doing it knows only sizes that all processes can share evenly."""
        part, _ = self._zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=moment
        )
        size = part.numel()
        filled = pad(whole.flatten(), (0, size * self._gang.world - whole.numel()))
        with torch.no_grad():
            part.copy_(filled.narrow(0, size * self._gang.rank, size))

    def _config(self, *, trained: int) -> dict[str, Any]:
        settings, gpus = self._settings, self._gang.device.type == "cuda"
        # Made and exchanged whole, however little is in it; the library takes even numbers only.
        bucket = min(trained + trained % 2, DEEPSPEED_BUCKET)
        zero: dict[str, Any] = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        zero |= {"overlap_comm": gpus, **settings.deepspeed.get("zero_optimization", {}), "stage": self._stage}
        offloads = {"offload_optimizer": settings.offload_optimizer, "offload_param": settings.offload_parameters}
        for name in (name for name, wanted in offloads.items() if wanted):
            zero[name] = {"pin_memory": gpus, **zero.get(name, {}), "device": "cpu"}
        return {
            **settings.deepspeed,
            "train_micro_batch_size_per_gpu": settings.micro_batch_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "torch_autocast": {"enabled": settings.bf16, "dtype": "bfloat16"},
        }


def _deepspeed(*, gpus: bool) -> Any:
    """The library, set up so that it compiles nothing: images have no compiler."""
    if not gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # torchrun sets it; whoever is alone was not started by it
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpus else "gloo")
    return deepspeed
