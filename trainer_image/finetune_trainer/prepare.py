"""Prepare: from users' files to a snapshot that training and evaluation can trust, and a base model that loads."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.modelversion import DataSource, RowCounts
from finetune_api.results import DataSummary, PrepareResult
from finetune_api.run import PrepareRun
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer import base_model, limits, model_files, remarks, rendered_fields, snapshot, sources, token_lengths
from finetune_trainer.chat_checks import check_chats
from finetune_trainer.dataset import (
    MANIFEST,
    QUARANTINE,
    SPLITS,
    Example,
    Manifest,
    SplitName,
    data_folder,
    write_examples,
)
from finetune_trainer.errors import bad_data
from finetune_trainer.locations import join
from finetune_trainer.rows import Quarantine, carried_counts
from finetune_trainer.snapshot import Pool
from finetune_trainer.sources import OpenedSource, SourceRows
from finetune_trainer.storage import Storage
from finetune_trainer.token_lengths import TokenLengths

log = logging.getLogger(__name__)

# Part of the input digest: raise it when the same input would give another snapshot.
_VERSION = 2


def prepare(run: PrepareRun) -> PrepareResult:
    """Do the stage. Raises StageError."""
    storage = Storage(locations=run.locations)
    folder = data_folder(run.locations.run)
    with ExitStack() as stack:
        # The sources first: that one is missing shows in a second, and a base may take minutes.
        opened = _opened(run, storage=storage, stack=stack)
        base = base_model.resolve(run.model, storage=storage)
        digest = _input_digest(run, base=base, opened=opened)
        finished = storage.read_complete(folder)
        if finished is not None and finished.input_digest == digest:
            log.info("an earlier attempt finished the snapshot of this very input; nothing to do")
            earlier = PrepareResult.model_validate(finished.extra["result"])
            _rehearse(run, base=base, labels=earlier.labels, storage=storage)
            return earlier.model_copy(update={"base": base, "reused": True})
        read = _read(run, opened, storage=storage)
    with base_model.local_folder(base, storage=storage, verify=False) as model_folder:
        tokenizer = base_model.load_tokenizer(model_folder)
        vocabulary = base_model.vocabulary_size(model_folder)
        context = limits.context_in(model_folder, tokenizer, task=run.model.task)
        made = _make(run, read, tokenizer=tokenizer, context=context)
        examples = itertools.chain(*made.splits.values())
        model_files.check_tokenizer(
            run.model.uri, tokenizer, vocabulary=vocabulary, texts=(example.content_json() for example in examples)
        )
        result = PrepareResult(
            data_digest=made.manifest.digest,
            manifest=join(folder, MANIFEST),
            summary=made.summary,
            sources=[DataSource(name=item.source.name, uri=item.source.uri, digest=item.digest) for item in opened.all],
            labels=None if made.manifest.labels is None else list(made.manifest.labels),
            base=base,
            remarks=made.manifest.statistics["remarks"],
            context_tokens=context,
        )
        with storage.staging_folder(folder) as staging:
            _write(made, read.quarantine, into=staging)
            storage.publish(staging, to=folder, input_digest=digest, extra={"result": result.to_dict()})
        for line in _account(made):
            log.info(line)
        _rehearse(run, base=base, labels=result.labels, storage=storage, model_folder=model_folder)
    return result


def _rehearse(
    run: PrepareRun,
    *,
    base: ResolvedModel,
    labels: Sequence[str] | None,
    storage: Storage,
    model_folder: Path | None = None,
) -> None:
    """Last, since it takes the longest. Without a folder the base is brought here, if it has to be."""
    if run.method is None:
        return
    from finetune_trainer.rehearsal import Rehearsal, rehearse, was_rehearsed  # torch takes seconds to load

    order = Rehearsal(
        locations=run.locations, model=run.model, base=base, method=run.method, packing=bool(run.packing), labels=labels
    )
    if was_rehearsed(order, storage=storage):
        return
    at_hand: AbstractContextManager[Path] = (
        nullcontext(model_folder) if model_folder else base_model.local_folder(base, storage=storage, verify=False)
    )
    with at_hand as folder:
        rehearse(order, base_folder=folder, storage=storage)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The sources, with their files at hand."""

    training: tuple[OpenedSource, ...]
    evaluation: OpenedSource | None

    @property
    def all(self) -> tuple[OpenedSource, ...]:
        return self.training if self.evaluation is None else (*self.training, self.evaluation)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What the sources hold."""

    training: tuple[SourceRows, ...]
    evaluation: SourceRows | None
    quarantine: Quarantine

    @property
    def rows_read(self) -> int:
        """Bad ones included."""
        read = sum(item.rows_read for item in self.training)
        return read if self.evaluation is None else read + self.evaluation.rows_read


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The snapshot."""

    splits: dict[SplitName, list[Example]]
    manifest: Manifest
    summary: DataSummary
    pool: Pool


