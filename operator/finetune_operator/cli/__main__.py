"""The entry point of `finetune` and `kubectl-finetune`."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from finetune_api import streams
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.parser import build_parser
from finetune_operator.ports import InvalidError, NotFoundError, UnavailableError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    streams.never_fail()
    program = Path(sys.argv[0]).name
    parser = build_parser(program="kubectl finetune" if program.startswith("kubectl-") else "finetune")
    options = parser.parse_args(arguments)
    # A command's code is imported when it is called: `--help` must not wait for what it does not need.
    module, _, function = options.command.partition(":")
    command = getattr(import_module(f"finetune_operator.cli.{module}"), function)
    try:
        outcome = command(options)
        return int(asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.status)
    except (InvalidError, NotFoundError, UnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return int(ExitStatus.BAD_INPUT if isinstance(error, InvalidError) else ExitStatus.FAILED)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        # The reader (`head`, a pager) has had enough. Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
