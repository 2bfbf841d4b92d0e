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
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from finetune_api.panics import as_exception
from finetune_api.results import ExitCode, PrepareResult
from finetune_api.run import Locations, MethodOrder, ModelOrder, Precision, PrepareRun, TrainRun, is_half
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.models import base_model, model_files, saved_model
from finetune_trainer.models.base_model import DType
from finetune_trainer.models.limits import padding_of
from finetune_trainer.models.model_files import vocabulary_of
from finetune_trainer.models.parent_model import kept_adapter, take_over
from finetune_trainer.models.quantisation import Bits
from finetune_trainer.process import memory
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.process.packages import versions
from finetune_trainer.serving.generation import steps_of
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.adapters import merged
from finetune_trainer.tasks.batching import pad
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import IGNORED, Batch, Encoded, packed_batch
from finetune_trainer.tasks.generate import OwnDecoding
from finetune_trainer.tasks.task import Task
from finetune_trainer.training.methods.choose import method_of, trainable_parameters
from finetune_trainer.training.objectives.choose import objective_of
from finetune_trainer.training.parallel.choose import halves_base

log = logging.getLogger(__name__)

_VERSION = 7
_PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers")
_SAME = 1e-3
"""Logits that differ by less than this share of their spread are the same. Rounding gives 1e-6 in random models and
1e-4 in deep ones; a token too many or a place too far gives 3e-3 in small random models and more in trained ones."""
_TOKENS = 23
"""Of the example that is judged: no multiple of anything, since some models read tokens by fours or in chunks."""
_FEW_TOKENS = 7
"""Of a second one: what padding does to the end of a text weighs more in a short one."""
_TEXTS = (
    "Hello, world! don't",
    "  two  blanks,\ta tab\n\nand lines ",
    "Ärger e\u0301 数字 1234567 🙂",
    "x=[1];{'a'}</s>",
)
"""That tokenizers cut in ways of their own. Asked with their marks inside as well."""
_SPECIAL = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
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
    precision: Precision = "FP32"
    gpus: bool = False
    """Whether training has them."""
    vllm: bool = False
    """Whether vLLM has to load the result."""
    half_base: bool = False
    """Whether the strategy keeps a frozen base in bf16 where it is computed in."""

    @classmethod
    def in_prepare(cls, run: PrepareRun, found: PrepareResult) -> Rehearsal | None:
        """Of its orders; None where they do not name a method, as those of an earlier operator."""
        named = run.memory.strategy if run.memory and run.memory.strategy != "Auto" else "DDP"
        return (
            None
            if run.method is None
            else cls(
                locations=run.locations,
                model=run.model,
                base=found.base,
                method=run.method,
                packing=bool(run.packing),
                labels=found.labels,
                precision=run.optimisation.precision if run.optimisation else "FP32",
                gpus=run.memory is not None and run.memory.gpus,
                vllm=bool(run.served_by_vllm),
                half_base=halves_base(found.sharing.strategy if found.sharing else named),
            )
        )

    @classmethod
    def in_train(cls, run: TrainRun, *, labels: Sequence[str] | None) -> Rehearsal:
        """Of its orders: the same, where Prepare was of this version."""
        return cls(
            locations=run.locations,
            model=run.model,
            base=run.base,
            method=run.method,
            packing=run.optimisation.packing,
            labels=labels,
            precision=run.optimisation.precision,
            gpus=torch.cuda.is_available(),
            half_base=halves_base(run.strategy),
        )

    @property
    def bf16(self) -> bool:
        """What training computes in, as far as can be said here."""
        return is_half(self.precision, gpus=self.gpus)

    @property
    def base_dtype(self) -> DType:
        """In which training keeps the base."""
        halves = self.bf16 and self.half_base and method_of(self.method).frozen_base
        return "bfloat16" if halves else "float32"

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
            "adapter": self.model.parent.artifact.digest if self.model.parent and self.model.parent.keep else None,
            "packing": self.packing,
            "labels": None if self.labels is None else len(self.labels),
            "precision": [self.bf16, self.base_dtype],
            "packages": versions((*_PACKAGES, *(("bitsandbytes",) if self.method.quantisation else ()))),
        }
        return "sha256:" + hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def was_rehearsed(order: Rehearsal | None, *, storage: Storage) -> bool:
    """Whether this very order went well before, or nothing is to be tried. Does not need the base's files."""
    if order is None:
        return True
    finished = storage.read_complete(order.folder)
    return finished is not None and finished.input_digest == order.digest


