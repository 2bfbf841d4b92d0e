"""How training goes: logged, recorded and reported."""

from __future__ import annotations

import logging
import time

from finetune_trainer.process.gang import Gang
from finetune_trainer.process.progress import ProgressReporter, show_life
from finetune_trainer.training.checkpoint import TrainingState
from finetune_trainer.training.schedule import Schedule
from finetune_trainer.training.throughput import peak_flops

log = logging.getLogger(__name__)
_LOG_SECONDS = 2.0


class Meter:
    """Logs, records and reports how training goes."""

    def __init__(
        self,
        *,
        flops_per_token: float,
        schedule: Schedule,
        gang: Gang,
        progress: ProgressReporter,
        state: TrainingState,
        resumed_from: int | None,
    ) -> None:
        self._schedule = schedule
        self._gang = gang
        self._progress = progress
        self._state = state
        self._metrics: dict[str, float] = {} if resumed_from is None else {"resumed_from_step": float(resumed_from)}
        self._logged_at = float("-inf")
        self._since_log: list[tuple[float, int, float]] = []
        peak = peak_flops(gang.device)
        self._mfu_per_token_rate = flops_per_token / peak if peak else None

    def stepped(self, *, loss: float, tokens: int, seconds: float) -> None:
        """A step is done; log it when the last line is some seconds old."""
        self._since_log.append((loss, tokens, seconds))
        now = time.monotonic()
        total = self._schedule.total_steps
        if now - self._logged_at < _LOG_SECONDS and self._state.step < total:
            return
        self._logged_at = now
        spent = sum(item[2] for item in self._since_log)
        rate = sum(item[1] for item in self._since_log) / max(spent, 1e-9) / self._gang.world
        mean = sum(item[0] for item in self._since_log) / len(self._since_log)
        learning_rate = self._schedule.learning_rate(self._state.step - 1)
        self._since_log.clear()
        line = {
            "step": self._state.step,
            "loss": mean,
            "learning_rate": learning_rate,
            "tokens_per_second": rate,
            "time": round(self._state.seconds, 3),
        }
        self._state.log.append(line)
        self._metrics |= {"loss": mean, "learning_rate": learning_rate, "non_padding_tokens_per_second_per_gpu": rate}
        if self._mfu_per_token_rate is not None:
            self._metrics["mfu"] = rate * self._mfu_per_token_rate
        if self._gang.is_first:
            left = self._remaining()
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s%s  %d s left",
                self._state.step,
                total,
                mean,
                learning_rate,
                rate,
                f"  MFU {self._metrics['mfu']:.1%}" if "mfu" in self._metrics else "",
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

    def tell(self, *, checkpoint_step: int | None = None) -> None:
        """Report now."""
        show_life()
        if checkpoint_step is not None:
            self._metrics["checkpoint_step"] = float(checkpoint_step)
        total = self._schedule.total_steps
        metrics = {"step": float(self._state.step), "total_steps": float(total), **self._metrics}
        self._progress.report(fraction=self._state.step / total, remaining_seconds=self._remaining(), metrics=metrics)

    def _remaining(self) -> float:
        """Seconds left at the pace so far."""
        if not self._state.step:
            return 0.0
        return self._state.seconds / self._state.step * (self._schedule.total_steps - self._state.step)
