"""Prepare: from users' files to a snapshot that training and evaluation can trust, and a base model that loads."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from finetune_api.finetunejob import Source
from finetune_api.modelversion import DataSource, RowCounts
from finetune_api.results import DataSummary, PrepareResult
from finetune_api.run import PrepareRun
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.data import remarks, snapshot, sources
from finetune_trainer.data.dataset import (
    MANIFEST,
    QUARANTINE,
    SPLITS,
    Example,
    Manifest,
    SplitName,
    data_folder,
    read_manifest,
    write_examples,
)
from finetune_trainer.data.fields import listed
from finetune_trainer.data.rows import Quarantine, carried_counts
from finetune_trainer.data.snapshot import Pool
from finetune_trainer.data.sources import OpenedSource, SourceRows
from finetune_trainer.models import base_model, limits, model_files, parent_model
from finetune_trainer.models.classes import check_classes
from finetune_trainer.preparation.fields import naming_fields
from finetune_trainer.preparation.sharing import with_sharing
from finetune_trainer.process.errors import bad_configuration, bad_data
from finetune_trainer.store.locations import join
from finetune_trainer.store.orders import but_for_the_place, orders_digest
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import formats_of, task_of
from finetune_trainer.tasks.encoding import by_answers, prompt_ids
from finetune_trainer.tasks.token_lengths import TokenLengths
from finetune_trainer.tasks.tokens import TokenOrder, Tokens, check_validation

log = logging.getLogger(__name__)
Held = TypeVar("Held")

# Part of the input digest: raise it when the same input would give another snapshot.
_VERSION = 6
_NOT_IN_DIGEST = {
    *("stage", "identity", "locations"),
    *("method", "packing", "strategy", "offload", "deepspeed", "memory", "optimisation", "servedByVllm"),
}
"""Who asks, where it is written, and what is only tried or computed."""


def prepare(run: PrepareRun) -> PrepareResult:
    """Do the stage. Raises StageError, whose message names the field that is meant."""
    with naming_fields(run):
        if run.deepspeed is not None and run.strategy is not None:
            from finetune_trainer.training.deepspeed_trial import try_out  # as torch, it takes seconds to load

            try_out(run.deepspeed, strategy=run.strategy, offload=run.offload)
        return _prepare(run)


def _prepare(run: PrepareRun) -> PrepareResult:
    storage = Storage(locations=run.locations)
    folder = data_folder(run.locations.run)
    with ExitStack() as stack:
        # The sources first: that one is missing shows in a second, and a base may take minutes.
        opened = _opened(run, storage=storage, stack=stack)
        base = parent_model.resolve(run.model, storage=storage)
        before = _before(run, storage=storage)
        digest = _input_digest(run, base=base, opened=opened)
        finished = storage.read_complete(folder)
        if finished is not None and finished.input_digest == digest:
            log.info("an earlier attempt finished the snapshot of this very input; nothing to do")
            earlier = PrepareResult.model_validate(finished.extra["result"])
            earlier = with_sharing(run, earlier.model_copy(update={"base": base, "reused": True}), storage=storage)
            _try_out(run, earlier, base=base, storage=storage)
            return earlier
        model_folder = stack.enter_context(base_model.local_folder(base, storage=storage, verify=False))
        tokenizer = base_model.load_tokenizer(model_folder)
        quarantine = Quarantine(limit=run.max_bad_rows)
        read = _read(run, opened, quarantine, tokenizer=tokenizer, storage=storage)
        vocabulary = model_files.vocabulary_of(model_files.configuration(model_folder))
        generates = task_of(run.model.task).generates
        if generates:
            model_files.declared_ends_in(model_folder)  # refused here where its files cannot tell
        context = limits.context_in(model_folder, tokenizer, generates=generates)
        made = _make(run, read, before, bad_rows=quarantine.count, tokenizer=tokenizer, context=context)
        parent_model.check_labels(run.model, made.manifest.labels)
        check_classes(model_folder, made.manifest.labels, uri=run.model.uri)
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
            _write(made, quarantine, into=staging)
            storage.publish(staging, to=folder, input_digest=digest, extra={"result": result.to_dict()})
        for line in _account(made):
            log.info(line)
        result = with_sharing(run, result, storage=storage)
        _try_out(run, result, base=base, storage=storage, model_folder=model_folder)
    return result


def _try_out(
    run: PrepareRun, found: PrepareResult, *, base: ResolvedModel, storage: Storage, model_folder: Path | None = None
) -> None:
    """Write the tokens for training, and rehearse it; last, since they take the longest. What an earlier attempt did
    stays. Without a folder the base is brought here, if it has to be.
    """
    from finetune_trainer.training.rehearsal import Rehearsal, rehearse, was_rehearsed  # torch takes seconds to load

    task = task_of(run.model.task)
    tokens = TokenOrder(task=task, base=base.digest, data=found.data_digest, max_length=run.max_length)
    rehearsal = Rehearsal.in_prepare(run, found)
    place: dict[str, Any] = {"run": run.locations.run, "storage": storage}

    def written() -> bool:
        with tokens.written(**place) as copy:
            if copy is not None and run.optimisation is not None:
                check_validation(run.optimisation, Tokens.mapped(copy[0], split="validation"))
            return copy is not None

    there = written()
    if there and was_rehearsed(rehearsal, storage=storage):
        return
    at_hand: AbstractContextManager[Path] = (
        nullcontext(model_folder) if model_folder else base_model.local_folder(base, storage=storage, verify=False)
    )
    with at_hand as folder:
        if not there:
            tokens.publish(tokenizer=base_model.load_tokenizer(folder), labels=found.labels, **place)
            written()
        rehearse(rehearsal, base_folder=folder, storage=storage)


@dataclass(frozen=True, kw_only=True)
class _Sources(Generic[Held]):
    """What there is of each source: its files, then its rows."""

    training: tuple[Held, ...]
    evaluation: Held | None

    @property
    def all(self) -> tuple[Held, ...]:
        return self.training if self.evaluation is None else (*self.training, self.evaluation)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The snapshot."""

    splits: dict[SplitName, list[Example]]
    manifest: Manifest
    summary: DataSummary
    pool: Pool


