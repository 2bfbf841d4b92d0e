"""How the processes of Train will share the model: chosen once, here, by what it needs of their memory."""

from __future__ import annotations

import json
import logging

from finetune_api import memory
from finetune_api.model_shape import ModelShape, shapes_in
from finetune_api.results import PrepareResult, Sharing
from finetune_api.run import PrepareRun
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of

log = logging.getLogger(__name__)


def with_sharing(run: PrepareRun, found: PrepareResult, *, storage: Storage) -> PrepareResult:
    """The result with the choice that the order asks for, and a remark where memory may not do.

    Raises StageError (78) where it is known that nothing fits.
    """
    if run.memory is None or run.method is None:
        return found
    chooses = run.memory.strategy == "Auto"
    try:
        shape = _shape(found.base.loadable_uri, storage=storage)
        gpus = memory.gpus_to_evaluate(shape, run.memory) if run.memory.gpus else None
        found = found.model_copy(update={"evaluation_gpus": gpus})
    except ValueError as error:
        because = f"what it needs of memory is not known: {error}"[:600]
        return found.model_copy(update={"sharing": Sharing(strategy="DDP", because=because) if chooses else None})
    longest = run.max_length if run.packing else min(run.max_length, found.summary.token_length_max)
    training = memory.Training(
        shape=shape,
        method=run.method,
        order=run.memory,
        tokens=longest,
        writes=task_of(run.model.task).generates,
    )
    choice = memory.choose(training)
    problem = memory.problem(training, choice)
    if problem is not None and chooses and choice.fits is False:
        raise bad_configuration(
            "DoesNotFit",
            f"compute.strategy: Auto finds none that fits. {problem}. Or name one, and it is tried all the same",
        )
    log.info("memory      %s", choice.text)
    remarks = [*found.remarks, *([] if problem is None else [problem])]
    if not chooses:
        return found.model_copy(update={"remarks": remarks})
    offload = choice.memory.offload.parameters
    sharing = Sharing(strategy=choice.memory.strategy, offload=offload, because=choice.text[:600])
    return found.model_copy(update={"remarks": remarks, "sharing": sharing})


def _shape(uri: str, *, storage: Storage) -> ModelShape:
    """From config.json and the headers of the weights beside it; nothing else of them is read."""
    tensors: dict[str, tuple[int, ...]] = {}
    for entry in storage.list_files(uri):
        if entry.path.endswith(".safetensors") and "/" not in entry.path:
            with storage.open(join(uri, entry.path)) as stream:
                tensors |= shapes_in(stream)
    return ModelShape.of(json.loads(storage.read_bytes(join(uri, "config.json"))), tensors)
