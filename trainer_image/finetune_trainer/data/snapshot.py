"""From checked rows to the snapshot: repeats dropped, relatives grouped, split, weighed, measured.

Pure: the same rows give the same snapshot, whatever their files are called and in which order they come.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.finetunejob import Split
from finetune_trainer.data import dedupe
from finetune_trainer.data.dataset import SPLITS, Example, Manifest, SplitName
from finetune_trainer.data.fields import listed
from finetune_trainer.data.rows import Content, Row
from finetune_trainer.data.sources import SourceRows
from finetune_trainer.data.split import Member, Shares, split
from finetune_trainer.process.errors import bad_data

Splits = Mapping[SplitName, Sequence[Example]]

_MOST_LABELS = 4096
_MOST_COMPARED = 100
"""Rows of a group among which two are looked for that show why it is one."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All different examples, and what became of the others. Keys are content ids."""

    rows: Mapping[str, Row]
    """To be split."""
    held_out: Mapping[str, Row]
    """Of a fixed evaluation set."""
    group_of: Mapping[str, str]
    duplicates: int
    """Rows that repeat another of the same kind (training or evaluation)."""
    left_as_duplicates: int
    """Training examples that are in the evaluation set too, and therefore left."""
    left_as_near_duplicates: int
    """Those that have a near-duplicate there."""
    conflicting_labels: Mapping[str, set[str]]
    """Texts with more than one label."""

    @property
    def group_sizes(self) -> Counter[str]:
        """Different examples by group."""
        return Counter(self.group_of[id_] for id_ in [*self.rows, *self.held_out])

    def likeness(self, group: str) -> str:
        """Why a group is one, as the end of a message: two of its rows, and what they share. Empty for a single row."""
        rows = [row for id_, row in self.rows.items() if self.group_of[id_] == group][:_MOST_COMPARED]
        if len(rows) < 2:
            return ""
        first, second, shared = dedupe.likeness([dedupe.subject_of(row.content, source=row.source) for row in rows])
        return (
            f". Near-duplicates are, for example, {rows[first].place} and {rows[second].place}: they share {shared}; an"
            " instruction that many rows share belongs into the system message"
        )


def pool(training: Sequence[SourceRows], *, evaluation: SourceRows | None) -> Pool:
    """Drop repeats, group relatives, and keep what is held out away from what is learned."""
    rows = _by_id(row for item in training for row in item.rows)
    held_out = _by_id(evaluation.rows if evaluation else ())
    read = sum(len(item.rows) for item in training) + (len(evaluation.rows) if evaluation else 0)
    new = {id_: row for id_, row in rows.items() if id_ not in held_out}
    everything = new | held_out
    groups = dedupe.groups([dedupe.subject_of(row.content, source=row.source) for row in everything.values()])
    group_of = dict(zip(everything, groups, strict=True))
    held_out_groups = {group_of[id_] for id_ in held_out}
    unrelated = {id_: row for id_, row in new.items() if group_of[id_] not in held_out_groups}
    if held_out and not unrelated:
        raise bad_data(
            "EmptyData",
            "data.sources: every example is in evaluation.dataset too, or nearly; nothing is left to learn from",
        )
    return Pool(
        rows=unrelated,
        held_out=held_out,
        group_of=group_of,
        duplicates=read - len(rows) - len(held_out),
        left_as_duplicates=len(rows) - len(new),
        left_as_near_duplicates=len(new) - len(unrelated),
        conflicting_labels=dedupe.conflicting_labels(row.content for row in everything.values()),
    )


def divide(
    examples: Pool, *, fractions: Split, fixed_evaluation: bool, salt: str, seed: int, stratify_by: str | None
) -> dict[SplitName, list[Example]]:
    """The examples by split, each once, sorted by id. Raises StageError (65)."""
    places = split(
        [Member(group=examples.group_of[id_], stratum=row.stratum) for id_, row in examples.rows.items()],
        shares=Shares.of(fractions, fixed_evaluation=fixed_evaluation),
        salt=salt,
        seed=seed,
        stratify_by=stratify_by,
        likeness=examples.likeness,
    )
    placed: list[tuple[SplitName, str, Row]] = [
        (name, id_, row) for name, (id_, row) in zip(places, examples.rows.items(), strict=True)
    ]
    placed += [("test", id_, row) for id_, row in examples.held_out.items()]
    divided: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for name, id_, row in sorted(placed, key=lambda entry: entry[1]):
        content = row.content
        divided[name].append(
            Example(
                id=id_,
                group=examples.group_of[id_],
                source=row.source,
                messages=content.messages,
                tools=content.tools,
                text=content.text,
                label=content.label,
            )
        )
    return divided


def without_learned(splits: Splits, *, by: Manifest, fixed_evaluation: bool) -> dict[SplitName, list[Example]]:
    """Nothing held out that the version before has learned from, nor its near-duplicates: it is learned again, or, of
    a fixed evaluation set, left out.
    """
    seen = by.groups_learned(example for name in SPLITS for example in splits[name])
    kept = {name: [each for each in splits[name] if each.group not in seen] for name in SPLITS}
    again = [
        each
        for name in SPLITS
        for each in splits[name]
        if each.group in seen and not (fixed_evaluation and name == "test")
    ]
    kept["train"] = sorted([*kept["train"], *again], key=lambda example: example.id)
    if splits["test"] and not kept["test"]:
        raise bad_data(
            "AllLeaked",
            f"model.uri: the version to go on from was trained on all {len(splits['test'])} held-out examples or on"
            " near-duplicates; add examples that it has not seen, or give evaluation.dataset",
        )
    return kept