def _opened(run: PrepareRun, *, storage: Storage, stack: ExitStack) -> _Sources[OpenedSource]:
    def opened(source: Source) -> OpenedSource:
        return sources.opened(source, storage=storage, stack=stack)

    fixed = run.evaluation_dataset
    return _Sources(
        training=tuple(opened(each) for each in run.sources), evaluation=None if fixed is None else opened(fixed)
    )


def _input_digest(run: PrepareRun, *, base: ResolvedModel, opened: _Sources[OpenedSource]) -> str:
    return orders_digest(
        run,
        apart=_NOT_IN_DIGEST,
        version=_VERSION,
        model=but_for_the_place(run.model),
        base=base.digest,
        sources=[item.identity for item in opened.training],
        evaluationDataset=opened.evaluation and opened.evaluation.identity,
    )


def _stratify_by(run: PrepareRun) -> str | None:
    fractions = run.split.fractions
    return (fractions.by or "label") if fractions.strategy == "Stratified" else None


def _read(
    run: PrepareRun, opened: _Sources[OpenedSource], quarantine: Quarantine, *, tokenizer: Any, storage: Storage
) -> _Sources[SourceRows]:
    task = task_of(run.model.task)
    judge = partial(task.check_row, tokenizer=tokenizer)

    def rows_of(item: OpenedSource, stratum_field: str | None) -> SourceRows:
        possible = formats_of(task, declared=item.source.format)
        return sources.read(item, possible=possible, stratum_field=stratum_field, quarantine=quarantine, judge=judge)

    read = _Sources(
        training=tuple(rows_of(item, _stratify_by(run)) for item in opened.training),
        evaluation=None if opened.evaluation is None else rows_of(opened.evaluation, None),
    )
    for bad in quarantine.rows[:20]:
        log.warning("in quarantine: %s", bad)
    if quarantine.exceeded:
        storage.write_atomic(join(data_folder(run.locations.run), QUARANTINE), quarantine.to_text())
        raise quarantine.error(rows_read=sum(item.rows_read for item in read.all))
    return read


