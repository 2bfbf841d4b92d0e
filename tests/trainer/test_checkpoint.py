"""Which checkpoints stay, which is gone on from, and that no others take the place of the best."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.patience import HANGS_S
from torch import nn

from finetune_api.results import PERMANENT_EXIT_CODES, ExitCode
from finetune_api.run import Locations
from finetune_trainer.process import memory
from finetune_trainer.process.errors import StageError, not_found
from finetune_trainer.process.gang import Gang
from finetune_trainer.store.complete import Complete
from finetune_trainer.store.storage import Storage
from finetune_trainer.training.checkpoint import Checkpoints, TrainingState
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root

ALONE = Gang(rank=0, local_rank=0, world=1, device=torch.device("cpu"))


class Run:
    """A run whose only weight is its step."""

    def __init__(self, root: Path, *, keep: int, keeps_best: bool = True) -> None:
        self.folder = root / "run" / "checkpoints"
        run = f"file://{root}/run"
        storage = Storage(locations=Locations(run=run, cache=f"file://{root}/cache", allowed_roots=[f"file://{root}"]))
        self.checkpoints = Checkpoints(
            storage=storage, folder=f"{run}/checkpoints", input_digest="sha256:a", keep=keep, keeps_best=keeps_best
        )
        self.weight = nn.Parameter(torch.zeros(1))
        self.parallel = parallel_of("DDP", gang=ALONE, settings=ParallelSettings())
        self.parallel.prepare(Root(nn.Identity()), optimizer=lambda: torch.optim.AdamW([self.weight]))
        self.together = {"gang": ALONE, "parallel": self.parallel}
        self.told = threading.Event()

    def save(
        self, step: int, *, best: int | None = None, weight: float | None = None, background: bool = False
    ) -> None:
        with torch.no_grad():
            self.weight.fill_(step if weight is None else weight)
        state = TrainingState(step=step, best_step=best)
        self.checkpoints.save(
            state=state, parameters={"w": self.weight}, background=background, then=self.told.set, **self.together
        )

    def resumed(self) -> int | None:
        state = self.checkpoints.load_newest(parameters={"w": self.weight}, **self.together)
        return None if state is None else state.step

    def load_best(self, step: int) -> float:
        self.checkpoints.load_best(parameters={"w": self.weight}, step=step, **self.together)
        return float(self.weight.detach())

    def tear(self, step: int) -> None:
        (self.folder / f"step-{step}" / "parameters.safetensors").write_bytes(b"half")

    @property
    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.iterdir())


def test_the_best_of_each_that_is_kept_stays(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5)):
        run.save(step, best=best)
    assert run.steps == [5, 6]
    run.save(7, best=5)
    run.save(8, best=5)
    assert run.steps == [5, 7, 8]
    assert (run.load_best(5), run.resumed()) == (5.0, 8)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """A loss may be finite when its gradient is not: the weights show it first."""
    run = Run(tmp_path, keep=2)
    run.save(1, best=1)
    with pytest.raises(StageError, match=r"w is not finite at step 2") as failure:
        run.save(2, best=1, weight=float("nan"))
    assert failure.value.reason == "LossNotFinite"
    assert (run.steps, run.resumed()) == ([1], 1)


def test_without_early_stopping_no_best_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, keeps_best=False)
    run.save(1, best=1)
    run.save(2, best=1)
    assert (run.steps, run.resumed()) == ([2], 2)


def test_a_checkpoint_whose_best_is_lost_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 2), (3, 2)):
        run.save(step, best=best)
    shutil.rmtree(run.folder / "step-2")
    assert run.resumed() is None, "nothing is kept that knows another best"
    run.save(1, best=1)
    assert (run.steps, run.resumed()) == ([1], 1)


def test_a_best_that_is_lost_is_said_and_replaced_by_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    run.save(1, best=1)
    run.save(2, best=1)
    run.tear(1)
    with pytest.raises(StageError, match="step-1, the best validation of this run, is gone or damaged") as lost:
        run.load_best(1)
    assert (lost.value.reason, lost.value.exit_code in PERMANENT_EXIT_CODES) == ("BestCheckpointLost", False)
    assert float(run.weight.detach()) == 2.0


def test_a_torn_checkpoint_takes_the_place_of_no_whole_one(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    for step in (3, 4):
        run.save(step, best=None)
    run.tear(4)
    run.save(3, best=None)
    assert (run.steps, run.resumed()) == ([3], 3)


def test_trouble_with_an_old_one_ends_no_attempt_whose_checkpoint_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = Run(tmp_path, keep=2), Storage.read_complete

    def failing(storage: Storage, uri: str, **how: bool) -> Complete | None:
        if uri.endswith("step-1"):
            raise not_found("the storage does not answer")
        return read(storage, uri, **how)

    run.save(1, best=None)
    monkeypatch.setattr(Storage, "read_complete", failing)
    run.save(2, best=None)
    monkeypatch.undo()
    assert run.resumed() == 2


def test_a_best_that_an_earlier_version_left_is_taken(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    run.save(1, best=None)
    (run.folder / "step-1").rename(run.folder / "best")
    assert run.load_best(1) == 1.0
    with pytest.raises(StageError):
        run.load_best(2)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Under every storage."""
    disk, finish = Disk(), Storage.finish

    def slow(storage: Storage, folder: Path, **how: Any) -> Complete:
        assert disk.goes_on.wait(timeout=HANGS_S)
        if disk.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return finish(storage, folder, **how)

    monkeypatch.setattr(Storage, "finish", slow)
    return disk


