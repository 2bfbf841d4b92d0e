"""The entry point of `finetune` and `kubectl-finetune`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from finetune_api import streams
from finetune_api.base import first_problem
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.parser import build_parser
from finetune_operator.core.ports import InvalidError, NotFoundError, UnavailableError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    streams.never_fail()
    status: int = ExitStatus.DONE
    try:
        try:
            status = _ended(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader (`head`, a pager) has had enough
        streams.let_go(sys.stdout)
    except OSError as error:
        streams.let_go(sys.stdout)
        status = _failed(f"{error.filename or 'standard output'}: {error.strerror or error}", ExitStatus.FAILED)
    return int(status)


def _ended(arguments: Sequence[str] | None) -> int:
    """Run one command and say why it failed. What the files of a command cannot take is an OSError."""
    program = Path(sys.argv[0]).name
    parser = build_parser(program="kubectl finetune" if program.startswith("kubectl-") else "finetune")
    options = parser.parse_args(arguments)
    # A command's code is imported when it is called: `--help` must not wait for what it does not need.
    module, _, function = options.command.partition(":")
    command = getattr(import_module(module), function)
    try:
        outcome = command(options)
        return int(asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome)
    except CommandError as error:
        return _failed(str(error), error.status)
    except InvalidError as error:
        return _failed(str(error), ExitStatus.BAD_INPUT)
    except ValidationError as error:  # an object as it is stored: what a person writes is looked at before
        problem = first_problem(error)
        why = f"a {error.title} here cannot be read, as if another version of finetune had written it: {problem}"
        return _failed(f"{why}; use that version, or write the object again", ExitStatus.FAILED)
    except (NotFoundError, UnavailableError) as error:
        return _failed(str(error), ExitStatus.FAILED)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED


def _failed(why: str, status: ExitStatus) -> ExitStatus:
    streams.tell(f"error: {why}", error=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
