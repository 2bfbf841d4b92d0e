"""The matrix: tiny models of many architectures, through Prepare, Train, Evaluate and a server, by task and method.

docs/models.md is the list of cases and says what becomes of each; a case fails where the page says something else.
Those in brackets are for `make test-models`, by hand: all methods on all families take as long as all other tests.
After a change that is meant, or for a new row or cell (write `?` in it, or `(?)`):
`FINETUNE_UPDATE_MODELS=1 make test-models`, and read the page.

All in this process: nothing here depends on where the stages run, and a process a stage would cost hours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny_models
from tests.trainer.serving.rounds import run
from transformers.models.canine import tokenization_canine

from finetune_api.finetunejob import EvaluationMetric, LoRA, Quantisation, Source, Split
from finetune_api.results import ExitCode, PrepareResult
from finetune_api.run import (
    BaselineOrder,
    CheckpointOrder,
    EvaluateRun,
    Identity,
    Locations,
    MethodOrder,
    ModelOrder,
    Optimisation,
    PrepareRun,
    ServeOrder,
    SplitOrder,
    TrainRun,
)
from finetune_api.shared_fields import Artifact, Task
from finetune_api.tasks import TASKS
from finetune_trainer.data.dataset import Example, data_folder, read_manifest, read_split
from finetune_trainer.evaluation.evaluate import evaluate
from finetune_trainer.evaluation.outcomes import run_model
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.models.limits import padding_of
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process.errors import StageError
from finetune_trainer.serving import artifact as served_files
from finetune_trainer.serving.classification import Classification, Classifier
from finetune_trainer.serving.decoding import Sampling
from finetune_trainer.serving.generation import GenerationRequest, InTurns, TextModel, steps_of
from finetune_trainer.serving.together import runner_of
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import IGNORED, prompt_ids
from finetune_trainer.tasks.task import Decoding
from finetune_trainer.training import train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
UPDATE, ALL = "FINETUNE_UPDATE_MODELS", "FINETUNE_ALL_MODELS"
WORKS = "yes"
NOT_TRIED = "."
WORDS = "amber basil cedar delta ember fjord grove haven indigo jade karma lotus maple nickel opal pearl".split()  # noqa: SIM905 - as one reads it
LORA = MethodOrder(type="LoRA", lora=LoRA(rank=2))
FULL = MethodOrder(type="Full")
TASK_OF: dict[str, Task] = {"chat": "Chat", "classes": "SequenceClassification", "seq2seq": "Seq2Seq"}
METHODS = {
    "LoRA": (LORA, False),
    "Full": (FULL, False),
    "packed": (LORA, True),
    "QLoRA": (MethodOrder(type="QLoRA", lora=LoRA(rank=2), quantisation=Quantisation(bits=4)), False),
    "QLoRA of 8 bits": (MethodOrder(type="QLoRA", lora=LoRA(rank=2), quantisation=Quantisation(bits=8)), False),
    "DoRA": (MethodOrder(type="DoRA", lora=LoRA(rank=2)), False),
    "IA3": (MethodOrder(type="IA3"), False),
}
"""By column: the method, and whether rows are packed."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """One case: a model, a task and a method, stage by stage."""

    root: Path
    model: Path
    task: Task
    method: MethodOrder
    packing: bool

    @property
    def common(self) -> dict[str, Any]:
        return {
            "identity": Identity(namespace="tests", job="matrix", uid="uid", attempt=1),
            "locations": self.locations,
            "model": ModelOrder(uri=f"file://{self.model}", task=self.task),
        }

    @property
    def locations(self) -> Locations:
        roots = [f"file://{self.root}", f"file://{self.model.parent}"]
        return Locations(run=f"file://{self.root}/run", cache=f"file://{self.root}/cache", allowed_roots=roots)

    @property
    def classifies(self) -> bool:
        return self.task == "SequenceClassification"

    def prepare(self) -> PrepareResult:
        data = self.root / "data.jsonl"
        rows = [_row(number, task=self.task) for number in range(24)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(
            PrepareRun(
                **self.common,
                sources=[Source.model_validate({"name": "rows", "uri": f"file://{data}"})],
                max_bad_rows=0,
                max_truncated_fraction=0.0,
                max_length=96,
                split=SplitOrder(
                    fractions=Split.model_validate(
                        {"train": 0.6, "validation": 0.1, "test": 0.3, "strategy": "GroupHash"}
                    ),
                    salt="tests",
                ),
                method=self.method,
                packing=self.packing,
            )
        )

    def train(self, prepared: PrepareResult) -> Artifact:
        optimisation = Optimisation(
            max_steps=3,
            learning_rate=0.002 if self.classifies else 0.01,
            scheduler="Constant",
            warmup_fraction=0.0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            global_batch_size=4,
            micro_batch_size=2,
            max_length=96,
            packing=self.packing,
            precision="FP32",
            seed=1,
        )
        return train.work(
            TrainRun(
                **self.common,
                base=prepared.base,
                data_digest=prepared.data_digest,
                method=self.method,
                optimisation=optimisation,
                checkpoint=CheckpointOrder(every_steps=100, keep=1, resume="Never"),
                nodes=1,
                processes_per_node=1,
                strategy="DDP",
            )
        ).artifact

    def evaluate(self, prepared: PrepareResult, candidate: Artifact) -> list[dict[str, Any]]:
        """What the candidate said to each held-out example, several at a time."""
        metric = {"name": "accuracy" if self.classifies else "exact_match", "maxRegression": 0.9}
        output = self.root / "run" / "evaluation"
        evaluate(
            EvaluateRun(
                **self.common,
                base=prepared.base,
                candidate=candidate,
                labels=prepared.labels,
                data_digest=prepared.data_digest,
                baseline=BaselineOrder(name="Base", base=prepared.base),
                metrics=[EvaluationMetric.model_validate(metric)],
                max_length=96,
                max_new_tokens=4,
                batch_size=8,
                precision="FP32",
                seed=0,
                output=f"file://{output}",
            )
        )
        lines = (output / "examples.jsonl").read_text().split("\n")
        return [json.loads(line)["candidate"] for line in lines if line]

    def ask_one_by_one(self, prepared: PrepareResult, candidate: Artifact) -> list[dict[str, Any]]:
        """The same, one at a time; without what an evaluation does beside it."""
        storage, labels = Storage(locations=self.locations), prepared.labels or ()
        model, tokenizer = saved_model.load_artifact(
            candidate, base=prepared.base, task=self.task, labels=labels, storage=storage
        )
        asked = Decoding(task=self.task, max_length=96, max_new_tokens=4, batch_size=1, generate=not self.classifies)
        examples = read_split(storage, data=data_folder(self.locations.run), split="test")
        run = run_model(model, tokenizer, examples, decoding=asked, labels=labels, who="candidate")
        return [{"answer": each.answer, "probabilities": each.probabilities} for each in run.outcomes]

    def serve(self, prepared: PrepareResult, candidate: Artifact) -> served_files.Loaded:
        order = ServeOrder.model_validate(
            {
                "endpoint": "matrix",
                "version": {"name": "v1", "uid": "uid"},
                "runtime": TASKS[self.task].runtimes[0],
                "locations": self.locations,
                "artifact": candidate,
                "base": prepared.base,
                "task": self.task,
                "labels": prepared.labels,
            }
        )
        return served_files.load(order, storage=Storage(locations=self.locations))


def _row(number: int, *, task: Task) -> dict[str, Any]:
    text = " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 3 + number % 5)) + f" {number * 37}"
    if task == "SequenceClassification":
        label = ("one", "two", "three")[number % 3]
        return {"text": f"{WORDS[number % 3]} {text}", "label": label}
    if task == "Seq2Seq":
        return {"prompt": text, "completion": " ".join(text.split()[: 1 + number % 3])}
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": WORDS[number % len(WORDS)]}]
    return {"messages": messages}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That a fresh process loads a model is shown by test_saved_model.py; 100 of them take minutes."""
    monkeypatch.setattr(saved_model, "in_fresh_process", saved_model.in_this_process)
    # Each of its tokenizers has a dictionary of all characters; these end after those that it uses as marks.
    monkeypatch.setattr(tokenization_canine, "UNICODE_VOCAB_SIZE", 0xE100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)


