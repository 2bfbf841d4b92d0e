"""The whole stage on real models: verdicts, leaks, caches, what it refuses, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import assets
from peft import LoraConfig, get_peft_model
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.small_run import ROOT, SmallRun, small_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForSequenceClassification

from finetune_api.results import EvaluateResult, PrepareResult, TrainResult
from finetune_api.run import EvaluateRun, Locations, PrepareRun
from finetune_trainer.data.dataset import Example, Manifest
from finetune_trainer.evaluation import contest
from finetune_trainer.evaluation.evaluate import evaluate, without_learned
from finetune_trainer.preparation import prepare
from finetune_trainer.process import termination
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


def publish(folder: Path, *, to: Path, root: Path) -> dict[str, Any]:
    """Put a saved model where artifacts are; the artifact."""
    uri = f"file://{to}"
    storage = Storage(locations=Locations(run=f"file://{to.parent}", cache=f"file://{root}/cache", allowed_roots=[]))
    with storage.staging_folder(uri) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        complete = storage.publish(staging, to=uri, input_digest="sha256:" + "0" * 64, extra={})
    is_adapter = (folder / "adapter_config.json").exists()
    return {
        "uri": uri,
        "digest": complete.digest,
        "format": "Adapter" if is_adapter else "Full",
        "sizeBytes": complete.size_bytes,
    }


def failure(run: EvaluateRun) -> StageError:
    with pytest.raises(StageError) as caught:
        evaluate(run)
    return caught.value


def lines_of(run: EvaluateRun) -> list[dict[str, Any]]:
    folder = Path(run.locations.run.removeprefix("file://")) / "evaluation"
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text().rstrip("\n").split("\n")]


def report_of(run: EvaluateRun) -> dict[str, Any]:
    folder = Path(run.locations.run.removeprefix("file://")) / "evaluation"
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


# -- a real classifier ------------------------------------------------------------------------------------------------


class Classifier:
    """MiniLM on the topics of real questions: prepared once, trained as often as asked."""

    def __init__(self, root: Path, *, corrupted: float = 0.0) -> None:
        self.root = root
        self.data = assets.topic_labelled(root / "topics.jsonl", corrupted=corrupted)
        self.prepared = PrepareResult.model_validate(
            prepare.prepare(
                PrepareRun.model_validate(
                    {
                        **self.common("prepared"),
                        "sources": [{"name": "topics", "uri": f"file://{self.data}"}],
                        "maxBadRows": 0,
                        "maxTruncatedFraction": 0.01,
                        "maxLength": 64,
                        "split": {"fractions": {"train": 0.7, "validation": 0.05, "test": 0.25}, "salt": "topics"},
                    }
                )
            )
        )

    def common(self, name: str) -> dict[str, Any]:
        return {
            "identity": {"namespace": "tests", "job": name, "uid": "uid", "attempt": 1},
            "locations": {
                "run": f"file://{self.root}/{name}",
                "cache": f"file://{self.root}/cache",
                "allowedRoots": [f"file://{self.root}", f"file://{assets.minilm()}"],
            },
            "model": {"uri": f"file://{assets.minilm()}", "task": "SequenceClassification"},
        }

    def run_on_the_data(self, name: str) -> dict[str, Any]:
        """The beginning of an order for a run of its own on the data prepared once."""
        (self.root / name).mkdir(exist_ok=True)
        if not (self.root / name / "data").exists():
            (self.root / name / "data").symlink_to(self.root / "prepared" / "data")
        return {
            **self.common(name),
            "base": self.prepared.base.to_dict(),
            "dataDigest": self.prepared.data_digest,
        }

    def train(self, name: str, *, seed: int) -> TrainResult:
        order = {
            "stage": "Train",
            **self.run_on_the_data(name),
            # The upper half of the encoder: its many embeddings cost most of a step, and this learns as much.
            "method": {"type": "Full", "freeze": {"layers": "0-2", "patterns": ["embeddings"]}},
            "optimisation": {
                "epochs": 2,
                "maxSteps": None,
                "learningRate": 4e-4,
                "scheduler": "Linear",
                "warmupFraction": 0.05,
                "weightDecay": 0.01,
                "maxGradNorm": 1.0,
                "globalBatchSize": 16,
                "microBatchSize": 16,
                "maxLength": 64,
                "packing": False,
                "precision": "FP32",
                "seed": seed,
                "earlyStoppingPatience": None,
            },
            "checkpoint": {"everySteps": 1000, "keep": 1, "resume": "Never"},
            "nodes": 1,
            "processesPerNode": 1,
            "strategy": "DDP",
        }
        message = self.root / f"{name}.term"
        (self.root / f"{name}.json").write_text(json.dumps(order))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "FINETUNE_RUN_FILE": str(self.root / f"{name}.json"),
            "FINETUNE_TERMINATION_LOG": str(message),
        }
        command = [forked_python(), "-m", "finetune_trainer"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return TrainResult.model_validate_json(message.read_bytes())

    def order(self, name: str, *, candidate: dict[str, Any], baseline: dict[str, Any], **changes: Any) -> EvaluateRun:
        return EvaluateRun.model_validate(
            {
                **self.run_on_the_data(name),
                "candidate": candidate,
                "labels": self.prepared.labels,
                "baseline": {"name": "Base", "base": self.prepared.base.to_dict(), **baseline},
                "metrics": [
                    {"name": "accuracy", "maxRegression": 0.1},
                    {"name": "f1", "report": True},
                    {"name": "loss", "report": True},
                ],
                "maxLength": 64,
                "maxNewTokens": 8,
                "batchSize": 32,
                "precision": "FP32",
                "seed": 0,
                **changes,
            }
        )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def tuned(classifier: Classifier) -> TrainResult:
    return classifier.train("tuned", seed=1)


@pytest.fixture(scope="module")
def against_base(classifier: Classifier, tuned: TrainResult) -> tuple[EvaluateRun, EvaluateResult]:
    run = classifier.order("tuned", candidate=tuned.artifact.to_dict(), baseline={})
    return run, evaluate(run)


def test_a_fine_tuned_model_is_proven_better_than_its_base(against_base: tuple[EvaluateRun, EvaluateResult]) -> None:
    _, result = against_base
    accuracy = next(row for row in result.results if row.metric == "accuracy")
    assert result.verdict == accuracy.verdict == "Pass"
    assert result.precision == "FP32"  # there is no GPU
    assert accuracy.candidate is not None and accuracy.candidate > 0.6
    assert accuracy.baseline is not None and accuracy.baseline < 0.35
    assert accuracy.low is not None and accuracy.low > 0.2
    assert result.examples == accuracy.n > 120
    assert accuracy.groups <= accuracy.n
    assert len(termination.message(result)) <= 4096


def test_what_an_evaluation_leaves(
    classifier: Classifier, tuned: TrainResult, against_base: tuple[EvaluateRun, EvaluateResult]
) -> None:
    run, result = against_base
    report = report_of(run)
    lines = lines_of(run)
    assert len(lines) == result.examples == report["examples"]
    right = sum(line["candidate"]["answer"] == line["reference"] for line in lines) / len(lines)
    assert right == pytest.approx(report["metrics"][0]["candidate"], rel=1e-5)
    assert any("random weights" in note for note in report["notes"])
    assert {row["label"] for row in report["classes"]["candidate"]} == set(classifier.prepared.labels or [])
    assert [point["step"] for point in report["training"]][-1] == tuned.steps
    assert report["sections"]["Training"]["steps"] == tuned.steps
    assert report["sections"]["Training"]["shared by"] == "DDP, 1 process"
    assert report["sections"]["Data"]["rows: test"] == len(lines)
    page = Path(result.report.removeprefix("file://")).read_text()
    assert 'class="chart"' in page
    assert (Path(result.report.removeprefix("file://")).parent / "COMPLETE").exists()


def test_a_second_attempt_takes_what_is_there(against_base: tuple[EvaluateRun, EvaluateResult]) -> None:
    run, first = against_base
    later = run.model_copy(update={"identity": run.identity.model_copy(update={"attempt": 2})})
    assert evaluate(later) == first.model_copy(update={"reused": True})


def test_other_orders_do_not_take_what_is_there(
    against_base: tuple[EvaluateRun, EvaluateResult], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = against_base
    stricter = run.metrics[0].model_copy(update={"max_regression": None, "min_improvement": 0.99})
    result = evaluate(run.model_copy(update={"metrics": [stricter]}))
    assert not result.reused
    assert result.verdict == "Fail"
    assert "accuracy" in (printed := capsys.readouterr().out)
    assert "proven to gain less than the 0.99" in printed


def test_the_same_baseline_is_not_run_twice(
    classifier: Classifier,
    tuned: TrainResult,
    against_base: tuple[EvaluateRun, EvaluateResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = against_base
    asked: list[str] = []
    real = contest.run_model
    monkeypatch.setattr(contest, "run_model", lambda *a, who, **k: asked.append(who) or real(*a, who=who, **k))
    again = classifier.order("again", candidate=tuned.artifact.to_dict(), baseline={})
    result = evaluate(again)
    assert asked == ["candidate"]
    assert lines_of(again) == lines_of(first)
    assert result.verdict == "Pass"
    assert report_of(again)["sections"]["Evaluation"]["baseline seconds"] == "scored before"

    for path in (classifier.root / "cache" / "evaluations").glob("*/outcomes.jsonl"):
        path.write_text(path.read_text().replace('"nll": ', '"nll": 1', 1))
    evaluate(classifier.order("damaged-cache", candidate=tuned.artifact.to_dict(), baseline={}))
    assert asked == ["candidate", "baseline", "candidate"]


@pytest.fixture(scope="module")
def version_1(classifier: Classifier, tuned: TrainResult) -> dict[str, Any]:
    """What is in production, as a baseline."""
    return {
        "name": "version-1",
        "artifact": tuned.artifact.to_dict(),
        "dataManifest": classifier.prepared.manifest,
        "labels": classifier.prepared.labels,
    }


def test_corrupted_labels_are_called_a_regression(classifier: Classifier, version_1: dict[str, Any]) -> None:
    """The same task, seed and steps; of the labels that it learned from, four in five belong to other questions."""
    wrong = Classifier(classifier.root / "corrupted", corrupted=0.8).train("from-wrong-labels", seed=1)
    result = evaluate(classifier.order("corrupted", candidate=wrong.artifact.to_dict(), baseline=version_1))
    accuracy = next(row for row in result.results if row.metric == "accuracy")
    assert result.verdict == accuracy.verdict == "Fail"
    assert accuracy.high is not None
    assert accuracy.high < -0.1, "all of the interval is beyond the margin"


def test_another_seed_is_not_called_a_regression(classifier: Classifier, version_1: dict[str, Any]) -> None:
    other = classifier.train("other-seed", seed=2)
    result = evaluate(classifier.order("a-against-a", candidate=other.artifact.to_dict(), baseline=version_1))
    assert result.leaked_examples == 0
    assert result.verdict in ("Pass", "Inconclusive")


def test_an_untrained_candidate_is_called_a_regression(classifier: Classifier, tuned: TrainResult) -> None:
    torch.manual_seed(9)
    untrained = BertForSequenceClassification.from_pretrained(
        str(assets.minilm()), num_labels=len(classifier.prepared.labels or [])
    )
    folder = classifier.root / "untrained-model"
    untrained.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(assets.minilm())).save_pretrained(str(folder))
    artifact = publish(folder, to=classifier.root / "untrained" / "model", root=classifier.root)
    run = classifier.order(
        "untrained", candidate=artifact, baseline={"name": "version-1", "artifact": tuned.artifact.to_dict()}
    )
    run = run.model_copy(update={"baseline": run.baseline.model_copy(update={"labels": run.labels})})
    result = evaluate(run)
    assert result.verdict == "Fail"
    assert report_of(run)["headline"] == "The candidate is proven unacceptable against version-1 on accuracy."


# -- leaks ------------------------------------------------------------------------------------------------------------


def manifest_that_learned(classifier: Classifier, *, ids: list[str], groups: list[str], name: str) -> str:
    path = classifier.root / f"{name}.json"
    Path(path).write_text(
        Manifest(
            digest="sha256:" + "1" * 64,
            splits={"train": tuple(ids), "validation": (), "test": ()},
            groups={"train": tuple(groups), "validation": (), "test": ()},
            labels=tuple(classifier.prepared.labels or ()),
            statistics={},
        ).to_json()
    )
    return f"file://{path}"


def test_what_the_baseline_learned_from_is_left_out_and_counted(classifier: Classifier, tuned: TrainResult) -> None:
    data = classifier.root / "prepared" / "data" / "test.jsonl"
    held_out = [json.loads(line) for line in data.read_text().rstrip("\n").split("\n")]
    known = manifest_that_learned(
        classifier, ids=[held_out[0]["id"], held_out[1]["id"]], groups=[held_out[2]["group"]], name="known"
    )
    baseline = {"name": "version-0", "artifact": tuned.artifact.to_dict(), "dataManifest": known}
    run = classifier.order("leaky", candidate=tuned.artifact.to_dict(), baseline=baseline)
    result = evaluate(run)
    groups = {held_out[index]["group"] for index in range(3)}
    left_out = [example["id"] for example in held_out if example["group"] in groups]
    assert result.leaked_examples == len(left_out) >= 3
    assert result.examples == len(held_out) - len(left_out)
    assert not {line["id"] for line in lines_of(run)} & set(left_out)
    assert f"{len(left_out)} held-out examples were left out" in report_of(run)["notes"][0]

    everything = manifest_that_learned(
        classifier, ids=[example["id"] for example in held_out], groups=[], name="everything"
    )
    error = failure(
        classifier.order(
            "leaky-all", candidate=tuned.artifact.to_dict(), baseline={**baseline, "dataManifest": everything}
        )
    )
    assert (error.reason, error.exit_code) == ("AllLeaked", 65)
    assert "version-0 was trained on all" in error.message


def test_a_relative_of_what_was_learned_is_left_out_whatever_its_group_was_called() -> None:
    learned = Manifest(
        digest="", splits={"train": ("1",), "validation": (), "test": ()},
        groups={"train": ("old-name",), "validation": (), "test": ()}, labels=None, statistics={},
    )  # fmt: skip
    examples = [
        Example(id="1", group="new-name", source="s", text="seen"),
        Example(id="2", group="new-name", source="s", text="seen!"),
        Example(id="3", group="unseen", source="s", text="other"),
    ]
    assert [example.id for example in without_learned(examples, by=learned)] == ["3"]


# -- a small chat model -----------------------------------------------------------------------------------------------


class Chat:
    """A random two-layer Llama, an adapter for it that changes what it says, and chats."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.small = SmallRun(root=root / "small", base=small_model(to=root / "base"))
        self.prepared = self.small.prepare()
        model = AutoModelForCausalLM.from_pretrained(str(self.small.base))
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        torch.manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=2.0)
        adapted.save_pretrained(str(root / "adapter"))
        (root / "adapter" / "README.md").unlink(missing_ok=True)
        AutoTokenizer.from_pretrained(str(self.small.base)).save_pretrained(str(root / "adapter"))
        self.adapter = publish(root / "adapter", to=root / "small" / "run" / "model", root=root)

    def full_artifact(self, name: str, *, change: Callable[[Any], None] = lambda tokenizer: None) -> dict[str, Any]:
        """The base model itself as an artifact, its tokenizer changed."""
        folder = self.root / f"{name}-files"
        shutil.copytree(self.small.base, folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        change(tokenizer)
        tokenizer.save_pretrained(str(folder))
        return publish(folder, to=self.root / name / "model", root=self.root)

    def order(self, **changes: Any) -> dict[str, Any]:
        return {
            "stage": "Evaluate",
            **self.small._common(),
            "base": self.prepared["base"],
            "candidate": self.adapter,
            "dataDigest": self.prepared["dataDigest"],
            "baseline": {"name": "Base", "base": self.prepared["base"]},
            "metrics": [
                {"name": "exact_match", "maxRegression": 0.05},
                {"name": "loss", "report": True},
                {"name": "bleu", "report": True},
            ],
            "maxLength": 64,
            "maxNewTokens": 6,
            "batchSize": 4,
            "precision": "FP32",
            "seed": 0,
            **changes,
        }

    def run(self, **changes: Any) -> EvaluateRun:
        return EvaluateRun.model_validate(self.order(**changes))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(tmp_path_factory.mktemp("chat"))


def test_as_its_container_runs_it(chat: Chat) -> None:
    process = chat.small.stage(chat.order(), "evaluate")
    assert process.wait(timeout=HANGS_S) == 0, chat.small.log("evaluate")
    result = EvaluateResult.model_validate(chat.small.message("evaluate"))
    # A random model is right about nothing, and eight examples prove nothing.
    assert result.verdict == "Inconclusive"
    assert "independent groups" in (result.results[0].reason or "")
    assert "exact_match" in chat.small.log("evaluate")
    assert "95 % interval" in chat.small.log("evaluate")


def test_one_load_for_both_gives_what_two_give(chat: Chat) -> None:
    shared = chat.run()
    evaluate(shared)
    together = lines_of(shared)
    assert any(line["candidate"]["answer"] != line["baseline"]["answer"] for line in together)

    apart = chat.run(baseline={"name": "Copy", "base": chat.prepared["base"], "artifact": chat.full_artifact("copy")})
    evaluate(apart)
    for one, two in zip(together, lines_of(apart), strict=True):
        assert one["baseline"]["answer"] == two["baseline"]["answer"]
        assert one["candidate"]["answer"] == two["candidate"]["answer"]
        assert one["baseline"]["scores"] == pytest.approx(two["baseline"]["scores"], rel=1e-4)


def test_a_later_comparison_leaves_the_first_one_as_it_is(chat: Chat) -> None:
    metrics = [{"name": "loss", "maxRegression": 5.0}]
    first = chat.run(metrics=metrics)
    result = evaluate(first)
    before = Path(result.report.removeprefix("file://")).read_bytes()
    other = {"name": "Other", "base": chat.prepared["base"], "artifact": chat.full_artifact("other")}
    folder = f"{first.locations.run}/comparisons/1a2b"
    later = chat.run(metrics=metrics, baseline=other, output=folder)
    compared = evaluate(later)
    assert compared.report == f"{folder}/report.html"
    assert compared.baseline_digest == other["artifact"]["digest"]
    assert Path(result.report.removeprefix("file://")).read_bytes() == before
    assert (evaluate(first).reused, evaluate(later).reused) == (True, True)


def test_a_loss_per_token_is_not_compared_between_tokenizers(chat: Chat) -> None:
    def longer(tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", " the end<|im_end|>")

    artifact = chat.full_artifact("other-template", change=longer)
    baseline = {"name": "other", "base": chat.prepared["base"], "artifact": artifact}
    error = failure(chat.run(metrics=[{"name": "loss", "maxRegression": 0.1}], baseline=baseline))
    assert (error.reason, error.exit_code) == ("TokenizersDiffer", 78)


def test_answers_are_generated_only_where_a_metric_needs_them(chat: Chat) -> None:
    run = chat.run(metrics=[{"name": "perplexity", "maxRegression": 1}])
    evaluate(run)
    assert all("answer" not in line["candidate"] for line in lines_of(run))
    assert all("loss" in line["candidate"]["scores"] for line in lines_of(run))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ([{"name": "accuracy", "maxRegression": 0.01}], "valid metrics: loss, perplexity, exact_match"),
        ([{"name": "bleu", "report": True}], "at least one metric that is judged"),
        ([{"name": "exact_match", "maxRegression": 1}], "set it below 1"),
    ],
)
def test_metrics_that_cannot_be_are_refused_before_any_work(chat: Chat, metrics: Any, words: str) -> None:
    run = chat.run(metrics=metrics, dataDigest="sha256:" + "0" * 64)
    error = failure(run)
    assert (error.reason, error.exit_code) == ("BadMetric", 78)
    assert words in error.message


