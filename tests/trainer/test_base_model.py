"""Base models: the real MiniLM and SmolLM2, a hub, and folders that must be refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from demo import assets
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tests.trainer import hub

from finetune_api.results import ExitCode
from finetune_api.run import Locations, ModelOrder
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.models import base_model, licence
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(
        locations=Locations(
            run=f"file://{tmp_path}/run",
            cache=f"file://{tmp_path}/cache",
            allowed_roots=[f"file://{tmp_path}", f"file://{assets.minilm().parent}", "hf://acme"],
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of MiniLM that a test may damage."""
    return Path(shutil.copytree(assets.minilm(), tmp_path / "model"))


def classifier(uri: object, **options: object) -> ModelOrder:
    return ModelOrder.model_validate({"uri": str(uri), "task": "SequenceClassification", **options})


def refusal(order: ModelOrder, storage: Storage) -> StageError:
    with pytest.raises(StageError) as refused:
        base_model.resolve(order, storage=storage)
    return refused.value


# -- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_is(storage: Storage, tmp_path: Path) -> None:
    uri = f"file://{assets.minilm()}"
    base = base_model.resolve(classifier(uri, allowed_licences=["Apache-2.0"]), storage=storage)
    assert (base.loadable_uri, base.materialized_uri, base.licence) == (uri, None, "apache-2.0")
    with base_model.local_folder(base, storage=storage) as found:
        assert found == assets.minilm()
        torch.manual_seed(7)
        model = base_model.load_model(found, task="SequenceClassification", dtype="float32", labels=["no", "yes"])
        tokens = base_model.load_tokenizer(found)("Hello there", return_tensors="pt")
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model(**tokens).logits.shape == (1, 2)
    assert not model.training
    assert not (tmp_path / "cache").exists()


def test_texts_beyond_the_context_are_ours_to_name(caplog: pytest.LogCaptureFixture) -> None:
    """Lengths are checked in our own words; the library's warning would stand above them in the log's end."""
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        ids = base_model.load_tokenizer(assets.minilm())("word " * 600)["input_ids"]
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert len(ids) > 512
    assert not caplog.records


def test_the_head_depends_on_the_seed_alone(storage: Storage) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = base_model.load_model(
            assets.minilm(), task="SequenceClassification", dtype="float32", labels=["a", "b", "c"]
        )
        heads.append(model.classifier.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_digest_is_of_what_is_loaded(storage: Storage, folder: Path) -> None:
    first = base_model.resolve(classifier(f"file://{folder}"), storage=storage).digest
    (folder / "notes.ipynb").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    assert base_model.resolve(classifier(f"file://{folder}"), storage=storage).digest == first
    (folder / "tokenizer_config.json").write_text("{}")
    assert base_model.resolve(classifier(f"file://{folder}"), storage=storage).digest != first


def test_a_base_that_changed_since_is_refused(storage: Storage, folder: Path) -> None:
    base = base_model.resolve(classifier(f"file://{folder}"), storage=storage)
    (folder / "tokenizer_config.json").write_text("{}")
    with (
        pytest.raises(StageError, match="was changed since") as refused,
        base_model.local_folder(base, storage=storage),
    ):
        pass
    assert refused.value.reason == "BaseModelChanged"


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    _remove_weights(folder)


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))


@pytest.mark.parametrize(
    ("damage", "reason", "code", "named"),
    [
        (_remove_config, "InputNotFound", ExitCode.INPUT_NOT_FOUND, "no config.json"),
        (_remove_weights, "InputNotFound", ExitCode.INPUT_NOT_FOUND, "no *.safetensors"),
        (_pickle_only, "UnsafeWeights", ExitCode.BAD_CONFIGURATION, "pickle"),
        (_adapter, "UnsupportedModel", ExitCode.BAD_CONFIGURATION, "is an adapter"),
        (_unknown_type, "UnsupportedModel", ExitCode.BAD_CONFIGURATION, "'nonesuch'"),
    ],
)
def test_folders_that_are_no_usable_model(
    storage: Storage, folder: Path, damage: Callable[[Path], None], reason: str, code: ExitCode, named: str
) -> None:
    damage(folder)
    error = refusal(classifier(f"file://{folder}"), storage)
    assert (error.reason, error.exit_code) == (reason, code)
    assert named in error.message


def test_pickle_is_not_loaded_even_when_asked_directly(folder: Path) -> None:
    _pickle_only(folder)
    with pytest.raises(StageError, match="cannot be loaded"):
        base_model.load_model(folder, task="SequenceClassification", dtype="float32", labels=["a", "b"])


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"lacks 1 tensors.*encoder\.layer\.3\.output\.dense\.weight") as refused:
        base_model.load_model(folder, task="SequenceClassification", dtype="float32", labels=["a", "b"])
    assert refused.value.reason == "IncompleteModel"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"uri": "file://{0}/none", "task": "Chat"}, "InputNotFound"),
        ({"uri": "file:///etc/hostname", "task": "Chat"}, "OutsideAllowedRoots"),
        ({"uri": "hf://other/model", "task": "Chat"}, "OutsideAllowedRoots"),
        ({"uri": "file://{0}/model", "task": "Chat"}, "UnsupportedModel"),
        ({"uri": "file://{0}/model", "task": "SequenceClassification", "trust_remote_code": True}, "NotSupported"),
        (
            {"uri": "file://{0}/model", "task": "SequenceClassification", "allowed_licences": ["mit"]},
            "LicenceNotAllowed",
        ),
    ],
)
def test_orders_that_are_refused(
    storage: Storage, folder: Path, tmp_path: Path, order: dict[str, object], reason: str
) -> None:
    order = {**order, "uri": str(order["uri"]).format(tmp_path)}
    assert refusal(ModelOrder.model_validate(order), storage).reason == reason