class Disk:
    """One that can be waited for."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.is_full = False


def test_training_goes_on_while_what_it_had_is_written(tmp_path: Path, disk: Disk) -> None:
    run = Run(tmp_path, keep=2)
    run.save(1, background=True)
    with torch.no_grad():
        run.weight.fill_(7.0)
    assert (run.checkpoints.saved_at, run.resumed(), run.told.is_set()) == (None, None, False), "it is not there yet"
    disk.goes_on.set()
    run.checkpoints.settle(ALONE)
    assert (run.checkpoints.saved_at, run.resumed(), run.told.is_set()) == (1, 1, True)
    assert float(run.weight.detach()) == 1.0


def test_the_next_one_waits_for_the_one_under_way(tmp_path: Path, disk: Disk) -> None:
    run = Run(tmp_path, keep=2)
    run.save(1, background=True)
    threading.Timer(0.05, disk.goes_on.set).start()
    run.save(2)
    assert (run.steps, run.checkpoints.saved_at) == ([1, 2], 2)


def test_what_goes_wrong_in_the_background_is_heard(tmp_path: Path, disk: Disk) -> None:
    run = Run(tmp_path, keep=2)
    disk.goes_on.set()
    run.save(1, background=True)
    run.checkpoints.settle(ALONE)
    disk.is_full = True
    run.save(2, background=True)
    run.checkpoints.leave()
    assert (run.checkpoints.failed, run.checkpoints.saved_at, run.resumed()) == (True, 1, 1)
    with pytest.raises(StageError, match=r"step-2 could not be written: No space left") as failure:
        run.save(3)
    assert failure.value.exit_code == ExitCode.CANNOT_WRITE
    assert sorted(path.name for path in run.folder.iterdir()) == ["step-1"]


def test_on_the_way_out_what_is_under_way_is_finished(tmp_path: Path, disk: Disk) -> None:
    run = Run(tmp_path, keep=2)
    run.save(1, background=True)
    threading.Timer(0.05, disk.goes_on.set).start()
    run.checkpoints.leave()
    assert run.resumed() == 1


def test_weights_that_are_no_numbers_hold_training_up(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    with pytest.raises(StageError, match=r"w is not finite at step 2"):
        run.save(2, weight=float("inf"), background=True)


@pytest.mark.parametrize(("free", "peak", "writes_at_once"), [(14, 0, False), (13, 0, True), (20, 7, True)])
def test_a_copy_is_made_only_where_there_is_room(
    free: int, peak: int, writes_at_once: bool, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve bytes, beside what training has taken at its peak."""
    run = Run(tmp_path, keep=2)
    monkeypatch.setattr(memory, "available", lambda: free)
    monkeypatch.setattr(memory, "below_peak", lambda: peak)
    threading.Timer(0.05, disk.goes_on.set).start()
    run.save(1, background=True)
    assert (run.checkpoints.saved_at == 1) is writes_at_once
    run.checkpoints.settle(ALONE)
    assert run.steps == [1]
