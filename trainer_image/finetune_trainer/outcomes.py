"""ModelRun one model over the held-out examples: what it generates, how likely it finds what is right.

A baseline's outcomes are kept in the cache under everything they depend on, so that many candidates for one endpoint
do not run the same baseline again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune_api.shared_fields import Task
from finetune_trainer import json_lines
from finetune_trainer.answer_ends import answer_ends, declared_ends
from finetune_trainer.dataset import Example
from finetune_trainer.encoding import encode, encode_labelled, prompt_ids
from finetune_trainer.generate import generate_answers
from finetune_trainer.likelihood import class_log_probabilities, token_likelihoods
from finetune_trainer.limits import context_of, padding_of
from finetune_trainer.locations import join
from finetune_trainer.scores import UNKNOWN_CLASS_PROBABILITY, ClassOutcome, Outcome, TextOutcome
from finetune_trainer.storage import Storage

log = logging.getLogger(__name__)

_OUTCOMES = "outcomes.jsonl"
_KEPT_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the models are asked; the same for both."""

    task: Task
    max_length: int
    """Tokens after which an example is cut."""
    max_new_tokens: int
    batch_size: int
    generate: bool
    """Whether answers are needed; likelihoods alone cost far less."""


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What one model did with all examples."""

    outcomes: Sequence[Outcome]
    """In the order of the examples."""
    cut_examples: int = 0
    """Longer than `max_length`: their end was not scored."""
    cut_prompts: int = 0
    """Too long for the model with its answer: their beginning was left out."""


def run_model(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, decoding: Decoding, labels: Sequence[str], who: str
) -> ModelRun:
    """Ask a model all examples. `labels`: of a classifier, in the order of its outputs; `who` names it in the log."""
    context = context_of(model, tokenizer, task=decoding.task)
    if context is not None and context < decoding.max_length:
        decoding = replace(decoding, max_length=context)  # of a baseline, which may read less than the candidate
    if decoding.task == "SequenceClassification":
        return _classify(model, tokenizer, examples, decoding=decoding, labels=labels, who=who)
    encoded = [encode(example, tokenizer=tokenizer, max_length=decoding.max_length) for example in examples]
    likelihoods = token_likelihoods(model, encoded, batch_size=decoding.batch_size, what=f"{who}: loss")
    answers: Sequence[str | None] = [None] * len(examples)
    cut_prompts = 0
    if decoding.generate:
        answers, cut_prompts = _answers(model, tokenizer, examples, decoding=decoding, who=who)
    return ModelRun(
        outcomes=[
            TextOutcome(nll=nll, tokens=tokens, answer=answer)
            for (nll, tokens), answer in zip(likelihoods, answers, strict=True)
        ],
        cut_examples=sum(example.truncated for example in encoded),
        cut_prompts=cut_prompts,
    )


def cached_run(storage: Storage, *, key: Mapping[str, Any]) -> ModelRun | None:
    """The run that was kept under `key`; None where there is none, or a damaged one."""
    uri, identity = _entry(storage, key)
    complete = storage.read_complete(uri)
    if complete is None or complete.input_digest != identity:
        return None
    kind = ClassOutcome if key["decoding"]["task"] == "SequenceClassification" else TextOutcome
    documents = json_lines.read(storage.read_text(join(uri, _OUTCOMES)))
    log.info("the baseline was scored on these examples before: %s", uri)
    return ModelRun(outcomes=[kind(**document) for document in documents], **complete.extra)


def keep_run(run: ModelRun, storage: Storage, *, key: Mapping[str, Any]) -> None:
    """Keep a run for whoever compares with the same baseline on the same examples."""
    uri, identity = _entry(storage, key)
    with storage.staging_folder(uri) as folder:
        (folder / _OUTCOMES).write_text(json_lines.to_text(map(asdict, run.outcomes)), encoding="utf-8")
        extra = {"cut_examples": run.cut_examples, "cut_prompts": run.cut_prompts}
        storage.publish(folder, to=uri, input_digest=identity, extra=extra)


def _entry(storage: Storage, key: Mapping[str, Any]) -> tuple[str, str]:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return join(storage.locations.cache, "evaluations", digest), f"sha256:{digest}"


def _answers(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, decoding: Decoding, who: str
) -> tuple[list[str], int]:
    """Each example's answer, and how many prompts had to be cut."""
    room = _longest_prompt(model, tokenizer, decoding)
    prompts = [prompt_ids(example.messages or (), tokenizer=tokenizer, tools=example.tools) for example in examples]
    answers = generate_answers(
        model,
        # The end of a prompt holds the question.
        [prompt[-room:] for prompt in prompts],
        end_ids=answer_ends(tokenizer, declared_ends(model)),
        pad_id=padding_of(model),
        max_new_tokens=decoding.max_new_tokens,
        batch_size=decoding.batch_size,
        what=f"{who}: answers",
    )
    texts = [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
    return texts, sum(len(prompt) > room for prompt in prompts)


def _longest_prompt(model: Any, tokenizer: Any, decoding: Decoding) -> int:
    """Tokens that the model can read and still answer."""
    context = context_of(model, tokenizer, task=decoding.task)
    return 1 << 62 if context is None else max(1, context - decoding.max_new_tokens)


def _classify(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, decoding: Decoding, labels: Sequence[str], who: str
) -> ModelRun:
    # The right class may be one that this model does not know; its number is not needed here.
    encoded = [
        encode_labelled(example, tokenizer=tokenizer, max_length=decoding.max_length, labels=(example.label or "",))
        for example in examples
    ]
    rows = class_log_probabilities(
        model,
        [example.ids for example in encoded],
        pad_id=padding_of(model),
        batch_size=decoding.batch_size,
        what=f"{who}: classes",
    )
    outcomes = [
        _class_outcome(row, labels=labels, gold=example.label or "")
        for row, example in zip(rows, examples, strict=True)
    ]
    return ModelRun(outcomes=outcomes, cut_examples=sum(example.truncated for example in encoded))


def _class_outcome(log_probabilities: Sequence[float], *, labels: Sequence[str], gold: str) -> ClassOutcome:
    known = dict(zip(labels, log_probabilities, strict=True))
    ranked = sorted(known, key=lambda label: known[label], reverse=True)
    return ClassOutcome(
        predicted=ranked[0],
        nll=-known[gold] if gold in known else -math.log(UNKNOWN_CLASS_PROBABILITY),
        probabilities={label: float(f"{math.exp(known[label]):.4g}") for label in ranked[:_KEPT_CLASSES]},
    )
