"""Files of a base model that would end a run hours later, or that are not what they are called."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny_models
from tests.trainer.tiny_tokenizer import tiny_tokenizer

from finetune_api.results import ExitCode
from finetune_api.run import Locations, ModelOrder, PrepareRun
from finetune_api.shared_fields import Task
from finetune_trainer.models import base_model, model_files
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process import memory
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage


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


def _not_json(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')


def _header_is_a_list(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")


def _adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')


@pytest.mark.parametrize(
    ("damage", "reason", "code", "named"),
    [
        (_torn, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "download it again"),
        (_error_page, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "model.safetensors is damaged"),
        (_weights_pointer, "GitLfsPointer", ExitCode.INPUT_NOT_FOUND, "model.safetensors is a Git LFS pointer"),
        (_tokenizer_pointer, "GitLfsPointer", ExitCode.INPUT_NOT_FOUND, "tokenizer.json is a Git LFS pointer"),
        (_missing_shard, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "model-00002-of-00002.safetensors"),
        (_not_json, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "index.json is damaged (not JSON"),
        (_header_is_a_list, "IncompleteModel", ExitCode.INPUT_NOT_FOUND, "model.safetensors is damaged"),
        (_adapter_beside, "UnsupportedModel", ExitCode.BAD_CONFIGURATION, "an adapter beside a model"),
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
    model_files.check_tokenizer("hf://m", tokenizer, vocabulary=known, texts=["amber"])  # another one fills up
    tokenizer.eos_token = "<picture>"
    with pytest.raises(StageError, match="<picture>"):
        model_files.check_tokenizer("hf://m", tokenizer, vocabulary=known, texts=["amber"])


def _damages(text: str) -> Iterator[tuple[str, str]]:
    """What a JSON file may hold instead of its text."""
    yield from (("half", text[: len(text) // 2]), ("nothing", ""), ("a list", "[]"), ("null", "null"))
    yield from (("a string", '"x"'), ("depth", "[" * 5000))
    document = json.loads(text)
    for key in document:
        without = {name: value for name, value in document.items() if name != key}
        yield f"no {key}", json.dumps(without)
        for value in ([], -1):
            yield f"{key}: {value!r}", json.dumps(without | {key: value})


def _read_all(folder: Path, run: Path, task: Task) -> None:
    """All that Prepare reads of a base model, and what training loads of it."""
    rows = run / "rows.jsonl"
    texts = [hashlib.sha256(bytes([number])).hexdigest() for number in range(24)]  # no relatives
    if task == "Chat":
        answer = {"role": "assistant", "content": "basil"}
        made: list[Any] = [{"messages": [{"role": "user", "content": text}, answer]} for text in texts]
    else:
        made = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    order = {
        "identity": {"namespace": "ml", "job": "j", "uid": "1", "attempt": 1},
        "locations": {
            "run": f"file://{run}/run",
            "cache": f"file://{run}/cache",
            "allowed_roots": [f"file://{run.parent}"],
        },
        "model": {"uri": f"file://{folder}", "task": task},
        "sources": [{"name": "rows", "uri": f"file://{rows}"}],
        "max_bad_rows": 0,
        "max_truncated_fraction": 1,
        "max_length": 128,
        "split": {"fractions": {"train": 0.6, "validation": 0.2, "test": 0.2, "strategy": "GroupHash"}, "salt": "s"},
    }
    prepare(PrepareRun.model_validate(order))
    base_model.load_base(folder, task=task, dtype="float32", labels=["a", "b"])


@pytest.mark.parametrize(("name", "task"), [("llama", "Chat"), ("bert", "SequenceClassification")])
def test_damaged_json_is_refused_in_words(name: str, task: Task, tmp_path: Path) -> None:
    whole = tiny_models.make(name, to=tmp_path / "whole")
    refused = 0
    files = {path.name: path.read_text() for path in sorted(whole.glob("*.json"))}
    damages = [(file, *damage) for file, text in files.items() for damage in _damages(text)]
    for number, (file, what, text) in enumerate(damages):
        folder, run = tmp_path / f"model-{number}", tmp_path / f"run-{number}"
        shutil.copytree(whole, folder)
        run.mkdir()
        (folder / file).write_text(text)
        try:
            _read_all(folder, run, task)
        except StageError as refusal:
            refused += 1
            assert refusal.exit_code in (ExitCode.BAD_DATA, ExitCode.INPUT_NOT_FOUND, ExitCode.BAD_CONFIGURATION)
        except Exception as error:
            raise AssertionError(f"{file} with {what}: {type(error).__name__}, not a refusal") from error
        shutil.rmtree(folder)
        shutil.rmtree(run)
    assert refused > 60


def test_weights_are_counted_in_fp32(llama: Path) -> None:
    assert model_files.fp32_bytes(llama) == pytest.approx((llama / "model.safetensors").stat().st_size, rel=0.1)


def test_weights_that_lie_there_twice_are_counted_once() -> None:
    """Mistral's folders hold them in a format of its own as well."""
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}).encode()
    twice = {"consolidated.safetensors", "1.safetensors", "2.safetensors"}
    found = model_files.weight_files({*twice, "model.safetensors.index.json"}, read=lambda _: index)
    assert found == ["1.safetensors", "2.safetensors"]
    assert set(model_files.weight_files(twice, read=lambda _: b"")) == twice, "loaded by whatever knows them"
    assert model_files.weight_files({*twice, "model.safetensors"}, read=lambda _: b"") == ["model.safetensors"]


@pytest.mark.parametrize(
    ("limit", "statistics", "taken", "unlimited"),
    [
        ("memory.max", "memory.stat", "anon", "max"),
        ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss", "9223372036854771712"),
    ],
    ids=["cgroup v2", "cgroup v1"],
)
def test_memory_is_what_the_container_may_take(
    tmp_path: Path, limit: str, statistics: str, taken: str, unlimited: str
) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert memory.available(groups=tmp_path, machine=machine) == 50 << 10
    (tmp_path / "memory").mkdir()
    (tmp_path / statistics).write_text(f"{taken} 1024\nfile 9999\n")
    for text, expected in ((unlimited, 50 << 10), ("11264", 10 << 10), ("512", 0), (str(1 << 40), 50 << 10)):
        (tmp_path / limit).write_text(text + "\n")
        assert memory.available(groups=tmp_path, machine=machine) == expected


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."),
        RuntimeError("unable to mmap 4096 bytes from file </b/model.safetensors>: Cannot allocate memory (12)"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_what_is_worth_another_attempt_is_no_fault_of_the_files(error: Exception) -> None:
    with pytest.raises(type(error)), model_files.read_by_libraries("files for task Chat"):
        raise error


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]}),
    ],
)
def test_a_tokenizer_over_which_its_library_panics_is_refused_in_words(
    part: str, damaged: dict[str, Any], tmp_path: Path
) -> None:
    """Libraries in Rust raise then what is no Exception."""
    tiny_tokenizer().save_pretrained(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document[part] = damaged if part == "normalizer" else {**damaged, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(StageError) as refused:
        base_model.load_tokenizer(tmp_path)
    assert (refused.value.reason, "tokenizer cannot be loaded" in refused.value.message) == ("UnsupportedModel", True)
