"""The tasks by name. A new one is a file beside this one and a row here."""

from __future__ import annotations

from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.rows import RowFormat
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.causal import CausalLM
from finetune_trainer.tasks.chat import Chat
from finetune_trainer.tasks.classification import SequenceClassification
from finetune_trainer.tasks.seq2seq import Seq2Seq
from finetune_trainer.tasks.task import Task

_TASKS: dict[TaskName, Task] = {task.name: task for task in (Chat(), CausalLM(), SequenceClassification(), Seq2Seq())}


def task_of(name: TaskName) -> Task:
    """The task of that name."""
    return _TASKS[name]


def formats_of(task: Task, *, declared: str | None) -> tuple[RowFormat, ...]:
    """The formats that a source may have. Raises StageError (78) for one that the task cannot learn from."""
    if declared in (None, "Auto"):
        return task.formats
    chosen = tuple(each for each in task.formats if each == declared)
    if not chosen:
        possible = " or ".join(task.formats)
        raise bad_configuration(
            "FormatNotUsable", f"data.sources[].format: {declared} is not for model.task: {task.name}; use {possible}"
        )
    return chosen
