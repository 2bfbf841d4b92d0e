"""How training goes: logged, recorded and reported."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from finetune_api.progress import GPU_MEMORY, GRAD_NORM, LEARNING_RATE, LOSS, MFU, TOKENS_PER_SECOND
from finetune_trainer.process.errors import not_finite
from finetune_trainer.process.gang import Gang
from finetune_trainer.process.progress import ProgressReporter, show_life
from finetune_trainer.training.checkpoint import TrainingState
from finetune_trainer.training.schedule import Schedule
from finetune_trainer.training.throughput import peak_flops

log = logging.getLogger(__name__)
_LOG_SECONDS = 2.0
_UNSAVED = 0.99
"""The share that is done at most while the model is not saved."""


class Meter:
    """Logs, records and reports how training goes. Losses stay on the device until they are read."""

    def __init__(
        self,
        *,
        flops_per_token: float,
        schedule: Schedule,
        gang: Gang,
        progress: ProgressReporter,
        state: TrainingState,
        resumed_from: int | None,
        grad_norm: Callable[[], float | None],
    ) -> None:
        self._grad_norm = grad_norm
        self._schedule = schedule
        self._gang = gang
        self._progress = progress
        self._state = state
        self._metrics: dict[str, float] = {} if resumed_from is None else {"resumed_from_step": float(resumed_from)}
        self._logged_at = float("-inf")
        self._done = False
        self._unread: list[torch.Tensor] = []
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds_logged = state.seconds
        peak = peak_flops(gang.device)
        self._mfu_per_token_rate = flops_per_token / peak if peak else None

    @property
    def due(self) -> bool:
        """Whether the last line is some seconds old."""
        return time.monotonic() - self._logged_at >= _LOG_SECONDS

    def stepped(self, *, loss: torch.Tensor, tokens: int) -> None:
        """A step is done. `loss`: this process's part, fp64, shape (); `tokens`: of all processes."""
        self._unread.append(loss)
        self._tokens += tokens

    def read(self) -> None:
        """Wait for the device's losses. Raises StageError LossNotFinite. All processes call it at the same point."""
        if not self._unread:
            return
        began = time.monotonic()
        losses = self._gang.sum_of(torch.stack(self._unread))
        self._state.seconds += time.monotonic() - began
        first = self._state.step - len(losses) + 1
        self._unread.clear()
        for step, loss in enumerate(losses, start=first):
            check_finite(loss, what="loss", step=step)
        self._losses += losses

    def log(self) -> None:
        """Read, and log a line."""
        self.read()
        self._logged_at = time.monotonic()
        total = self._schedule.total_steps
        spent = self._state.seconds - self._seconds_logged
        rate = self._tokens / max(spent, 1e-9) / self._gang.world
        mean = sum(self._losses) / len(self._losses)
        learning_rate = self._schedule.learning_rate(self._state.step - 1)
        self._losses, self._tokens, self._seconds_logged = [], 0, self._state.seconds
        line = {
            "step": self._state.step,
            "loss": mean,
            "learning_rate": learning_rate,
            "tokens_per_second": rate,
            "time": round(self._state.seconds, 3),
        }
        self._state.log.append(line)
        self._metrics |= {LOSS: mean, LEARNING_RATE: learning_rate, TOKENS_PER_SECOND: rate}
        if (norm := self._grad_norm()) is not None:
            self._metrics[GRAD_NORM] = norm
        if self._gang.device.type == "cuda":
            self._metrics[GPU_MEMORY] = torch.cuda.max_memory_reserved(self._gang.device)
        if self._mfu_per_token_rate is not None:
            self._metrics[MFU] = rate * self._mfu_per_token_rate
        if self._gang.is_first:
            left = self._remaining()
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s%s  %d s left",
                self._state.step,
                total,
                mean,
                learning_rate,
                rate,
                f"  MFU {self._metrics[MFU]:.1%}" if MFU in self._metrics else "",
                left,
            )
        self.tell()

    def validated(self, *, loss: float) -> None:
        """A validation is done."""
        self._state.log.append({"step": self._state.step, "validation_loss": loss, "time": self._state.seconds})
        self._metrics["validation_loss"] = loss
        if self._gang.is_first:
            log.info("step %d/%d  validation loss %.4f", self._state.step, self._schedule.total_steps, loss)
        self.tell()

    def saved(self, step: int | None) -> None:
        """The newest checkpoint is of that step."""
        if step is not None and step != self._metrics.get("checkpoint_step"):
            self.tell(checkpoint_step=step)

    def finished(self) -> None:
        """The model is saved: nothing is left to do, also where training stopped early."""
        self._done = True
        self.tell()

    def tell(self, *, checkpoint_step: int | None = None) -> None:
        """Report now. The whole is reported once the model is saved, not before."""
        show_life()
        if checkpoint_step is not None:
            self._metrics["checkpoint_step"] = float(checkpoint_step)
        total = self._schedule.total_steps
        metrics = {"step": float(self._state.step), "total_steps": float(total), **self._metrics}
        share = 1.0 if self._done else min(_UNSAVED, self._state.step / total)
        self._progress.report(fraction=share, remaining_seconds=self._remaining(), metrics=metrics)

    def _remaining(self) -> float:
        """Seconds left at the pace so far."""
        if self._done:
            return 0.0
        if not self._state.step:
            return 0.0
        return self._state.seconds / self._state.step * (self._schedule.total_steps - self._state.step)


def check_finite(loss: float, *, what: str, step: int) -> None:
    """Raises StageError LossNotFinite."""
    if not math.isfinite(loss):
        raise not_finite(f"{what} became {loss}", step=step)
