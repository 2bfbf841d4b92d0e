"""The GPUs of this machine, and who has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from finetune_api.shared_fields import GPU_RESOURCE
from finetune_operator.core.ports import Manifest

ASSIGNED_ANNOTATION = "local.finetune.dev/gpus"
"""Which GPUs a pod has, as CUDA_VISIBLE_DEVICES wants them."""


def gpus_of_machine(*, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Indices of the NVIDIA GPUs that this machine shows us, or of those that CUDA_VISIBLE_DEVICES leaves of them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(index for index in chosen.split(",") if index.strip() not in ("", "-1"))
    found = (re.fullmatch(r"nvidia([0-9]+)", path.name) for path in devices.glob("nvidia*"))
    return tuple(str(number) for number in sorted(int(match[1]) for match in found if match))


def gpus_wanted(pod: Manifest) -> int:
    """How many GPUs the pod's containers ask for."""
    limits = (each.get("resources", {}).get("limits") or {} for each in pod["spec"]["containers"])
    return sum(int(limit.get(GPU_RESOURCE, 0)) for limit in limits)


def free_gpus(*, running: Iterable[Manifest], machine: tuple[str, ...]) -> list[str]:
    """GPUs that no running pod has."""
    taken = {index for pod in running for index in assigned(pod).split(",") if index}
    return [index for index in machine if index not in taken]


def assigned(pod: Manifest) -> str:
    """The GPUs of a pod; "": none."""
    return str((pod["metadata"].get("annotations") or {}).get(ASSIGNED_ANNOTATION, ""))
