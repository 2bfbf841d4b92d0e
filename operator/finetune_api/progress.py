"""The progress protocol between a training pod and the operator's door.

It is Kubeflow Trainer's (KEP-2779), so a `transformers` Trainer with its built-in callback reports to us unchanged:
`POST $KUBEFLOW_TRAINER_SERVER_URL` with a projected service-account token (`$KUBEFLOW_TRAINER_SERVER_TOKEN` names its
file), the CA in `$KUBEFLOW_TRAINER_SERVER_CA_CERT`, and the body below.
"""

from __future__ import annotations

from finetune_api.base import ApiModel
from finetune_api.finetunejob import TrainerStatus

URL_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"
TOKEN_VARIABLE = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
LIFE_VARIABLE = "FINETUNE_LIFE_FILE"
"""Names a file that is touched with each report, sent or not: kubelet looks at it where the door cannot be reached."""
HANG_VARIABLE = "FINETUNE_HANG_SECONDS"
"""How old that file may become before the attempt is taken for hung."""
TOKEN_AUDIENCE = "finetune.dev"  # noqa: S105 - an audience
MINIMUM_INTERVAL_SECONDS = 5.0
PROGRESS_ROUTE = "/v1/progress/{namespace}/{job}"

# Metric names that our own trainer adds and that the operator understands beyond showing them.
CHECKPOINT_STEP = "checkpoint_step"
STEP = "step"
LOSS = "loss"
LEARNING_RATE = "learning_rate"
TOKENS_PER_SECOND = "non_padding_tokens_per_second_per_gpu"
MFU = "mfu"
GRAD_NORM = "grad_norm"
GPU_MEMORY = "gpu_memory_bytes"
RESUMED_FROM_STEP = "resumed_from_step"


class ProgressReport(ApiModel):
    """The body of a report. Reports are cumulative: a lost one loses nothing."""

    trainer_status: TrainerStatus


def progress_path(*, namespace: str, job: str) -> str:
    """Where the pods of a job report, below the door's address."""
    return PROGRESS_ROUTE.format(namespace=namespace, job=job)
