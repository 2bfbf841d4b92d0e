"""One of two processes of `test_deepspeed_keys.py`: under each configuration of a file, trains, takes all out, puts it
into a fresh engine and goes on; the first prints how far each is from what DDP learns, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_api.tasks import UsedStrategy
from finetune_trainer.process.gang import Gang, joined
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root


class Small(nn.Module):
    _no_split_modules = ("Linear",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(7, 33), nn.Linear(33, 33), nn.Linear(33, 5)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Shape (B, 7) to (B, 5)."""
        for layer in self.layers:
            rows = torch.tanh(layer(rows))
        return rows


class Trained:
    def __init__(self, strategy: UsedStrategy, own: dict[str, Any], *, gang: Gang) -> None:
        torch.manual_seed(0)
        self.gang, self.model = gang, Small()
        settings = ParallelSettings(
            deepspeed={"zero_optimization": own},
            offload_optimizer="offload_optimizer" in own,
            offload_parameters="offload_param" in own,
        )
        self.parallel = parallel_of(strategy, gang=gang, settings=settings)
        self.ask = self.parallel.prepare(
            Root(self.model), optimizer=lambda: torch.optim.AdamW(self.model.parameters(), lr=0.0)
        )
        self.named = dict(self.model.named_parameters())

    def step(self, number: int) -> None:
        draw = torch.Generator().manual_seed(number * 10 + self.gang.rank)
        for last in (False, True):
            rows, wanted = torch.randn(4, 7, generator=draw), torch.randn(4, 5, generator=draw)
            with self.parallel.accumulating(last=last):
                loss = self.ask(lambda inner, rows=rows, wanted=wanted: ((inner(rows) - wanted) ** 2).sum())
                self.parallel.backward(loss, weight=16)
        self.parallel.step(self.named, learning_rate=0.05, max_norm=1.0)

    def steps(self, numbers: Iterable[int]) -> Mapping[str, torch.Tensor]:
        """All weights and moments after them, whole."""
        for number in numbers:
            self.step(number)
        found = [*self.parallel.weights(self.named), *self.parallel.moments(self.named)]
        return {name: whole.detach().cpu().float().clone() for name, whole in found}

    def take(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.named.items():
            self.parallel.put_weight(parameter, state[name])
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                self.parallel.put_moment(parameter, moment, state[f"{name}/{moment}"])


def far(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return max(float((one[name] - whole).abs().max()) for name, whole in other.items())


def main() -> None:
    found = []
    with joined(gpus=False, meets=True) as gang:
        plain = Trained("DDP", {}, gang=gang)
        expected = [plain.steps(range(3)), plain.steps(range(3, 5))]
        for strategy, own in json.loads(Path(sys.argv[1]).read_text()):
            first = Trained(strategy, own, gang=gang)
            state = first.steps(range(3))
            again = Trained(strategy, own, gang=gang)
            again.take(state)
            found.append([far(state, expected[0]), far(again.steps(range(3, 5)), expected[1])])
        if gang.is_first:
            Path(sys.argv[2]).write_text(json.dumps(found))


main()
