"""What a FineTuneJob should do next: a judgement on what was observed, and on nothing else.

    Pending -> (Queued) -> Preparing -> Training -> Evaluating -> Succeeded | Rejected | Failed

Suspended is between any two of these, and ends where it began. A job with an endpoint mirrors the rollout of its
version between Evaluating and the end (mirror.py).
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.finetunejob import TERMINAL_PHASES
from finetune_operator.job.advance import advance
from finetune_operator.job.begin import begin
from finetune_operator.job.cleanup import removals
from finetune_operator.job.conclude import after_the_end, conclude
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Decision, Draft
from finetune_operator.job.finish import finish
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import read_plan


def decide(observed: Observed) -> Decision:
    """The next step of a job. The same observation gives the same answer, whoever asks and how often."""
    if observed.job.metadata.deletion_timestamp is not None:
        return Decision()  # its children go by their owner references
    return finish(observed=observed, draft=_draft(observed))


def _draft(observed: Observed) -> Draft:
    status = observed.job.status
    if status.phase in TERMINAL_PHASES:
        return after_the_end(observed)
    if status.plan is None:
        return begin(observed)
    plan = read_plan(status.plan)
    if isinstance(plan, str):
        return _hold(observed, problem=plan)
    stage = next((stage for stage in status.stages if stage.state != "Complete"), None)
    if stage is None:
        return replace(conclude(observed=observed, plan=plan), delete=removals(observed))
    return advance(observed=observed, plan=plan, stage=stage)


def _hold(observed: Observed, *, problem: str) -> Draft:
    """Another version of the operator planned this run: leave it alone, its pods included."""
    status = observed.job.status
    message = f"{problem}; install the version of the operator that began this run, or a newer one"
    return Draft(
        status=status,
        phase=status.phase or "Pending",
        summary=Summary(state="Stalled", reason="PlanUnsupported", message=message),
    )
