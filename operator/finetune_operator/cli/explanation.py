"""What `finetune explain` answers, whatever the object: what happens, on what evidence, what it waits for, and what
would release it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_operator.cli import words
from finetune_operator.cli.sections import INDENT


@dataclass(frozen=True, kw_only=True)
class Shell:
    """How commands are typed here, so that those in an explanation can be copied."""

    namespace: str
    program: str = "finetune"
    flags: tuple[str, ...] = ()
    """What tells the program where to look."""
    local: bool = False
    kubectl_flags: tuple[str, ...] = ()

    def finetune(self, *arguments: str) -> str:
        """One of our own commands."""
        return " ".join([self.program, shlex.join([*arguments, *self.flags])])

    def kubectl(self, *arguments: str) -> str:
        """A command of kubectl."""
        return shlex.join(["kubectl", *arguments, "-n", self.namespace, *self.kubectl_flags])


@dataclass(frozen=True, kw_only=True)
class Release:
    """A command that a person may type now, and its effect."""

    command: str
    effect: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Sentences without a full stop, each in a line of its own."""

    headline: str = ""
    now: tuple[str, ...]
    samples: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    """Empty: for nothing."""
    by_itself: tuple[str, ...] = ()
    """What follows when nobody does anything."""
    release: tuple[Release, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The answer as it is printed."""
        parts = [
            self.headline,
            _part("Now", self.now),
            _part("Samples", self.samples),
            _part("Waits for", self.waits_for or ("nothing",)),
            _part("By itself", self.by_itself),
            _part("What you can do", [f"{each.command}\n{INDENT * 3}{each.effect}" for each in self.release]),
            _part("Note", self.notes),
        ]
        return "\n\n".join(part for part in parts if part)


def _part(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{heading}:", *(f"{INDENT}{line}" for line in lines)]) if lines else ""


def at_this_rate(*, missing: int, seen: int, seconds: float) -> str:
    """How long `missing` more samples take if they come as the `seen` ones did; "" where that is not known."""
    if missing <= 0 or seen <= 0 or seconds <= 0:
        return ""
    rate = seen / seconds
    pace = f"{rate:.3g} a second" if rate >= 1 else f"{60 * rate:.3g} a minute"
    return f"at the rate so far ({pace}) about {words.seconds(missing / rate)} more"
