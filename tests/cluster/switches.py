"""What a rollout did to clients: when gateways took which routes in, and who answered in which share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from scipy.stats import binom
from tests.cluster.endpoints import ENDPOINT, EndpointSpace
from tests.cluster.traffic import Answer
from tests.harness import KubectlError, Object, audit

from finetune_api.routes import ROUTES_KEY, Routes
from finetune_gateway.routing import user_position

_LINE = re.compile(r"^(\S+ \S+) \w+ \S+ (routes of epoch (\d+) in force|left variant (\S+))", re.MULTILINE)
_ANSWER = re.compile(r" answer=(\S+) .* epoch=(\d+) rule=\S+ version=(\S+)$", re.MULTILINE)
_BAND = 0.9999


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One write of the routes."""

    at: float
    """Seconds since 1970, when the apiserver got it."""
    routes: Routes


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the answers of one epoch were spread."""

    epoch: int
    answers: int
    candidate: int
    wanted: float
    """Percent."""
    low: int
    high: int
    """Where the candidate's answers are in 9,999 of 10,000 cases, if every user is drawn by himself."""
    strayed: int
    """Users who were answered by the other version than the one that their name leads to."""


@dataclass(kw_only=True)
class GatewayLogs:
    """What gateways said, also those that are gone since."""

    space: EndpointSpace
    in_force: dict[str, dict[int, float]] = field(default_factory=dict)
    """Gateway -> epoch -> when. A container that was started again in its pod is another gateway."""
    fallbacks: dict[str, int] = field(default_factory=dict)
    """Gateway -> requests that another version answered than the one that was meant."""
    answered: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Id of an answer -> the epoch by which it was sent, and the UID of the version that gave it."""
    left: dict[str, float] = field(default_factory=dict)
    """UID of a version -> when the first gateway left it by itself."""

    def collect(self) -> None:
        """Read the logs of all gateways that exist."""
        for pod in self.space.pods("gateway"):
            try:
                text = self.space.kubectl.logs(pod["metadata"]["name"], namespace=self.space.namespace)
            except KubectlError:
                continue  # it has not begun, or has just ended
            name = gateway_name(pod)
            self.fallbacks[name] = text.count("trying the next")
            self.answered |= {id_: (int(epoch), uid) for id_, epoch, uid in _ANSWER.findall(text)}
            for stamp, _, epoch, variant in _LINE.findall(text):
                at = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()
                if epoch:
                    self.in_force.setdefault(name, {})[int(epoch)] = at
                else:
                    self.left[variant] = min(at, self.left.get(variant, at))

    def seconds(self, switch: Switch) -> float | None:
        """From the write until every gateway that ran went by it; None: none ran."""
        took = [
            known[switch.routes.epoch] - switch.at
            for known in self.in_force.values()
            if min(known.values()) < switch.at and switch.routes.epoch in known
        ]
        return max(took, default=None)

    def missing(self, switches: Iterable[Switch], *, gateways: Iterable[str]) -> list[tuple[str, int]]:
        """Gateways that run to the end and have not taken in an epoch that was written while they ran."""
        return [
            (name, switch.routes.epoch)
            for name in gateways
            for switch in switches
            if min(self.in_force.get(name, {0: 0.0}).values()) < switch.at
            and switch.routes.epoch not in self.in_force.get(name, {})
        ]


def gateway_name(pod: Object) -> str:
    """A name of this start of the pod's container."""
    (container,) = pod["status"]["containerStatuses"]
    return f"{pod['metadata']['name']}, start {container['restartCount']}"


def switches(space: EndpointSpace) -> list[Switch]:
    """All routes so far, each epoch once."""
    found: dict[int, Switch] = {}
    for write in audit.writes(space.cluster.folder, namespace=space.namespace, name=f"{ENDPOINT}-routes"):
        text = write.body.get("data", {}).get(ROUTES_KEY)
        if text is None:
            continue  # the garbage collector took an owner away
        routes = Routes.model_validate_json(text)
        found.setdefault(routes.epoch, Switch(at=write.at, routes=routes))
    return [found[epoch] for epoch in sorted(found)]


def splits(
    answers: Iterable[Answer],
    *,
    answered: Mapping[str, tuple[int, str]],
    known: Iterable[Switch],
    before: Mapping[int, float],
) -> list[Split]:
    """The epochs in which users were divided. `before`: by epoch, when a fault began that moves them."""
    of = [(each, *answered[each.answer_id]) for each in answers if each.answer_id in answered]
    found = []
    for switch in known:
        routes, rule = switch.routes, switch.routes.rules[-1]
        shares = {uid: weight for uid, weight in rule.weights.items() if uid != routes.stable}
        if len(shares) != 1:
            continue
        ((candidate, wanted),) = shares.items()
        until = before.get(routes.epoch, float("inf"))
        seen = [(each, by) for each, epoch, by in of if epoch == routes.epoch and each.sent < until]
        meant = [user_position(salt=routes.sticky_salt, user=each.user) < wanted for each, _ in seen]
        low, high = binom.interval(_BAND, len(seen), wanted / 100) if seen else (0, 0)
        found.append(
            Split(
                epoch=routes.epoch,
                answers=len(seen),
                candidate=sum(by == candidate for _, by in seen),
                wanted=wanted,
                low=int(low),
                high=int(high),
                strayed=sum((by == candidate) != there for (_, by), there in zip(seen, meant, strict=True)),
            )
        )
    return found