def rehearse(order: Rehearsal | None, *, base_folder: Path, storage: Storage) -> None:
    """Try it unless it was tried. Of a model that does not fit into half of the memory that is free, only the tokenizer
    is looked at: rather untried than killed.

    Raises StageError (78) for what cannot be right, naming the field and the way out.
    """
    if order is None or was_rehearsed(order, storage=storage):
        return
    needed, free = round(model_files.fp32_bytes(base_folder) * _MEMORY), memory.available()
    began = time.monotonic()
    with ExitStack() as stack, storage.staging_folder(order.folder) as staging:
        (staging / "model").mkdir()
        try:
            _check_tokenizer(order, base_folder=base_folder, folder=staging / "model")
            adapter = stack.enter_context(kept_adapter(order.model, storage=storage))
            if needed > free // 2:
                log.warning("the model is not tried here: %d MB would be needed, %d are free", needed >> 20, free >> 20)
                _check_layers(order, base_folder=base_folder, adapter=adapter)
                return
            _try(order, base_folder=base_folder, adapter=adapter, folder=staging / "model")
        except (StageError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except BaseException as caught:
            error = as_exception(caught)
            log.exception("the rehearsal failed")
            raise _cannot(order.base.uri, f"failed when it was tried: {type(error).__name__}: {error}") from error
        shutil.rmtree(staging / "model")
        record = {"method": order.method.type, "packing": order.packing, "seconds": round(time.monotonic() - began, 1)}
        (staging / "rehearsal.json").write_text(json.dumps(record))
        storage.publish(staging, to=order.folder, input_digest=order.digest, extra=record)
    log.info("tried in %.1f s: the model can be trained, saved, loaded again and served", time.monotonic() - began)


def _check_layers(order: Rehearsal, *, base_folder: Path, adapter: str | None) -> None:
    """What can be said of the method without the weights: whether it names layers, they are large enough, and a kept
    adapter is of them.
    """
    task = task_of(order.model.task)
    try:
        model = base_model.skeleton(base_folder, task=task.name)
    except Exception:
        log.warning("nor are its layers: they cannot be made without weights")
        return
    base = base_model.LoadedBase(model=model, untrained=frozenset())
    adapted = method_of(order.method).applied(base, task=task, base_uri=order.base.uri)
    _check_vllm(adapted, order=order)
    take_over(adapted, adapter)


def _check_vllm(adapted: Any, *, order: Rehearsal) -> None:
    """Some versions of vLLM read what PEFT writes of a mixture's experts, all of a layer in one tensor, the other way
    round (https://github.com/vllm-project/vllm/pull/52194); its CPU build has nothing to compute them with, so what it
    answers could not be compared.
    """
    config = getattr(adapted, "peft_config", {}).get("default")
    if order.vllm and getattr(config, "target_parameters", None):
        raise bad_configuration(
            "UnsupportedMethod",
            "method.lora.targetModules: the adapter would be part of a mixture's experts, with which vLLM, by which the"
            " endpoint serves, was not shown to answer as the evaluation does; name layers of the attention (such as"
            " q_proj, v_proj), use method.type: Full, or serving.runtime: Transformers there",
        )


def _try(order: Rehearsal, *, base_folder: Path, adapter: str | None, folder: Path) -> None:
    task = task_of(order.model.task)
    torch.manual_seed(0)
    method, tokenizer = method_of(order.method), base_model.load_tokenizer(base_folder)

    def begun(bits: Bits | None, *, dtype: DType = "float32") -> Any:
        base = base_model.load_base(
            base_folder, task=task.name, dtype=dtype, labels=order.labels, bits=bits, packed=order.packing
        )
        model = method.applied(base, task=task, base_uri=order.base.uri).eval()
        _check_vllm(model, order=order)
        take_over(model, adapter)
        return model

    model = begun(None)
    pad_id = padding_of(model)
    examples = _examples(model, tokenizer, pad_id=pad_id, task=task)
    _check_padding(model, examples, task=task, pad_id=pad_id, uri=order.base.uri)
    if order.packing:
        _check_packing(model, examples, task=task, pad_id=pad_id, uri=order.base.uri)
    if method.bits is None and order.base_dtype == "float32":
        _check_step(model, examples, order=order)
    else:
        del model
        model = begun(method.bits, dtype=order.base_dtype)
        _check_step(model, examples, order=order)
        if order.base_dtype != "float32":
            del model
            model = begun(method.bits)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            # An adapter begins as nothing, which would be equal to one that was not loaded at all.
            parameter.add_(torch.randn_like(parameter) * 0.002)
    probe = saved_model.probe(model, example=examples[0], task=task.name)
    saved = saved_model.write(
        model,
        tokenizer=tokenizer,
        folder=folder,
        base_folder=base_folder,
        format=method.saved_as,
        task=task.name,
        labels=order.labels,
        bits=method.bits,
    )
    try:
        saved_model.verify(model, saved=saved, probe=probe, load_again=saved_model.in_this_process)
        del model
        served = saved.load()
        unmerged = saved_model.probe(served, example=examples[0], task=task.name).logits
        served = merged(served)
        found = saved_model.probe(served, example=examples[0], task=task.name).logits
        saved_model.check_same(unmerged, found, what="with its adapter merged it answers differently")
    except StageError as error:
        raise _cannot(order.base.uri, f"could not be saved and loaded again after training: {error.message}") from error
    if task.generates:
        _check_steps(served, examples[0], task=task, uri=order.base.uri)
    if order.bf16:
        del served
        with _in_precision(order, "answer"):
            logits = saved_model.probe(saved.load(dtype="bfloat16"), example=examples[0], task=task.name).logits
            _check_numbers(torch.tensor(logits))


def _check_step(model: Any, examples: Sequence[Encoded], *, order: Rehearsal) -> None:
    """The passes of one training step, as they will be computed; nothing is changed by it."""
    task, few = task_of(order.model.task), examples[:2]
    batch = packed_batch(few) if order.packing else task.batch(few, pad_id=padding_of(model))
    model.train()
    with _in_precision(order, "be trained"):
        with torch.autocast("cpu", torch.bfloat16, enabled=order.bf16):
            loss = objective_of(task)(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        _check_numbers(loss)
    model.zero_grad(set_to_none=True)
    model.eval()


def _check_numbers(found: torch.Tensor) -> None:
    if not bool(torch.isfinite(found).all()):
        raise ValueError("what it computes is not finite")


@contextmanager
def _in_precision(order: Rehearsal, what: str) -> Iterator[None]:
    """Raises StageError (78) that names the precision, where it is BF16. What a CPU lacks, GPUs are trusted to have."""
    try:
        yield
    except (StageError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if order.gpus and isinstance(error, NotImplementedError):
            log.warning("not tried, since this CPU cannot: to %s in BF16: %s", what, error)
        elif order.bf16:
            means = "" if order.precision == "BF16" else ", which means BF16 on a GPU"
            raise bad_configuration(
                "UnsupportedModel",
                f"training.precision: {order.precision}{means}: the base model {order.base.uri} cannot {what} in BF16:"
                f" {type(error).__name__}: {error}; use training.precision: FP32, or another base model",
            ) from error
        else:
            raise


def _examples(model: Any, tokenizer: Any, *, pad_id: int, task: Task) -> list[Encoded]:
    """Of random tokens: one is judged, two are neighbours of one length, the next is longer, the last is short. Half of
    each is asked, and half is to be answered; a model of two parts is asked a text and answers with the same.

    Marks stand only where the tokenizer puts them: some models read at the mark that ends a text.
    """
    written = tokenizer("a", return_special_tokens_mask=True)
    marked = list(zip(written["input_ids"], written["special_tokens_mask"], strict=True))
    before = [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked)]
    after = [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked[::-1])][::-1]
    marks = {pad_id, *tokenizer.added_tokens_decoder}
    size = vocabulary_of(model.config) or len(tokenizer)
    plain = [token for token in range(size) if token not in marks]
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (_TOKENS, _TOKENS - 5, _TOKENS - 5, _TOKENS + 9, _FEW_TOKENS):
        inner = torch.randint(0, len(plain), (length - len(before) - len(after),), generator=generator).tolist()
        ids = (*before, *(plain[index] for index in inner), *after) * (2 if task.two_parts else 1)
        half = len(ids) // 2
        targets = (*[False] * half, *[True] * (len(ids) - half))
        found.append(Encoded(ids=ids, targets=targets, label=None if task.generates else 0))
    return found


@torch.inference_mode()
def _logits(model: Any, batch: Batch, *, task: Task) -> torch.Tensor:
    """Shape (rows, tokens, vocabulary), or (rows, classes)."""
    return task.logits(model, batch).float()


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not float((one - other).abs().max()) <= _SAME * float(one.std())


def _check_padding(model: Any, examples: Sequence[Encoded], *, task: Task, pad_id: int, uri: str) -> None:
    """Evaluation and server ask in batches, where rows are filled up on the right."""
    _, _, _, longer, _ = examples
    for judged in (examples[0], examples[4]):
        alone = _logits(model, task.batch([judged], pad_id=pad_id), task=task)[0]
        if not bool(torch.isfinite(alone).all()):
            raise _cannot(uri, "answers with numbers that are not finite: its weights are damaged")
        beside = _logits(model, task.batch([judged, longer], pad_id=pad_id), task=task)[0, : len(alone)]
        left = task.generates and not task.two_parts
        if _differ(alone, beside) or (left and _generates_differently(model, judged, longer, pad_id=pad_id)):
            raise _cannot(uri, "answers a text differently when a longer one is asked beside it: padding changes it")


def _generates_differently(model: Any, judged: Encoded, longer: Encoded, *, pad_id: int) -> bool:
    """Answers of an evaluation are generated in batches that are filled up on the left."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        min_new_tokens=2,  # also where the first one is an end, which would end an answer that is asked alone only
        max_new_tokens=2,
        pad_token_id=pad_id,
        output_logits=True,
        return_dict_in_generate=True,
    )

    def generated(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        tokens, mask = pad(rows, value=pad_id, left=True), pad([[1] * len(row) for row in rows], value=0, left=True)
        with OwnDecoding(model, settings), torch.inference_mode():
            answer = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
        return torch.stack(list(answer.logits))[:, 0].float()

    return _differ(generated([judged.ids]), generated([judged.ids, longer.ids]))


def _check_packing(model: Any, examples: Sequence[Encoded], *, task: Task, pad_id: int, uri: str) -> None:
    first, one, other, *_ = examples
    begin = len(one.ids)
    try:
        rows = [_logits(model, packed_batch([each, first]), task=task)[0, begin:] for each in (one, other)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise _leaks(uri, f"cannot read packed rows: {error}") from error
    alone = _logits(model, task.batch([first], pad_id=pad_id), task=task)[0]  # as evaluation and servers ask it
    if _differ(rows[0], rows[1]) or _differ(alone, rows[0]):
        raise _leaks(uri, "lets examples of one packed row see each other")


def _check_steps(model: Any, example: Encoded, *, task: Task, uri: str) -> None:
    """The server computes an answer token by token; it must read what it would read at once."""
    steps, ids, begin = steps_of(model, two_parts=task.two_parts), example.ids, example.targets.index(True)
    batch = task.batch([example], pad_id=0)
    at_once = _logits(model, batch, task=task)[0][batch.labels[0] != IGNORED]
    one_by_one = torch.stack([steps.begin(ids[:begin]), *(steps.go_on(token) for token in ids[begin:-1])])
    if not steps.keeps_what_it_read:
        log.warning("%s keeps no keys and values: each token of an answer takes as long as the whole text", uri)
    if _differ(at_once, one_by_one):
        raise _cannot(uri, "answers differently token by token than at once, so it cannot be served as it is evaluated")


def _check_tokenizer(order: Rehearsal, *, base_folder: Path, folder: Path) -> None:
    """Training reads with the base's tokenizer; evaluation and server read and write with the one that is saved."""
    loaded, uri = base_model.load_tokenizer(base_folder), order.base.uri
    loaded.save_pretrained(str(folder))
    if method_of(order.method).saved_as != "Adapter":  # saved with its config.json, which chooses the tokenizer's class
        model_files.configuration(base_folder).save_pretrained(str(folder))
    saved = base_model.load_tokenizer(folder)
    marks = [token.content for token in loaded.added_tokens_decoder.values()]
    for what, of in (
        ("other marks", lambda each: {id_: (t.content, t.special) for id_, t in each.added_tokens_decoder.items()}),
        ("another chat template", lambda each: _templates(each.chat_template)),
        ("other special tokens", lambda each: [getattr(each, f"{name}_token_id") for name in _SPECIAL]),
        ("other tokens for the same text", lambda each: [each(text)["input_ids"] for text in (*_TEXTS, *marks)]),
    ):
        if of(loaded) != of(saved):
            raise bad_configuration(
                "TokenizerNotSaved",
                f"model.uri: {uri}: saved and loaded again, its tokenizer has {what}, so that the trained model would"
                f" be asked otherwise than it learned; save it with transformers {versions(_PACKAGES)['transformers']}"
                " (AutoTokenizer.from_pretrained, save_pretrained) and use that folder, or use another base model",
            )


def _templates(given: str | dict[str, str] | None) -> dict[str, str]:
    """By name. Saving changes the ends of their lines, and rendering takes each for one."""
    named = given if isinstance(given, dict) else {"default": given or ""}
    return {name: re.sub("\r\n?", "\n", text) for name, text in named.items()}


def _leaks(uri: str, what: str) -> StageError:
    return bad_configuration(
        "PackingNotIsolated",
        f"training.packing: true, but the base model {uri} {what}, so it would learn from what it never sees again; set"
        " it to false",
    )


def _cannot(uri: str, what: str) -> StageError:
    return StageError(
        reason="UnsupportedModel",
        message=f"model.uri: {uri}: the model, untrained, {what}; use another base model, or another method (type,"
        " lora.targetModules)",
        exit_code=ExitCode.BAD_CONFIGURATION,
    )
