"""A training run small enough for tests: a random two-layer Llama with a tokenizer made for its chats, run as its
container would run it (`python -m finetune_trainer`), or in a fork (tests/forking.py) where it only has to end well.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune_api.shared_fields import Task

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = 48
BATCH = 8
_VOCABULARY = 49152
"""Of the model that is trained: as large as a real one, so that steps take long enough to be interrupted."""
LORA: dict[str, Any] = {
    "type": "LoRA",
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": ["all-linear"]},
}
METHODS: dict[str, dict[str, Any]] = {
    "QLoRA-4": LORA | {"type": "QLoRA", "quantisation": {"bits": 4}},
    "QLoRA-8": LORA | {"type": "QLoRA", "quantisation": {"bits": 8}},
    "DoRA": LORA | {"type": "DoRA"},
    "IA3": {"type": "IA3"},
}
"""Those beside LoRA and Full."""


def small_model(
    *, to: Path, tokenizer_folder: Path | None = None, vocabulary: int | None = None, context: int = 256
) -> Path:
    """A random Llama. A real tokenizer, of tens of thousands of tokens, takes longer to load than all else here."""
    tokenizer = _tokenizer() if tokenizer_folder is None else AutoTokenizer.from_pretrained(str(tokenizer_folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(str(to))
    tokenizer.save_pretrained(str(to))
    return to


def _tokenizer() -> Any:
    texts = [message["content"] for number in range(EXAMPLES) for message in chat(number)["messages"]]
    return tiny_tokenizer(special=("<|pad|>", "<|im_start|>", "<|im_end|>"), pad="<|pad|>", texts=texts)


@dataclass(kw_only=True)
class SmallRun:
    """One run's folder, and what to run in it."""

    root: Path
    base: Path
    nodes: int = 1
    processes: int = 1
    task: Task = "Chat"
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        row = pair if self.task == "Seq2Seq" else chat
        self.data.write_text("".join(json.dumps(row(number)) + "\n" for number in range(EXAMPLES)))

    @property
    def data(self) -> Path:
        return self.root / "chats.jsonl"

    @property
    def folder(self) -> Path:
        return self.root / "run"

    def stage(
        self, order: dict[str, Any], name: str, *, python: str = sys.executable, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start it; in the real interpreter, as one that is sent signals, or whose threads are counted, has to be."""
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(order))
        (self.root / f"{name}.term").unlink(missing_ok=True)
        variables = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "FINETUNE_RUN_FILE": str(path),
            "FINETUNE_TERMINATION_LOG": str(self.root / f"{name}.term"),
            "FINETUNE_PROGRESS_FILE": str(self.root / f"{name}.progress"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        log = (self.root / f"{name}.log").open("ab")
        return subprocess.Popen([python, "-m", "finetune_trainer"], env=variables, stdout=log, stderr=subprocess.STDOUT)

    def message(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.root / f"{name}.term").read_text())
        return loaded

    def reported(self, name: str) -> dict[str, float]:
        """The metrics of its last progress report."""
        status = json.loads((self.root / f"{name}.progress").read_text())["trainerStatus"]
        return {metric["name"]: float(metric["value"]) for metric in status["metrics"]}

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def prepare_order(self) -> dict[str, Any]:
        return {
            "stage": "Prepare",
            **self._common(),
            "sources": [{"name": "chats", "uri": f"file://{self.data}", "format": "Auto", "weight": 1.0}],
            "maxBadRows": 0,
            "maxTruncatedFraction": 0.5,
            "maxLength": 64,
            "split": {
                "fractions": {"train": 0.7, "validation": 0.15, "test": 0.15, "strategy": "GroupHash"},
                "salt": "tests",
            },
        }

    def prepare(self, **changes: Any) -> dict[str, Any]:
        process = self.stage(self.prepare_order() | changes, "prepare", python=forked_python())
        assert process.wait(timeout=HANGS_S) == 0, self.log("prepare")
        return self.message("prepare")

    def train(self, order: dict[str, Any]) -> dict[str, Any]:
        """Train to the end; the result."""
        process = self.stage(order, "train", python=forked_python())
        assert process.wait(timeout=HANGS_S) == 0, self.log("train")
        return self.message("train")

    def order(self, prepared: dict[str, Any], **changes: Any) -> dict[str, Any]:
        optimisation = {
            "epochs": None,
            "maxSteps": 14,
            "learningRate": 0.01,
            "scheduler": "Cosine",
            "warmupFraction": 0.1,
            "weightDecay": 0.01,
            "maxGradNorm": 1.0,
            "globalBatchSize": BATCH,
            "microBatchSize": 2,
            "maxLength": 64,
            "packing": False,
            "precision": "Auto",
            "seed": 3,
            "earlyStoppingPatience": None,
        } | self.overrides
        return {
            "stage": "Train",
            **self._common(),
            "base": prepared["base"],
            "dataDigest": prepared["dataDigest"],
            "method": {"type": "Full"},
            "optimisation": optimisation,
            "checkpoint": {"everySteps": 4, "keep": 2, "resume": "Latest"},
            "nodes": self.nodes,
            "processesPerNode": self.processes,
            "strategy": "DDP",
        } | changes

    def _common(self) -> dict[str, Any]:
        cache = self.root.parent / "cache"
        return {
            "identity": {"namespace": "tests", "job": "small", "uid": "uid", "attempt": 1},
            "locations": {
                "run": f"file://{self.folder}",
                "cache": f"file://{cache}",
                "allowedRoots": [f"file://{self.root.parent}"],
                "mounts": {},
            },
            "model": {"uri": f"file://{self.base}", "task": self.task},
        }

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints."""
        folders = self.folder.glob("checkpoints/step-*/COMPLETE")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in folders)

    def weights(self) -> str:
        """sha256 over the saved model's tensors."""
        tensors = load_file(next(iter((self.folder / "model").glob("*model.safetensors"))))
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SmallRuns:
    """Runs of one small model on data prepared once."""

    base: Path
    prepared: dict[str, Any]
    """What the Prepare stage said."""

    @classmethod
    def make(cls, folder: Path) -> SmallRuns:
        """Make the model, and prepare the data."""
        base = small_model(to=folder / "base", vocabulary=_VOCABULARY)
        return cls(base=base, prepared=SmallRun(root=folder / "prepared", base=base).prepare())

    @property
    def prepared_run(self) -> SmallRun:
        """The run whose Prepare it was."""
        return SmallRun(root=self.base.parent / "prepared", base=self.base)

    def new(self, name: str, **settings: Any) -> SmallRun:
        """A run with a folder of its own."""
        run = SmallRun(root=self.base.parent / name, base=self.base, **settings)
        run.folder.mkdir(exist_ok=True)
        if not (run.folder / "data").exists():
            (run.folder / "data").symlink_to(self.base.parent / "prepared" / "run" / "data")
        return run


def chat(number: int) -> dict[str, Any]:
    """One example."""
    words = [
        "amber",
        "basil",
        "cedar",
        "delta",
        "ember",
        "fjord",
        "grove",
        "haven",
        "indigo",
        "jade",
        "karma",
        "lotus",
        "maple",
        "nickel",
        "opal",
        "pearl",
    ]
    first, second, third = words[number % 16], words[number * 7 % 16], words[number * 3 // 16 % 16]
    question = f"{first} {second} number {number * 37} {third}: which colour comes {number} times after it?"
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{first} {third}"}]}


def pair(number: int) -> dict[str, Any]:
    """The same as prompt and completion."""
    question, answer = (message["content"] for message in chat(number)["messages"])
    return {"prompt": question, "completion": answer}


def wait_for(condition: Callable[[], object], *, what: str, seconds: float = HANGS_S) -> None:
    """Poll until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Pids of the training processes below a launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
            if b"finetune_trainer.training.worker" in command and b"torch.distributed.run" not in command:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if _descends(pid, process.pid)]


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def kill_worker(process: subprocess.Popen[bytes], number: int = signal.SIGKILL, *, which: int = 0) -> None:
    """Send a signal to one training process."""
    os.kill(sorted(workers_of(process))[which], number)
