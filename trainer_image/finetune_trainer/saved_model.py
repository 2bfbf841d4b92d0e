"""The trained model as an artifact: saved, verified, loaded again by a process that knows nothing but the files.

model/   LoRA: adapter_model.safetensors, adapter_config.json. Full: model.safetensors, config.json.
         Both: the tokenizer, held-out prompts (probes.jsonl), COMPLETE.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from finetune_api.results import ExitCode
from finetune_api.shared_fields import Artifact, ResolvedModel, Task
from finetune_trainer import base_model
from finetune_trainer.base_model import DType
from finetune_trainer.errors import StageError, bad_configuration, not_found
from finetune_trainer.storage import Storage

log = logging.getLogger(__name__)
Format = Literal["Adapter", "Full", "Merged"]
_RELOAD_SECONDS = 600
_TOLERANCE = 1e-3
"""How far the logits of the loaded model may be from those before saving, as a share of their largest magnitude."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the model answered before it was saved."""

    input_ids: Sequence[int]
    logits: torch.Tensor
    """Shape (classes,) or (vocabulary,): of the last position."""


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
    verify_artifact(artifact, at=artifact.uri, storage=storage)
    with storage.local_copy(artifact.uri) as folder:
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
    complete = storage.read_complete(at)
    if complete is None:
        raise not_found(f"{artifact.uri} is gone or damaged", reason="ArtifactTorn")
    if complete.digest != artifact.digest:
        raise bad_configuration(
            "ArtifactChanged",
            f"{artifact.uri} is not the model that was recorded ({complete.digest} instead of {artifact.digest})",
        )


def load_folder(
    folder: Path, *, base: Path | None, format: Format, task: Task, labels: Sequence[str] | None, dtype: DType
) -> Any:
    """A saved model from a local folder, on the base model's folder where it is an adapter."""
    if format != "Adapter":
        return base_model.load_model(folder, task=task, dtype=dtype, labels=labels)
    from peft import PeftModel

    if base is None:
        raise bad_configuration("BadRunFile", "an adapter cannot be loaded without its base model")
    torch.manual_seed(0)  # a classifier's head is part of the adapter; the base's own is replaced by it
    plain = base_model.load_model(base, task=task, dtype=dtype, labels=labels)
    return PeftModel.from_pretrained(plain, str(folder), local_files_only=True).eval()


def save(
    model: Any,
    *,
    tokenizer: Any,
    to: str,
    storage: Storage,
    base_folder: Path,
    task: Task,
    labels: Sequence[str] | None,
    probe: Probe,
    input_digest: str,
    extra: dict[str, Any],
    companions: Mapping[str, str] = MappingProxyType({}),
) -> Artifact:
    """Save a trained model, verify it, and only then publish it. `companions`: more files, name -> text.

    Raises StageError: 70 ModelNotVerified where something is missing, not finite, or loads as another model.
    """
    format: Format = "Adapter" if hasattr(model, "peft_config") else "Full"
    with storage.staging_folder(to) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card names paths of this container
        for name, text in companions.items():
            (folder / name).write_text(text, encoding="utf-8")
        check_tensors(model, folder)
        _load_again(folder, base_folder=base_folder, format=format, task=task, labels=labels, probe=probe)
        complete = storage.publish(folder, to=to, input_digest=input_digest, extra=extra)
    log.info("model saved, verified and loaded again: %s (%d bytes)", to, complete.size_bytes)
    return Artifact(uri=to, digest=complete.digest, format=format, size_bytes=complete.size_bytes)


def check_tensors(model: Any, folder: Path) -> None:
    """Every trained tensor is in the files, in its shape and finite."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    sizes = sorted(tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)
    saved = sorted(tuple(tensor.shape) for tensor in tensors.values())
    for size in sizes:
        if size not in saved:
            raise _not_verified(f"a trained tensor of shape {size} is not in the saved files")
        saved.remove(size)
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise _not_verified(f"the saved tensor {name} is empty or not finite")


def probe(model: Any, *, input_ids: Sequence[int]) -> Probe:
    """What the model answers to one example, on the CPU in fp32 terms."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(input_ids)], device=device)).logits
    last = logits[0, -1] if logits.dim() == 3 else logits[0]
    return Probe(input_ids=tuple(input_ids), logits=last.float().cpu())


def _load_again(
    folder: Path, *, base_folder: Path, format: Format, task: Task, labels: Sequence[str] | None, probe: Probe
) -> None:
    with TemporaryDirectory(prefix="finetune-verify-") as scratch:
        order, answer = Path(scratch) / "order.json", Path(scratch) / "answer.safetensors"
        order.write_text(
            json.dumps(
                {
                    "folder": str(folder),
                    "base": str(base_folder),
                    "format": format,
                    "task": task,
                    "labels": None if labels is None else list(labels),
                    "input_ids": list(probe.input_ids),
                    "answer": str(answer),
                }
            )
        )
        command = [sys.executable, "-m", "finetune_trainer.saved_model", str(order)]
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_RELOAD_SECONDS, check=False
        )
        if result.returncode != 0:
            raise _not_verified(f"a fresh process could not load it: {result.stderr.strip()[-500:]}")
        loaded = load_file(answer)["logits"]
    scale = float(probe.logits.abs().max().clamp(min=1.0))
    difference = float((loaded - probe.logits).abs().max())
    # bf16 training on a GPU against fp32 on the CPU differs by rounding alone; another model differs by its scale.
    tolerance = _TOLERANCE if probe.logits.dtype == torch.float32 and not torch.cuda.is_available() else 0.05
    if not difference <= tolerance * scale:
        raise _not_verified(f"loaded again it answers differently (logits differ by {difference:.4g} of {scale:.4g})")


def _not_verified(message: str) -> StageError:
    return StageError(
        reason="ModelNotVerified", message=f"the saved model: {message}", exit_code=ExitCode.INTERNAL_ERROR
    )


def _main(order_path: str) -> None:
    """The fresh process: load what an order names, answer the probe, write the logits."""
    order = json.loads(Path(order_path).read_text())
    model = load_folder(
        Path(order["folder"]),
        base=Path(order["base"]),
        format=order["format"],
        task=order["task"],
        labels=order["labels"],
        dtype="float32",
    )
    base_model.load_tokenizer(Path(order["folder"]))
    save_file({"logits": probe(model, input_ids=order["input_ids"]).logits}, order["answer"])


if __name__ == "__main__":
    _main(sys.argv[1])
