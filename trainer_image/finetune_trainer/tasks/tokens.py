"""A split's examples as token ids: made once, kept in files that are mapped into memory, each process reading its own.

`tokens/` of a run's folder holds for `train` and `validation` one array a file, SPLIT.FIELD.npy (see `Tokens`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.base import Digest
from finetune_api.run import Optimisation
from finetune_trainer.data.dataset import SplitName, data_folder, read_split
from finetune_trainer.process.errors import bad_configuration, bad_data
from finetune_trainer.process.packages import versions
from finetune_trainer.store.complete import Complete
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.tasks.task import Task

log = logging.getLogger(__name__)
FOLDER = "tokens"
LEARNED: tuple[SplitName, ...] = ("train", "validation")
# Part of the digest: raise it when the same examples would give other tokens.
_VERSION = 2
_PACKAGES = ("transformers", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The examples of a split that have something to learn, in order."""

    ids: NDArray[np.int32]
    """Of all examples, one behind the other; shape (tokens,)."""
    targets: NDArray[np.bool_]
    """Which of them are to be predicted."""
    starts: NDArray[np.int64]
    """Where each example begins, and the end of the last; shape (examples + 1,)."""
    labels: NDArray[np.int64]
    """Classes; -1 where there is none; shape (examples,)."""
    target_counts: NDArray[np.int32]
    """How many losses each contributes."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Encoded:
        where, label = slice(self.starts[index], self.starts[index + 1]), int(self.labels[index])
        return Encoded(
            ids=tuple(self.ids[where].tolist()),
            targets=tuple(self.targets[where].tolist()),
            label=None if label < 0 else label,
        )

    def length(self, index: int) -> int:
        """Tokens of an example."""
        return int(self.starts[index + 1] - self.starts[index])

    @classmethod
    def of(cls, examples: Iterable[Encoded]) -> Tokens:
        """The examples that have a target."""
        ids, targets, starts, labels, counts = array("i"), array("b"), array("q", [0]), array("q"), array("i")
        for example in examples:
            if example.target_count:
                ids.extend(example.ids)
                targets.extend(example.targets)
                starts.append(len(ids))
                labels.append(-1 if example.label is None else example.label)
                counts.append(example.target_count)
        return cls(
            ids=np.array(ids, dtype=np.int32),
            targets=np.array(targets, dtype=np.bool_),
            starts=np.array(starts, dtype=np.int64),
            labels=np.array(labels, dtype=np.int64),
            target_counts=np.array(counts, dtype=np.int32),
        )

    def write(self, folder: Path, *, split: str) -> None:
        """Into files of a folder."""
        for each in fields(self):
            np.save(folder / f"{split}.{each.name}.npy", getattr(self, each.name))

    @classmethod
    def mapped(cls, folder: Path, *, split: str) -> Tokens:
        """What `write` wrote. The files must stay."""
        names = [each.name for each in fields(cls)]
        return cls(**{name: np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in names})


@dataclass(frozen=True, kw_only=True)
class TokenOrder:
    """All that a run's tokens depend on."""

    task: Task
    base: Digest
    """Of the model's folder: its tokenizer and chat template are in it."""
    data: Digest
    max_length: int

    @property
    def digest(self) -> str:
        """Of all of it, and of the packages that make tokens."""
        relevant = {
            "version": _VERSION,
            "task": self.task.name,
            "base": self.base,
            "data": self.data,
            "max_length": self.max_length,
            "packages": versions(_PACKAGES),
        }
        return "sha256:" + hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()

    def make(
        self, split: SplitName, *, tokenizer: Any, labels: Sequence[str] | None, run: str, storage: Storage
    ) -> Tokens:
        """From the snapshot of a run's folder. Raises StageError (65) where nothing is left to learn."""
        read = read_split(storage, data=data_folder(run), split=split)
        found = Tokens.of(
            self.task.encode(each, tokenizer=tokenizer, max_length=self.max_length, labels=labels) for each in read
        )
        if len(found) < len(read):
            log.warning("%s: %d of %d examples have nothing to learn after the cut to %d tokens and are left out",
                        split, len(read) - len(found), len(read), self.max_length)  # fmt: skip
        if split == "train" and not len(found):
            said = f"training.maxLength: {self.max_length}, and no training example has an answer within it; raise it"
            raise bad_data("NothingToLearn", said)
        return found

    def write(self, folder: Path, *, tokenizer: Any, labels: Sequence[str] | None, run: str, storage: Storage) -> None:
        """Make those of all splits that are learned from, into files of a folder."""
        for split in LEARNED:
            found = self.make(split, tokenizer=tokenizer, labels=labels, run=run, storage=storage)
            found.write(folder, split=split)

    def publish(self, *, tokenizer: Any, labels: Sequence[str] | None, run: str, storage: Storage) -> None:
        """Into a run's folder, for training."""
        uri = join(run, FOLDER)
        with storage.staging_folder(uri) as staging:
            self.write(staging, tokenizer=tokenizer, labels=labels, run=run, storage=storage)
            storage.publish(staging, to=uri, input_digest=self.digest, extra={"labels": labels})

    def written(self, *, run: str, storage: Storage) -> AbstractContextManager[tuple[Path, Complete] | None]:
        """A local copy of a run's tokens with its record (`extra["labels"]`: the classes); None unless they are of this
        very order.
        """
        return storage.finished_copy(join(run, FOLDER), input_digest=self.digest)


def check_validation(order: Optimisation, validation: Tokens) -> None:
    """Raises StageError (78) where training is to stop early by a loss that there is not: it would never look."""
    if order.early_stopping_patience is not None and not validation.target_counts[:].sum():
        raise bad_configuration(
            "NothingToValidate",
            f"training.earlyStopping: patience {order.early_stopping_patience} has nothing to look at: of"
            f" {len(validation)} examples in the validation split none has an answer within training.maxLength:"
            f" {order.max_length}; raise data.split.validation or training.maxLength, or leave earlyStopping out",
        )