def outcome(name: str, task: Task, method: MethodOrder, *, packing: bool, root: Path) -> str:
    """WORKS, or why Prepare refuses. Whatever Prepare lets pass must go right to the end."""
    model = tiny_models.make(name, to=root / name)
    case = Stages(root=root / "case", model=model, task=task, method=method, packing=packing)
    case.root.mkdir()
    try:
        prepared = case.prepare()
    except StageError as refusal:
        assert refusal.exit_code == ExitCode.BAD_CONFIGURATION, refusal.message
        return f"no: {_reason(refusal)}"
    candidate = case.train(prepared)
    _check_improved(case, prepared, candidate)
    together = case.evaluate(prepared, candidate)
    alone = case.ask_one_by_one(prepared, candidate)
    _check_served(case, prepared, case.serve(prepared, candidate), together, alone)
    return WORKS


def _check_improved(case: Stages, prepared: PrepareResult, candidate: Artifact) -> None:
    """What was learned from is likelier than it was to the base with the same new layers."""
    storage, labels, task = Storage(locations=case.locations), prepared.labels, task_of(case.task)
    examples = read_split(storage, data=data_folder(case.locations.run), split="train")
    torch.manual_seed(1)
    base = base_model.load_base(case.model, task=case.task, dtype="float32", labels=labels).model
    trained, tokenizer = saved_model.load_artifact(
        candidate, base=prepared.base, task=case.task, labels=labels, storage=storage
    )
    encoded = [task.encode(each, tokenizer=tokenizer, max_length=96, labels=labels) for each in examples]
    batch = task.batch(encoded, pad_id=padding_of(trained))
    with torch.inference_mode():
        before, after = (float(task.loss(model, batch)) for model in (base, trained))
    assert after < before


