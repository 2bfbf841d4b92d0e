"""`finetune completion`: scripts for shells, made from the tree of commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from finetune_api.crd import RESOURCES
from finetune_operator.cli.errors import ExitStatus
from finetune_operator.cli.parser import build_parser

_BASH = """\
# finetune completion for bash: source <(finetune completion bash)
_finetune() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    case "$previous" in
        -f|--filename|--kubeconfig) COMPREPLY=($(compgen -f -- "$current")); return ;;
        --home) COMPREPLY=($(compgen -d -- "$current")); return ;;
@CHOICES@
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$current"))
        return
    fi
    case "$command" in
@OPTIONS@
    esac
}
complete -o default -F _finetune finetune kubectl-finetune
"""
_ZSH = """\
#compdef finetune kubectl-finetune
# finetune completion for zsh: source <(finetune completion zsh)
autoload -U +X bashcompinit && bashcompinit
"""


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    print(script(dialect=options.shell), end="")
    return ExitStatus.DONE


def script(*, dialect: str) -> str:
    """The completion script for `bash` or `zsh`."""
    commands = subcommands(build_parser())
    bash = _BASH.replace("@COMMANDS@", " ".join(commands))
    bash = bash.replace("@CHOICES@", "\n".join(_choices(commands)))
    bash = bash.replace("@OPTIONS@", "\n".join(_options(commands)))
    return bash if dialect == "bash" else _ZSH + bash


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _choices(commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    """Values of options that have a fixed set of them."""
    seen: set[str] = set()
    for parser in commands.values():
        for action in parser._actions:
            names = "|".join(action.option_strings)
            if action.option_strings and action.choices and names not in seen:
                seen.add(names)
                values = " ".join(str(choice) for choice in action.choices)
                yield f'        {names}) COMPREPLY=($(compgen -W "{values}" -- "$current")); return ;;'


def _options(commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    """Options and fixed words of each command."""
    kinds = [resource.word for resource in RESOURCES]
    words = {
        "get": " ".join(f"{kind}s" for kind in kinds),
        "describe": " ".join(kinds),
        "explain": "job endpoint",
        "watch": "job endpoint",
        "retry": "job",
        "completion": "bash zsh",
    }
    for name, parser in commands.items():
        options = [option for action in parser._actions for option in action.option_strings]
        offered = " ".join([*filter(None, [words.get(name, "")]), *options])
        yield f'        {name}) COMPREPLY=($(compgen -W "{offered}" -- "$current")) ;;'
