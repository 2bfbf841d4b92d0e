"""The trained model as an artifact: saved, then loaded again by a process that knows nothing but the files, where every
trained tensor must be the same bit for bit.

model/   Full: model.safetensors, config.json. Others: adapter_model.safetensors, adapter_config.json.
         Both: the tokenizer, held-out prompts (probes.jsonl), COMPLETE.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal

import torch

from finetune_api.results import ExitCode
from finetune_api.shared_fields import Artifact, ResolvedModel, Task
from finetune_trainer.models import base_model
from finetune_trainer.models.base_model import DType
from finetune_trainer.models.quantisation import Bits
from finetune_trainer.process.errors import StageError, bad_configuration, not_found
from finetune_trainer.store.complete import Complete
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded

log = logging.getLogger(__name__)
Format = Literal["Adapter", "Full", "Merged"]
_RELOAD_SECONDS = 7200
"""As long as others wait for whoever saves (`gang.FETCHING_TIMEOUT`)."""
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 0.05
"""How far the logits of the loaded model may be from those before saving, as a share of their largest magnitude. bf16
differs from fp32 by rounding, another model by its scale."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a model answers to one example."""

    example: Encoded
    logits: Sequence[float]
    """One for each class, or for each token of the vocabulary at the last position."""
    half: bool = False
    """Computed in bf16."""


@dataclass(frozen=True, kw_only=True)
class SavedFolder:
    """A model's files, and what is known of them."""

    folder: str
    base: str
    """The folder of the base model, which an adapter needs."""
    format: Format
    task: Task
    labels: Sequence[str] | None
    bits: Bits | None = None
    """Of the base while it was trained on."""

    def load(self, *, dtype: DType = "float32") -> Any:
        """The model, as it is evaluated and served."""
        return self._load(dtype=dtype, bits=None)

    def load_as_trained(self) -> Any:
        """The model on a base like the one that it was trained on."""
        return self._load(dtype="float32", bits=self.bits)

    def _load(self, *, dtype: DType, bits: Bits | None) -> Any:
        return load_folder(
            Path(self.folder),
            base=Path(self.base) if self.format == "Adapter" else None,
            format=self.format,
            task=self.task,
            labels=self.labels,
            dtype=dtype,
            bits=bits,
        )


@dataclass(frozen=True, kw_only=True)
class LoadedAgain:
    """What the loaded model holds and answers."""

    tensors: Mapping[str, str]
    """Digests of its parameters, by name; see `digests`."""
    logits: Sequence[float]


def load_artifact(
    artifact: Artifact,
    *,
    base: ResolvedModel,
    task: Task,
    labels: Sequence[str] | None,
    storage: Storage,
    dtype: DType = "float32",
) -> tuple[Any, Any]:
    """The model and its tokenizer, in evaluation mode on the CPU, after its digest was verified.

    Raises StageError: 66 where the artifact is gone or torn, 78 where it is not the one that was recorded.
    """
    with storage.finished_copy(artifact.uri) as copy:
        folder = recorded(artifact, copy)
        if artifact.format != "Adapter":
            model = load_folder(folder, base=None, format=artifact.format, task=task, labels=labels, dtype=dtype)
        else:
            with base_model.local_folder(base, storage=storage) as base_folder:
                model = load_folder(folder, base=base_folder, format="Adapter", task=task, labels=labels, dtype=dtype)
        return model, base_model.load_tokenizer(folder)


def verify_artifact(artifact: Artifact, *, at: str, storage: Storage) -> None:
    """Compare what lies at a URI (the artifact's own, or a copy's) with the record, byte for byte.

    Raises StageError: 66 where it is gone or torn, 78 where it is not the one that was recorded.
    """
    with storage.finished_copy(at) as copy:
        recorded(artifact, copy)