def _opened(run: PrepareRun, *, storage: Storage, stack: ExitStack) -> _Opened:
    fixed = run.evaluation_dataset
    return _Opened(
        training=tuple(sources.opened(source, storage=storage, stack=stack) for source in run.sources),
        evaluation=None if fixed is None else sources.opened(fixed, storage=storage, stack=stack),
    )


def _input_digest(run: PrepareRun, *, base: ResolvedModel, opened: _Opened) -> str:
    orders: dict[str, Any] = {
        "version": _VERSION,
        "task": run.model.task,
        "base": base.digest,
        "max_bad_rows": run.max_bad_rows,
        "max_truncated_fraction": run.max_truncated_fraction,
        "max_length": run.max_length,
        "split": run.split.to_dict(),
        "max_new_tokens": run.max_new_tokens,
        "fixed_evaluation": opened.evaluation is not None,
    }
    return sources.input_digest(orders, opened.all)


def _stratify_by(run: PrepareRun) -> str | None:
    fractions = run.split.fractions
    return (fractions.by or "label") if fractions.strategy == "Stratified" else None


def _read(run: PrepareRun, opened: _Opened, *, storage: Storage) -> _Read:
    quarantine = Quarantine(limit=run.max_bad_rows)

    def rows_of(item: OpenedSource, stratum_field: str | None) -> SourceRows:
        return sources.read(item, task=run.model.task, stratum_field=stratum_field, quarantine=quarantine)

    read = _Read(
        training=tuple(rows_of(item, _stratify_by(run)) for item in opened.training),
        evaluation=None if opened.evaluation is None else rows_of(opened.evaluation, None),
        quarantine=quarantine,
    )
    for bad in quarantine.rows[:20]:
        log.warning("in quarantine: %s", bad)
    if quarantine.exceeded:
        storage.write_atomic(join(data_folder(run.locations.run), QUARANTINE), quarantine.to_text())
        raise quarantine.error(rows_read=read.rows_read)
    return read


def _make(run: PrepareRun, read: _Read, *, tokenizer: Any, context: int | None) -> _Made:
    pool = snapshot.pool(read.training, evaluation=read.evaluation)
    for text, found in list(pool.conflicting_labels.items())[:5]:
        log.warning("the same text has the labels %s: %.200s", ", ".join(sorted(found)), text)
    splits = snapshot.divide(
        pool,
        fractions=run.split.fractions,
        fixed_evaluation=read.evaluation is not None,
        salt=run.split.salt,
        seed=run.split.seed,
        stratify_by=_stratify_by(run),
    )
    rendered_fields.check([*pool.rows.values(), *pool.held_out.values()], tokenizer=tokenizer)
    for name in SPLITS:
        splits[name] = [rendered_fields.with_reference(example, tokenizer=tokenizer) for example in splits[name]]
    labels = snapshot.labels_of(splits)
    check_chats(itertools.chain(*splits.values()), tokenizer=tokenizer)
    lengths = _measured(run, splits, tokenizer=tokenizer, context=context)
    weights = {source.name: source.weight or 1.0 for source in run.sources}
    splits["train"] = snapshot.weighed(splits["train"], weights=weights, salt=run.split.salt)
    summary = DataSummary(
        rows_read=read.rows_read,
        bad_rows=read.quarantine.count,
        duplicate_rows=pool.duplicates,
        near_duplicate_groups=sum(size > 1 for size in pool.group_sizes.values()),
        rows=RowCounts(train=len(splits["train"]), validation=len(splits["validation"]), test=len(splits["test"])),
        token_length_p50=lengths.p50,
        token_length_p95=lengths.p95,
        token_length_max=lengths.max,
        truncated_fraction=lengths.truncated_fraction,
    )
    statistics = _statistics(summary, read, pool, splits)
    statistics["remarks"] = remarks.of_data(
        carried=statistics["carriedFields"],
        labels=labels or (),
        held_out=splits["test"],
        tokenizer=tokenizer,
        max_new_tokens=run.max_new_tokens,
    )
    return _Made(
        splits=splits,
        manifest=snapshot.manifest(splits, labels=labels, statistics=statistics),
        summary=summary,
        pool=pool,
    )


