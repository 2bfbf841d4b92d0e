"""The commands and their options. docs/cli.md and the shell completions are made from this tree."""

from __future__ import annotations

import argparse

from finetune_operator.local.home import DEFAULT_HOME

OUTPUTS = ("table", "wide", "json", "yaml", "name")
CONSOLE_PORT = 8090
STAGES = ("Prepare", "Train", "Evaluate")


def build_parser(*, program: str = "finetune") -> argparse.ArgumentParser:
    """The whole tree. Each command sets `command` to `module:function` in this package."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train a model and prove it better than the one before: on this machine, or on a cluster.",
        epilog="Exit status: 0 done, 1 failed, 2 bad input, 3 rejected, 4 not ended yet, 130 stopped (docs/cli.md).",
    )
    parser.set_defaults(program=program)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _validate,
        _plan,
        _run,
        _up,
        _get,
        _describe,
        _explain,
        _watch,
        _compare,
        _retry,
        _decisions,
        _logs,
        _report,
        _console,
        _doctor,
        _completion,
    ):
        add(commands)
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for it


def _command(
    commands: _Commands[argparse.ArgumentParser], name: str, function: str, text: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"Examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=f"finetune_operator.cli.{function}")
    return parser


def _validate(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "check manifests as a cluster's apiserver would, without one"
    parser = _command(commands, "validate", "validate:run", text, "  finetune validate -f job.yaml")
    _file_option(parser, several=True)


def _plan(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "say what a FineTuneJob would need of memory, and how its processes would share the model; runs nothing"
    parser = _command(commands, "plan", "plan:run", text, "  finetune plan -f job.yaml")
    _file_option(parser, several=False)
    parser.add_argument("--home", default=DEFAULT_HOME, metavar="DIR", help=f"where pvc:// is ({DEFAULT_HOME})")


def _run(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "run a FineTuneJob on this machine and follow it to its end"
    example = (
        "  finetune run -f job.yaml          start it, or go on with it\n"
        "  finetune run -f job.yaml | cat    plain lines instead of a live view\n\n"
        "Ctrl-C stops after a checkpoint; the same command goes on from there. A second Ctrl-C stops at once.\n"
        "file:// URIs may be relative to the manifest: file://./data.jsonl"
    )
    parser = _command(commands, "run", "run:run", text, example)
    _file_option(parser, several=False)
    _machine_options(parser, of="the job where its manifest has none")


def _up(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "serve ModelEndpoints on this machine, and replace their versions by better ones"
    example = (
        "  finetune up -f endpoint.yaml                 until Ctrl-C; the same command brings it back\n"
        "  finetune run -f job.yaml                     meanwhile, in another terminal: makes the next version\n"
        "  finetune approve NAME --local                what a person has to say\n\n"
        "The first Ctrl-C lets requests under way finish, a second one does not. Jobs save a checkpoint."
    )
    parser = _command(commands, "up", "up:up", text, example)
    _file_option(parser, several=True)
    help_ = "where clients find the endpoint, at 127.0.0.1 (the port of before; at first 8080 or the next free one)"
    parser.add_argument("--port", type=int, metavar="N", help=help_)
    _machine_options(parser, of="endpoints whose manifests have none")


def _get(commands: _Commands[argparse.ArgumentParser]) -> None:
    example = (
        "  finetune get jobs --local\n"
        "  finetune get jobs -A -o wide --context production\n"
        "  finetune get version support-router-7 -o yaml"
    )
    parser = _command(commands, "get", "get:run", "list jobs, versions or endpoints", example)
    help_ = "jobs, versions or endpoints (also kubectl's names: ftj, mv, mep, ...)"
    parser.add_argument("kind", metavar="KIND", help=help_)
    parser.add_argument("names", metavar="NAME", nargs="*", default=[], help="only these")
    parser.add_argument("-o", "--output", choices=OUTPUTS, default="table", help="form of the answer (table)")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    parser.add_argument("-l", "--selector", default="", metavar="LABELS", help="only with these labels: key=value,...")
    _target_options(parser)


def _describe(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "say all about one job, version or endpoint, in plain words"
    example = (
        "  finetune describe job support-router-7\n"
        "  finetune describe version support-router-7 --local\n"
        "  finetune describe endpoint support-router"
    )
    parser = _command(commands, "describe", "describe:run", text, example)
    parser.add_argument("kind", metavar="KIND", help="job, version or endpoint")
    parser.add_argument("name", metavar="NAME", help="its name")
    _target_options(parser)


def _explain(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "say what happens with a job or an endpoint, what it waits for, and what would release it"
    example = "  finetune explain endpoint support-router\n  finetune explain job support-router-7 --local"
    parser = _command(commands, "explain", "explain:run", text, example)
    parser.add_argument("kind", metavar="KIND", help="job or endpoint")
    parser.add_argument("name", metavar="NAME", help="its name")
    _target_options(parser)


def _watch(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "show how a job or an endpoint's rollout goes on, wherever it runs"
    example = (
        "  finetune watch job support-router-7            to its end; the exit status is that of its end\n"
        "  finetune watch endpoint support-router         until Ctrl-C\n"
        "  finetune watch job support-router-7 | cat      plain lines instead of a live view\n\n"
        "Ctrl-C ends the view, and nothing else."
    )
    parser = _command(commands, "watch", "watch:run", text, example)
    parser.add_argument("kind", metavar="KIND", help="job or endpoint")
    parser.add_argument("name", metavar="NAME", help="its name")
    _plain_option(parser)
    _target_options(parser)


def _compare(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "show two versions side by side: settings that differ, evaluation, what serves"
    example = "  finetune compare support-router-6 support-router-7\n  finetune compare support-router-6 base-2 -o json"
    parser = _command(commands, "compare", "compare:run", text, example)
    parser.add_argument("first", metavar="VERSION", help="a version's name")
    parser.add_argument("second", metavar="OTHER", help="the name of the one beside it")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form of the answer (table)")
    _target_options(parser)


def _retry(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "let a job that failed go on where it failed, once what was to blame is mended"
    parser = _command(commands, "retry", "retry:run", text, "  finetune retry job support-router-7")
    parser.add_argument("kind", metavar="KIND", help="job")
    parser.add_argument("name", metavar="NAME", help="its name")
    _target_options(parser)


_DECISIONS = {
    "approve": ("let the version that an endpoint tries go on, and be promoted", "the candidate"),
    "reject": ("give up the version that an endpoint tries", "the candidate"),
    "rollback": ("leave the version that an endpoint tries, or else its stable one", "the candidate, or else stable"),
    "pause": ("keep an endpoint's rollout where it is; a regression is still acted on", ""),
    "resume": ("let an endpoint's rollout go on", ""),
}
"""What a person may ask of an endpoint, and which version is meant, where it is about one."""


def _decisions(commands: _Commands[argparse.ArgumentParser]) -> None:
    for verb, (text, meant) in _DECISIONS.items():
        more = f"\n  finetune {verb} support-router --version support-router-7 --wait" if meant else ""
        parser = _command(commands, verb, "act:run", text, f"  finetune {verb} support-router{more}")
        parser.set_defaults(verb=verb)
        parser.add_argument("name", metavar="ENDPOINT", help="the endpoint's name")
        if meant:
            help_ = f"only if this version is the one under way ({meant})"
            parser.add_argument("--version", metavar="NAME", help=help_)
        parser.add_argument("--wait", action="store_true", help="follow until the endpoint is in the state asked for")
        help_ = "with --wait: give up following after this many seconds (never)"
        parser.add_argument("--timeout", type=float, metavar="SECONDS", help=help_)
        _target_options(parser)


def _logs(commands: _Commands[argparse.ArgumentParser]) -> None:
    example = "  finetune logs support-router-7 -f\n  finetune logs support-router-7 --stage Train --index 1"
    parser = _command(commands, "logs", "logs:run", "print what a job's containers said", example)
    parser.add_argument("name", metavar="JOB", help="the job's name")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument("--stage", choices=STAGES, help="this stage (the newest)")
    parser.add_argument("--attempt", type=int, metavar="N", help="this attempt of the stage (the newest)")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="of several pods, the one with this rank (0)")
    _target_options(parser)


def _report(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "print how a job's model compares, and where its HTML report is"
    parser = _command(commands, "report", "report:run", text, "  finetune report support-router-7 --local --open")
    parser.add_argument("name", metavar="JOB", help="the job's name")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")
    _target_options(parser)


def _console(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "show jobs, versions and endpoints as web pages that renew themselves"
    example = (
        "  finetune console --local                   of this folder; read-only\n"
        "  finetune console --allow-actions           of the cluster, with kubectl's credentials; also approves\n"
        "  finetune console --apiserver https://...   each user signs in with a bearer token (docs/console.md)"
    )
    parser = _command(commands, "console", "", text, example)
    parser.set_defaults(command="finetune_operator.console.command:run")
    parser.add_argument("--allow-actions", action="store_true", help="let people approve, reject, roll back and pause")
    parser.add_argument("--port", type=int, default=CONSOLE_PORT, metavar="N", help=f"where ({CONSOLE_PORT}; 0: any)")
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="ADDRESS", help="at which address (127.0.0.1); empty: at all"
    )
    help_ = "another name under which browsers reach it, as of an Ingress; may be repeated"
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help=help_)
    help_ = "an apiserver that users bring tokens for; the console then has no rights of its own"
    parser.add_argument("--apiserver", metavar="URL", help=help_)
    parser.add_argument(
        "--ca-file", metavar="FILE", help="with --apiserver: its authority's certificate (the system's)"
    )
    _target_options(parser)


def _doctor(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "check that this machine, or the cluster, can run jobs"
    _target_options(_command(commands, "doctor", "doctor:run", text, "  finetune doctor --local\n  finetune doctor"))


def _completion(commands: _Commands[argparse.ArgumentParser]) -> None:
    example = "  source <(finetune completion bash)\n  finetune completion zsh > ~/.zfunc/_finetune"
    parser = _command(commands, "completion", "completion:run", "print a completion script for a shell", example)
    parser.add_argument("shell", choices=("bash", "zsh"), help="which shell")


def _machine_options(parser: argparse.ArgumentParser, *, of: str) -> None:
    parser.add_argument("-n", "--namespace", default="default", metavar="NAME", help=f"namespace of {of} (default)")
    parser.add_argument("--home", default=DEFAULT_HOME, metavar="DIR", help=f"folder of local mode ({DEFAULT_HOME})")
    _plain_option(parser)


def _plain_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="plain lines, also in a terminal")


def _file_option(parser: argparse.ArgumentParser, *, several: bool) -> None:
    help_ = "manifest, YAML or JSON; - reads standard input" + ("; a folder: all in it" if several else "")
    action = "append" if several else "store"
    parser.add_argument("-f", "--filename", action=action, required=True, metavar="FILE", help=help_)


def _target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "where", f"a cluster where a kubeconfig names one, else the folder {DEFAULT_HOME} of local mode"
    )
    group.add_argument("--local", action="store_true", help="local mode")
    group.add_argument("--home", metavar="DIR", help=f"folder of local mode ({DEFAULT_HOME}); implies --local")
    group.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig (kubectl's own rules)")
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig (the current one)")
    group.add_argument("-n", "--namespace", metavar="NAME", help="namespace (the context's, else default)")
