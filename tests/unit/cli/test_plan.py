"""`finetune plan`: the arithmetic on a laptop, without a cluster, without torch, from the base model's small files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conformance.objects import LLAMA_8B, job_manifest
from tests.patience import HANGS_S

from finetune_operator.cli.__main__ import main

A100 = {"podTemplate": {"spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}}}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def base(folder: Path) -> Path:
    """A model's configuration and the headers of its two files, without a weight."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    parts = {
        "a.safetensors": {"embed_tokens.weight": [128256, 4096]},
        "b.safetensors": {"layers.0.q.weight": [4096, 4096]},
    }
    for name, tensors in parts.items():
        header = json.dumps({tensor: {"shape": shape} for tensor, shape in tensors.items()}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header)
    found = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": found}))
    (folder / "consolidated.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    return folder


def job(uri: str, **changes: Any) -> str:
    spec = {"model": {"uri": uri, "revision": None}, "training": {"maxLength": 1024, "microBatchSize": 1}}
    Path("job.yaml").write_text(yaml.safe_dump(job_manifest(**spec, **changes)))
    return "job.yaml"


def planned(capsys: pytest.CaptureFixture[str], uri: str, **changes: Any) -> tuple[int, str]:
    status = main(["plan", "-f", job(uri, **changes)])
    return status, capsys.readouterr().out


def test_the_plan_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    base(Path("base"))
    gpus = {"gpusPerNode": 4, "gpuMemory": "80Gi", **A100}
    status, said = planned(capsys, "file://./base", compute=gpus, method={"type": "Full", "lora": None})
    lines = said.splitlines()
    assert status == 0
    assert "Batch:     16 examples a step; in each process 4 x 1 example of at most 1024 tokens each" in lines
    assert "Steps:     2 epochs of the training split, which Prepare counts" in lines
    assert "Base:      542.1 million parameters (counted in its files), 542.1 million are trained;" in said
    assert "Tokens/s:  1,239,777 a GPU at 40% of its peak, which would be 3,099,442" in lines, "312e12 / (6 x 16.8e6)"
    header, *rows = lines[lines.index("") + 1 : lines.index("", lines.index("") + 1)]
    assert header.split()[:3] == ["GiB", "WEIGHTS", "GRADIENTS"]
    assert [row.split("   ")[0].strip() for row in rows][:3] == ["DDP", "DDP with activation checkpointing", "FSDP2"]
    assert len(rows) == 16
    assert all(row.endswith("yes") for row in rows)
    assert lines[-1].startswith("Auto chooses DDP: DDP needs ")


def test_what_prepare_would_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    base(Path("base"))
    status, said = planned(capsys, "file://./base", compute={"gpusPerNode": 1, "gpuMemory": "2Gi"})
    assert status == 2
    assert (
        "Prepare would refuse it: compute.gpuMemory: 2.0 GiB: FSDP2 with offload and activation checkpointing needs "
        in said
    )
    status, said = planned(capsys, "file://./base", compute={"gpusPerNode": 1, "gpuMemory": "2Gi", "strategy": "DDP"})
    assert status == 0, "who names a strategy may try it"
    why = "compute.gpuMemory: 2.0 GiB: DDP with activation checkpointing needs "
    assert f"The job names DDP, which is tried although it does not fit: {why}" in said


@pytest.mark.parametrize(
    ("config", "task", "said"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "Chat", "Seq2Seq"),
        ({"architectures": ["LlamaForCausalLM"]}, "Seq2Seq", "Chat or CausalLM"),
        ({"architectures": ["BertForMaskedLM"]}, "CausalLM", "SequenceClassification"),
        ({"architectures": ["BertForMaskedLM"]}, "SequenceClassification", None),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "Seq2Seq", None),
    ],
)
def test_a_base_that_cannot_do_the_task(
    config: dict[str, Any], task: str, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base(Path("base").resolve())
    (folder / "config.json").write_text(json.dumps(LLAMA_8B | config))
    file = Path(job(f"file://{folder}"))
    manifest = yaml.safe_load(file.read_text())
    manifest["spec"]["model"]["task"] = task
    for source in manifest["spec"]["data"]["sources"]:
        source.pop("format", None)
    manifest["spec"].pop("evaluation", None)
    file.write_text(yaml.safe_dump(manifest))
    status = main(["plan", "-f", str(file)])
    out = capsys.readouterr().out
    assert status == (0 if said is None else 2), out
    assert said is None or f"model.task: {task}, but {config['architectures'][0]}" in out
    assert f"use {said}" in out or f"use model.task: {said}" in out or said is None


def test_what_cannot_be_is_no_way(capsys: pytest.CaptureFixture[str]) -> None:
    base(Path("base"))
    little = {"gpusPerNode": 8, "gpuMemory": "80Gi", "resources": {"limits": {"memory": "4Gi"}}}
    said = planned(capsys, "file://./base", compute=little)[1]
    fits = {
        line.split("   ")[0].strip(): line.split()[-1] for line in said.splitlines() if line.endswith(("yes", "no"))
    }
    assert (fits["FSDP2"], fits["DDP"]) == ("yes", "no"), "the machine's own memory has no room for it eight times"
    quantised = {"type": "QLoRA", "lora": {"rank": 4}, "quantisation": {"bits": 8}}
    said = planned(capsys, "file://./base", compute=little, method=quantised)[1]
    rows = said.split("\n\n")[1].splitlines()[1:]
    assert {row.split()[0] for row in rows} == {"DDP"}, "the others are refused"


def test_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    base(Path("base"))
    (Path("base") / "a.safetensors").unlink()
    limit = {"processesPerNode": 2, "resources": {"limits": {"memory": "4Gi"}}}
    status, said = planned(capsys, "file://./base", compute=limit)
    assert status == 2
    assert "compute.resources.limits.memory: 4.0 GiB for 2 processes: DDP with activation checkpointing needs " in said
    assert "Precision: FP32" in said
    assert "8,030.0 million parameters (estimated from its config.json: its weights could not be read)" in said


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    base(tmp_path / "hub" / "acme" / "model" / "resolve" / "main")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.usefixtures("hub")
def test_a_base_of_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    assert "542.1 million parameters (counted" in planned(capsys, "hf://acme/model")[1]
    status, said = planned(capsys, "hf://acme/other")
    assert (status, "Base:     hf://acme/other: HTTP Error 404" in said) == (0, True)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://acme/model", "s3://acme/model cannot be read from here; Prepare does, and chooses"),
        ("file:///nowhere/model.gguf", "/nowhere/model.gguf has no config.json"),
    ],
)
def test_what_cannot_be_seen_is_said(uri: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = planned(capsys, uri)
    assert status == 0
    assert why in said
    assert "WEIGHTS" not in said


def test_it_loads_no_torch() -> None:
    base(Path("base"))
    code = (
        "import sys; from finetune_operator.cli.__main__ import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", code, "plan", "-f", job("file://./base")]
    loaded = subprocess.check_output(command, text=True, timeout=HANGS_S).splitlines()[-1].split()
    assert not {"torch", "transformers", "numpy", "kopf"} & set(loaded)
