"""What a run will end with, tried before it begins: on a copy of the base that nobody keeps.

Training takes hours on machines that others wait for. Whether a model can be saved and loaded again, be served as it
was evaluated, or be trained on packed rows does not depend on what it learns, so it is tried first, on the model
itself: no list of architectures could keep up with them.

    rehearsal/rehearsal.json    what was tried. Whoever finds it whole, of the same orders, need not try it again
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from finetune_api.results import ExitCode
from finetune_api.run import Locations, MethodOrder, ModelOrder
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer import base_model, memory, model_files, saved_model
from finetune_trainer.batching import pad
from finetune_trainer.encoding import Batch, Encoded, packed_batch, padded_batch
from finetune_trainer.errors import StageError, bad_configuration
from finetune_trainer.limits import padding_of
from finetune_trainer.locations import join
from finetune_trainer.serving.artifact import merged
from finetune_trainer.serving.generation import CausalSteps
from finetune_trainer.storage import Storage
from finetune_trainer.trainable import trainable_parameters, with_method

log = logging.getLogger(__name__)

_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "safetensors")
_SAME = 1e-3
"""Logits that differ by less than this share of their spread are the same. Rounding gives 1e-6 in random models and
1e-4 in deep ones; a token too many or a place too far gives 3e-3 in small random models and more in trained ones."""
_TOKENS = 24
"""Of the example that is judged."""
_MEMORY = 2.5
"""Times the weights in fp32: the model, the one loaded again, and what saving takes."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What is to be tried."""

    locations: Locations
    model: ModelOrder
    base: ResolvedModel
    method: MethodOrder
    packing: bool
    labels: Sequence[str] | None

    @property
    def folder(self) -> str:
        """Where it is recorded that it went well."""
        return join(self.locations.run, "rehearsal")

    @property
    def digest(self) -> str:
        """Of all that the outcome depends on."""
        relevant = {
            "version": _VERSION,
            "task": self.model.task,
            "base": self.base.digest,
            "method": self.method.to_dict(),
            "packing": self.packing,
            "labels": None if self.labels is None else len(self.labels),
            "packages": {name: version(name) for name in _PACKAGES},
        }
        return "sha256:" + hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def was_rehearsed(order: Rehearsal, *, storage: Storage) -> bool:
    """Whether this very order went well before. Does not need the base's files."""
    finished = storage.read_complete(order.folder)
    return finished is not None and finished.input_digest == order.digest


def rehearse(order: Rehearsal, *, base_folder: Path, storage: Storage) -> None:
    """Try it unless it was tried, or does not fit into half of the memory that is free: rather untried than killed.

    Raises StageError (78) for what cannot be right, naming the field and the way out.
    """
    if was_rehearsed(order, storage=storage):
        return
    needed, free = round(model_files.fp32_bytes(base_folder) * _MEMORY), memory.available()
    if needed > free // 2:
        log.warning("the model is not tried here: %d MB would be needed, and %d are free", needed >> 20, free >> 20)
        return
    began = time.monotonic()
    with storage.staging_folder(order.folder) as staging:
        (staging / "model").mkdir()
        try:
            _try(order, base_folder=base_folder, folder=staging / "model")
        except (StageError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            log.exception("the rehearsal failed")
            raise _cannot(order.base.uri, f"failed when it was tried: {type(error).__name__}: {error}") from error
        for path in (staging / "model").iterdir():
            path.unlink()
        (staging / "model").rmdir()
        record = {"method": order.method.type, "packing": order.packing, "seconds": round(time.monotonic() - began, 1)}
        (staging / "rehearsal.json").write_text(json.dumps(record))
        storage.publish(staging, to=order.folder, input_digest=order.digest, extra=record)
    log.info("tried in %.1f s: the model can be trained, saved, loaded again and served", time.monotonic() - began)


def _try(order: Rehearsal, *, base_folder: Path, folder: Path) -> None:
    task = order.model.task
    torch.manual_seed(0)
    base = base_model.load_base(base_folder, task=task, dtype="float32", labels=order.labels)
    tokenizer = base_model.load_tokenizer(base_folder)
    classifies = task == "SequenceClassification"
    pad_id = padding_of(base.model)
    examples = _examples(base.model, tokenizer, pad_id=pad_id, classifies=classifies)
    model = with_method(base, method=order.method, task=task, base_uri=order.base.uri).eval()
    _check_padding(model, examples, pad_id=pad_id, uri=order.base.uri)
    if order.packing:
        _check_packing(model, examples, uri=order.base.uri)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            # An adapter begins as nothing, which would be equal to one that was not loaded at all.
            parameter.add_(torch.randn_like(parameter) * 0.002)
    ids = examples[0].ids
    probe = saved_model.probe(model, input_ids=ids)
    saved = saved_model.write(
        model, tokenizer=tokenizer, folder=folder, base_folder=base_folder, task=task, labels=order.labels
    )
    try:
        saved_model.verify(model, saved=saved, probe=probe, load_again=saved_model.in_this_process)
        del model, base
        served = merged(saved.load())
        found = saved_model.probe(served, input_ids=ids).logits
        saved_model.check_same(probe.logits, found, what="with its adapter merged it answers differently")
    except StageError as error:
        raise _cannot(order.base.uri, f"could not be saved and loaded again after training: {error.message}") from error
    if not classifies:
        _check_steps(served, ids, uri=order.base.uri)


def _examples(model: Any, tokenizer: Any, *, pad_id: int, classifies: bool) -> list[Encoded]:
    """Four of random tokens: one is judged, two are neighbours of one length, the last is longer.

    Marks stand only where the tokenizer puts them: some models read at the mark that ends a text.
    """
    written = tokenizer("a", return_special_tokens_mask=True)
    marked = list(zip(written["input_ids"], written["special_tokens_mask"], strict=True))
    before = [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked)]
    after = [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked[::-1])][::-1]
    marks = {pad_id, *tokenizer.added_tokens_decoder}
    plain = [token for token in range(model.config.get_text_config().vocab_size) if token not in marks]
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (_TOKENS, _TOKENS - 5, _TOKENS - 5, _TOKENS + 9):
        inner = torch.randint(0, len(plain), (length - len(before) - len(after),), generator=generator).tolist()
        ids = (*before, *(plain[index] for index in inner), *after)
        found.append(Encoded(ids=ids, targets=(False, *[True] * (length - 1)), label=0 if classifies else None))
    return found


