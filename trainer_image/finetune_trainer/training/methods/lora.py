"""Methods LoRA, QLoRA and DoRA: small matrices beside the base's own, which stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.task import Task
from finetune_trainer.training.methods.adapter import Adapter

log = logging.getLogger(__name__)


class LowRank(Adapter):
    """Of each layer the change is the product of two matrices (Hu et al. 2021); QLoRA: beside a quantised one."""

    def __init__(self, order: MethodOrder, *, directions_alone: bool = False) -> None:
        """`directions_alone`: lengths of the weights are trained apart (DoRA). Raises StageError (78)."""
        if order.lora is None:
            raise bad_configuration("BadRunFile", f"method {order.type} without its settings")
        self._order = order.lora
        self._directions_alone = directions_alone
        self.bits = order.quantisation.bits if order.quantisation else None

    def applied(self, base: LoadedBase, *, task: Task, base_uri: str) -> Any:
        """The base with adapters inside."""
        order = self._order
        targets = order.target_modules or ["all-linear"]
        everywhere = targets == ["all-linear"]
        if not everywhere:
            _check_names(base.model, targets)
        settings: dict[str, Any] = {
            "r": order.rank,
            "lora_alpha": order.alpha or 2 * order.rank,
            "lora_dropout": order.dropout or 0.0,
            "use_dora": self._directions_alone,
            "target_modules": "all-linear" if everywhere else targets,
        }
        adapted = self._adapted(
            base,
            config="LoraConfig",
            settings=settings,
            task=task,
            base_uri=base_uri,
            field="lora.targetModules",
        )
        _check_rank(adapted, rank=order.rank, named=not everywhere)
        if self._directions_alone:
            _check_lengths(adapted)
        return adapted


def _check_names(model: Any, targets: Sequence[str]) -> None:
    """PEFT passes over a name as long as another one is a layer's, and merges into all owners of a weight."""
    layers = [name for name, _ in model.named_modules()]
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for target in targets:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not found:
            near = get_close_matches(target, {name.rpartition(".")[2] for name in layers}, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise bad_configuration(
                "NoSuchModule", f"method.lora.targetModules: {target} is no layer of the base model{hint}"
            )
        for names in (each for each in owners.values() if len(each) > 1 and set(each) & set(found)):
            mine = next(name for name in names if name in found)
            others = ", ".join(name for name in names if name != mine)
            raise bad_configuration(
                "NoSuchModule",
                f"method.lora.targetModules: {mine} has its weights in common with {others}, which an adapter's changes"
                " would reach once it is merged; leave it out",
            )


def _check_lengths(adapted: Any) -> None:
    """Each row of a layer's weights is divided by its length."""
    for name, length in adapted.named_parameters():
        if ".lora_magnitude_vector." in name and not length.is_meta and not bool(length.all()):
            layer = name.partition(".lora_magnitude_vector.")[0].removeprefix("base_model.model.")
            raise bad_configuration(
                "UnsupportedMethod",
                f"method.type: DoRA: the layer {layer} has rows of zeros, which have no direction; leave it out of"
                " method.lora.targetModules, or use LoRA",
            )


def _check_rank(adapted: Any, *, rank: int, named: bool) -> None:
    """A layer of m x n numbers has at most min(m, n) directions: more change nothing and take memory. Some layers of
    some models have one; where the user did not name them, they are only told of.
    """
    from peft.tuners.lora import LoraLayer

    sizes: dict[str, tuple[int, int]] = {
        name: (layer.in_features, layer.out_features)  # type: ignore[misc]  # numbers, once it is made
        for name, layer in adapted.base_model.model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    smallest = min(sizes, key=lambda name: min(sizes[name]))
    room, most = min(sizes[smallest]), max(min(size) for size in sizes.values())
    if rank <= room:
        return
    what = f"{rank} is more than the layer {smallest} ({' x '.join(map(str, sizes[smallest]))}) has room for"
    if named or rank > most:
        way = f"set it to {room if named else most} or less" + (", or leave that layer out" if rank <= most else "")
        raise bad_configuration("RankTooLarge", f"method.lora.rank: {what}; {way}")
    log.warning("method.lora.rank: %s; it is trained all the same", what)