def _before(run: PrepareRun, *, storage: Storage) -> Manifest | None:
    """What the version that training goes on from has learned from."""
    parent = run.model.parent
    if parent is None or parent.data_manifest is None:
        return None
    return read_manifest(storage, uri=parent.data_manifest)


def _make(
    run: PrepareRun,
    read: _Sources[SourceRows],
    before: Manifest | None,
    *,
    bad_rows: int,
    tokenizer: Any,
    context: int | None,
) -> _Made:
    task = task_of(run.model.task)
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
    held_out_at_first = len(splits["test"]) + len(splits["validation"])
    if before is not None:
        splits = snapshot.without_learned(splits, by=before, fixed_evaluation=read.evaluation is not None)
    learned_before = held_out_at_first - len(splits["test"]) - len(splits["validation"])
    divided = dict(splits)
    for name in SPLITS:
        taught = [by_answers(example, tokenizer=tokenizer) for example in splits[name]]
        # One question is asked of each held-out chat: its last.
        splits[name] = [each for answers in taught for each in (answers[-1:] if name == "test" else answers)]
    taught_in_all = sum(len(splits[name]) for name in SPLITS)
    splits = snapshot.apart(splits, divided=divided)
    if left := taught_in_all - sum(len(splits[name]) for name in SPLITS):
        log.info("%d answers inside of chats are left out: they are repeated, or asked in what is held out", left)
    for name in SPLITS:
        splits[name] = [task.with_reference(example, tokenizer=tokenizer) for example in splits[name]]
    labels = snapshot.labels_of(splits)
    task.check_examples(list(itertools.chain(*splits.values())), tokenizer=tokenizer)
    measured = {name: task.lengths(splits[name], tokenizer=tokenizer) for name in SPLITS}
    lengths = _checked_lengths(run, splits, measured, context=context)
    if context is not None and run.max_new_tokens is not None and not task.two_parts:
        held_out = [
            example
            for length, example in zip(measured["test"], splits["test"], strict=True)
            if length + run.max_new_tokens > context
        ]
        _check_room(run, held_out, of=len(splits["test"]), context=context, tokenizer=tokenizer)
    unlearned = sum(
        not task.encode(example, tokenizer=tokenizer, max_length=run.max_length, labels=labels).target_count
        for length, example in zip(measured["train"], splits["train"], strict=True)
        if length > run.max_length
    )
    weights = {source.name: source.weight or 1.0 for source in run.sources}
    splits["train"] = snapshot.weighed(splits["train"], weights=weights, salt=run.split.salt)
    summary = DataSummary(
        rows_read=sum(item.rows_read for item in read.all),
        bad_rows=bad_rows,
        duplicate_rows=pool.duplicates,
        near_duplicate_groups=sum(size > 1 for size in pool.group_sizes.values()),
        rows=RowCounts(train=len(splits["train"]), validation=len(splits["validation"]), test=len(splits["test"])),
        token_length_p50=lengths.p50,
        token_length_p95=lengths.p95,
        token_length_max=lengths.max,
        truncated_fraction=lengths.truncated_fraction,
    )
    statistics = _statistics(summary, read, pool, splits) | {"nothingToLearn": unlearned}
    statistics["remarks"] = remarks.of_data(
        left_out={item.source.name: item.left_out for item in read.all},
        carried=statistics["carriedFields"],
        labels={*(labels or ()), *(row.stratum for row in pool.rows.values() if row.stratum is not None)},
        held_out=splits["test"],
        unlearned=unlearned,
        tokenizer=tokenizer,
        max_length=run.max_length,
        context=context,
        max_new_tokens=run.max_new_tokens,
    )
    if learned_before:
        statistics["remarks"].append(
            f"model.uri: {learned_before} examples are not held out: {run.model.uri} has learned from them or from"
            " near-duplicates"
        )
    return _Made(
        splits=splits,
        manifest=snapshot.manifest(splits, labels=labels, statistics=statistics, before=before),
        summary=summary,
        pool=pool,
    )