def _measured(
    run: PrepareRun, splits: dict[SplitName, list[Example]], *, tokenizer: Any, context: int | None
) -> TokenLengths:
    """How long the training examples are. Raises StageError where more than is allowed would be cut, or where the model
    cannot read as much of an example as training.maxLength says.
    """
    measured = {name: token_lengths.measure(splits[name], tokenizer=tokenizer) for name in SPLITS}
    lengths = TokenLengths.of(measured["train"], limit=run.max_length)
    beyond = [
        (length, example)
        for name in SPLITS
        for length, example in zip(measured[name], splits[name], strict=True)
        if context is not None and length > context
    ]
    if context is not None and run.max_length > context and beyond:
        longest, example = max(beyond, key=lambda item: item[0])
        share = sum(length > context for length in measured["train"]) / len(measured["train"])
        raise bad_data(
            "LongerThanContext",
            f"training.maxLength {run.max_length} is more than the {context} tokens that the base model can read at"
            f" once, and {len(beyond)} examples are longer than that; the longest has {longest} tokens, is of source"
            f" {example.source} and begins with {_beginning(example)!r}. Shorten or split the rows or use a base model"
            f" that reads more; or set training.maxLength {context} and data.maxTruncatedFraction of at least"
            f" {math.ceil(share * 1000) / 1000:g}: what lies behind is then cut off",
        )
    if lengths.truncated_fraction > run.max_truncated_fraction:
        longest_useful = lengths.max if context is None else min(lengths.max, context)
        raise_it = "" if longest_useful <= run.max_length else f"Raise training.maxLength (up to {longest_useful}), "
        raise bad_data(
            "TooManyTruncated",
            f"{lengths.truncated_fraction:.1%} of the training examples have more than training.maxLength"
            f" {run.max_length} tokens and would be cut (median {lengths.p50}, 95 % up to {lengths.p95}, longest"
            f" {lengths.max}); data.maxTruncatedFraction allows {run.max_truncated_fraction:.1%}. "
            + (
                raise_it + "shorten the rows, or allow more"
                if raise_it
                else f"The base model reads {context} tokens at most: shorten or split the rows, or allow more"
            ),
        )
    return lengths


def _beginning(example: Example) -> str:
    return (example.messages[0].content if example.messages else example.text or "")[:80]


def _statistics(
    summary: DataSummary, read: _Read, pool: Pool, splits: dict[SplitName, list[Example]]
) -> dict[str, Any]:
    """What the manifest tells beyond the result."""
    return summary.to_dict() | {
        "groups": len(pool.group_sizes),
        "largestGroup": max(pool.group_sizes.values()),
        "conflictingLabels": len(pool.conflicting_labels),
        "carriedFields": _carried(read),
        "leftForEvaluation": {
            "duplicates": pool.left_as_duplicates,
            "nearDuplicates": pool.left_as_near_duplicates,
        },
        "labels": {name: dict(sorted(snapshot.label_counts(splits[name]).items())) for name in SPLITS},
        "sources": {
            item.source.name: {
                "rowsRead": item.rows_read,
                "train": sum(example.source == item.source.name for example in splits["train"]),
            }
            for item in read.training
        },
    }


def _carried(read: _Read) -> dict[str, dict[str, int]]:
    """By source: the fields that are there and not used, and in how many rows."""
    found = {
        item.source.name: carried_counts(item.rows)
        for item in (*read.training, *(() if read.evaluation is None else (read.evaluation,)))
    }
    return {name: counts for name, counts in found.items() if counts}


def _write(made: _Made, quarantine: Quarantine, *, into: Path) -> None:
    for name in SPLITS:
        (into / f"{name}.jsonl").write_text(write_examples(made.splits[name]), encoding="utf-8")
    (into / MANIFEST).write_text(made.manifest.to_json(), encoding="utf-8")
    (into / QUARANTINE).write_text(quarantine.to_text(), encoding="utf-8")


def _account(made: _Made) -> Sequence[str]:
    """What it saw, for a person who reads the log."""
    summary, pool, labels = made.summary, made.pool, made.manifest.labels
    lines = [
        f"rows read   {summary.rows_read}, of them bad {summary.bad_rows}, repeated {summary.duplicate_rows}",
        f"groups      {len(pool.group_sizes)}, of them {summary.near_duplicate_groups} with near-duplicates,"
        f" the largest of {max(pool.group_sizes.values())}",
        f"split       train {summary.rows.train}, validation {summary.rows.validation}, test {summary.rows.test}",
        f"tokens      median {summary.token_length_p50}, 95 % up to {summary.token_length_p95}, longest"
        f" {summary.token_length_max}; cut {summary.truncated_fraction:.2%}",
    ]
    if pool.held_out:
        lines.append(
            f"held out    {pool.left_as_duplicates} repeats and {pool.left_as_near_duplicates} near-duplicates of the"
            " evaluation set left the training data"
        )
    if labels is not None:
        lines.append(f"labels      {len(labels)}: {', '.join(labels[:20])}{' ...' if len(labels) > 20 else ''}")
    if pool.conflicting_labels:
        lines.append(f"conflicts   {len(pool.conflicting_labels)} texts have more than one label")
    lines += [f"note        {remark}" for remark in made.manifest.statistics["remarks"]]
    return [*lines, f"digest      {made.manifest.digest}"]