def recorded(artifact: Artifact, copy: tuple[Path, Complete] | None) -> Path:
    """The folder of what `Storage.finished_copy` found, if it is what was recorded. Raises StageError as above."""
    if copy is None:
        raise not_found(f"{artifact.uri} is gone or damaged", reason="ArtifactTorn")
    folder, complete = copy
    if complete.digest != artifact.digest:
        raise bad_configuration(
            "ArtifactChanged",
            f"{artifact.uri} is not the model that was recorded ({complete.digest} instead of {artifact.digest})",
        )
    return folder


def load_folder(
    folder: Path,
    *,
    base: Path | None,
    format: Format,
    task: Task,
    labels: Sequence[str] | None,
    dtype: DType,
    bits: Bits | None = None,
) -> Any:
    """A saved model from a local folder, on the base model's folder where it is an adapter."""
    if format != "Adapter":
        return base_model.load_model(folder, task=task, dtype=dtype, labels=labels)
    from finetune_trainer.models.adapter_library import peft

    if base is None:
        raise bad_configuration("BadRunFile", "an adapter cannot be loaded without its base model")
    torch.manual_seed(0)  # a classifier's head is part of the adapter; the base's own is replaced by it
    loaded = base_model.load_base(base, task=task, dtype=dtype, labels=labels, bits=bits).model
    return peft.PeftModel.from_pretrained(loaded, str(folder), local_files_only=True).eval()


def save(
    model: Any,
    *,
    tokenizer: Any,
    to: str,
    storage: Storage,
    base_folder: Path,
    format: Format,
    task: Task,
    labels: Sequence[str] | None,
    probe: Probe,
    input_digest: str,
    extra: dict[str, Any],
    companions: Mapping[str, str] = MappingProxyType({}),
    state: Mapping[str, torch.Tensor] | None = None,
    bits: Bits | None = None,
) -> Artifact:
    """Save a trained model, verify it, and only then publish it. `companions`: more files, name -> text. `state`: its
    whole state dict, where its own tensors are spread over processes.

    Raises StageError: 70 ModelNotVerified where something is missing, not finite, or loads as another model.
    """
    with storage.staging_folder(to) as folder:
        saved = write(
            model,
            tokenizer=tokenizer,
            folder=folder,
            base_folder=base_folder,
            format=format,
            task=task,
            labels=labels,
            state=state,
            bits=bits,
        )
        for name, text in companions.items():
            (folder / name).write_text(text, encoding="utf-8")
        verify(model, saved=saved, probe=probe, load_again=in_fresh_process, state=state)
        complete = storage.publish(folder, to=to, input_digest=input_digest, extra=extra)
    log.info("model saved, verified and loaded again: %s (%d bytes)", to, complete.size_bytes)
    return Artifact(uri=to, digest=complete.digest, format=saved.format, size_bytes=complete.size_bytes)


def write(
    model: Any,
    *,
    tokenizer: Any,
    folder: Path,
    base_folder: Path,
    format: Format,
    task: Task,
    labels: Sequence[str] | None,
    state: Mapping[str, torch.Tensor] | None = None,
    bits: Bits | None = None,
) -> SavedFolder:
    """Write model and tokenizer into a folder. `format` is how the model's method is saved, `bits` its base's."""
    own = {"save_embedding_layers": False} if format == "Adapter" else {}  # PEFT would ask the hub whether they grew
    model.save_pretrained(str(folder), state_dict=None if state is None else dict(state), **own)
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card names paths of this container
    return SavedFolder(folder=str(folder), base=str(base_folder), format=format, task=task, labels=labels, bits=bits)