def _check_served(
    case: Stages,
    prepared: PrepareResult,
    loaded: served_files.Loaded,
    together: Sequence[dict[str, Any]],
    alone: Sequence[dict[str, Any]],
) -> None:
    """The server gives each held-out example what the evaluation gave it, alone and in batches."""
    storage = Storage(locations=case.locations)
    examples = read_split(storage, data=data_folder(case.locations.run), split="test")
    assert len(examples) == len(together) == len(alone) > 2
    if case.classifies:
        labels = read_manifest(storage, uri=prepared.manifest).labels or ()
        classifier = Classifier.of(model=loaded.model, tokenizer=loaded.tokenizer, labels=labels)
        texts = [classifier.encode(example.text or "") for example in examples]
        runner = Classification(classifier)
        (found,) = run(runner, [classifier.classify(texts)])[0]
        each_its_own = run(runner, [classifier.classify([text]) for text in texts])
        single = [classes.probabilities[0] for (classes,) in each_its_own]
        said = [[_in_order(answer["probabilities"], labels) for answer in each] for each in (together, alone)]
        for other in (single, *said):
            torch.testing.assert_close(torch.tensor(found.probabilities), torch.tensor(other), atol=1e-4, rtol=0)
        return
    assert [answer["answer"] for answer in together] == [answer["answer"] for answer in alone]
    task = task_of(case.task)
    text_model = TextModel.of(model=loaded.model, tokenizer=loaded.tokenizer, two_parts=task.two_parts)

    def prompt_of(example: Example) -> list[int]:
        if task.two_parts:
            assert example.messages is not None
            return list(loaded.tokenizer(example.messages[0].content)["input_ids"])
        return prompt_ids(example.messages or (), tokenizer=loaded.tokenizer)

    asked = [
        GenerationRequest(prompt_ids=tuple(prompt_of(example)), max_new_tokens=4, sampling=Sampling())
        for example in examples
    ]
    in_company = run(runner_of(text_model), [text_model.answer(each) for each in asked], begin=range(len(asked)))
    single = [run(InTurns(text_model), [text_model.answer(each)])[0] for each in asked]
    for pieces in (in_company, single):
        shown = ["".join(piece.text for piece in each).strip() for each in pieces]
        assert shown == [answer["answer"].strip() for answer in alone]
    learned = task.encode(examples[0], tokenizer=loaded.tokenizer, max_length=96, labels=None)
    steps, begin = steps_of(loaded.model, two_parts=task.two_parts), learned.targets.index(True)
    learned = replace(learned, targets=tuple(place >= begin for place in range(len(learned.ids))))
    one_by_one = torch.stack([steps.begin(learned.ids[:begin]), *(steps.go_on(each) for each in learned.ids[begin:-1])])
    batch = task.batch([learned], pad_id=0)
    with torch.inference_mode():
        at_once = task.logits(loaded.model, batch)[0][batch.labels[0] != IGNORED]
    torch.testing.assert_close(one_by_one, at_once, atol=1e-3 * float(at_once.std()), rtol=0)


