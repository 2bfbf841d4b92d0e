"""`finetune plan`: what a job would need of memory, and how its processes would share the model. Nothing is run."""

from __future__ import annotations

import argparse

from finetune_api import memory
from finetune_api.accelerators import peak_of
from finetune_api.finetunejob import FineTuneJob
from finetune_api.model_shape import ModelShape
from finetune_api.run import OffloadOrder
from finetune_api.tasks import TASKS, UsedStrategy, task_problem
from finetune_operator.cli import sections, words
from finetune_operator.cli.base_files import shape_of
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.manifests import folder_of, manifests_from, with_absolute_uris
from finetune_operator.cli.tables import table
from finetune_operator.cli.validate import complete
from finetune_operator.core.config import OperatorConfig
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.resolve import resolve
from finetune_operator.local.home import LocalHome

_PARTS = ("weights", "gradients", "moments", "activations", "logits", "context", "spare", "needed", "host")
_ALL: tuple[tuple[UsedStrategy, OffloadOrder | None], ...] = (
    ("DDP", None),
    ("FSDP2", None),
    ("FSDP2", OffloadOrder(optimizer=True, parameters=True)),
    ("DeepSpeedZeRO1", None),
    ("DeepSpeedZeRO2", None),
    ("DeepSpeedZeRO2", OffloadOrder(optimizer=True)),
    ("DeepSpeedZeRO3", None),
    ("DeepSpeedZeRO3", OffloadOrder(optimizer=True, parameters=True)),
)
_USUAL_SHARE = 0.4
"""Of a GPU's peak, what training uses where nothing holds it up."""


def run(options: argparse.Namespace) -> int:
    """Print the plan; BAD_INPUT where Prepare would refuse the job."""
    jobs = [each for each in manifests_from(options.filename) if each.get("kind") == "FineTuneJob"]
    if len(jobs) != 1:
        raise CommandError(f"{options.filename}: plan takes one FineTuneJob, found {len(jobs)}")
    manifest = with_absolute_uris(jobs[0], folder=folder_of(options.filename))
    manifest = complete(manifest, source=options.filename, namespace="default")
    job = FineTuneJob.from_object({**manifest, "status": {}})
    plan = resolve(job=job, config=OperatorConfig(trainer_image="any"), baseline=None)
    shape = shape_of(plan.model.uri, revision=plan.model.revision, home=LocalHome.at(options.home))
    if isinstance(shape, str) or plan.memory is None:
        print(sections.fields({**_resolved(plan, None), "Base": f"{shape}"}))
        return ExitStatus.DONE
    wrong = task_problem(plan.model.task, architectures=shape.architectures, two_parts=shape.two_parts)
    if wrong is not None:
        print(f"Prepare would refuse it: {wrong}.")
        return ExitStatus.BAD_INPUT
    training = memory.Training(
        shape=shape,
        method=plan.method,
        order=plan.memory,
        tokens=plan.optimisation.max_length,
        writes=TASKS[plan.model.task].scored == "Text",
    )
    choice = memory.choose(training)
    named = plan.memory.strategy != "Auto"
    problem = memory.problem(training, choice)
    refused = problem is not None and choice.fits is False and not named
    print(sections.fields({**_resolved(plan, training), **_speed(plan, training)}))
    print(f"\n{_table(training)}\n")
    chosen = f"The job names {plan.memory.strategy}" if named else f"Auto chooses {choice.memory.name}"
    if problem is not None and named:
        chosen += ", which is tried although it does not fit"
    print(f"{'Prepare would refuse it' if refused else chosen}: {problem or choice.text}.")
    return ExitStatus.BAD_INPUT if refused else ExitStatus.DONE


def _resolved(plan: ResolvedPlan, training: memory.Training | None) -> dict[str, str]:
    how, world = plan.optimisation, plan.nodes * plan.processes_per_node
    passes = how.global_batch_size // (world * how.micro_batch_size)
    examples = words.count(how.micro_batch_size, "example")
    share = (
        f"packed into rows of {how.max_length} tokens"
        if how.packing
        else f"{passes} x {examples} of at most {how.max_length} tokens each"
    )
    found = {
        "Model": f"{plan.model.uri} ({plan.model.task})",
        "Method": plan.method.type + (f" of rank {plan.method.lora.rank}" if plan.method.lora else ""),
        "Machines": f"{plan.machines}, processes: {world}",
        "Batch": f"{words.count(how.global_batch_size, 'example')} a step; in each process {share}",
        "Steps": str(how.max_steps or f"{how.epochs:g} epochs of the training split, which Prepare counts"),
    }
    if training is not None:
        found["Precision"] = "BF16" if training.bf16 else "FP32"
        found["Base"] = _base(training.shape, trained=training.trained)
    return found


def _base(shape: ModelShape, *, trained: int) -> str:
    how = "counted in its files" if shape.counted else "estimated from its config.json: its weights could not be read"
    return (
        f"{shape.parameters / 1e6:,.1f} million parameters ({how}), {trained / 1e6:,.1f} million are trained;"
        f" {shape.layers} layers of width {shape.width}, vocabulary {shape.vocabulary}"
    )


def _speed(plan: ResolvedPlan, training: memory.Training) -> dict[str, str]:
    """By FLOPs and the GPU's peak, where the pods' node selector names the GPU."""
    spec = plan.pod_template.spec if plan.pod_template else None
    labels = ((spec and spec.node_selector) or {}).values() if plan.gpus_per_node else ()
    known = [peak for peak in map(peak_of, labels) if peak is not None]
    if not known or not training.bf16:
        return {}
    most = known[0] / training.shape.flops_per_token(trained=training.trained)
    return {
        "Tokens/s": f"{most * _USUAL_SHARE:,.0f} a GPU at {_USUAL_SHARE:.0%} of its peak, which would be {most:,.0f}"
    }


def _table(training: memory.Training) -> str:
    """GiB of each process, but for what waits in a machine's own memory."""
    rows = []
    for strategy, offload in _ALL:
        if (offload is not None and not training.order.gpus) or not training.shares(strategy):
            continue
        for recomputes in memory.again(training):
            found = memory.memory_of(training, strategy, offload=offload, recomputes=recomputes)
            room, fits = training.room, training.has_room_for(found)
            word = "not known" if room is None else "no" if not fits else "yes" if found.needed <= room else "perhaps"
            rows.append((found.name, *(f"{getattr(found, part) / memory.GIB:.1f}" for part in _PARTS), word))
    return table(header=("GiB", *(part.upper() for part in _PARTS), "FITS"), rows=rows)