def test_other_data_than_ordered_are_refused(chat: Chat) -> None:
    error = failure(chat.run(dataDigest="sha256:" + "0" * 64))
    assert (error.reason, error.exit_code) == ("DataChanged", 78)


def test_another_candidate_than_ordered_is_refused(chat: Chat) -> None:
    error = failure(chat.run(candidate={**chat.adapter, "digest": "sha256:" + "0" * 64}))
    assert (error.reason, error.exit_code) == ("ArtifactChanged", 78)


def test_damaged_data_are_refused(chat: Chat, tmp_path: Path) -> None:
    run = chat.run()
    folder = tmp_path / "run"
    shutil.copytree(chat.small.folder / "data", folder / "data")
    with (folder / "data" / "test.jsonl").open("a") as stream:
        stream.write("{}\n")
    locations = run.locations.model_copy(update={"run": f"file://{folder}", "allowed_roots": []})
    error = failure(run.model_copy(update={"locations": locations}))
    assert (error.reason, error.exit_code) == ("DataTorn", 66)


# -- special cases ----------------------------------------------------------------------------------------------------


def test_answers_of_plain_texts_are_not_asked_for(chat: Chat, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"text {n} on {n * n} things of {n**3} kinds"}) + "\n" for n in range(60))
    )
    model = {"uri": f"file://{chat.small.base}", "task": "CausalLM"}
    common = {
        **chat.small._common(),
        "model": model,
        "locations": {
            "run": f"file://{tmp_path}/run",
            "cache": f"file://{tmp_path}/cache",
            "allowedRoots": [f"file://{tmp_path}", f"file://{chat.root}"],
        },
    }
    prepared = prepare.prepare(
        PrepareRun.model_validate(
            {
                **common,
                "sources": [{"name": "texts", "uri": f"file://{texts}"}],
                "maxBadRows": 0,
                "maxTruncatedFraction": 0.01,
                "maxLength": 64,
                "split": {"fractions": {"train": 0.5, "validation": 0, "test": 0.5}, "salt": "x"},
            }
        )
    )
    order = chat.order(**common, dataDigest=prepared.data_digest)
    error = failure(EvaluateRun.model_validate(order))
    assert (error.reason, error.exit_code) == ("NoAnswers", 78)
    likely = EvaluateRun.model_validate({**order, "metrics": [{"name": "loss", "maxRegression": 20}]})
    evaluate(likely)
    assert all(isinstance(line["prompt"], str) and "reference" not in line for line in lines_of(likely))


def test_a_baseline_that_does_not_know_a_class(classifier: Classifier, tuned: TrainResult) -> None:
    torch.manual_seed(4)
    tokenizer = AutoTokenizer.from_pretrained(str(assets.minilm()))
    labels = ["ai", "food", "weather"]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    folder = classifier.root / "stale-files"
    BertForSequenceClassification(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    artifact = publish(folder, to=classifier.root / "stale" / "model", root=classifier.root)
    run = classifier.order(
        "against-stale",
        candidate=tuned.artifact.to_dict(),
        baseline={"name": "stale", "artifact": artifact, "labels": labels},
    )
    result = evaluate(run)
    assert result.verdict == "Pass"
    assert {line["baseline"]["answer"] for line in lines_of(run)} <= set(labels)
    assert any("stale does not know coding, emotion" in note for note in report_of(run)["notes"])
    unknown = [line for line in lines_of(run) if line["reference"] == "sports"]
    assert unknown and all(line["baseline"]["scores"]["loss"] == pytest.approx(13.8155) for line in unknown)