def verify(
    model: Any,
    *,
    saved: SavedFolder,
    probe: Probe,
    load_again: Callable[[SavedFolder, Sequence[str], Probe], LoadedAgain],
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """The loaded model holds every trained tensor, and answers the probe as the trained one did.

    Names and values are compared after loading: files may hold tensors under other names and in other shapes, such as
    the experts of a mixture one by one. Raises StageError (70) ModelNotVerified.
    """
    trained = {
        name: parameter if state is None else state[name]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for name, parameter in trained.items():
        if parameter.numel() == 0 or not bool(torch.isfinite(parameter).all()):
            raise not_verified(f"the tensor {name} is empty or not finite")
    loaded = load_again(saved, list(trained), probe)
    for name, digest in digests(trained).items():
        if loaded.tensors.get(name) != digest:
            raise not_verified(f"loaded again, the trained tensor {name} is missing or has other values")
    check_same(probe.logits, loaded.logits, what="loaded again it answers differently", half=probe.half)


def check_same(expected: Sequence[float], found: Sequence[float], *, what: str, half: bool = False) -> None:
    """Compare logits. Raises StageError (70) ModelNotVerified, which begins with `what`."""
    one, other = torch.tensor(expected), torch.tensor(found)
    scale = float(one.abs().max().clamp(min=1.0))
    difference = float((one - other).abs().max())
    tolerance = _TOLERANCE_HALF if half or torch.cuda.is_available() else _TOLERANCE
    if not difference <= tolerance * scale:
        raise not_verified(f"{what} (logits differ by {difference:.4g} of {scale:.4g})")


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 (hex) of their fp32 values."""
    return {
        name: hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().data).hexdigest()
        for name, tensor in tensors.items()
    }


def probe(
    model: Any,
    *,
    example: Encoded,
    task: Task,
    ask: Callable[[Callable[[Any], torch.Tensor]], torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Probe:
    """What the model answers to one example, in fp32 terms. `ask`: through what it is asked, where its weights are
    spread over processes.
    """
    model.eval()
    kind = task_of(task)
    batch = kind.batch([example], pad_id=0).to(torch.device(device))

    def answer(asked: Any) -> torch.Tensor:
        return kind.logits(asked, batch)

    with torch.no_grad():
        logits = answer(model) if ask is None else ask(answer)
    last = logits[0, -1] if logits.dim() == 3 else logits[0]
    half = torch.is_autocast_enabled(torch.device(device).type)
    return Probe(example=example, logits=last.float().tolist(), half=half)


def in_this_process(saved: SavedFolder, names: Sequence[str], asked: Probe) -> LoadedAgain:
    """Load the files as they will be served, and ask the probe, which was answered on the base as trained on."""
    model = saved.load()
    base_model.load_tokenizer(Path(saved.folder))
    found = dict(model.named_parameters())
    held = digests({name: found[name] for name in names if name in found})
    if saved.bits is not None:
        del model, found
        model = saved.load_as_trained()
    return LoadedAgain(tensors=held, logits=probe(model, example=asked.example, task=saved.task).logits)


def in_fresh_process(saved: SavedFolder, names: Sequence[str], asked: Probe) -> LoadedAgain:
    """The same in a process that has nothing of the trained model's."""
    with TemporaryDirectory(prefix="finetune-verify-") as scratch:
        order, answer = Path(scratch) / "order.json", Path(scratch) / "answer.json"
        order.write_text(json.dumps({"saved": asdict(saved), "names": list(names), "example": asdict(asked.example)}))
        command = [sys.executable, "-m", "finetune_trainer.models.saved_model", str(order), str(answer)]
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_RELOAD_SECONDS, check=False
        )
        if result.returncode != 0:
            raise not_verified(f"a fresh process could not load it: {result.stderr.strip()[-500:]}")
        return LoadedAgain(**json.loads(answer.read_text()))


def not_verified(message: str) -> StageError:
    """The files are not the model."""
    return StageError(
        reason="ModelNotVerified", message=f"the saved model: {message}", exit_code=ExitCode.INTERNAL_ERROR
    )


def _main(order_path: str, answer_path: str) -> None:
    """The fresh process."""
    order = json.loads(Path(order_path).read_text())
    asked = Probe(example=Encoded(**order["example"]), logits=())
    found = in_this_process(SavedFolder(**order["saved"]), order["names"], asked)
    Path(answer_path).write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
