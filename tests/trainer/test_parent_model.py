"""Training goes on from a version: from its weights, and with nothing held out that it has learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.small_run import EXAMPLES, LORA, SmallRun, SmallRuns, chat

from finetune_api.run import Locations, MethodOrder, ModelOrder, PrepareRun
from finetune_api.shared_fields import Artifact, ResolvedModel
from finetune_trainer.models import parent_model, saved_model
from finetune_trainer.models.base_model import load_base, load_model
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.training.methods.choose import method_of


@pytest.fixture(scope="module", params=["Full", "LoRA"])
def parent(request: pytest.FixtureRequest, runs: SmallRuns) -> dict[str, Any]:
    """A trained version, as an order names it."""
    run = runs.new(f"parent-{request.param}")
    method = LORA if request.param == "LoRA" else {"type": "Full"}
    trained = run.train(run.order(runs.prepared, method=method))
    manifest = f"file://{runs.prepared_run.folder}/data/manifest.json"
    return {
        "name": "v1",
        "uid": "uid-1",
        "artifact": trained["artifact"],
        "base": runs.prepared["base"],
        "dataManifest": manifest,
    }


def test_its_weights_are_what_training_begins_with(parent: dict[str, Any], runs: SmallRuns, tmp_path: Path) -> None:
    root = runs.base.parent
    locations = Locations(
        run=f"file://{tmp_path}/run", cache=f"file://{tmp_path}/cache", allowed_roots=[f"file://{root}"]
    )
    storage = Storage(locations=locations)
    order = ModelOrder.model_validate({"uri": "version://v1", "task": "Chat", "parent": parent})
    base = parent_model.resolve(order, storage=storage)
    assert parent_model.resolve(order, storage=storage) == base, "it is merged once"
    found = load_model(storage.local_path(base.loadable_uri) or Path(), task="Chat", dtype="float32")
    version, _ = saved_model.load_artifact(
        Artifact.model_validate(parent["artifact"]),
        base=ResolvedModel.model_validate(parent["base"]),
        task="Chat",
        labels=None,
        storage=storage,
    )
    asked = Encoded(ids=(5, 6, 7), targets=(False, True, True))
    answers = [saved_model.probe(model, example=asked, task="Chat").logits for model in (found, version)]
    torch.testing.assert_close(torch.tensor(answers[0]), torch.tensor(answers[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parent", ["LoRA"], indirect=True)
def test_an_adapter_that_is_kept_is_trained_on_beside_the_same_base(parent: dict[str, Any], runs: SmallRuns) -> None:
    run = runs.new("kept", overrides={"maxSteps": 2, "learningRate": 1e-9, "warmupFraction": 0.0})
    model = {"uri": "version://v1", "task": "Chat", "parent": parent | {"keep": True}}
    order = run.order(runs.prepared, method=LORA, model=model)
    storage = Storage(locations=Locations.model_validate(order["locations"]))
    base = parent_model.resolve(ModelOrder.model_validate(model), storage=storage)
    assert base == ResolvedModel.model_validate(parent["base"])
    trained = run.train(order)
    before, after = (
        load_file(Path(each["artifact"]["uri"].removeprefix("file://")) / "adapter_model.safetensors")
        for each in (parent, trained)
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0.0, atol=1e-7, msg=name)


@pytest.mark.parametrize("parent", ["LoRA"], indirect=True)
@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LORA | {"lora": LORA["lora"] | {"rank": 8}}, "method.lora.rank: 8, but .* has 4"),
        (LORA | {"type": "DoRA"}, "method.type: DoRA, but .* has LoRA"),
        (LORA | {"lora": LORA["lora"] | {"targetModules": ["q_proj"]}}, "targetModules: q_proj, but .* has down_proj"),
    ],
)
def test_what_contradicts_the_kept_adapter_is_refused(
    method: dict[str, Any], said: str, parent: dict[str, Any], runs: SmallRuns
) -> None:
    loaded = load_base(runs.base, task="Chat", dtype="float32")
    order = MethodOrder.model_validate(method)
    adapted = method_of(order).applied(loaded, task=task_of("Chat"), base_uri="file:///base")
    with pytest.raises(StageError, match=said):
        parent_model.take_over(adapted, parent["artifact"]["uri"].removeprefix("file://"))


def prepared(run: SmallRun, parent: dict[str, Any], *, salt: str) -> dict[str, Any]:
    order = json.loads((run.root.parent / "prepared" / "prepare.json").read_text())
    common = run._common()
    common["locations"]["allowedRoots"] = [f"file://{run.root.parent}"]
    sources = [{"name": "chats", "uri": f"file://{run.data}", "format": "Chat", "weight": 1.0}]
    order |= common | {"sources": sources, "model": {"uri": "version://v1", "task": "Chat", "parent": parent}}
    order["split"]["salt"] = salt
    return order


def test_nothing_is_held_out_that_it_has_learned_from(parent: dict[str, Any], runs: SmallRuns) -> None:
    run = SmallRun(root=runs.base.parent / f"child-{parent['artifact']['format']}", base=runs.base)
    all_learned = prepared(run, parent | {"dataManifest": learned_all(run, parent)}, salt="other")
    with pytest.raises(StageError, match="was trained on all"):
        prepare(PrepareRun.model_validate(all_learned))
    with run.data.open("a") as more:
        more.writelines(json.dumps(chat(EXAMPLES + number)) + "\n" for number in range(EXAMPLES))
    found = prepare(PrepareRun.model_validate(prepared(run, parent, salt="other")))
    before = json.loads(Path(parent["dataManifest"].removeprefix("file://")).read_text())
    after = json.loads((run.folder / "data" / "manifest.json").read_text())
    learned = {*before["splits"]["train"], *before["splits"]["validation"]}
    assert after["splits"]["test"]
    assert not learned & {*after["splits"]["test"], *after["splits"]["validation"]}
    assert sum(len(each) for each in after["splits"].values()) == 2 * EXAMPLES, "what was learned is learned again"
    assert learned <= {*after["before"]}, "the next one must not hold it out either"
    assert any("version://v1 has learned from" in remark for remark in found.remarks or ())


def learned_all(run: SmallRun, parent: dict[str, Any]) -> str:
    """The manifest of a version that has learned from everything."""
    manifest = json.loads(Path(parent["dataManifest"].removeprefix("file://")).read_text())
    for part in ("splits", "groups"):
        whole = manifest[part]
        whole["train"] = [*whole["train"], *whole["validation"], *whole["test"]]
        whole["validation"] = whole["test"] = []
    path = run.root / "all.json"
    path.write_text(json.dumps(manifest))
    return f"file://{path}"
