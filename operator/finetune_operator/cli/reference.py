"""Write the reference of the commands: `python -m finetune_operator.cli.reference docs/cli.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_operator.cli.completion import subcommands
from finetune_operator.cli.errors import ENDS, ExitStatus
from finetune_operator.cli.parser import build_parser

_INTRODUCTION = """\
<!-- Generated from operator/finetune_operator/cli/parser.py by `make generate`; do not edit. -->
# The command line

One command for a cluster and for a laptop, installed as `finetune` and (for `kubectl finetune`) as `kubectl-finetune`.
[Local mode](local-mode.md) explains what `run` does on this machine.

Where a command looks: at a cluster where kubectl would find one (`KUBECONFIG`, `~/.kube/config`, a pod's service
account) or `--context`/`--kubeconfig` name one; else, and with `--local` or `--home`, at the folder of local mode.
"""


def reference() -> str:
    """The page."""
    sections = [_INTRODUCTION]
    for name, parser in subcommands(build_parser()).items():
        sections.append("\n".join(_command(name, parser)))
    return "\n".join([*sections, *_statuses()])


def _statuses() -> Iterator[str]:
    yield "## Exit status\n\nOf any command:\n\n| status | meaning |\n|---|---|"
    yield from (f"| {status.value} | {status.meaning} |" for status in ExitStatus)
    yield "\nOf these in particular:\n\n| command | status | meaning |\n|---|---|---|"
    for command, ends in ENDS.items():
        yield from (f"| `{command}` | {status.value} | {text} |" for status, text in ends.items())
    yield ""


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    positional = " ".join(_positional(action) for action in parser._actions if not action.option_strings)
    yield f"## finetune {name}\n"
    yield f"{parser.description}\n"
    yield f"```\nfinetune {name} {positional}".rstrip() + " [options]\n```\n"
    yield "| option | meaning |"
    yield "|---|---|"
    for action in parser._actions:
        if "-h" not in action.option_strings:
            yield f"| {_name(action)} | {_meaning(action)} |"
    if parser.epilog:
        heading, _, text = parser.epilog.partition("\n")
        yield f"\n{heading}\n\n```\n{_undented(text)}\n```\n"


def _positional(action: argparse.Action) -> str:
    name = action.metavar or "{" + "|".join(str(choice) for choice in action.choices or ()) + "}"
    return f"[{name} ...]" if action.nargs == "*" else str(name)


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_positional(action)}`"
    options = ", ".join(f"`{option}`" for option in action.option_strings)
    if action.nargs == 0:
        return options
    choices = " \\| ".join(f"`{choice}`" for choice in action.choices or ())
    return f"{options} " + (choices or f"`{action.metavar}`")


def _meaning(action: argparse.Action) -> str:
    return (action.help or "").replace("|", "\\|") + (
        " (required)" if action.option_strings and action.required else ""
    )


def _undented(text: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in text.rstrip("\n").split("\n"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