def apart(splits: Splits, *, divided: Splits) -> dict[SplitName, list[Example]]:
    """Each example once, and without those that are relatives of what another split holds out. Such can be only answers
    of longer chats that are taught as examples of their own; `divided` are the splits before that was done.
    """
    everything = [example for name in SPLITS for example in splits[name]]
    whole = {name: {example.id for example in divided[name]} for name in SPLITS}
    others = frozenset[str]().union(*whole.values())
    if all(example.id in others for example in everything):
        return {name: list(splits[name]) for name in SPLITS}
    contents = (Content(messages=each.messages, tools=each.tools, text=each.text) for each in everything)
    subjects = [
        dedupe.subject_of(content, source=each.source) for content, each in zip(contents, everything, strict=True)
    ]
    group_of = dict(zip((example.id for example in everything), dedupe.groups(subjects), strict=True))
    kept: dict[SplitName, list[Example]] = {"test": list(splits["test"])}
    held_out = {group_of[example.id] for example in splits["test"]}
    seen = {example.id for example in splits["test"]}
    for name in SPLITS[1::-1]:
        kept[name] = []
        for example in splits[name]:
            is_new = example.id not in whole[name]
            if example.id in seen or (is_new and (example.id in others or group_of[example.id] in held_out)):
                continue
            seen.add(example.id)
            kept[name].append(example)
        held_out |= {group_of[example.id] for example in kept[name]}
    return {name: kept[name] for name in SPLITS}


def labels_of(splits: Splits) -> tuple[str, ...] | None:
    """The classes, sorted; None where nothing is labelled. Raises StageError (65) where they cannot be learned."""
    counts = {name: label_counts(splits[name]) for name in SPLITS}
    total = sum(counts.values(), Counter[str]())
    if not total:
        return None
    if unlearned := sorted(label for label in total if not counts["train"][label]):
        label = unlearned[0]
        where = " and ".join(name for name in SPLITS if counts[name][label])
        seen = "once" if total[label] == 1 else f"{total[label]} times"
        others = f" (nor would {listed(map(repr, unlearned[1:]))})" if len(unlearned) > 1 else ""
        raise bad_data(
            "StratumTooSmall",
            f"data.split.strategy: label {label!r} is seen {seen}, only in {where}, so it would never be"
            f" learned{others}. Add examples of it, remove it, or use Stratified",
        )
    if len(total) < 2:
        said = f"data.sources: all examples have the label {next(iter(total))!r}; a classifier needs two or more"
        raise bad_data("OneLabel", said)
    if len(total) > _MOST_LABELS:
        raise bad_data(
            "TooManyLabels", f"data.sources: {len(total)} different labels; at most {_MOST_LABELS} are possible"
        )
    return tuple(sorted(total))


def label_counts(examples: Iterable[Example]) -> Counter[str]:
    """Examples by label."""
    return Counter(example.label for example in examples if example.label is not None)


def weighed(examples: Sequence[Example], *, weights: Mapping[str, float], salt: str) -> list[Example]:
    """Examples repeated, or left out, by the weight of their source, in an order that their contents alone decide.

    Raises StageError (65) where nothing is left.
    """
    placed: list[tuple[str, Example]] = []
    for example in examples:
        weight = weights[example.source]
        draw = int.from_bytes(hashlib.sha256(f"{salt}\nweight\n{example.id}".encode()).digest()[:8], "big") / 2**64
        for copy in range(int(weight) + (draw < weight - int(weight))):
            key = example.id if copy == 0 else hashlib.sha256(f"{example.id} {copy}".encode()).hexdigest()
            placed.append((key, example))
    if not placed:
        raise bad_data("EmptySplit", "data.sources[].weight: they leave no training example; raise them")
    return [example for _, example in sorted(placed, key=lambda pair: pair[0])]


def manifest(
    splits: Splits, *, labels: tuple[str, ...] | None, statistics: dict[str, Any], before: Manifest | None = None
) -> Manifest:
    """The snapshot's manifest. `before`: of the version that training goes on from."""
    return Manifest(
        digest=_digest(splits),
        splits={name: tuple(example.id for example in splits[name]) for name in SPLITS},
        groups={name: tuple(sorted({example.group for example in splits[name]})) for name in SPLITS},
        labels=labels,
        statistics=statistics,
        before=() if before is None else before.learned,
    )


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    """The first row of each content."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(dedupe.content_id(row.content), row)
    return found


def _digest(splits: Splits) -> str:
    """Over the contents by split: what the sources are called does not count."""
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(f"{name} {len(splits[name])}\n".encode())
        for example in splits[name]:
            digest.update(example.content_json().encode() + b"\n")
    return "sha256:" + digest.hexdigest()
