"""A saved model is refused unless it is whole, finite, and the one that was recorded."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.forking import forked_python
from tests.trainer.small_run import small_model
from transformers import LlamaForCausalLM

from finetune_api.results import ExitCode
from finetune_api.run import Locations, ModelOrder
from finetune_api.shared_fields import Artifact
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.models.saved_model import load_artifact
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.encoding import Encoded

ASKED: Any = {"example": Encoded(ids=(5, 6, 7, 8), targets=(False, True, True, True)), "task": "Chat"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(to=tmp_path_factory.mktemp("saved") / "base")


def storage_in(folder: Path, *, base: Path) -> Storage:
    locations = Locations(run=f"file://{folder}/run", cache=f"file://{folder}/cache", allowed_roots=[f"file://{base}"])
    return Storage(locations=locations)


def adapted(base: Path) -> Any:
    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(str(base))
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return peft.eval()


def saved(base: Path, folder: Path, *, probed: Any = None) -> tuple[Any, Artifact, Storage]:
    """A published adapter, verified by a fresh process."""
    storage, model = storage_in(folder, base=base), adapted(base)
    artifact = saved_model.save(
        model,
        tokenizer=base_model.load_tokenizer(base),
        to=f"{storage.locations.run}/model",
        storage=storage,
        base_folder=base,
        format="Adapter",
        task="Chat",
        labels=None,
        probe=saved_model.probe(model if probed is None else probed, **ASKED),
        input_digest="sha256:input",
        extra={},
    )
    return model, artifact, storage


def load(artifact: Artifact, *, base: Path, storage: Storage) -> Any:
    resolved = base_model.resolve(ModelOrder(uri=f"file://{base}", task="Chat"), storage=storage)
    return load_artifact(artifact, base=resolved, task="Chat", labels=None, storage=storage)[0]


def test_what_was_saved_is_loaded_and_what_was_changed_is_refused(base: Path, tmp_path: Path) -> None:
    model, artifact, storage = saved(base, tmp_path)
    loaded = load(artifact, base=base, storage=storage)
    answers = [saved_model.probe(item, **ASKED).logits for item in (model, loaded)]
    torch.testing.assert_close(torch.tensor(answers[0]), torch.tensor(answers[1]))
    assert not (tmp_path / "run" / "model" / "README.md").exists(), "it would name paths of the container"

    with pytest.raises(StageError) as other:
        load(artifact.model_copy(update={"digest": "sha256:" + "1" * 64}), base=base, storage=storage)
    assert (other.value.reason, other.value.exit_code) == ("ArtifactChanged", ExitCode.BAD_CONFIGURATION)

    path = tmp_path / "run" / "model" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError) as torn:
        load(artifact, base=base, storage=storage)
    assert (torn.value.reason, torn.value.exit_code) == ("ArtifactTorn", ExitCode.INPUT_NOT_FOUND)
    (tmp_path / "run" / "model" / "COMPLETE").unlink()
    with pytest.raises(StageError) as gone:
        load(artifact, base=base, storage=storage)
    assert gone.value.reason == "ArtifactTorn"


def test_saving_an_adapter_asks_nobody_for_its_base(base: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(base), base_model.load_tokenizer(base)
    model.peft_config["default"].base_model_name_or_path = "pvc://models/base"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved_model.write(
            model, tokenizer=tokenizer, folder=tmp_path, base_folder=base, format="Adapter", task="Chat", labels=None
        )


def test_a_model_that_loads_as_another_is_not_published(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", forked_python())
    with pytest.raises(StageError) as failure:
        saved(base, tmp_path, probed=LlamaForCausalLM.from_pretrained(str(base)))
    assert failure.value.reason == "ModelNotVerified"
    assert "answers differently" in failure.value.message
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("damage", ["missing", "changed", "nan", "infinite"])
def test_damaged_tensors_are_refused(base: Path, tmp_path: Path, damage: str) -> None:
    model = adapted(base)
    name, parameter = next(item for item in model.named_parameters() if item[1].requires_grad)
    if damage in ("nan", "infinite"):
        parameter.data[0, 0] = float(damage[:3])
    probe = saved_model.probe(model, **ASKED)
    saved = saved_model.write(
        model,
        tokenizer=base_model.load_tokenizer(base),
        folder=tmp_path,
        base_folder=base,
        format="Adapter",
        task="Chat",
        labels=None,
    )
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    stored = name.replace(".default", "")
    if damage == "missing":
        del tensors[stored]
    if damage == "changed":
        tensors[stored][0, 0] += 1e-6
    save_file(tensors, path)
    with pytest.raises(StageError) as failure:
        saved_model.verify(model, saved=saved, probe=probe, load_again=saved_model.in_this_process)
    assert failure.value.reason == "ModelNotVerified"
    assert name in failure.value.message
    assert ("not finite" in failure.value.message) == (damage in ("nan", "infinite"))