def test_an_unknown_licence_is_refused_where_licences_are_listed(storage: Storage, folder: Path) -> None:
    (folder / "README.md").unlink()
    assert base_model.resolve(classifier(f"file://{folder}"), storage=storage).licence is None
    error = refusal(classifier(f"file://{folder}", allowed_licences=["apache-2.0"]), storage)
    assert error.reason == "LicenceUnknown"


# -- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: Apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama-something\n---\n", "llama-something"),
        ("---\nlicense: [mit]\n---\n", "mit"),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("license: mit", None),
        ("---\n: [broken\n---\n", None),
    ],
)
def test_the_licence_of_a_model_card(readme: str, found: str | None) -> None:
    assert licence.of_readme(readme) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("                 Apache License\n           Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person", "mit"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version", "llama3.1"),
        ("Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("All rights reserved.", None),
    ],
)
def test_the_licence_of_a_text(text: str, found: str | None) -> None:
    assert licence.of_text(text) == found


# -- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once(storage: Storage, tmp_path: Path) -> None:
    """Half a minute: the real file, from 4-bit blocks to a folder that trains and talks."""
    order = ModelOrder(uri=f"file://{assets.smollm2()}", task="Chat", allowed_licences=["apache-2.0"])
    base = base_model.resolve(order, storage=storage)
    assert base.materialized_uri is not None
    assert base.materialized_uri.startswith(f"file://{tmp_path}/cache/bases/")
    written = Path(base.materialized_uri.removeprefix("file://")) / "model.safetensors"
    before = written.stat()
    assert base_model.resolve(order, storage=storage) == base
    assert written.stat().st_mtime_ns == before.st_mtime_ns

    block = next(tensor for tensor in GGUFReader(assets.smollm2()).tensors if tensor.name == "blk.3.ffn_down.weight")
    expected = torch.from_numpy(np.asarray(dequantize(block.data, block.tensor_type))).to(torch.bfloat16)
    assert torch.equal(load_file(written)["model.layers.3.mlp.down_proj.weight"], expected)

    with base_model.local_folder(base, storage=storage) as found:
        tokenizer = base_model.load_tokenizer(found)
        model = base_model.load_model(found, task="Chat", dtype="float32")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == tokenizer.eos_token_id

    written.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(StageError) as torn, base_model.local_folder(base, storage=storage):
        pass
    assert torn.value.reason == "BaseModelTorn"


def test_a_file_that_is_no_gguf(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    error = refusal(ModelOrder(uri=f"file://{tmp_path}/model.gguf", task="Chat"), storage)
    assert (error.reason, error.exit_code) == ("UnsupportedModel", ExitCode.BAD_CONFIGURATION)


def test_a_folder_with_two_gguf_files_is_ambiguous(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / "models" / name).write_bytes(b"")
    error = refusal(ModelOrder(uri=f"file://{tmp_path}/models", task="Chat"), storage)
    assert "q4.gguf, q8.gguf" in error.message


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    with hub.serve(repository="acme/minilm", folder=folder) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_a_hub_model_is_pinned_and_kept(storage: Storage, on_hub: hub.Hub) -> None:
    order = classifier("hf://acme/minilm", revision="v1", allowed_licences=["apache-2.0"])
    base = base_model.resolve(order, storage=storage)
    assert (base.uri, base.revision, base.licence) == ("hf://acme/minilm", hub.COMMIT, "apache-2.0")
    assert "model.safetensors" in on_hub.fetched
    assert not {name for name in on_hub.fetched if name.endswith((".bin", ".py")) or "/" in name}
    fetched = len(on_hub.fetched)
    assert base_model.resolve(order, storage=storage) == base
    assert len(on_hub.fetched) == fetched
    with base_model.local_folder(base, storage=storage) as found:
        assert (found / "model.safetensors").read_bytes() == (on_hub.folder / "model.safetensors").read_bytes()
    local = base_model.resolve(classifier(f"file://{on_hub.folder}"), storage=storage)
    assert base.digest == local.digest


@pytest.mark.parametrize(
    ("uri", "revision", "gated", "reason"),
    [
        ("hf://acme/none", None, False, "InputNotFound"),
        ("hf://acme/minilm", "v9", False, "InputNotFound"),
        ("hf://acme/minilm", None, True, "InputForbidden"),
        ("hf://acme", None, False, "BadUri"),
    ],
)
def test_what_the_hub_does_not_give(
    storage: Storage, on_hub: hub.Hub, uri: str, revision: str | None, gated: bool, reason: str
) -> None:
    on_hub.gated = gated
    assert refusal(classifier(uri, revision=revision), storage).reason == reason


def test_a_hub_that_does_not_answer_is_worth_another_attempt(
    storage: Storage, on_hub: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refusal(classifier("hf://acme/minilm"), storage)
    assert (error.reason, error.exit_code) == ("HubUnavailable", ExitCode.INTERNAL_ERROR)
    assert "HF_ENDPOINT" in error.message


def test_a_resolved_model_survives_its_record(storage: Storage) -> None:
    base = base_model.resolve(classifier(f"file://{assets.minilm()}"), storage=storage)
    assert ResolvedModel.model_validate(base.to_dict()) == base