@torch.inference_mode()
def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """Shape (rows, tokens, vocabulary), or (rows, classes)."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    if batch.labels.dim() == 2:
        inputs["use_cache"] = False
    logits: torch.Tensor = model(**inputs).logits
    return logits.float()


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not float((one - other).abs().max()) <= _SAME * float(one.std())


def _check_padding(model: Any, examples: Sequence[Encoded], *, pad_id: int, uri: str) -> None:
    """Evaluation and server ask in batches, where rows are filled up on the right."""
    first, length = examples[0], len(examples[0].ids)
    alone = _logits(model, padded_batch([first], pad_id=pad_id))[0]
    if not bool(torch.isfinite(alone).all()):
        raise _cannot(uri, "answers with numbers that are not finite: its weights are damaged")
    beside = _logits(model, padded_batch([first, examples[3]], pad_id=pad_id))[0]
    if first.label is None:
        beside = beside[:length]
    if _differ(alone, beside) or (first.label is None and _generates_differently(model, examples, pad_id=pad_id)):
        raise _cannot(uri, "answers a text differently when a longer one is asked beside it: padding changes it")


def _generates_differently(model: Any, examples: Sequence[Encoded], *, pad_id: int) -> bool:
    """Answers of an evaluation are generated in batches that are filled up on the left."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=2, pad_token_id=pad_id, output_logits=True, return_dict_in_generate=True
    )

    def generated(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        tokens, mask = pad(rows, value=pad_id, left=True), pad([[1] * len(row) for row in rows], value=0, left=True)
        with torch.inference_mode():
            answer = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
        return torch.stack(list(answer.logits))[:, 0].float()

    first, longer = examples[0].ids, examples[3].ids
    return _differ(generated([first]), generated([first, longer]))


def _check_packing(model: Any, examples: Sequence[Encoded], *, uri: str) -> None:
    first, one, other, _ = examples
    begin = len(one.ids)
    try:
        rows = [_logits(model, packed_batch([neighbour, first]))[0, begin:] for neighbour in (one, other)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise _leaks(uri, f"cannot read packed rows: {error}") from error
    alone = _logits(model, packed_batch([first]))[0]
    if _differ(rows[0], rows[1]) or _differ(alone, rows[0]):
        raise _leaks(uri, "lets examples of one packed row see each other")


def _check_steps(model: Any, ids: Sequence[int], *, uri: str) -> None:
    """The server computes an answer token by token; it must read what it would read at once."""
    steps, begin = CausalSteps(model), len(ids) // 2
    with torch.inference_mode():
        at_once = model(input_ids=torch.tensor([list(ids)])).logits[0, begin - 1 :].float()
    one_by_one = torch.stack([steps.begin(ids[:begin]), *(steps.go_on(token) for token in ids[begin:])])
    if not steps.keeps_what_it_read:
        log.warning("%s keeps no keys and values: each token of an answer takes as long as the whole text", uri)
    if _differ(at_once, one_by_one):
        raise _cannot(uri, "answers differently token by token than at once, so it cannot be served as it is evaluated")


def _leaks(uri: str, what: str) -> StageError:
    return bad_configuration(
        "PackingNotIsolated",
        f"training.packing: the base model {uri} {what}, so it would learn from what it never sees again; set"
        " training.packing to false",
    )


def _cannot(uri: str, what: str) -> StageError:
    return StageError(
        reason="UnsupportedModel",
        message=f"model.uri {uri}: the model, untrained, {what}; use another base model, or another method.type",
        exit_code=ExitCode.BAD_CONFIGURATION,
    )