def _check_room(run: PrepareRun, long: Sequence[Example], *, of: int, context: int, tokenizer: Any) -> None:
    """Whether the model can read the held-out questions and still write an answer; `long` are those where it is not
    certain, among `of`. Raises StageError where more than may be cut would be.
    """
    asked = run.max_new_tokens or 0
    where = f"evaluation.generation.maxNewTokens: {asked}"
    reads = f"the {context} tokens that the base model can read at once, question and answer together"
    if asked >= context:
        raise bad_configuration(
            "AnswersLongerThanContext", f"{where} leaves no room for a question within {reads}; lower it"
        )
    prompts = [len(prompt_ids(each.messages or (), tokenizer=tokenizer, tools=each.tools)) for each in long]
    beyond = [length for length in prompts if length + asked > context]
    if len(beyond) > run.max_truncated_fraction * of:
        lower = f"lower it to at most {context - max(beyond)}, " if max(beyond) < context else ""
        raise bad_configuration(
            "AnswersLongerThanContext",
            f"{where} and {len(beyond)} of {of} held-out questions (the longest has {max(beyond)} tokens) are more than"
            f" {reads}: the beginnings of those questions would be cut off; {lower}shorten the rows, or allow more with"
            " data.maxTruncatedFraction",
        )


def _checked_lengths(
    run: PrepareRun,
    splits: dict[SplitName, list[Example]],
    measured: dict[SplitName, list[int]],
    *,
    context: int | None,
) -> TokenLengths:
    """How long the training examples are. Raises StageError where more than is allowed would be cut, or where the model
    cannot read as much of an example as training.maxLength says.
    """
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
            f"training.maxLength: {run.max_length} is more than the {context} tokens that the base model can read at"
            f" once, and {len(beyond)} examples are longer than that; the longest has {longest} tokens, is of source"
            f" {example.source} and begins with {_beginning(example)!r}. Shorten or split the rows or use a base model"
            f" that reads more; or set training.maxLength: {context} and data.maxTruncatedFraction:"
            f" {math.ceil(share * 1000) / 1000:g} or more, and what lies behind is cut off",
        )
    if lengths.truncated_fraction > run.max_truncated_fraction:
        longest_useful = lengths.max if context is None else min(lengths.max, context)
        raise_it = "" if longest_useful <= run.max_length else f"Raise training.maxLength (up to {longest_useful}), "
        raise bad_data(
            "TooManyTruncated",
            f"data.maxTruncatedFraction: {run.max_truncated_fraction:g}, and {lengths.truncated_fraction:.1%} of the"
            f" training examples have more tokens than training.maxLength: {run.max_length} and would be cut (median"
            f" {lengths.p50}, 95 % up to {lengths.p95}, longest {lengths.max}). "
            + (
                raise_it + "shorten the rows, or allow more"
                if raise_it
                else f"The base model reads {context} tokens at most: shorten or split the rows, or allow more"
            ),
        )
    return lengths


def _beginning(example: Example) -> str:
    return (example.messages[0].content if example.messages else example.text or "")[:80]


def _files_not_read(names: Sequence[str], *, most: int = 20) -> dict[str, Any]:
    """Folders of images have very many."""
    endings = Counter(PurePosixPath(name).suffix for name in names)
    return {"count": len(names), "endings": dict(endings.most_common(most)), "first": list(names[:most])}


def _statistics(
    summary: DataSummary, read: _Sources[SourceRows], pool: Pool, splits: dict[SplitName, list[Example]]
) -> dict[str, Any]:
    """What the manifest tells beyond the result."""
    return summary.to_dict() | {
        "groups": len(pool.group_sizes),
        "largestGroup": max(pool.group_sizes.values()),
        "conflictingLabels": len(pool.conflicting_labels),
        "filesNotRead": {item.source.name: _files_not_read(item.left_out) for item in read.all if item.left_out},
        "carriedFields": {item.source.name: counts for item in read.all if (counts := carried_counts(item.rows))},
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
        lines.append(f"labels      {len(labels)}: {listed(labels, most=20)}")
    if pool.conflicting_labels:
        lines.append(f"conflicts   {len(pool.conflicting_labels)} texts have more than one label")
    lines += [f"note        {remark}" for remark in made.manifest.statistics["remarks"]]
    return [*lines, f"digest      {made.manifest.digest}"]
