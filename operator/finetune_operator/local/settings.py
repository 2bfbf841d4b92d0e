"""The operator's settings on one machine."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator.config import OperatorConfig
from finetune_operator.local.home import LocalHome

_DEFAULTS = {
    "FINETUNE_TRAINER_IMAGE": "local",
    "FINETUNE_GATEWAY_IMAGE": "local",
    "FINETUNE_ALLOWED_ROOTS": "file:/// pvc:// s3:// gs:// hf://",
    # Nobody else will make what the job names.
    "FINETUNE_REFERENCE_DEADLINE_SECONDS": "1",
    "FINETUNE_IMAGE_PULL_DEADLINE_SECONDS": "1",
}


def local_config(*, home: LocalHome, environment: Mapping[str, str]) -> OperatorConfig:
    """The settings of the environment, with defaults for one machine. Raises ConfigError."""
    defaults = {**_DEFAULTS, "FINETUNE_CLAIM_MOUNT_ROOT": str(home.claims)}
    return OperatorConfig.from_environment({**defaults, **environment})
