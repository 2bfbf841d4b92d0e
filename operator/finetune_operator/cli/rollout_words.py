"""A rollout and the words for its parts, which explanations of several stages share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.base import Condition
from finetune_api.modelendpoint import AnalysisRow, ModelEndpoint, ModelEndpointStatus
from finetune_operator.cli import words
from finetune_operator.cli.explanation import Release, Shell
from finetune_operator.endpoint.facts import stages_of
from finetune_operator.endpoint.plan import CLIENT_ERRORS, RolloutPlan
from finetune_operator.endpoint.requests import Requests


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An endpoint at one moment. `plan`: None where nothing is under way, or where it cannot be read."""

    endpoint: ModelEndpoint
    plan: RolloutPlan | None
    requests: Requests
    now: datetime
    shell: Shell

    @property
    def name(self) -> str:
        """The endpoint's."""
        return self.endpoint.metadata.name

    @property
    def status(self) -> ModelEndpointStatus:
        """The endpoint's."""
        return self.endpoint.status

    @property
    def reason(self) -> str:
        """Why the endpoint is not ready, in one word."""
        ready = self.condition("Ready")
        return ready.reason if ready is not None else ""

    def condition(self, type_: str) -> Condition | None:
        """The condition of a type, or None."""
        return next((each for each in self.status.conditions if each.type == type_), None)

    def next_stage(self) -> str:
        """What comes after the current stage."""
        step, plan = self.status.step, self.plan
        if step is None or plan is None or (step.stage, step.index) not in stages_of(plan)[:-1]:
            return ""
        order = stages_of(plan)
        stage, index = order[order.index((step.stage, step.index)) + 1]
        if stage == "Shadow" and plan.shadow is not None:
            return f"shadow, on copies of {plan.shadow.percent:g} % of the requests"
        if stage == "Canary":
            return step_words(plan, index=index)
        return "approval by a person" if stage == "Approval" else "promotion"

    def sample_lines(self) -> tuple[str, ...]:
        """A line for each metric: how many samples, what was seen, where the difference lies, and the verdict."""
        step = self.status.step
        metrics = self.plan.metrics if self.plan is not None else []
        margins: dict[str, float] = {metric.name: metric.max_regression for metric in metrics}
        needed = step.needed if step is not None else 0
        return tuple(_row(row, needed=needed, margin=margins.get(row.metric)) for row in self.status.analysis)


def step_words(plan: RolloutPlan, *, index: int) -> str:
    """A canary step: `step five, 5 % of the users`."""
    step = plan.steps[index]
    if step.match is None:
        return f"step {step.name}, {step.percent:g} % of the users"
    headers = words.listed([f"{name}: {value}" for name, value in step.match.items()])
    return f"step {step.name}, {step.percent:g} % of the users whose requests have {headers}"


def clients_of(status: ModelEndpointStatus) -> str:
    """The version that clients are sent to."""
    return status.stable.name if status.stable is not None else "nothing"


def answered_by(rollout: Rollout) -> str:
    """Who answers clients now, or why nobody does."""
    stable, available = rollout.status.stable, rollout.condition("Available")
    if stable is None:
        return "nothing is served"
    if available is not None and available.status != "True":
        return f"no request is answered now: {available.message}"
    return f"{stable.name} answers all requests"


def gateways_behind(rollout: Rollout) -> tuple[str, ...]:
    """That some gateways do not serve the newest routes; empty where all do."""
    routes = rollout.status.routes
    if routes is None or routes.acknowledged >= routes.gateways:
        return ()
    behind = routes.gateways - routes.acknowledged
    line = f"{behind} of {words.count(routes.gateways, 'gateway')} to take the newest routes"
    where = "" if rollout.shell.local else f" (epoch {routes.epoch}); one that stays silent: look at its pod"
    return (line + where,)


def rolls_back(rollout: Rollout) -> str:
    """What a proven regression does."""
    plan, status = rollout.plan, rollout.status
    if plan is not None and plan.on_regression == "Pause":
        return "a regression that is proven holds it until a person decides (onRegression Pause)"
    if status.step is not None and status.step.stage == "Shadow":
        return "a regression that is proven rejects it (onRegression RollBack)"
    back = status.previous.name if status.previous is not None else clients_of(status)
    return f"a regression that is proven sends all requests back to {back} at once (onRegression RollBack)"


def give_up(rollout: Rollout) -> Release:
    """To reject the candidate."""
    candidate, stable = rollout.status.candidate, rollout.status.stable
    name = candidate.name if candidate is not None else "the candidate"
    stays = f", {stable.name} goes on to serve" if stable is not None else ""
    effect = f"gives {name} up for good{stays}"
    return Release(command=rollout.shell.finetune("reject", rollout.name), effect=effect)


def go_on(rollout: Rollout, *, effect: str) -> Release:
    """To approve what is held."""
    return Release(command=rollout.shell.finetune("approve", rollout.name), effect=effect)


def resume(rollout: Rollout) -> Release:
    """To end a pause."""
    return Release(command=rollout.shell.finetune("resume", rollout.name), effect="it goes on from where it is")


def _row(row: AnalysisRow, *, needed: int, margin: float | None) -> str:
    by_user = row.metric == CLIENT_ERRORS.name
    seen = f"{row.samples} of {needed}" if needed and not by_user else str(row.samples)
    parts = [f"{row.metric}: {seen} {'users' if by_user else 'samples'}"]
    if row.candidate is not None and row.baseline is not None:
        parts.append(f"{words.number(row.candidate)} against {words.number(row.baseline)}")
    if row.low is not None and row.high is not None:
        parts.append(f"difference {words.interval(row.low, row.high)}")
    if margin is not None:
        parts.append(f"allowed {words.number(margin, signed=True)}")
    verdict = {"Pass": "passes", "Fail": "regression", "Inconclusive": "not decided"}[row.verdict]
    why = f" ({row.reason})" if row.reason and f"{row.samples} of" not in row.reason else ""
    return f"{', '.join(parts)}: {verdict}{why}"