def _in_order(probabilities: dict[str, float], labels: Sequence[str]) -> list[float]:
    return [probabilities[label] for label in labels]


def _reason(refusal: StageError) -> str:
    """The page's words for a refusal."""
    known = {
        "PackingNotIsolated": "rows of a pack see each other",
        "NoSuchModule": "PEFT cannot adapt it",
        "no attribute 'weight'": "PEFT cannot merge it",
        "no linear layers": "has no linear layers to quantise",
        "cannot classify": "has no classifier",
        "does not generate": "does not generate",
        "does not read one text": "does not read one text to write another",
        "padding changes it": "padding changes its answers",
        "token by token": "answers differently token by token",
        "loaded again": "is not the same when loaded again",
    }
    text = f"{refusal.reason} {refusal.message}"
    return next((words for part, words in known.items() if part in text), refusal.reason)


def lines_of(page: str) -> Iterator[tuple[int, str, dict[str, str]]]:
    """The rows of the page's tables by task and method: the line's number, the architecture, column -> outcome."""
    columns: list[str] = []
    for number, line in enumerate(page.split("\n")):
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if first == "architecture":
            columns = cells if ", " in cells[0] else []
        elif columns and first.startswith("`"):
            yield number, first.strip("`"), dict(zip(columns, cells, strict=True))


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """Architecture -> column -> outcome."""
    found: dict[str, dict[str, str]] = {}
    for _, name, row in lines_of(page):
        found.setdefault(name, {}).update(row)
    return found


def is_tried(said: str) -> bool:
    """Whether a cell's case belongs to this run."""
    return said != NOT_TRIED and (not said.startswith("(") or ALL in os.environ)


CASES = [
    (name, column) for name, row in rows_of(PAGE.read_text()).items() for column, said in row.items() if is_tried(said)
]


@pytest.mark.parametrize(("name", "column"), CASES)
def test_what_the_page_says(name: str, column: str, tmp_path: Path) -> None:
    kind, method_name = column.split(", ")
    method, packing = METHODS[method_name]
    found = outcome(name, TASK_OF[kind], method, packing=packing, root=tmp_path)
    said = rows_of(PAGE.read_text())[name][column]
    found = f"({found})" if said.startswith("(") else found
    if os.environ.get(UPDATE):
        said = _write(name, column, found)
    assert found == said, f"docs/models.md says something else of {name}"


def _write(name: str, column: str, found: str) -> str:
    page = PAGE.read_text()
    lines = page.split("\n")
    ((number, row),) = ((number, row) for number, each, row in lines_of(page) if each == name and column in row)
    lines[number] = f"| `{name}` | " + " | ".join((row | {column: found}).values()) + " |"
    PAGE.write_text("\n".join(lines))
    return found
