"""Files of a base model that would end a run hours later, or that are not what they are called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trainer import tiny_models

from finetune_api.results import ExitCode
from finetune_api.run import Locations, ModelOrder
from finetune_trainer import base_model, memory, model_files
from finetune_trainer.errors import StageError
from finetune_trainer.storage import Storage


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make("llama", to=tmp_path_factory.mktemp("files") / "llama")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def _torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _error_page(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<html>Not found</html>")


def _weights_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _tokenizer_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _gptq(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "reason", "code", "named"),
    [
        (_torn, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "download it again"),
        (_error_page, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "model.safetensors is damaged"),
        (_weights_pointer, "GitLfsPointer", ExitCode.INPUT_NOT_FOUND, "model.safetensors is a Git LFS pointer"),
        (_tokenizer_pointer, "GitLfsPointer", ExitCode.INPUT_NOT_FOUND, "tokenizer.json is a Git LFS pointer"),
        (_missing_shard, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "model-00002-of-00002.safetensors"),
        (_gptq, "QuantisedModel", ExitCode.BAD_CONFIGURATION, "quantised (gptq)"),
    ],
)
def test_is_refused_by_name(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str, code: ExitCode, named: str
) -> None:
    damage(folder)
    locations = Locations(run=f"file://{tmp_path}/run", cache=f"file://{tmp_path}/cache", allowed_roots=[])
    order = ModelOrder(uri=f"file://{folder}", task="Chat")
    with pytest.raises(StageError) as refused:
        base_model.resolve(
            order, storage=Storage(locations=locations.model_copy(update={"allowed_roots": [f"file://{tmp_path}"]}))
        )
    assert (refused.value.reason, refused.value.exit_code) == (reason, code)
    assert named in refused.value.message


def test_tokens_without_numbers_are_refused_where_they_occur() -> None:
    tokenizer = tiny_models.decoder_tokenizer()
    known = len(tokenizer)
    model_files.check_tokenizer("hf://m", tokenizer, vocabulary=known, texts=["amber"])
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    model_files.check_tokenizer("hf://m", tokenizer, vocabulary=known, texts=["amber"])
    for texts, vocabulary in ((["see <picture>"], known), (["amber"], known - 1)):
        with pytest.raises(StageError, match="beyond the model's vocabulary"):
            model_files.check_tokenizer("hf://m", tokenizer, vocabulary=vocabulary, texts=texts)
    tokenizer.pad_token = "<picture>"
    with pytest.raises(StageError, match="<picture>"):
        model_files.check_tokenizer("hf://m", tokenizer, vocabulary=known, texts=["amber"])


def test_weights_are_counted_in_fp32(llama: Path) -> None:
    assert model_files.fp32_bytes(llama) == pytest.approx((llama / "model.safetensors").stat().st_size, rel=0.1)


def test_memory_is_what_the_container_may_take(tmp_path: Path) -> None:
    machine, limit, statistics = tmp_path / "meminfo", tmp_path / "max", tmp_path / "stat"
    machine.write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    statistics.write_text("anon 1024\nfile 9999\n")
    for text, expected in (("max", 50 << 10), ("11264", 10 << 10), ("512", 0), (str(1 << 40), 50 << 10)):
        limit.write_text(text + "\n")
        assert memory.available(limit=limit, statistics=statistics, machine=machine) == expected
    assert memory.available(limit=tmp_path / "none", statistics=statistics, machine=machine) == 50 << 10
